# SPDX-License-Identifier: BSD-3-Clause
"""Small faults, each of which the tests must detect; `make mutants` runs tests/mutation.py, which plants them."""

from .cuda import CUDA
from .estimator import ESTIMATORS
from .fused import FUSED
from .kernels import KERNELS
from .least_squares import LEAST_SQUARES
from .mutant import Mutant
from .python import PYTHON
from .tensors import TENSORS

MUTANTS: tuple[Mutant, ...] = (*KERNELS, *TENSORS, *PYTHON, *FUSED, *LEAST_SQUARES, *ESTIMATORS, *CUDA)

__all__ = ["MUTANTS", "Mutant"]
