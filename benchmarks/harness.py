# SPDX-License-Identifier: BSD-3-Clause
"""Timing by interleaved repeats, and tables of the results."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import linreg_ext


@dataclass
class Result:
    """One line of a table: what was measured, and what it amounts to."""

    name: str
    value: str
    note: str = ""


def timings(variants: dict[str, Callable[[], object]], repeats: int, calls: int) -> dict[str, float]:
    """Median seconds a call of each variant; the variants take turns, so that what slows the machine slows them all."""
    for run in variants.values():
        for _ in range(max(1, calls // 10)):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: median(times) for name, times in seconds.items()}


def machine() -> str:
    """The machine and the versions that a measurement belongs to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return (
        f"{cpu}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"linreg_ext {linreg_ext.__version__}"
    )


def table(results: list[Result]) -> str:
    """Results in aligned columns."""
    widths = [max(len(getattr(result, column)) for result in results) for column in ("name", "value")]
    return "\n".join(f"  {r.name:<{widths[0]}}  {r.value:>{widths[1]}}  {r.note}".rstrip() for r in results)
