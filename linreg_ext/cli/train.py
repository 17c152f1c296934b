# SPDX-License-Identifier: BSD-3-Clause
"""The training of `fit`: from a data set to coefficients in the table's own units."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from ..losses import LOSSES
from ..tables import listing
from ..training import DivergenceError, History, evaluate, fit
from .coefficients import Coefficients
from .dataset import Dataset
from .errors import CommandError
from .report import many
from .standardize import Scale, can_decorrelate, scale_of, shares, steady_lr

_EPOCHS = 200  # for small tables; large ones take enough steps in fewer epochs
_STEPS = 200_000
_BATCH, _FEW_ROWS = 64, 4096


def train(dataset: Dataset, args: argparse.Namespace, generator: torch.Generator) -> tuple[Coefficients, History]:
    """Train by SGD in float32 on scaled columns, as the arguments specify; `generator` shuffles the rows."""
    share = shares(dataset.held_out, dataset.weight)
    rows = share.nonzero()[:, 0]
    of_x, of_y = _scales(dataset, share, args)
    x, y = of_x.apply(dataset.x), of_y.apply(dataset.y)
    batch_size = min(args.batch_size or _batch_size(args.loss, of_x, len(rows)), len(rows))
    steps = -(-len(rows) // batch_size)
    epochs = args.epochs or max(10, min(_EPOCHS, _STEPS // steps))
    lr = args.lr or steady_lr(x, share, batch_size, y.shape[1], args.momentum, args.weight_decay)
    constant = [name for name, is_constant in zip(dataset.encoding.names, of_x.constant, strict=True) if is_constant]
    if constant:
        print(f"coefficient 0 because the column is constant over the training rows: {listing(constant)}")
    _print_plan(args, of_x, epochs, batch_size, lr)
    loss = LOSSES[args.loss.replace("-", "_")]
    loss_fn = loss.module(args.quantile) if loss.name == "quantile" else loss.module()
    model = nn.utils.skip_init(nn.Linear, x.shape[1], y.shape[1], device=args.device)
    for parameter in model.parameters():  # the problem is convex, and standardised targets have mean 0
        parameter.detach().zero_()
    opt = torch.optim.SGD(model.parameters(), lr, args.momentum, weight_decay=args.weight_decay)
    table = TensorDataset(x, y, *([] if dataset.weight is None else [dataset.weight.float()]))
    loader = DataLoader(Subset(table, rows), batch_size, shuffle=True, generator=generator)
    held_out = dataset.held_out.nonzero()[:, 0]
    val_loader = DataLoader(Subset(table, held_out), _FEW_ROWS) if len(held_out) else None
    at_start = evaluate(model, loss_fn, [[part[rows].to(args.device) for part in table.tensors]])
    try:
        history = _fit(epochs, args, model, loss_fn, opt, loader, val_loader)
    except DivergenceError as error:
        raise _diverges(f"is {error.history.step_loss[-1].item()} at step {error.step}", args, lr) from None
    at_end = history.epoch_loss[-1].item()
    if not (at_end <= 10 * at_start and all(p.isfinite().all() for p in model.parameters())):
        raise _diverges(f"went from {at_start:.3g} to {at_end:.3g}", args, lr)
    return _in_the_tables_units(model, dataset, of_x, of_y), history


def _fit(
    epochs: int, args: argparse.Namespace, model: nn.Linear, loss_fn: nn.Module, opt: torch.optim.SGD,
    loader: DataLoader, val_loader: DataLoader | None,
) -> History:  # fmt: skip
    """Train with a progress bar, or in about ten parts with a line after each."""
    # At a constant rate, the coefficients would keep fluctuating around the solution.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)
    options = {"val_dl": val_loader, "scheduler": scheduler, "device": args.device, "progress": args.bar}
    ends = [epochs] if args.bar else sorted({1, *range(max(1, epochs // 10), epochs, max(1, epochs // 10)), epochs})
    parts: list[History] = []
    for begin, end in zip([0, *ends], ends, strict=False):
        try:
            parts.append(fit(end - begin, model, loss_fn, opt, loader, **options))
        except DivergenceError as error:
            error.step += sum(len(part.step_loss) for part in parts)
            raise
        if not args.bar:
            validation = "" if val_loader is None else f", Val loss: {parts[-1].val_loss[-1]:.6g}"
            print(f"Epoch [{end}/{epochs}], Loss: {parts[-1].epoch_loss[-1]:.6g}{validation}", flush=True)
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return History(*(None if column[0] is None else torch.cat(column) for column in columns))


def _batch_size(loss: str, of_x: Scale, rows: int) -> int:
    """The default batch size. On decorrelated columns, full batches reach the minimum in a few steps. Small batches are
    faster for losses with kinks, for correlated columns and for many rows."""
    return rows if of_x.basis is not None and loss not in ("l1", "quantile") and rows <= _FEW_ROWS else _BATCH


def _scales(dataset: Dataset, share: Tensor, args: argparse.Namespace) -> tuple[Scale, Scale]:
    """The scales of the columns of x and of y."""
    encoding = dataset.encoding
    of_x, of_y = scale_of(dataset.x, share), scale_of(dataset.y, share)
    for name, values, constant in zip(encoding.targets, dataset.y.T, of_y.constant, strict=True):
        if constant:
            where = f"the {int((share > 0).sum())} training rows; try another --seed or a smaller --val-fraction"
            where = "all rows" if values.min() == values.max() else where
            raise CommandError(f"target '{name}' must vary, got {values[share > 0][0].item():g} in {where}")
    if args.standardize:
        decorrelate = args.weight_decay == 0 and can_decorrelate(int((share > 0).sum()), dataset.x.shape[1])
        return of_x.decorrelated(dataset.x, share) if decorrelate else of_x, of_y
    for role, names, values in (("feature", encoding.names, dataset.x), ("target", encoding.targets, dataset.y)):
        beyond = torch.maximum(values.amax(0), -values.amin(0)) > torch.finfo(torch.float32).max
        if beyond.any():
            name = names[int(beyond.int().argmax())]
            raise CommandError(f"{role} '{name}' has numbers beyond float32's range; drop --no-standardize")
    return tuple(replace(s, mean=torch.zeros_like(s.mean), std=torch.ones_like(s.std)) for s in (of_x, of_y))


def _print_plan(args: argparse.Namespace, of_x: Scale, epochs: int, batch_size: int, lr: float) -> None:
    columns = "standardised columns" if args.standardize else "the columns as they are"
    columns += "" if of_x.basis is None else ", decorrelated"
    print(f"training: {many(epochs, 'epoch')} in batches of {batch_size:,}, {args.loss} loss on {columns}")
    print(
        f"SGD: learning rate {lr:g} falling to 0, momentum {args.momentum:g}, weight decay {args.weight_decay:g}",
        flush=True,
    )


def _diverges(what_the_loss_does: str, args: argparse.Namespace, lr: float) -> CommandError:
    advice = f"lower --lr ({lr:g})" + ("" if args.standardize else " or drop --no-standardize")
    return CommandError(f"training diverges: the loss {what_the_loss_does}; {advice}")


def _in_the_tables_units(model: nn.Linear, dataset: Dataset, of_x: Scale, of_y: Scale) -> Coefficients:
    """Convert the trained model from scaled columns to the table's own units.

    Raises:
        CommandError: a coefficient is out of float64's range in these units.
    """
    scaled_weight, scaled_bias = (p.detach().double().cpu() for p in (model.weight, model.bias))
    scaled_weight = of_x.to_columns(scaled_weight)
    features, targets = dataset.encoding.names, dataset.encoding.targets
    weight = scaled_weight * of_y.std[:, None] / of_x.std
    bias = of_y.mean + scaled_bias * of_y.std - weight @ of_x.mean
    vanished = (weight == 0) & (scaled_weight != 0)
    lost = (vanished | ~weight.isfinite()).nonzero().tolist()
    if lost:
        target, feature = targets[lost[0][0]], features[lost[0][1]]
        size, mend = "large", f"multiply '{feature}' or divide '{target}'"
        if vanished[tuple(lost[0])]:
            size, mend = "small", f"divide '{feature}' or multiply '{target}'"
        raise CommandError(
            f"the coefficient of '{feature}' for '{target}' is too {size} for a float64 in the table's own units; "
            f"{mend} by a power of ten"
        )
    if not bias.isfinite().all():
        target = targets[int(bias.isfinite().int().argmin())]
        raise CommandError(
            f"the intercept of '{target}' is too large for a float64; divide '{target}' by a power of ten"
        )
    return Coefficients(features, targets, weight, bias)
