# SPDX-License-Identifier: BSD-3-Clause
"""The mean loss of a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .batch_loss import BatchLoss
from .batches import batches_of, rows_of
from .match import reduction_of


def evaluate(model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], dataloader: Iterable[Any]) -> float:
    """Compute the mean of `loss_fn` over the rows of `dataloader`, in eval mode and without gradients.

    Args:
        model: the model. It runs in eval mode; afterwards, each module's mode is restored.
        loss_fn: called as `loss_fn(model(x), y)`; a loss with `reduction="sum"` is divided by the number of rows.
        dataloader: yields (x [N, D], y [N, K]) or (x, y, weight) on the model's device, as for `fit`.

    Returns:
        The weighted mean over all rows, to which each batch contributes according to its size;
        nan if there are no rows.

    Raises:
        ValueError: `dataloader` yields something other than pairs or triples, or a batch's loss is not one number.
        RuntimeError: the target does not have the prediction's shape, and the loss would broadcast them.

    Equivalent to:
        `model.eval()`, then, under `torch.no_grad()`, the sum over batches of `len(x) * loss_fn(model(x), y)`
        divided by the number of rows.

    Example:
        >>> evaluate(model, nn.MSELoss(), DataLoader(dataset, batch_size=20))
    """
    return mean_loss("evaluate", model, loss_fn, batches_of("evaluate", dataloader))


def mean_loss(op: str, model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Any]) -> float:
    """`evaluate` over batches; messages name the function `op`."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    batch_loss, summed = BatchLoss(op, model, loss_fn), reduction_of(loss_fn) == "sum"
    losses: list[Tensor] = []
    rows: list[int | Tensor] = []
    try:
        with torch.no_grad():
            for batch in batches:
                losses.append(batch_loss(*batch).detach())
                rows.append(rows_of(batch))
    finally:
        for module, training in modes:
            module.training = training
    return mean_over_rows(losses, rows, summed)


def mean_over_rows(losses: list[Tensor], rows: list[int | Tensor], summed: bool) -> float:
    """The mean over all rows, from batch losses that are means (or, if `summed`, sums) over their own rows."""
    if rows and all(isinstance(r, Tensor) for r in rows):
        weights = torch.stack(rows).cpu()
    else:
        weights = torch.tensor([float(r) for r in rows], dtype=torch.float64, device="cpu")
    total = weights.sum().item()
    if total == 0:
        return float("nan")
    values = torch.stack(losses).flatten().double().cpu().where(weights != 0, 0.0)  # nan: a batch without weight
    return float(values.sum() if summed else values @ weights) / total
