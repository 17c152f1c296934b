# SPDX-License-Identifier: BSD-3-Clause
"""The mean loss of a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .batches import pairs
from .match import reduction_of


def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], dataloader: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """The mean of `loss_fn` over the rows of `dataloader`, in eval mode and without gradients.

    Args:
        model: put in eval mode for the pass, and every module of it back into its mode after it.
        loss_fn: called as ``loss_fn(model(x), y)``; a loss with ``reduction="sum"`` is divided by the rows.
        dataloader: yields (x [N, D], y [N, K]) on the model's device.

    Returns:
        The mean over all rows, so that a short last batch counts by its size; nan if there are none.

    Raises:
        ValueError: `dataloader` yields something else than pairs, or the loss of a batch is not one number.

    Equivalent to:
        ``model.eval()``, then under ``torch.no_grad()`` the sum over batches of ``len(x) * loss_fn(model(x), y)``, by
        the number of rows.

    Example:
        >>> evaluate(model, nn.MSELoss(), DataLoader(dataset, batch_size=20))
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    summed = reduction_of(loss_fn) == "sum"
    losses: list[Tensor] = []
    rows: list[int] = []
    try:
        with torch.no_grad():
            for x, y in pairs("evaluate", dataloader):
                loss = loss_fn(model(x), y)
                require_one_number("evaluate", loss)
                losses.append(loss.detach())
                rows.append(len(x))
    finally:
        for module, training in modes:
            module.training = training
    return mean_over_rows(losses, rows, summed)


def require_one_number(op: str, loss: Tensor) -> None:
    """Raise unless the loss of a batch is reduced."""
    if loss.numel() != 1:
        raise ValueError(f"{op}: the loss must be one number, got shape {list(loss.shape)}")


def mean_over_rows(losses: list[Tensor], rows: list[int], summed: bool) -> float:
    """The mean over rows of batch losses that are means (or, if `summed`, sums) over their own rows."""
    if sum(rows) == 0:
        return float("nan")
    values = torch.stack(losses).flatten().double().cpu()
    weights = torch.ones(len(rows), dtype=torch.float64) if summed else torch.tensor(rows, dtype=torch.float64)
    return float(values @ weights) / sum(rows)
