# SPDX-License-Identifier: BSD-3-Clause
"""`python -m benchmarks.gpu_check`: build for this machine's GPU, then check, time and sanitize, within ten minutes.

Each part is a process with its own time limit: one that dies or hangs loses only what it had not yet done. All output
goes to one log, line by line, and all measurements to one CSV. It needs no network and no plugins of pytest.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import machine, targets
from .results import aligned, read

ROOT = machine.ROOT
PYTHON = sys.executable
AT_ONCE = 12  # processes, each with its own context on the GPU
SHAPES = 25  # of tests/compact_parity.py, each in its own process
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# The workloads, the most important first: those with targets; those whose targets name a peer; and the others.
OURS = ("large", "several", "types", "runs", "run from Python", "launch", "mini-batches", "loss", "wide", "products",
        "order", "graphs")  # fmt: skip
BESIDE_PEERS = ("products", "runs", "run from Python", "loss", "large", "several", "types", "wide", "sizes", "memory")
BUILT = "import linreg_ext; assert linreg_ext.build_info()['cuda'], linreg_ext.build_info()"
ENVIRONMENT = {
    "PATH": f"{os.environ['PATH']}:{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin",
    "PYTHONPATH": str(ROOT),
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",  # a crash, or SIGABRT, prints where Python was
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compilers that survives its parent
}
# Seconds past the limit, and the signal then sent. SIGINT lets Python end in order; code that waits for the GPU ignores
# it, and SIGABRT prints where that is. A process that even SIGKILL does not end is abandoned.
STOPS = ((0, signal.SIGINT), (5, signal.SIGABRT), (10, signal.SIGKILL), (20, 0))

log = logging.getLogger("gpu-check")  # the log file has everything, standard output has what is not from a process


@dataclass
class Part:
    """A process, its time limit in seconds, what its output says if it succeeds; and how it ended."""

    name: str  # its first word is the stage's
    command: list[str]
    seconds: float
    says: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    wrong: str = ""
    lines: list[str] = field(default_factory=lambda: [""])  # the last one is incomplete

    @property
    def stage(self) -> str:
        return self.name.split()[0]


def stages(csv: Path) -> list[list[Part]]:
    """All parts in order; those in one list run concurrently. What is timed runs alone."""
    build_for = {"TORCH_CUDA_ARCH_LIST": "{}.{}".format(*torch.cuda.get_device_capability()), "LINREG_EXT_CUDA": "1"}
    build = f"'{PYTHON}' setup.py build_ext --inplace && '{PYTHON}' -c \"{BUILT}\""
    probe = [PYTHON, "-m", "benchmarks.probe", "--out", str(csv)]
    timed = [PYTHON, "-m", "benchmarks", "--device", "cuda", "--out", str(csv)]
    return [
        [
            Part("build", ["bash", "-c", build], 180, environment=build_for),
            Part("probe", probe, 120, environment={"LINREG_EXT_REFERENCE": "1"}),  # there is no build yet
        ],
        [Part(f"parity {i}", _parity(i, SHAPES), 45, "problems, 0 wrong") for i in range(SHAPES)],
        *([Part(f"ours {name}", [*timed, name, "--peers", "none"], 45)] for name in OURS),
        [*sanitizers(), *tests()],
        *([Part(f"peers {name}", [*timed, name, "--peers", "eager,by hand"], 45)] for name in BESIDE_PEERS),
        [Part("compiled graphs", [*timed, "graphs", "--peers", "eager,compiled"], 60)],
        *([Part(f"JAX {name}", [*timed, name], 90)] for name in ("launch", "graphs")),  # and all other peers
    ]


def tests() -> Iterator[Part]:
    """Each test function of a GPU: those of tests/test_cuda.py, and those that take a device."""
    pytest = [PYTHON, "-m", "pytest", "-vv", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-W", "default"]
    for path in sorted(ROOT.glob("tests/test_*.py"), key=lambda path: path.stem != "test_cuda"):
        for name, arguments in re.findall(r"^def (test_\w+)\(([^)]*)\)", path.read_text(), re.MULTILINE):
            if path.stem == "test_cuda" or re.search(r"\bdevice\b", arguments):
                command = [*pytest, "-m", "not extended", "-k", "cuda", f"tests/{path.name}::{name}"]
                yield Part(f"tests {path.stem}::{name}", command, 60, " passed| deselected", {"OMP_NUM_THREADS": "2"})


def sanitizers() -> Iterator[Part]:
    """tests/compact_parity.py under each tool of compute-sanitizer, for our kernels only."""
    options = ["--target-processes", "application-only", "--launch-timeout", "120", "--kernel-name", "kns=linreg",
               "--error-exitcode", "9", "--print-limit", "20"]  # fmt: skip
    # Each tensor is its own allocation, so that the tools know its end and what was never written.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "2"}
    for tool in TOOLS:
        own = ["--report-api-errors", "no"] if tool == "memcheck" else []  # torch makes calls that may fail
        # Memory written by kernels that are not instrumented looks uninitialised.
        without = ["--without-products"] if tool == "initcheck" else []
        command = ["compute-sanitizer", "--tool", tool, *options, *own, *_parity(0, 1), *without]
        yield Part(tool, command, 150, r"SUMMARY: 0 (errors|hazards)", environment)


def _parity(index: int, count: int) -> list[str]:
    return [PYTHON, "tests/compact_parity.py", "--part", f"{index}/{count}"]


class Check:
    """Runs parts until a deadline."""

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def stop(self, *_: object) -> None:
        """Stop what runs and leave out the rest, for signals."""
        self.deadline = min(self.deadline, time.monotonic())

    def run(self, part: Part) -> Part:
        """Run a part until it ends or runs out of time."""
        started = time.monotonic()
        part.wrong = "left out: no time" if started >= self.deadline else self._run(part, started + part.seconds)
        how, took = "FAILED" if part.wrong else "ok", time.monotonic() - started
        said = "; ".join(filter(None, (part.wrong, _summary("\n".join(part.lines)))))
        log.info("%s: %s, %.0f s  %s", part.name, how, took, said)
        return part

    def _run(self, part: Part, until: float) -> str:
        """Run a part, log its output, and return what went wrong, if anything."""
        # The output is a file, because an orphan could keep a pipe open.
        with tempfile.NamedTemporaryFile() as out, open(out.name, errors="replace") as output:
            try:
                process = subprocess.Popen(
                    part.command, cwd=ROOT, env=os.environ | ENVIRONMENT | part.environment, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                return f"could not start: {error}"
            stops = list(STOPS)
            while process.poll() is None and stops:
                time.sleep(0.05)
                _follow(output, part)
                if time.monotonic() > min(until, self.deadline) + stops[0][0]:
                    _signal(process.pid, stops.pop(0)[1])
            _signal(process.pid, signal.SIGKILL)  # what it has left running
            _follow(output, part)
        log.debug("%s: %s", part.name, part.lines[-1])
        code, text = process.returncode, "\n".join(part.lines)
        if len(stops) < len(STOPS):
            return "ran out of time" if stops else "ran out of time, and cannot be killed"
        if code and not (code == 5 and " deselected" in text):  # pytest: no test of this name is for a GPU
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "" if re.search(part.says, text) else f"its output must contain '{part.says}'"


def _follow(output: Iterable[str], part: Part) -> None:
    """Log what is new in a growing file, by whole lines."""
    for piece in output:
        part.lines[-1] += piece.rstrip("\n")
        if piece.endswith("\n"):
            log.debug("%s: %s", part.name, part.lines[-1])
            part.lines.append("")


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _summary(text: str) -> str:
    """The lines of an output that sum it up."""
    found = re.findall(r"^(?:=+ )?(\d+ (?:passed|failed)[^=\n]*|.*SUMMARY: .*|\d+ problems, .*)", text, re.MULTILINE)
    return "; ".join(line.strip("= ") for line in found[-2:])


def _worst(lines: list[str]) -> list[str]:
    """The lines of a failed part that explain the failure: the first errors, else the last lines."""
    error = re.compile(r"(FAILED|ERROR)\b|.*(Error|error|WRONG):|E  |  File .* line \d+ in |=+ (Error|Invalid|Uninit)")
    told = dict.fromkeys(line[:200] for line in lines if error.match(line))
    return list(told)[:8] or lines[-8:]


def main(arguments: list[str]) -> int:
    """Run all parts, then print a summary; return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=ROOT / "build" / "gpu_check.log", metavar="FILE")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit for everything; the rest is left out")
    parser.add_argument("--only", metavar="STAGE,…", help="run only these stages, the first words of the parts' names")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu-check: torch must be able to use a GPU, got torch.cuda.is_available() == False")
        return 2
    check = Check(60 * options.minutes)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, check.stop)
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))  # SIGABRT would write all memory to the disk
    options.log.parent.mkdir(parents=True, exist_ok=True)
    shown, kept = logging.StreamHandler(sys.stdout), logging.FileHandler(options.log, "w")
    shown.setLevel(logging.INFO)
    kept.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers, log.propagate = [shown, kept], False
    log.setLevel(logging.DEBUG)
    csv = options.results.resolve() / f"{machine.file_name('cuda')}.csv"
    log.info("%s, torch %s, %s, %s", machine.name("cuda"), torch.__version__, csv, options.log)
    if options.only is None:
        csv.unlink(missing_ok=True)  # so that every row is from this run
    done: list[Part] = []
    for together in stages(csv):
        chosen = [part for part in together if options.only is None or part.stage in options.only.split(",")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done += pool.map(check.run, chosen)
        if any(part.wrong for part in done if part.name == "build"):
            break  # nothing else can run
    report(done, csv)
    return int(any(part.wrong for part in done))


def report(done: list[Part], csv: Path) -> None:
    """What explains the failures, the stages and the targets."""
    failed = [part for part in done if part.wrong and part.lines != [""]]
    for part in failed[:20]:
        log.info("\n%s: %s\n  %s", part.name, part.wrong, "\n  ".join(_worst(part.lines)))
    all_parts, right = Counter(part.stage for part in done), Counter(part.stage for part in done if not part.wrong)
    log.info("\n%s", aligned([(stage, f"{right[stage]} of {count} ok") for stage, count in all_parts.items()]))
    judged = targets.judge(read([csv])) if csv.exists() else []
    log.info("\n%s", aligned([("id", "case", "target", "measured", "must", "met"), *judged], left=3))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
