# SPDX-License-Identifier: BSD-3-Clause
"""The training of `fit`: from a problem to coefficients in the table's own units."""

from __future__ import annotations

import argparse
import importlib.util
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ..training import DivergenceError, fit, make_train_step
from .checkpoint import Checkpoints
from .coefficients import Coefficients
from .epochs import Epochs
from .errors import CommandError
from .problem import Problem
from .standardize import scale_of, steady_lr

LOSSES = {"mse": nn.MSELoss, "l1": nn.L1Loss, "huber": nn.HuberLoss, "smooth-l1": nn.SmoothL1Loss}


def train(
    problem: Problem, args: argparse.Namespace, generator: torch.Generator, checkpoints: Checkpoints
) -> tuple[Coefficients, Epochs]:
    """Train as the arguments say, in float32 on scaled columns; `generator` shuffles the rows."""
    of_x = scale_of(problem.x, problem.features, "feature", problem.held_out, args.standardize)
    of_y = scale_of(problem.y, problem.targets, "target", problem.held_out, args.standardize)
    x, y, training = of_x.apply(problem.x), of_y.apply(problem.y), ~problem.held_out
    batch_size = min(args.batch_size, int(training.sum()))
    lr = args.lr or steady_lr(x[training], batch_size, len(problem.targets), args.momentum, args.weight_decay)
    data = [t.to(args.device, torch.float32) for t in (x, y)]
    train_rows = TensorDataset(*(t[training] for t in data))
    validation_rows = TensorDataset(*(t[problem.held_out] for t in data))

    layer = nn.Linear(len(problem.features), len(problem.targets), device=args.device)
    nn.init.zeros_(layer.weight)  # the problem is convex; from zero, standardised data starts at the targets' mean
    nn.init.zeros_(layer.bias)
    loss_fn = LOSSES[args.loss]()
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=args.momentum, weight_decay=args.weight_decay)
    with torch.no_grad():
        at_start = loss_fn(layer(train_rows.tensors[0]), train_rows.tensors[1]).item()

    columns = "standardised columns" if args.standardize else "the columns as they are"
    count = f"{args.epochs:,} epoch{'s' if args.epochs > 1 else ''}"
    print(f"training: {count} in batches of {batch_size}, {args.loss} loss on {columns}")
    print(f"SGD: learning rate {lr:g} falling to 0, momentum {args.momentum:g}, weight decay {args.weight_decay:g}")
    print(make_train_step(layer, loss_fn, sgd).explain(), flush=True)
    # A constant rate would leave the coefficients trembling around the solution.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, args.epochs)
    checkpoints.track(layer, sgd, scheduler, generator)
    done = checkpoints.load() if args.resume else 0
    if done:
        left = args.epochs - done
        print(f"{done:,} of them were trained before; going on with the other {left:,}, counted from 1", flush=True)
    bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    advice = f"lower --lr ({lr:g})" + ("" if args.standardize else " or drop --no-standardize")
    try:
        history = fit(
            args.epochs - done,
            layer,
            loss_fn,
            sgd,
            DataLoader(train_rows, batch_size, shuffle=True, generator=generator),
            val_dl=DataLoader(validation_rows, len(validation_rows)) if len(validation_rows) else None,
            scheduler=scheduler,
            progress=bar,
            log_every=None if bar else max(1, args.epochs // 10),
            on_epoch_end=checkpoints.after_epoch,
        )
    except DivergenceError as error:
        loss = error.history.step_loss[error.step - 1].item()
        checkpoints.forget()
        raise CommandError(
            f"training diverges: the loss is {loss} at step {checkpoints.steps + error.step}; {advice}"
        ) from None
    except KeyboardInterrupt:
        if checkpoints.path.exists():
            print(f"\n{checkpoints.path} is where --resume goes on", file=sys.stderr)
        raise

    epochs = checkpoints.whole(history)
    weight = layer.weight.detach().double().cpu() * of_y.spread[:, None] / of_x.spread
    bias = of_y.centre + layer.bias.detach().double().cpu() * of_y.spread - weight @ of_x.centre
    at_end = epochs.epoch_loss[-1].item()
    if not (at_end <= 10 * at_start and weight.isfinite().all() and bias.isfinite().all()):
        checkpoints.forget()
        raise CommandError(f"training diverges: the loss went from {at_start:.3g} to {at_end:.3g}; {advice}")
    return Coefficients(problem.features, problem.targets, weight, bias), epochs
