# SPDX-License-Identifier: BSD-3-Clause
"""Small faults that the test suite has to notice, one at a time: tests/mutation.py plants them, `make mutants` runs it."""

from .cuda import CUDA
from .mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*CUDA,)

__all__ = ["MUTANTS", "Mutant"]
