# SPDX-License-Identifier: BSD-3-Clause
"""The exact solution of `fit`, and how far SGD is from it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..least_squares import LeastSquaresSolution, lstsq_batches
from .coefficients import Coefficients, require_in_range
from .dataset import Dataset
from .errors import CommandError

_ROWS = 1 << 16  # of a block
LARGE = 2.0**300  # columns beyond it, or below its inverse, are divided by a power of two


class _Blocks:
    """The training rows, in blocks, without columns that are constant in them.

    Columns whose squares would leave float64's range are divided by `units`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.units = [_units(columns) for columns in (dataset.x, dataset.y)]
        low, high = (torch.full_like(dataset.x[0], end) for end in (math.inf, -math.inf))
        for x, weight in self._rows(dataset.x):
            low, high = low.minimum(x[weight > 0].amin(0)), high.maximum(x[weight > 0].amax(0))
        self.varying = low < high

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        of_x, of_y = self.units
        for (x, weight), (y, _) in zip(self._rows(self._dataset.x), self._rows(self._dataset.y), strict=True):
            x = x if self.varying.all() else x[:, self.varying]
            yield x / of_x[self.varying], y / of_y, weight

    def _rows(self, columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        data = self._dataset
        for begin in range(0, len(columns), _ROWS):
            block = slice(begin, begin + _ROWS)
            weight = (~data.held_out[block]).double()
            weight = weight if data.weight is None else weight * data.weight[block]
            if weight.any():
                yield columns[block], weight


def _units(columns: Tensor) -> Tensor:
    largest = columns.abs().amax(0)
    fits = (largest < LARGE) & (largest > 1 / LARGE) | (largest == 0)
    return torch.where(fits, 1.0, torch.exp2(torch.frexp(largest).exponent.double() - 1))


def solve(dataset: Dataset, l2: float = 0.0) -> tuple[Coefficients, LeastSquaresSolution, list[str]]:
    """The coefficients in the table's own units, the solution, and the columns that are constant in training rows."""
    blocks, names = _Blocks(dataset), dataset.encoding.names
    (of_x, of_y), varying = blocks.units, blocks.varying
    if l2 > 0 and (of_x != 1).any():
        name = names[int((of_x != 1).int().argmax())]
        raise CommandError(f"--l2: feature '{name}' is too large or too small; multiply it by a power of ten")
    solution = lstsq_batches(blocks, l2=l2)
    shape, to = (len(of_y), len(of_x)), of_y[:, None] / of_x[varying]
    weight, errors = torch.zeros(shape, dtype=torch.float64), torch.full(shape, math.nan, dtype=torch.float64)
    weight[:, varying], errors[:, varying] = solution.weight * to, solution.weight_stderr * to
    bias, bias_error = solution.bias * of_y, solution.bias_stderr * of_y
    model = Coefficients(names, dataset.encoding.targets, weight, bias, errors, bias_error)
    vanished = torch.zeros(shape, dtype=torch.bool)
    vanished[:, varying] = (weight[:, varying] == 0) & (solution.weight != 0)
    require_in_range(model, vanished)
    return model, solution, [name for name, varies in zip(names, varying, strict=True) if not varies]


def distance_line(model: Coefficients, dataset: Dataset) -> str:
    """How far the squared error of `model` over the training rows is above the least-squares minimum."""
    _, solution, _ = solve(dataset)
    blocks = _Blocks(dataset)
    of_x, of_y = blocks.units
    weight, bias = (model.weight * of_x / of_y[:, None])[:, blocks.varying], model.bias / of_y
    squares = torch.zeros(len(model.targets), dtype=torch.float64)
    for x, y, v in blocks:
        squares += v @ (torch.addmm(bias, x, weight.T) - y).square()
    least = solution.residual_sum_of_squares
    above = ((squares - least) / least).clamp(min=0)
    k = int(above.nan_to_num(0.0).argmax())
    if not above[k] > 1e-6:
        return "the squared error is the least-squares minimum"
    far = "" if above[k] < 0.01 else "; --solver exact reaches it, more --epochs come nearer"
    amount = f"{100 * above[k]:.2g} %" if above[k] < math.inf else "infinitely far"
    of = f" of {model.targets[k]}" if len(model.targets) > 1 else ""
    return f"the squared error{of} is {amount} above the least-squares minimum{far}"
