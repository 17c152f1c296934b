# SPDX-License-Identifier: BSD-3-Clause
"""The training of `fit`: from a data set to coefficients in the table's own units."""

from __future__ import annotations

import argparse
import importlib.util
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..training import DivergenceError, History, fit, make_train_step
from .coefficients import Coefficients
from .dataset import Dataset
from .errors import CommandError
from .standardize import Scale, scale_of, steady_lr

LOSSES = {"mse": nn.MSELoss, "l1": nn.L1Loss, "huber": nn.HuberLoss, "smooth-l1": nn.SmoothL1Loss}


def train(dataset: Dataset, args: argparse.Namespace, generator: torch.Generator) -> tuple[Coefficients, History]:
    """Train as the arguments say, in float32 on scaled columns; `generator` shuffles the rows."""
    of_x = scale_of(dataset.x, dataset.features, "feature", dataset.held_out, args.standardize)
    of_y = scale_of(dataset.y, dataset.targets, "target", dataset.held_out, args.standardize)
    x, y, training = of_x.apply(dataset.x), of_y.apply(dataset.y), ~dataset.held_out
    batch_size = min(args.batch_size, int(training.sum()))
    lr = args.lr or steady_lr(x[training], batch_size, len(dataset.targets), args.momentum, args.weight_decay)
    data = [t.to(args.device, torch.float32) for t in (x, y)]
    train_rows = TensorDataset(*(t[training] for t in data))
    validation_rows = TensorDataset(*(t[dataset.held_out] for t in data))

    layer = nn.Linear(len(dataset.features), len(dataset.targets), device=args.device)
    nn.init.zeros_(layer.weight)  # the problem is convex; from zero, standardised data starts at the targets' mean
    nn.init.zeros_(layer.bias)
    loss_fn = LOSSES[args.loss]()
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=args.momentum, weight_decay=args.weight_decay)
    with torch.no_grad():
        at_start = loss_fn(layer(train_rows.tensors[0]), train_rows.tensors[1]).item()

    _print_plan(args, batch_size, lr)
    print(make_train_step(layer, loss_fn, sgd).explain(), flush=True)
    # A constant rate would leave the coefficients trembling around the solution.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, args.epochs)
    bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    try:
        history = fit(
            args.epochs,
            layer,
            loss_fn,
            sgd,
            DataLoader(train_rows, batch_size, shuffle=True, generator=generator),
            val_dl=DataLoader(validation_rows, len(validation_rows)) if len(validation_rows) else None,
            scheduler=scheduler,
            progress=bar,
            log_every=None if bar else max(1, args.epochs // 10),
        )
    except DivergenceError as error:
        loss = error.history.step_loss[error.step - 1].item()
        raise _diverges(f"is {loss} at step {error.step}", args, lr) from None
    at_end = history.epoch_loss[-1].item()
    if not (at_end <= 10 * at_start and all(p.isfinite().all() for p in layer.parameters())):
        raise _diverges(f"went from {at_start:.3g} to {at_end:.3g}", args, lr)
    return _in_the_tables_units(layer, dataset, of_x, of_y), history


def _print_plan(args: argparse.Namespace, batch_size: int, lr: float) -> None:
    columns = "standardised columns" if args.standardize else "the columns as they are"
    epochs = f"{args.epochs:,} epoch{'s' if args.epochs > 1 else ''}"
    print(f"training: {epochs} in batches of {batch_size}, {args.loss} loss on {columns}")
    print(f"SGD: learning rate {lr:g} falling to 0, momentum {args.momentum:g}, weight decay {args.weight_decay:g}")


def _diverges(what_the_loss_does: str, args: argparse.Namespace, lr: float) -> CommandError:
    advice = f"lower --lr ({lr:g})" + ("" if args.standardize else " or drop --no-standardize")
    return CommandError(f"training diverges: the loss {what_the_loss_does}; {advice}")


def _in_the_tables_units(layer: nn.Linear, dataset: Dataset, of_x: Scale, of_y: Scale) -> Coefficients:
    """The model that `layer` is of scaled columns.

    Raises:
        CommandError: a coefficient has no place in float64's range there.
    """
    scaled_weight, scaled_bias = (p.detach().double().cpu() for p in (layer.weight, layer.bias))
    weight = scaled_weight * of_y.std[:, None] / of_x.std
    bias = of_y.mean + scaled_bias * of_y.std - weight @ of_x.mean
    vanished = (weight == 0) & (scaled_weight != 0)
    lost = (vanished | ~weight.isfinite()).nonzero().tolist()
    if lost:
        target, feature = dataset.targets[lost[0][0]], dataset.features[lost[0][1]]
        size, mend = "large", f"multiply '{feature}' or divide '{target}'"
        if vanished[tuple(lost[0])]:
            size, mend = "small", f"divide '{feature}' or multiply '{target}'"
        raise CommandError(
            f"the coefficient of '{feature}' for '{target}' is too {size} for a float64 in the table's own units; "
            f"{mend} by a power of ten"
        )
    if not bias.isfinite().all():
        target = dataset.targets[int(bias.isfinite().int().argmin())]
        raise CommandError(
            f"the intercept of '{target}' is too large for a float64; divide '{target}' by a power of ten"
        )
    return Coefficients(dataset.features, dataset.targets, weight, bias)
