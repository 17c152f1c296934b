# SPDX-License-Identifier: BSD-3-Clause
"""Load the compiled part once, or explain why it cannot be loaded."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import ModuleType

import torch

REFERENCE = os.environ.get("LINREG_EXT_REFERENCE", "0") not in ("", "0")
_REBUILD = "rebuild it with `pip install --no-build-isolation --force-reinstall --no-deps .` (or `make build`)"


def _load() -> ModuleType | None:
    if REFERENCE:
        return None
    try:
        from . import _C
    except ImportError as error:
        raise _failure(_explain(error)) from error
    built_for = _C.build_info()["torch"]
    if built_for != torch.__version__:
        raise _failure(_mismatch(built_for))
    return _C


def _failure(message: str) -> ImportError:
    """An ImportError of this package, which `python -m linreg_ext` prints as one line."""
    return ImportError(message, name=__package__)


def _explain(error: ImportError) -> str:
    files = sorted(Path(__file__).parent.glob("_C*.so"))
    if not files:
        return (
            "linreg_ext: the compiled part is not built; build it with `pip install --no-build-isolation .` "
            "(or `make build`), or set LINREG_EXT_REFERENCE=1 to run on plain PyTorch"
        )
    for file in files:
        stamp = re.search(rb"linreg_ext built for torch ([^\0 ]+)", file.read_bytes())
        if stamp and stamp[1].decode() != torch.__version__:
            return _mismatch(stamp[1].decode())
    return f"linreg_ext: the compiled part cannot be loaded ({error}); {_REBUILD}"


def _mismatch(built_for: str) -> str:
    return (
        f"linreg_ext: the compiled part must match torch {torch.__version__}, got one built for torch {built_for}; "
        f"{_REBUILD}, or set LINREG_EXT_REFERENCE=1 to run on plain PyTorch"
    )


_C = _load()


def has_kernels(device_type: str) -> bool:
    """Whether this build can compute on a type of device; the reference can on any."""
    return REFERENCE or device_type == "cpu" or (device_type == "cuda" and _C.build_info()["cuda"] is not None)


def build_info() -> dict[str, object]:
    """What this installation was built with.

    Returns:
        `torch`: the version it was built for; `compiler`; `cuda`: the CUDA version of the compiled kernels, or None
        for a CPU build; `reference`: whether plain PyTorch runs instead of the compiled part.
    """
    info = {"torch": None, "compiler": None, "cuda": None} if _C is None else _C.build_info()
    return {**info, "reference": REFERENCE}
