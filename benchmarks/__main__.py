# SPDX-License-Identifier: BSD-3-Clause
"""`python -m benchmarks [workload …]` measures; `python -m benchmarks report` writes the tables and plots."""

import argparse
import os
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str]) -> int:
    """Run one of the two commands."""
    if arguments[:1] == ["report"]:
        return report(arguments[1:])
    return measure(arguments)


def measure(arguments: list[str]) -> int:
    """Measure workloads and print which targets they meet; return 1 if a variant of ours was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time the fused step beside its alternatives, after checking every answer.",
        epilog="`python -m benchmarks report [CSV …]` writes the tables and plots of README.md and docs/.",
    )
    parser.add_argument("workload", nargs="*", metavar="workload", help="default: all; see --list")
    parser.add_argument("--list", action="store_true", help="list the workloads")
    parser.add_argument("--quick", action="store_true", help="less data and fewer repeats: a smoke test")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--out", type=Path, metavar="CSV", help="default: benchmarks/results/<machine>.csv, unless --quick"
    )
    parser.add_argument("--isa", choices=("default", "avx2", "avx512"), help="cap the instruction set, and torch's")
    parser.add_argument("--peers", metavar="NAME,…", help="only these peers, named as in the tables (default: all)")
    options = parser.parse_args(arguments)
    if options.isa and os.environ.get("ATEN_CPU_CAPABILITY") != options.isa:
        os.environ["ATEN_CPU_CAPABILITY"] = options.isa  # torch and linreg_ext read it when loaded
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *arguments])

    from . import machine, targets, workloads_cpu, workloads_gpu
    from .harness import Bench
    from .results import Results, aligned

    workloads = workloads_gpu.WORKLOADS if options.device == "cuda" else workloads_cpu.WORKLOADS
    if options.list:
        print(aligned([(name, (work.__doc__ or "").splitlines()[0]) for name, work in workloads.items()], left=2))
        return 0
    for name in options.workload:
        if name not in workloads:
            parser.error(f"unknown workload '{name}': choose from {', '.join(workloads)}")
    about = machine.describe(options.device)
    out = options.out or (None if options.quick else RESULTS / f"{machine.file_name(options.device)}.csv")
    peers = frozenset(options.peers.split(",")) if options.peers is not None else None
    bench = Bench(Results(out, about), options.device, options.quick, peers)
    print(", ".join(f"{key} {value}" for key, value in about.items() if value))
    for name in options.workload or workloads:
        try:
            workloads[name](bench)
            bench.results.finish(name)
        except Exception as error:  # measure the other workloads
            bench.fail(name, f"{type(error).__name__}: {error}")
    if not options.quick:
        lines = targets.judge(bench.results.rows)
        print("\n" + aligned([("id", "case", "target", "measured", "must", "met"), *lines], left=3))
    for failure in bench.failures:
        print(f"FAILED: {failure}")
    return bool(bench.failures)


def report(arguments: list[str]) -> int:
    """Write the tables and plots in README.md and docs/performance.md."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks report",
        description="Write the tables and plots in README.md and docs/performance.md from result files.",
    )
    parser.add_argument("csv", nargs="*", type=Path, help="default: all of benchmarks/results")
    repository = Path(__file__).parents[1]
    parser.add_argument("--root", type=Path, default=repository, metavar="FOLDER", help="where README.md and docs/ lie")
    options = parser.parse_args(arguments)
    paths = options.csv or sorted(RESULTS.glob("*.csv"))
    if not paths:
        parser.error(f"no results in {RESULTS}: run `python -m benchmarks` first")

    from .report import write

    write(paths, options.root)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
