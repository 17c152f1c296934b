# SPDX-License-Identifier: BSD-3-Clause
"""The training of `fit`: from a data set to coefficients in the table's own units."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..functional import Chunk, linear_loss, sgd_run, steps_taken
from ..losses import LOSSES
from ..standardize import Scale, can_decorrelate, scale_of, shares, steady_lr
from ..training import DivergenceError, History, fit
from .coefficients import Coefficients, require_in_range
from .dataset import Dataset
from .errors import CommandError
from .processes import LostRankError, Processes
from .report import many, print_constant

Batch = tuple[Tensor, Tensor, Tensor | None]  # input, target and weight

_EPOCHS = 200  # for small tables; large ones take enough steps in fewer epochs
_STEPS = 200_000
_BATCH, _FEW_ROWS = 64, 4096


def train(
    dataset: Dataset, args: argparse.Namespace, generator: torch.Generator, processes: Processes
) -> tuple[Coefficients, History]:
    """Train by SGD in float32 on scaled columns, as the arguments specify; `generator` shuffles the rows.

    Several processes, each with the whole data set, share the rows of every batch.
    """
    share = shares(dataset.held_out, dataset.weight)
    rows = share.nonzero()[:, 0]
    of_x, of_y = _scales(dataset, share, args)
    x, y = of_x.apply(dataset.x), of_y.apply(dataset.y)
    batch_size = min(args.batch_size or _batch_size(args.loss, of_x, len(rows)), len(rows))
    steps = -(-len(rows) // batch_size)
    epochs = args.epochs or max(10, min(_EPOCHS, _STEPS // steps))
    lr = args.lr or steady_lr(x, share, batch_size, y.shape[1], args.momentum, args.weight_decay)
    print_constant([name for name, same in zip(dataset.encoding.names, of_x.constant, strict=True) if same])
    _print_plan(args, of_x, epochs, batch_size, lr)
    run = _Run(x, y, dataset, rows, args)

    def show(epoch: int, loss: float, val_loss: float | None) -> None:
        if not args.bar and (epoch in (1, epochs) or epoch % max(1, epochs // 10) == 0):
            validation = "" if val_loss is None else f", Val loss: {val_loss:.6g}"
            print(f"Epoch [{epoch}/{epochs}], Loss: {loss:.6g}{validation}", flush=True)

    if processes.size == 1:
        for epoch, losses in enumerate(run.epochs(epochs, lr, batch_size, generator), 1):
            show(epoch, *losses)
        history = run.history()
    else:
        history = run.epochs_together(epochs, lr, batch_size, generator, processes, show)
    at_start, at_end = run.loss_at_start, history.epoch_loss[-1].item()
    if not (at_end <= 10 * at_start and run.linear_weight.isfinite().all() and run.linear_bias.isfinite().all()):
        raise _diverges(f"went from {at_start:.3g} to {at_end:.3g}", args, lr)
    return _in_the_tables_units(run, dataset, of_x, of_y), history


def _batch_size(loss: str, of_x: Scale, rows: int) -> int:
    """The default batch size. On decorrelated columns, full batches reach the minimum in a few steps. Small batches are
    faster for losses with kinks, for correlated columns and for many rows."""
    return rows if of_x.basis is not None and loss not in ("l1", "quantile") and rows <= _FEW_ROWS else _BATCH


class _Run:
    """Trains a linear model from 0: the problem is convex, and standardised targets have mean 0."""

    def __init__(self, x: Tensor, y: Tensor, dataset: Dataset, rows: Tensor, args: argparse.Namespace) -> None:
        self._args, self._loss = args, args.loss.replace("-", "_")
        self._threshold = args.quantile if self._loss == "quantile" else 1.0
        self._held_out = held_out = dataset.held_out.nonzero()[:, 0]
        weight = None if dataset.weight is None else dataset.weight.float()
        self._x, self._y, self._rows = x.to(args.device), y.to(args.device), rows
        self._weight = None if weight is None else weight.to(args.device)
        self._validation = self._part(held_out) if len(held_out) else (None, None, None)
        self.linear_weight = torch.zeros(y.shape[1], x.shape[1], device=args.device)
        self.linear_bias = torch.zeros(y.shape[1], device=args.device)
        _, target, its_weight = self._part(rows)
        self.loss_at_start = self._loss_of(target[:, :0], target, its_weight)
        self._losses: list[Tensor] = []
        self._rates: list[float] = []
        self._epoch_losses: list[float] = []
        self._val_losses: list[float] = []

    def epochs(
        self, epochs: int, lr: float, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[float, float | None]]:
        """Train; yield the training and the validation loss of each epoch."""
        args, rows, parameters = self._args, self._rows, [self.linear_weight, self.linear_bias]
        buffers = [torch.empty_like(p) for p in parameters] if args.momentum else []
        rule = (0.0, args.momentum, 0.0, args.weight_decay, False, False)
        steps = -(-len(rows) // batch_size)
        together = max(1, min(epochs // 10, (1 << 20) // len(rows)))  # epochs per call
        with _bar(epochs, args.bar) as bar:
            for begin in range(0, epochs, together):
                # At a constant rate, the coefficients would keep fluctuating around the solution.
                part = range(begin, min(begin + together, epochs))
                some = [lr * (1 + math.cos(math.pi * epoch / epochs)) / 2 for epoch in part]
                order = torch.stack([self._shuffled(generator) for _ in some])
                rates = torch.tensor(some, dtype=torch.float64).repeat_interleave(steps)
                first = 0b11 if buffers and begin == 0 else 0
                step = (
                    self._x, self._y, parameters, buffers, rule, self._loss, self._threshold, self._weight, rates,
                    "mean", first, 0, True,
                )  # fmt: skip
                chunks: list[Chunk] = []
                sizes = (batch_size, False, len(some))
                sgd_run(step, order.to(args.device), self._validation, sizes, len(rates), chunks)
                losses, val_losses = (torch.cat(parts).double().cpu() for parts in list(zip(*chunks, strict=True))[:2])
                losses = losses[: steps_taken(chunks) + 1]
                if not losses[-1:].isfinite().all():
                    step_number = begin * steps + len(losses)
                    raise _diverges(f"is {losses[-1].item()} at step {step_number}", args, lr)
                self._losses.append(losses)
                self._rates += rates.tolist()
                means, val_means = self._means(losses.view(len(some), steps), order, batch_size), val_losses.tolist()
                self._epoch_losses += means
                self._val_losses += val_means
                for loss, val_loss in itertools.zip_longest(means, val_means):
                    if bar:
                        bar.update()
                    yield loss, val_loss

    def epochs_together(
        self,
        epochs: int,
        lr: float,
        batch_size: int,
        generator: torch.Generator,
        processes: Processes,
        show: Callable[[int, float, float | None], None],
    ) -> History:
        """Train as `epochs` does, with a share of each batch in each process; `show` each epoch's losses."""
        args, table = self._args, LOSSES[self._loss]
        model = nn.Linear(self._x.shape[1], self._y.shape[1], device=args.device)
        model.weight, model.bias = nn.Parameter(self.linear_weight), nn.Parameter(self.linear_bias)
        if table.module is not None:
            loss_fn = table.module(**table.options(self._threshold))
        elif self._weight is None:
            loss_fn = lambda p, y: table.plain(p, y, self._threshold).mean()  # noqa: E731
        else:
            raise CommandError(f"--weight: {args.loss} loss needs a single process")
        optimizer = torch.optim.SGD(model.parameters(), lr, args.momentum, weight_decay=args.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: (1 + math.cos(math.pi * i / epochs)) / 2)
        batches = _Shares(self._part, processes, lambda: self._shuffled(generator), batch_size)
        held_out = self._held_out
        val_batches = _Shares(self._part, processes, lambda: held_out, len(held_out)) if len(held_out) else None

        def show_last(epoch: int, history: History) -> None:
            show(epoch, history.epoch_loss[-1].item(), None if val_batches is None else history.val_loss[-1].item())

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "linreg_ext: eager")  # the quantile loss
                return fit(
                    epochs, model, loss_fn, optimizer, batches, val_dl=val_batches, scheduler=scheduler,
                    progress=args.bar, on_epoch_end=show_last, process_group=dist.group.WORLD,
                )  # fmt: skip
        except DivergenceError as error:
            raise _diverges(f"is {error.history.step_loss[-1].item()} at step {error.step}", args, lr) from None
        except RuntimeError as error:
            raise LostRankError(str(error)) from None

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        return self._rows[torch.randperm(len(self._rows), generator=generator)]

    def history(self) -> History:
        """The history of the epochs so far."""
        epoch_loss, val_loss, rates = (
            torch.tensor(v, dtype=torch.float64) for v in (self._epoch_losses, self._val_losses, self._rates)
        )
        return History(torch.cat(self._losses), epoch_loss, val_loss if len(val_loss) else None, rates)

    def _part(self, rows: Tensor) -> Batch:
        rows = rows.to(self._args.device)
        return self._x[rows], self._y[rows], None if self._weight is None else self._weight[rows]

    def _loss_of(self, x: Tensor, y: Tensor, weight: Tensor | None) -> float:
        w = self.linear_weight[:, : x.shape[1]]
        return linear_loss(self._loss, self._threshold, x, w, y, self.linear_bias, weight, "mean").item()

    def _means(self, losses: Tensor, order: Tensor, batch_size: int) -> list[float]:
        """The mean loss over each epoch's rows, from the losses of the batches [epochs, steps]."""
        batch = torch.arange(order.shape[1]) // batch_size
        weight = torch.ones(()) if self._weight is None else self._weight.cpu()[order]
        weights = torch.zeros_like(losses).index_add(1, batch, weight.double().expand(order.shape))
        return ((losses * weights).sum(1) / weights.sum(1)).tolist()


class _Shares:
    """Batches of which each rank has a share of the rows.

    Args:
        part: the batch of some rows.
        draw: the rows of an epoch, equal on all ranks.
    """

    def __init__(
        self, part: Callable[[Tensor], Batch], processes: Processes, draw: Callable[[], Tensor], batch_size: int
    ) -> None:
        self._part, self._processes, self._draw, self._batch_size = part, processes, draw, batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for rows in self._draw().split(self._batch_size):
            x, y, weight = self._part(rows.tensor_split(self._processes.size)[self._processes.rank])
            yield (x, y) if weight is None else (x, y, weight)


def _bar(epochs: int, shown: bool) -> Any:
    """A progress bar on stderr."""
    if not shown:
        return contextlib.nullcontext()
    from tqdm import tqdm

    return tqdm(total=epochs, desc="fit", unit="epoch")


def _scales(dataset: Dataset, share: Tensor, args: argparse.Namespace) -> tuple[Scale, Scale]:
    """The scales of the columns of x and of y."""
    encoding = dataset.encoding
    of_x, of_y = scale_of(dataset.x, share), scale_of(dataset.y, share)
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


def _in_the_tables_units(run: _Run, dataset: Dataset, of_x: Scale, of_y: Scale) -> Coefficients:
    """Convert the trained model from scaled columns to the table's own units."""
    scaled_weight, scaled_bias = (p.double().cpu() for p in (run.linear_weight, run.linear_bias))
    scaled_weight = of_x.to_columns(scaled_weight)
    weight = scaled_weight * of_y.std[:, None] / of_x.std
    bias = of_y.mean + scaled_bias * of_y.std - weight @ of_x.mean
    model = Coefficients(dataset.encoding.names, dataset.encoding.targets, weight, bias)
    require_in_range(model, vanished=(weight == 0) & (scaled_weight != 0))
    return model
