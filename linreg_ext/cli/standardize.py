# SPDX-License-Identifier: BSD-3-Clause
"""Columns of mean 0 and standard deviation 1, and a learning rate that suits them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import CommandError


@dataclass(frozen=True, eq=False)
class Scale:
    """scaled = (values − mean) / std, column by column."""

    mean: Tensor  # [C]
    std: Tensor  # [C]

    def apply(self, values: Tensor) -> Tensor:
        """Scale `values` [N, C]."""
        return (values - self.mean) / self.std


def scale_of(values: Tensor, names: Sequence[str], role: str, held_out: Tensor, standardize: bool) -> Scale:
    """The mean and deviation of the training rows of `values` [N, C]; 0 and 1 without standardisation."""
    train = values[~held_out]
    for name, column, all_rows in zip(names, train.T, values.T, strict=True):
        if column.min() == column.max():
            where = f"the {len(train)} training rows; try another --seed or a smaller --val-fraction"
            where = "all rows" if all_rows.min() == all_rows.max() else where
            raise CommandError(f"{role} '{name}' must vary, got {column[0].item():g} in {where}")
        if not standardize and all_rows.abs().max() > torch.finfo(torch.float32).max:
            raise CommandError(f"{role} '{name}' has numbers beyond float32's range; drop --no-standardize")
    if not standardize:
        return Scale(torch.zeros_like(train[0]), torch.ones_like(train[0]))
    largest = train.abs().amax(0)  # its square may overflow, that of a number between -1 and 1 does not
    std, mean = torch.std_mean(train / largest, dim=0, correction=0)
    return Scale(mean * largest, std * largest)


def steady_lr(x: Tensor, batch_size: int, targets: int, momentum: float, weight_decay: float) -> float:
    """A learning rate at which mini-batch SGD is stable on the features x [N, D].

    The mean squared error has the Hessian 2/K E[xxᵀ]; its largest eigenvalue bounds the step of a full batch.
    Batches of B rows add noise of about E|x|⁴ / (B E|x|²), which momentum sums over 1/(1 − momentum) steps.
    Half of what this allows; the other losses' Hessians are smaller.
    """
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    for _ in range(30):  # power iteration: within a few percent is enough
        direction = x.T @ (x @ (direction / direction.norm())) / len(x)
    squares = x.square().sum(1)
    noise = squares.square().mean() / squares.mean() * (1 / batch_size - 1 / len(x))
    curvature = 2 / targets * (direction.norm() + noise / (1 - momentum)) + weight_decay
    return float(f"{1 / curvature.item():.2g}")  # two digits, so that the printed rate repeats the run
