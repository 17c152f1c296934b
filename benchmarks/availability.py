# SPDX-License-Identifier: BSD-3-Clause
"""Whether a peer can run here."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

ALL_THREADS = torch.get_num_threads()  # before anything changes it; NumPy and JAX use as many


class UnavailableError(Exception):
    """A peer cannot run this case here."""


def installed(name: str) -> ModuleType:
    """Import a module that a peer needs."""
    try:
        return import_module(name)
    except ImportError:
        raise UnavailableError(f"{name} is not installed") from None


def needs_all_threads(name: str) -> None:
    """Raise if a peer that always uses all cores is to be compared on fewer."""
    if torch.get_num_threads() != ALL_THREADS:
        raise UnavailableError(f"{name} does not follow torch.set_num_threads")
