# SPDX-License-Identifier: BSD-3-Clause
"""Plant faults in copies of the sources, one at a time, and report which the tests detect; exit with 1 if one survives.

Faults of Python are planted in the text. Those of C++ are compiled all at once, each as a choice that the module makes
when it is loaded: one module has the CPU kernels, and two have the CUDA kernels in the interpreter of tests/simt.
Everything is in build/mutants, except for the interpreter's cache in build/simt.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from mutants import MUTANTS, Mutant
from mutants.mutant import DEFINED_IN, VARIABLE, planted, with_choices
from simt.build import sanitizer_environment
from simt.module import build_module

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "build" / "mutants"
NOT_COPIED = (".git", ".venv", "build", "dist", "runs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "*.so")
SECONDS = 1800  # after which a process is taken to hang

# Run when a mutant's own tests do not detect it: the core, without tests that compile or measure and those that read the
# sources.
REST = ["-m", "not extended", "tests", *(f"--ignore=tests/test_{name}.py" for name in (
    "benchmarks", "cuda", "cuda_compile", "cuda_launches", "mutants", "setup",
))]  # fmt: skip
REST_OF_CUDA = ["tests/test_values.py", "tests/test_parity.py", "tests/test_training.py", "tests/test_run.py"]
# In the interpreter, two dtypes and no shapes that take minutes; how a run stops differs in float64.
FEWER = ["-k", "a_run_stops or not (-float16 or float64 or data or 131072 or 70001 or 40000 or million)"]


@dataclass(frozen=True)
class Outcome:
    """The result for a mutant."""

    killed: bool
    by: str
    seconds: float


class Builds:
    """The modules that contain the mutants."""

    def __init__(self) -> None:
        self._modules: dict[str, Path] = {}

    def make(self, build: str) -> None:
        """Compile the module of a build; Python's mutants use the CPU's."""
        if build in ("python", "cpu"):
            self._modules["python"] = self._modules["cpu"] = _cpu_module()
        else:
            texts = sources(build)
            replace = {file: ((ROOT / file).read_text(), text) for file, text in texts.items()}
            self._modules[build] = build_module(races=build == "races", sanitize=build == "addresses", replace=replace)

    def environment(self, build: str) -> dict[str, str]:
        """The environment of a process that tests a build."""
        own = {"PYTHONDONTWRITEBYTECODE": "1"}  # the next fault must not run the bytecode of this one
        if build in ("python", "cpu"):
            return {**os.environ, **own}
        return {**(sanitizer_environment() if build == "addresses" else os.environ), **own,
                "LINREG_EXT_SIMT": str(self._modules[build])}  # fmt: skip

    def install(self, tree: Path) -> None:
        """Put the module of the CPU kernels into a copy of the repository."""
        if "cpu" in self._modules:
            shutil.copy2(self._modules["cpu"], tree / "linreg_ext")


def number_of(mutant: Mutant) -> int:
    """The number that selects a mutant in its module."""
    return 1 + [other for other in MUTANTS if other.build == mutant.build].index(mutant)


def sources(build: str) -> dict[str, str]:
    """The sources with the choices of a build."""
    mutants = {number_of(mutant): mutant for mutant in MUTANTS if mutant.build == build}
    files = {DEFINED_IN, *(mutant.file for mutant in mutants.values())}
    return {file: with_choices(file, (ROOT / file).read_text(), mutants) for file in sorted(files)}


def _cpu_module() -> Path:
    """Compile the extension with its choices, and only what has changed."""
    tree, texts = PLACE / "module", sources("cpu")
    texts["setup.py"] = (ROOT / "setup.py").read_text().replace('"-O3"', '"-O1"')  # half the time
    files = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("csrc/**/*")) if path.is_file()]
    files += ["setup.py", "pyproject.toml", "README.md", "linreg_ext/_version.py"]
    for path in tree.glob("csrc/**/*"):
        if path.is_file() and str(path.relative_to(tree)) not in files:
            path.unlink()
    for file in files:
        path, text = tree / file, texts.get(file) or (ROOT / file).read_text()
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env={**os.environ, "LINREG_EXT_CUDA": "0"}, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "error" in line.lower()]
        raise SystemExit("\n".join(["mutation.py: the choices do not compile", *errors]))
    return next((tree / "linreg_ext").glob("_C*.so"))


def run_tests(
    tree: Path, tests: list[str], build: str, environment: dict[str, str], processes: int = 1, to_the_end: bool = False
) -> tuple[int | None, str]:
    """The exit status (None if it hung) and output of pytest, which stops at its first failure unless `to_the_end`."""
    stops = [] if to_the_end else ["-x"]
    command = [sys.executable, "-m", "pytest", *stops, "-vv", "-s", "-p", "no:cacheprovider", *tests]
    command += FEWER if build in ("races", "addresses") else []
    with subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", start_new_session=True) as process:  # fmt: skip
        try:
            output = process.communicate(timeout=processes * SECONDS)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with everything that the tests started
            return None, process.communicate()[0]
    return process.returncode, output


def judge(mutant: Mutant, tree: Path, builds: Builds) -> Outcome:
    """Plant a mutant in a copy of the repository, and find the test that detects it."""
    began = time.monotonic()
    path = tree / mutant.file
    text = path.read_text()  # of the copy, since the repository itself may be edited meanwhile

    def tested(tests: list[str], faulty: bool = True, to_the_end: bool = False) -> tuple[int | None, str]:
        environment = builds.environment(mutant.build)
        if mutant.build == "python":
            path.write_text(planted(mutant, text) if faulty else text)
        elif faulty:
            environment[VARIABLE] = str(number_of(mutant))
        return run_tests(tree, tests, mutant.build, environment, to_the_end=to_the_end)

    def ask(tests: list[str], faulty: bool = True) -> str:
        return killer(*tested(tests, faulty), mutant)

    try:
        if mutant.every:
            missed = overlooked(tested(list(mutant.tests), to_the_end=True)[1], mutant)
            return Outcome(not missed, f"SURVIVED {', '.join(missed)}" if missed else "each of them", _since(began))
        by = ask(list(mutant.tests))
        if not by:
            other = ask(REST if mutant.build in ("python", "cpu") else REST_OF_CUDA)
            # Unlike its own tests, these are not known to pass without the fault.
            if other and not ask(["tests/" + re.sub(r" (hung|ended with status \S+)$", "", other)], faulty=False):
                by = f"{other}, none of its own tests"
    finally:
        path.write_text(text)
    return Outcome(bool(by), by or "SURVIVED", _since(began))


def killer(status: int | None, output: str, mutant: Mutant) -> str:
    """The test that detected the mutant; empty if none did, or not for the reason that the mutant states."""
    if status == 0 or (mutant.says and not any(word in output for word in mutant.says)):
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - |$)", output, re.MULTILINE)
    begun = re.findall(r"^tests/(\w+\.py::\w+)", output, re.MULTILINE)  # the last may not have ended
    if status in (4, 5) or not (found or begun):
        raise SystemExit(f"mutation.py: pytest cannot run the tests of '{mutant.name}'\n{output[-2000:]}")
    return found[1] if found else f"{begun[-1]} {'hung' if status is None else f'ended with status {status}'}"


def overlooked(output: str, mutant: Mutant) -> list[str]:
    """The mutant's tests of which no case failed."""
    failed = set(re.findall(r"^(?:FAILED|ERROR) ([^\s\[]+)", output, re.MULTILINE))
    return [test for test in mutant.tests if test not in failed]


def _since(began: float) -> float:
    return time.monotonic() - began


def baseline(chosen: list[Mutant], tree: Path, builds: Builds) -> None:
    """Stop unless the mutants' tests pass without a fault."""
    for build in dict.fromkeys(mutant.build for mutant in chosen):
        names = list(dict.fromkeys(name for mutant in chosen if mutant.build == build for name in mutant.tests))
        began = time.monotonic()
        status, output = run_tests(tree, names, build, builds.environment(build), len(names))
        if status != 0:
            raise SystemExit(f"mutation.py: without a fault, the tests of '{build}' must pass\n{output[-8000:]}")
        print(f"{build}: without a fault {len(names)} tests pass, in {_since(began):.0f} s", flush=True)


def copy_of_the_repository(name: str, builds: Builds) -> Path:
    """A fresh copy, without build products except for the module of the CPU kernels."""
    tree = PLACE / name
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
    builds.install(tree)
    return tree


def run(chosen: list[Mutant], jobs: int) -> dict[Mutant, Outcome]:
    """Judge mutants, several at a time, each in its own copy of the repository."""
    began = time.monotonic()
    builds = Builds()
    for build in dict.fromkeys("cpu" if mutant.build == "python" else mutant.build for mutant in chosen):
        builds.make(build)
        print(f"{build}: built, after {_since(began):.0f} s", flush=True)
    trees: queue.Queue[Path] = queue.Queue()
    for i in range(jobs):
        trees.put(copy_of_the_repository(f"tree{i}", builds))
    baseline(chosen, trees.queue[0], builds)

    def one(mutant: Mutant) -> Outcome:
        tree = trees.get()
        try:
            return judge(mutant, tree, builds)
        finally:
            trees.put(tree)

    outcomes: dict[Mutant, Outcome] = {}
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one, mutant): mutant for mutant in chosen}
        try:
            for future in as_completed(waiting):
                mutant, outcome = waiting[future], future.result()
                outcomes[mutant] = outcome
                print(f"{mutant.name:<58} {mutant.file:<34} {outcome.seconds:5.0f} s  {outcome.by}", flush=True)
        except BaseException:  # including Ctrl-C: start no more
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def main() -> int:
    """Judge the selected mutants; return 1 if one survives."""
    parser = argparse.ArgumentParser(prog="mutation.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", metavar="TEXT", action="append", help="mutants with this in their name, file or build"
    )
    parser.add_argument("--list", action="store_true", help="list them, and the tests for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time (default: %(default)s)")
    arguments = parser.parse_args()
    wanted = arguments.only or [""]
    chosen = [m for m in MUTANTS if any(text in part for text in wanted for part in (m.name, m.file, m.build))]
    processor = Path("/proc/cpuinfo").read_text()
    for mutant in [m for m in chosen if m.processor not in processor]:
        print(f"{mutant.name}: has no effect on this processor ({mutant.processor} only)")
        chosen.remove(mutant)
    if not chosen:
        parser.error(f"no mutant has {' or '.join(wanted)} in its name, file or build")
    if arguments.list:
        for mutant in chosen:
            print(f"{mutant.name:<58} {mutant.file:<34} {', '.join(mutant.tests)}")
        return 0
    began = time.monotonic()
    outcomes = run(chosen, max(1, arguments.jobs))
    survivors = [mutant.name for mutant, outcome in outcomes.items() if not outcome.killed]
    print(f"{len(chosen)} mutants in {_since(began):.0f} s: {len(survivors) or 'none'} survived")
    for name in survivors:
        print(f"  {name}")
    return int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
