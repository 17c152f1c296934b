# SPDX-License-Identifier: BSD-3-Clause
"""The machine, versions and commit of a measurement."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import numpy
import torch

ROOT = Path(__file__).parents[1]
SOURCES = ("csrc", "linreg_ext", "setup.py", "benchmarks", ":!benchmarks/results")


def name(device: str) -> str:
    """The name of the processor or the GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2] for line in lines if line.startswith("model name")), platform.machine())
    return " ".join(re.sub(r"\(R\)|\(TM\)", "", model).split())


def file_name(device: str) -> str:
    """The name, made fit for a file."""
    return re.sub(r"[^a-z0-9.]+", "-", name(device).lower()).strip("-")


def describe(device: str) -> dict[str, str]:
    """The columns at the end of every row of results."""
    import linreg_ext  # here, because names are needed before there is a build

    return {
        "machine": name(device),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if device == "cuda"
        else "",
        "threads": str(torch.get_num_threads()),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "" if device == "cuda" else "",
        "numpy": numpy.__version__,
        "linreg_ext": linreg_ext.__version__,
        "commit": commit(),
    }


def commit() -> str:
    """The commit, marked if the sources differ from it. LINREG_EXT_COMMIT names it outside a repository."""
    named = os.environ.get("LINREG_EXT_COMMIT")
    if named:
        return named
    head = _output("git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD")
    changed = head and _output("git", "-C", str(ROOT), "status", "--porcelain", "--", *SOURCES)
    return f"{head}-changed" if changed else head or "unknown"


def _output(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip().splitlines()[0].strip() if run.stdout.strip() else ""
