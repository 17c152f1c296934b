# SPDX-License-Identifier: BSD-3-Clause
"""`info`: versions and the build configuration."""

from __future__ import annotations

import argparse

import torch

from .._extension import build_info
from .._version import __version__


def info(args: argparse.Namespace) -> None:
    """Print each on a line."""
    facts = {"linreg_ext": __version__}
    facts |= {f"built with: {name}": str(value) for name, value in build_info().items()}
    facts["torch"] = torch.__version__
    facts["threads"] = str(torch.get_num_threads())
    facts["CUDA device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "not available"
    for name, value in facts.items():
        print(f"{name:<22}{value}")
