# SPDX-License-Identifier: BSD-3-Clause
"""Small faults that the test suite has to notice, one at a time: tests/mutation.py plants them, `make mutants` runs it."""

from .cuda import CUDA
from .fused import FUSED
from .kernels import KERNELS
from .mutant import Mutant
from .python import PYTHON
from .tensors import TENSORS

MUTANTS: tuple[Mutant, ...] = (*KERNELS, *TENSORS, *PYTHON, *FUSED, *CUDA)

__all__ = ["MUTANTS", "Mutant"]
