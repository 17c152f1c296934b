# SPDX-License-Identifier: BSD-3-Clause
"""``python -m benchmarks.constants``: the constants of this GPU that the designs of the kernels rest on.

Compiles and runs constants.cu, then measures torch's own read and copy, our step on four widths, and the steps of runs.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from . import clocks, epochs, machine, ours
from .names import RUN_EPOCHS
from .problem import Problem
from .results import Results, Row

SOURCE = Path(__file__).with_suffix(".cu")


def compile_constants(folder: Path) -> Path:
    """Build constants.cu for the GPU that is there."""
    from torch.utils.cpp_extension import CUDA_HOME

    major, minor = torch.cuda.get_device_capability()
    program = folder / "constants"
    nvcc = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
    command = [nvcc, "-O3", "-std=c++20", f"-arch=sm_{major}{minor}", "-o", program, SOURCE]
    subprocess.run(list(map(str, command)), check=True)
    return program


def parse(output: str) -> list[tuple[str, float, str]]:
    """The lines `name,value,unit` of the program's output."""
    return [(name, float(value), unit) for name, value, unit in csv.reader(output.splitlines())]


def torch_bandwidth(bytes: int) -> list[tuple[str, float, str]]:
    """What torch's own sum reads and its clone copies."""
    x = torch.empty(bytes // 4, device="cuda").uniform_(-1, 1)
    rates = []
    for name, run, moved in (("torch.sum", x.sum, x.nbytes), ("torch.clone, read and written", x.clone, 2 * x.nbytes)):
        sample = clocks.graph(clocks.Variant(run), 0.02)
        rates.append((name, moved / sorted(sample() for _ in range(11))[5] / 1e9, "GB/s"))
    return rates


def step_bandwidth(bytes: int) -> list[tuple[str, float, str]]:
    """What our step reads, on rows of four widths."""
    rates = []
    for d in (128, 512, 1024, 101):
        problem = Problem.random(bytes // 4 // d, d, device="cuda")
        sample = clocks.graph(ours.train_step(problem), 0.02)
        rate = problem.bytes / sorted(sample() for _ in range(11))[5] / 1e9
        rates.append((f"our step on {d} features", rate, "GB/s"))
    return rates


def run_steps() -> list[tuple[str, float, str]]:
    """What a step takes in a run whose rows stay in shared memory, of one block and of all (csrc/cuda/run_plan.h)."""
    times = []
    for n, d in ((100, 1), (2**11, 8), (2**16, 16), (2**17, 48)):
        variant = epochs.sgd_run(Problem.random(n, d, device="cuda"), RUN_EPOCHS)
        sample = clocks.graph(variant, 0.02)
        seconds = sorted(sample() for _ in range(11))[5] / RUN_EPOCHS
        times.append((f"step of a run on {n} rows of {d} features", 1e6 * seconds, "us"))
    return times


def columns(name: str) -> Row:
    """Where a constant stands among the other rows: a target of its own for what a fixed order costs."""
    row = {"workload": "constants", "case": "constants", "device": "cuda", "variant": name, "role": "bound"}
    if name.startswith("last-block over atomics"):
        row |= {"id": "G12", "role": "ours", "case": name, "variant": "fixed order over atomics"}
    return row


def main(arguments: list[str]) -> int:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constants", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="CSV", help="write the rows there, too")
    options = parser.parse_args(arguments)
    results = Results(options.out, machine.describe("cuda"))

    def record(constants: list[tuple[str, float, str]]) -> None:
        for name, value, unit in constants:
            results.add(**columns(name), value=value, unit=unit)
            print(f"{value:>10.4g} {unit:<6} {name}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run([str(compile_constants(Path(folder)))], stdout=subprocess.PIPE, text=True)
    record(parse(run.stdout))
    record(torch_bandwidth(2**31))
    record(step_bandwidth(2**31))
    record(run_steps())
    if run.returncode:
        print(f"constants.cu ended with {run.returncode}", file=sys.stderr)
    return run.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
