# SPDX-License-Identifier: BSD-3-Clause
"""Whether a peer can take part here."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

ALL_THREADS = torch.get_num_threads()  # before anything changes it; what the others use, too


class UnavailableError(Exception):
    """A peer that cannot do this piece of work here, and why."""


def installed(name: str) -> ModuleType:
    """A module that a peer needs."""
    try:
        return import_module(name)
    except ImportError:
        raise UnavailableError(f"{name} is not installed") from None


def needs_all_threads(name: str) -> None:
    """Refuse a peer that uses all cores, where it is to be compared on fewer."""
    if torch.get_num_threads() != ALL_THREADS:
        raise UnavailableError(f"{name} does not follow torch.set_num_threads")
