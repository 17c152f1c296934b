# SPDX-License-Identifier: BSD-3-Clause
"""Do the pages hold? Every block of Python and every command runs as printed, every link and every name leads somewhere.

- The Python blocks of a page run in order, in one namespace and in a temporary folder. A ``text`` block after one is what it prints.
- A Python block that begins with a file's name in a comment is saved under this name instead.
- A command of `RUNS` runs in the same folder. Of any other, what it names is looked up: targets, options, files.
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import linreg_ext
from linreg_ext import cli

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tests/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = r"`((?:make|pip|python|torchrun|source|\.venv/bin/python|[A-Z_]+=[^\s`]+) [^`]+)`"
FILE = re.compile(r"# (\S+\.py)\n")
TABLES = {"houses.csv": "price,rooms,area,age\n", "new.csv": "area,rooms,age\n"}
RUNS = ("linreg_ext", "linreg_ext.examples", "torchrun")


def blocks(page):
    """(line, language, text) of each fenced block."""
    text = page.read_text()
    return [(text.count("\n", 0, found.start()) + 1, found[1], found[2]) for found in FENCE.finditer(text)]


def printed_commands(page):
    """(line, command, whether it stands in a block) of each command of a page, also of those within its sentences."""
    for line, language, block in blocks(page):
        if language == "sh":
            for i, command in enumerate(block.replace("\\\n", "").splitlines(), 1):
                if command and not command.startswith("#"):
                    yield line + i, command, True
    prose = FENCE.sub(lambda found: "\n" * found[0].count("\n"), page.read_text())
    for found in re.finditer(COMMAND, prose):
        yield prose.count("\n", 0, found.start()) + 1, found[1], False


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with small tables."""
    rows = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)).tolist()
    for name, header in TABLES.items():
        lines = [",".join(f"{value:.3f}" for value in row[: header.count(",") + 1]) for row in rows]
        (tmp_path / name).write_text(header + "\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@EACH_PAGE
@pytest.mark.filterwarnings("ignore:linreg_ext. (eager|gradients)")  # which the guide says
def test_python_blocks_print_what_the_page_says(page, folder):
    if page.name == "many.md":
        pytest.importorskip("pandas")
        pytest.importorskip("matplotlib")
    namespace = {"__name__": "__main__"}
    for line, language, text in blocks(page):
        if language == "python" and not FILE.match(text):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * line + text, str(page), "exec"), namespace)  # tracebacks have the page's lines
            assert out.getvalue() == output_after(page, line), f"{page.name}:{line} prints\n{out.getvalue()}"


def output_after(page, line):
    """The text block that follows the block at a line, if nothing stands between them."""
    rest = page.read_text().split("\n", line - 1)[-1]
    output = FENCE.match(rest, FENCE.match(rest).end() + 2)
    return output[2] if output and output[1] == "text" else ""


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, marks=[pytest.mark.extended] * (page.name == "several_processes.md"), id=str(page.relative_to(ROOT))
        )
        for page in PAGES
    ],
)
def test_commands_run_or_name_what_exists(page, folder):
    for _, language, text in blocks(page):
        if language == "python" and (name := FILE.match(text)):
            (folder / name[1]).write_text(text)
    for line, command, runs in printed_commands(page):
        check(command, f"{page.name}:{line}", runs)


def check(command, where, runs):
    """Run a command, or look up what it names."""
    environment, words = {}, shlex.split(command, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
        assert name in settings(), f"{where}: nothing reads {name}"
    program, *rest = words
    if program in ("python", ".venv/bin/python"):
        assert rest[0] == "-m", f"{where}: {command}"
        program, *rest = rest[1:]
    if program == "pip":
        check_pip(rest, where)
    elif program == "make":
        check_make(rest, where)
    elif program == "pytest":
        for word in rest:
            assert not word.startswith("tests/") or (ROOT / word).exists(), f"{where}: there is no {word}"
    elif program == "benchmarks":
        check_benchmarks(rest, where)
    elif program == "source":
        assert rest == [".venv/bin/activate"], where
    else:
        assert program in RUNS, f"{where}: the test knows no {program}"
        if runs:
            run(program, rest, environment, where)


def run(program, arguments, environment, where):
    if program == "linreg_ext" and not environment:
        assert cli.main(arguments) == 0, where
        return
    command = [sys.executable, "-m", program.replace("torchrun", "torch.distributed.run"), *arguments]
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{where}: {done.stderr}"


@cache
def settings():
    """The environment variables that the build or the package reads."""
    texts = [(ROOT / name).read_text() for name in ("setup.py", "Makefile", "linreg_ext/_extension.py")]
    return {name for text in texts for name in re.findall(r"\b[A-Z]+_[A-Z_]+\b", text)}


@cache
def targets():
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check_make(words, where):
    arguments = {name: value for name, is_set, value in (word.partition("=") for word in words) if is_set}
    goals = [word for word in words if "=" not in word]
    assert {*arguments} <= {"ARGS", "PYTHON"}, f"{where}: make has no such variable"
    for goal in goals:
        assert goal in targets(), f"{where}: make has no target {goal}"
    given = shlex.split(arguments.get("ARGS", ""))
    if goals == ["bench"]:
        check_benchmarks(given, where)
    elif given:
        assert goals in (["test"], ["mutants"]), f"{where}: the test knows no ARGS of {goals}"
        known = (ROOT / "tests" / "mutation.py").read_text()
        for word in given:
            assert not word.startswith("--") or f'"{word}"' in known, f"{where}: there is no {word}"
            assert not word.startswith("tests/") or (ROOT / word).exists(), f"{where}: there is no {word}"


def check_benchmarks(words, where):
    from benchmarks import workloads_cpu, workloads_gpu

    names = {"report", *workloads_cpu.WORKLOADS, *workloads_gpu.WORKLOADS}
    for word in words:
        known = names if not word.startswith("-") else (ROOT / "benchmarks" / "__main__.py").read_text()
        assert word in known, f"{where}: python -m benchmarks knows no {word}"


@cache
def pip_options():
    return subprocess.run([sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True).stdout


def check_pip(words, where):
    """Are its options pip's, its extras ours, and its packages known to this project?"""
    project = (ROOT / "pyproject.toml").read_text()
    assert words.pop(0) == "install", where
    for word in words:
        if word.startswith("-"):
            assert word in pip_options() or not pip_options(), f"{where}: pip install has no {word}"
        elif found := re.fullmatch(r"\.(?:\[([\w,]+)\])?", word):
            for extra in filter(None, (found[1] or "").split(",")):
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{where}: there is no extra {extra}"
        else:
            assert word in project, f"{where}: pyproject.toml names no {word}"


@EACH_PAGE
def test_links_lead_somewhere(page):
    for text, link in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", FENCE.sub("", page.read_text())):
        name, _, anchor = link.partition("#")
        if name.startswith("http"):
            continue
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: [{text}] leads to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {target.name} has no #{anchor}"


def anchors(page):
    """The anchors of a page: its headings', and its references' to the API."""
    text = FENCE.sub("", page.read_text())
    headings = [
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    return {*headings, *re.findall(r"^::: (\S+)$", text, re.MULTILINE)}


@EACH_PAGE
def test_files_that_are_named_exist(page):
    folders = "|".join(
        path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".") and path.name != "build"
    )
    for name in re.findall(rf"`((?:{folders})/[\w./]*)`", page.read_text()):
        assert name.startswith("runs/") or (ROOT / name).exists(), f"{page.name}: there is no {name}"


def test_the_reference_has_every_public_name_and_no_other():
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    public = {f"linreg_ext.{name}" for name in linreg_ext.__all__ if not name.startswith("__")}
    assert {name for name in named if name.count(".") == 1} == public
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


@pytest.mark.extended
def test_benchmarks_wrote_their_parts(tmp_path):
    """The parts between the markers are what the results in the repository give."""
    pytest.importorskip("matplotlib")
    from benchmarks.__main__ import main

    (tmp_path / "docs").mkdir()
    pages = ("README.md", "docs/performance.md")
    for page in pages:
        (tmp_path / page).write_text((ROOT / page).read_text())
    assert main(["report", "--root", str(tmp_path)]) == 0
    for page in pages:
        assert (tmp_path / page).read_text() == (ROOT / page).read_text(), f"{page}: run `python -m benchmarks report`"


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    assert any("×" in line for line in lines[:45])
