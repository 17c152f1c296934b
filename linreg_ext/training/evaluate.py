# SPDX-License-Identifier: BSD-3-Clause
"""The mean loss of a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batch_loss import BatchLoss
from .batches import batches_of, rows_of
from .distributed import LOSS, WEIGHT, Group
from .match import reduction_of


def evaluate(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    dataloader: Iterable[Any],
    *,
    process_group: dist.ProcessGroup | None = None,
) -> float:
    """Compute the mean of `loss_fn` over the rows of `dataloader`, in eval mode and without gradients.

    Args:
        model: the model. It runs in eval mode; afterwards, each module's mode is restored.
        loss_fn: called as `loss_fn(model(x), y)`; a loss with `reduction="sum"` is divided by the number of rows.
        dataloader: yields (x [N, D], y [N, K]) or (x, y, weight) on the model's device, as for `fit`.
        process_group: processes that all evaluate the same model, each on its own rows, of which it may have none; all
            get the mean over all rows.

    Returns:
        The weighted mean over all rows, to which each batch contributes according to its size;
        nan if there are no rows.

    Raises:
        ValueError: `dataloader` yields something other than pairs or triples, or a batch's loss is not one number.
        RuntimeError: the target does not have the prediction's shape, and the loss would broadcast them; or another
            rank failed.

    Equivalent to:
        `model.eval()`, then, under `torch.no_grad()`, the sum over batches of `len(x) * loss_fn(model(x), y)`
        divided by the number of rows.

    Example:
        >>> evaluate(model, nn.MSELoss(), DataLoader(dataset, batch_size=20))
    """
    group = None if process_group is None else Group("evaluate", process_group, model)
    return mean_loss("evaluate", model, loss_fn, batches_of("evaluate", dataloader), group)


def mean_loss(
    op: str,
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    batches: Iterable[Any],
    group: Group | None = None,
) -> float:
    """`evaluate` over batches, on all ranks of `group`; messages name the function `op`."""
    if group is None:
        total, rows = _sums(op, model, loss_fn, batches)
    else:

        def add(sums: Tensor) -> None:
            sums[LOSS], sums[WEIGHT] = _sums(op, model, loss_fn, batches)

        numbers, _ = group.add_up(group.numbers(), add)
        total, rows = numbers[LOSS], numbers[WEIGHT]
    return total / rows if rows else float("nan")


def _sums(
    op: str, model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], batches: Iterable[Any]
) -> tuple[float, float]:
    """The sums of the losses over all rows, and of the rows' weights."""
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
    return sum_over_rows(losses, rows, summed)


def sum_over_rows(losses: list[Tensor], rows: list[int | float | Tensor], summed: bool) -> tuple[float, float]:
    """The sums of the losses over all rows and of the rows' weights, from batch losses that are means (or, if `summed`,
    sums) over their own rows."""
    if rows and all(isinstance(r, Tensor) for r in rows):
        weights = torch.stack(rows).cpu()
    else:
        weights = torch.tensor([float(r) for r in rows], dtype=torch.float64, device="cpu")
    total = weights.sum().item()
    if total == 0:
        return 0.0, 0.0
    values = torch.stack(losses).flatten().double().cpu().where(weights != 0, 0.0)  # nan: a batch without weight
    return float(values.sum() if summed else values @ weights), total
