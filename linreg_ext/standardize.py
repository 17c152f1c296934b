# SPDX-License-Identifier: BSD-3-Clause
"""Scales columns so that SGD converges quickly, and chooses the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BLOCK = 8192  # rows scaled at a time
_MOST_COLUMNS = 500  # with more, decorrelating takes longer than training
_SMALLEST = 1e-10  # relative to the largest eigenvalue; smaller ones are rounding errors


@dataclass(frozen=True, eq=False)
class Scale:
    """The transform (values − mean) / std of each column, multiplied by `basis` if there is one."""

    mean: Tensor  # [C]
    std: Tensor  # [C]; 1 where a column is constant
    constant: Tensor  # [C], bool
    basis: Tensor | None = None  # [C, R]

    def apply(self, values: Tensor) -> Tensor:
        """Scale `values` [N, C] to float32 [N, C or R]."""
        width = len(self.mean) if self.basis is None else self.basis.shape[1]
        scaled = torch.empty(len(values), width, dtype=torch.float32, device=values.device)
        for source, place in zip(values.split(_BLOCK), scaled.split(_BLOCK), strict=True):
            place.copy_(self._exactly(source))
        return scaled

    def to_columns(self, weight: Tensor) -> Tensor:
        """Convert the weights of scaled columns [K, C or R] to those of standardised columns [K, C]."""
        return weight if self.basis is None else weight @ self.basis.T

    def decorrelated(self, values: Tensor, share: Tensor) -> Scale:
        """The scale with a basis in which the training rows of `values` are uncorrelated, with variance 1.

        The squared error then has the same curvature in all directions, and SGD converges in a few epochs even if
        columns are collinear. The basis omits directions that vary only by rounding.
        """
        correlation = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64, device=values.device)
        for block, its_share in _training(values, share):
            scaled = self._exactly(block)
            correlation.addmm_(scaled.T, scaled * its_share[:, None])
        variance, directions = torch.linalg.eigh(correlation)
        kept = variance > _SMALLEST * variance[-1]
        directions[self.constant] = 0  # exactly
        return replace(self, basis=directions[:, kept] / variance[kept].sqrt())

    def _exactly(self, values: Tensor) -> Tensor:
        scaled = (values - self.mean) / self.std
        return scaled if self.basis is None else scaled @ self.basis


def shares(held_out: Tensor, weight: Tensor | None) -> Tensor:
    """Each row's share [N] of the training rows' total weight; 0 for validation rows."""
    share = torch.where(held_out, 0.0, held_out.new_ones(1, dtype=torch.float64) if weight is None else weight)
    return share / share.sum()


def scale_of(values: Tensor, share: Tensor) -> Scale:
    """The mean and standard deviation of the training rows of `values` [N, C], weighted by their shares."""
    smallest, largest = (
        values.new_full((values.shape[1],), end, dtype=torch.float64) for end in (torch.inf, -torch.inf)
    )
    for block, _ in _training(values, share):
        smallest, largest = smallest.minimum(block.amin(0)), largest.maximum(block.amax(0))
    unit = torch.maximum(largest.abs(), smallest.abs())  # scaled to 1, squares cannot overflow
    unit[unit == 0] = 1
    mean, variance = torch.zeros_like(unit), torch.zeros_like(unit)
    for block, its_share in _training(values, share):
        mean += its_share @ (block / unit)
    for block, its_share in _training(values, share):
        variance += its_share @ (block / unit - mean).square()
    constant = smallest == largest
    mean, std = torch.where(constant, smallest, mean * unit), torch.where(constant, 1.0, variance.sqrt() * unit)
    return Scale(mean, std, constant)


def can_decorrelate(rows: int, columns: int) -> bool:
    """Whether decorrelating is cheap and there are enough rows."""
    return columns < rows and columns <= _MOST_COLUMNS


def steady_lr(x: Tensor, share: Tensor, batch_size: int, targets: int, momentum: float, weight_decay: float) -> float:
    """A learning rate at which mini-batch SGD is stable on the features x [N, D].

    The largest eigenvalue of the mean squared error's Hessian, 2/K E[xxᵀ], bounds the full-batch learning rate.
    Batches of B rows add noise of about E|x|⁴ / (B E|x|²), which momentum sums over 1/(1 − momentum) steps.
    The result is half of this bound; the other losses' Hessians are smaller.
    """
    rows = share.nonzero()[:, 0]
    rows = rows[:: -(-len(rows) // 16_384)]  # a sample is enough
    x, share = x[rows].float(), (share[rows] / share[rows].sum()).float()
    x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    direction = torch.randn(x.shape[1], generator=torch.Generator(device="cpu").manual_seed(0), device="cpu").to(x)
    for _ in range(30):  # power iteration: an error of a few percent is fine
        direction = x.T @ (share * (x @ (direction / direction.norm())))
    squares = x.square().sum(1)
    noise = (share * squares).square().sum() / (share @ squares) * (len(x) / batch_size - 1)
    curvature = 2 / targets * (direction.norm() + noise.clamp(min=0) / (1 - momentum)) + weight_decay
    return float(f"{1 / curvature.item():.2g}")  # two digits, so that the printed rate reproduces the run


def _training(values: Tensor, share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The training rows of `values` and their shares, block by block."""
    for block, its_share in zip(values.split(_BLOCK), share.split(_BLOCK), strict=True):
        rows = its_share > 0
        yield block[rows], its_share[rows]
