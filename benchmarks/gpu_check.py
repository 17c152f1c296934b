# SPDX-License-Identifier: BSD-3-Clause
"""`python -m benchmarks.gpu_check`: build for this machine's GPU, test, sanitize and measure, within 8 minutes.

Every stage is a process with its own time limit; one that fails does not stop the others. It needs no network.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import torch

from . import machine, targets
from .results import aligned, read

ROOT = machine.ROOT
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
WORKERS = 6  # of pytest-xdist, if installed; each has its own context on the GPU
BUILT = "import linreg_ext; assert linreg_ext.build_info()['cuda'], linreg_ext.build_info()"


@dataclass
class Stage:
    """A command, its time limit, and what its log says if it succeeds."""

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    says: str = ""


@dataclass
class Outcome:
    """How a stage ended."""

    name: str
    ok: bool
    seconds: float
    note: str
    log: Path

    @property
    def how(self) -> str:
        return "ok" if self.ok else "FAILED"


def stages(csv: Path) -> list[list[Stage]]:
    """The stages in order; those in one list run concurrently. Measuring comes last, alone."""
    python = sys.executable
    major, minor = torch.cuda.get_device_capability()
    build_for = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "LINREG_EXT_CUDA": "1"}
    build = f"'{python}' setup.py build_ext --inplace && '{python}' -c \"{BUILT}\""
    device_tests = [*_pytest(1), "tests/test_cuda.py"]
    suite = [*_pytest(WORKERS), "-m", "not extended", "--ignore=tests/test_cuda.py"]
    if not _has("xdist"):
        suite += ["-k", "cuda"]  # a single process has time only for the device's tests
    return [
        [Stage("build", ["bash", "-c", build], 170, build_for)],
        [Stage("probe", [python, "-m", "benchmarks.probe", "--out", str(csv)], 60)],
        [Stage("device", device_tests, 105, _no_plugins(), says=" passed")],
        [Stage("suite", suite, 150, _no_plugins(), says=" passed"), *sanitizers()],
        [
            Stage(
                "measure",
                [python, "-m", "benchmarks", "--device", "cuda", "--out", str(csv), "--seconds", "SECONDS_LEFT"],
                240,
            )
        ],
    ]


def sanitizers() -> list[Stage]:
    """tests/compact_parity.py under each tool of compute-sanitizer, for our kernels only."""
    cuda = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or f"{cuda}/bin/compute-sanitizer"
    options = [
        "--target-processes",
        "application-only",
        "--error-exitcode",
        "9",
        "--print-limit",
        "20",
        "--launch-timeout",
        "120",
    ]
    for spelling in ("--kernel-name", "--kernel-regex"):  # depending on the version
        if re.search(rf"{spelling}(?![-\w])", _output(sanitizer, "--help")):
            options += [spelling, "kns=linreg"]
            break
    made = []
    for tool in TOOLS:
        own = ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch makes calls that may fail
        # Memory written by kernels that are not instrumented looks uninitialised.
        script = [sys.executable, "tests/compact_parity.py", *(["--without-products"] if tool == "initcheck" else [])]
        command = [sanitizer, "--tool", tool, *options, *own, *script]
        # Each tensor is its own allocation, so that the tools know its end and what was never written.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        made.append(Stage(tool, command, 150, environment, says=r"SUMMARY: 0 (errors|hazards)"))
    return made


def run(stage: Stage, logs: Path, deadline: float) -> Outcome:
    """Run a stage until it ends or runs out of time."""
    started = time.monotonic()
    until = min(started + stage.seconds, deadline)
    command = [part.replace("SECONDS_LEFT", f"{max(1.0, until - started - 20):.0f}") for part in stage.command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | stage.environment
    log = logs / f"{stage.name}.log"
    with log.open("w") as out:
        note = _wait_for(command, environment, out, until)
    text = log.read_text(errors="replace")
    if not note and not re.search(stage.says, text):
        note = f"its log must contain '{stage.says.strip()}'"
    seconds = time.monotonic() - started
    outcome = Outcome(stage.name, not note, seconds, "; ".join(filter(None, (note, _summary(text)))), log)
    print(f"{outcome.name}: {outcome.how}, {seconds:.0f} s  {outcome.note}", flush=True)
    return outcome


def _wait_for(command: list[str], environment: dict[str, str], out: TextIO, until: float) -> str:
    """Run a command to its end, and return what went wrong, if anything."""
    try:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True
        )
    except OSError as error:
        return f"could not start: {error}"
    try:
        code = process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "ran out of time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"exit code {code}" if code else ""


def _summary(log: str) -> str:
    """The lines of a log that sum it up."""
    found = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed)[^=\n]*|.*SUMMARY: .*|\d+ problems, .*)", log, re.MULTILINE)
    return "; ".join(line.strip("= ") for line in found[-2:])


def _worst(outcome: Outcome) -> Iterable[str]:
    """The lines of a failed stage's log that explain the failure."""
    lines = outcome.log.read_text(errors="replace").splitlines()
    told = [
        line for line in lines if re.match(r"(FAILED|ERROR|WRONG)\b|.*\b[Ee]rror:|E  |=+ (Error|Invalid|Uninit)", line)
    ]
    return dict.fromkeys(line[:200] for line in (told or lines)[-8:])


def _pytest(workers: int) -> list[str]:
    command = [sys.executable, "-m", "pytest", "--color=no", "-p", "no:cacheprovider"]
    return [*command, "-p", "xdist.plugin", "-n", str(workers)] if workers > 1 and _has("xdist") else command


def _no_plugins() -> dict[str, str]:
    """An environment without third-party plugins, whose warnings would be errors here."""
    return {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _output(*command: str) -> str:
    try:
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout


def main(arguments: list[str]) -> int:
    """Run all stages, then print a summary; return 1 if a stage failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "gpu_check", metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=7.75, help="time limit for everything; the rest is left out")
    parser.add_argument("--only", metavar="STAGE,…", help="run only these stages")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check: torch must be able to use a GPU, got torch.cuda.is_available() == False")
        return 2
    deadline = time.monotonic() + 60 * options.minutes
    options.logs.mkdir(parents=True, exist_ok=True)
    csv = options.results / f"{machine.file_name('cuda')}.csv"
    print(f"{machine.name('cuda')}, torch {torch.__version__}, {csv}", flush=True)
    chosen = options.only.split(",") if options.only else None
    if chosen is None:
        csv.unlink(missing_ok=True)  # so that every row is from this run
    outcomes: list[Outcome] = []
    for together in stages(csv.resolve()):
        together = [stage for stage in together if chosen is None or stage.name in chosen]
        with ThreadPoolExecutor(len(together) or 1) as pool:
            outcomes += pool.map(functools.partial(run, logs=options.logs.resolve(), deadline=deadline), together)
    for outcome in outcomes:
        if not outcome.ok:
            print(f"\n{outcome.name} ({outcome.log}):", *_worst(outcome), sep="\n  ")
    judged = targets.judge(read([csv])) if csv.exists() else []
    ended = [(outcome.name, outcome.how, f"{outcome.seconds:.0f} s", outcome.note) for outcome in outcomes]
    print("\n" + aligned([("stage", "", "", ""), *ended], left=4))
    print("\n" + aligned([("id", "case", "target", "measured", "must", "met"), *judged], left=3))
    return int(not all(outcome.ok for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
