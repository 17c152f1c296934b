# SPDX-License-Identifier: BSD-3-Clause
"""``python -m benchmarks [workload …] [--quick]``: the fused step beside eager PyTorch, measured on this machine."""

import argparse

from . import harness, workloads

WORKLOADS = {
    "step": workloads.step,
    "large": workloads.large,
    "memory": workloads.memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times the fused step beside eager PyTorch, after checking that both give the same answer.",
        epilog="step: one tiny step, by every way in; large: one step on more data than caches hold; memory: how much "
        "the process grows while it trains on a 2 GB matrix.",
    )
    parser.add_argument("workload", nargs="*", metavar="workload", help=f"one of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="less data and fewer repeats: a look, not a measurement")
    arguments = parser.parse_args()
    for name in arguments.workload:
        if name not in WORKLOADS:
            parser.error(f"unknown workload '{name}': choose from {', '.join(WORKLOADS)}")
    print(harness.machine())
    for name in arguments.workload or WORKLOADS:
        print(f"\n{name}\n" + harness.table(WORKLOADS[name](arguments.quick)))


if __name__ == "__main__":
    main()
