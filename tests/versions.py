# SPDX-License-Identifier: BSD-3-Clause
"""Runs the tests under other versions of Python and torch than CI's, each pair in a virtual environment of its own.

A Python is looked for on the PATH and among pyenv's; one that is not there is skipped, and said so. A torch that was
built for CUDA is several GB; without a GPU it serves as a CPU build does. Left out are the tests that give the same
answer under any version: those of the CUDA kernels' source.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "versions"
# Every Python and the oldest, the usual and the newest torch at least once. CI runs 3.11 with 2.13.
PAIRS = ("3.10:2.13", "3.12:2.11", "3.13:newest")
WHATEVER_THE_VERSION = ("test_cuda_compile.py", "test_cuda_launches.py")


@dataclass
class Outcome:
    """A line of the table; `right` is None for a pair that was skipped."""

    python: str
    torch: str
    said: str
    minutes: float = 0.0
    right: bool | None = None


def find_python(version: str) -> str | None:
    """An interpreter of a version such as "3.12", if it runs: pyenv has a stand-in for each that it does not have."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))]
    asks = ["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    for candidate in filter(None, candidates):
        answer = subprocess.run([candidate, *asks], capture_output=True, text=True)
        if answer.stdout.strip() == version:
            return str(candidate)
    return None


def run_pair(pair: str, options: list[str]) -> Outcome:
    """Install, build from a copy of the sources, and test."""
    python, torch = pair.split(":")
    interpreter = find_python(python)
    if interpreter is None:
        return Outcome(python, torch, "skipped: there is no such Python here")
    folder = FOLDER / f"python{python}-torch{torch}"
    environment, sources, log = folder / "venv", folder / "sources", folder / "log"
    runs = environment / "bin" / "python"
    wanted = ["--upgrade", "torch"] if torch == "newest" else [f"torch=={torch}.*"]
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    copy_sources(sources)
    # What is there already stays. The Makefile puts all that torch does not bring into the virtual environment.
    steps = {
        "there is no virtual environment": [interpreter, "-m", "venv", str(environment)],
        "torch cannot be installed": [str(runs), "-m", "pip", "install", "--quiet", *wanted],
        "the extension does not build": ["make", "build", f"VENV={environment}"],
    }
    chosen = ["-rfE", *(f"--ignore=tests/{name}" for name in WHATEVER_THE_VERSION), *options]
    tests = ["make", "test", f"VENV={environment}", f"ARGS={' '.join(chosen)}"]
    settings = {"LINREG_EXT_CUDA": "0", **os.environ}
    with log.open("w") as output:

        def fails(command: list[str]) -> bool:
            run = subprocess.run(command, cwd=sources, stdout=output, stderr=subprocess.STDOUT, env=settings)
            return run.returncode != 0

        for wrong, command in steps.items():
            if fails(command):
                return Outcome(python, torch, f"{wrong}; see {log}", right=False)
        failed = fails(tests)
    ask = [str(runs), "-c", "import platform, torch; print(platform.python_version(), torch.__version__)"]
    python, torch = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()
    said = log.read_text()
    counts = ["no test has run", *re.findall(r"^(?:=+ )?(\d+ \w+.*) in [\d.]+s", said, re.MULTILINE)][-1]
    if failed:
        counts = "\n".join([counts, *re.findall(r"^(?:FAILED|ERROR) .*", said, re.MULTILINE), f"see {log}"])
    return Outcome(python, torch, counts, (time.monotonic() - started) / 60, not failed)


def copy_sources(folder: Path) -> None:
    """What git has, or would have, in a folder that held nothing: a stale file would be tested, too."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def table(outcomes: list[Outcome]) -> str:
    """A line for each pair."""
    lines = [("python", "torch", "minutes", "")]
    lines += [(o.python, o.torch, f"{o.minutes:.1f}", o.said.replace("\n", "\n    ")) for o in outcomes]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    return "\n".join("  ".join([*map(str.ljust, line[:3], widths), line[3]]).rstrip() for line in lines)


def main() -> int:
    """Run all pairs, one after the other; 1 when something is wrong or nothing has run."""
    parser = argparse.ArgumentParser(prog="versions.py", description=__doc__.splitlines()[0])
    parser.add_argument("pair", nargs="*", help=f"PYTHON:TORCH, or PYTHON:newest; default: {' '.join(PAIRS)}")
    parser.add_argument("--pytest", default="", metavar="OPTIONS", help="what pytest is given, too: '-x -k compile'")
    options = parser.parse_args()
    for pair in options.pair:
        if not re.fullmatch(r"\d+\.\d+:(\d+\.\d+|newest)", pair):
            parser.error(f"pair must be such as 3.12:2.11 or 3.13:newest, got {pair}")
    outcomes = []
    for pair in options.pair or PAIRS:
        print(f"{pair} …", flush=True)
        outcomes.append(run_pair(pair, options.pytest.split()))
    print(table(outcomes))
    return int(any(o.right is False for o in outcomes) or not any(o.right for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
