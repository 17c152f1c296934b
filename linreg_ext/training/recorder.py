# SPDX-License-Identifier: BSD-3-Clause
"""Collects what a run leaves behind while it goes on, reading losses from the device once an epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .evaluate import mean_over_rows
from .history import History


class DivergenceError(RuntimeError):
    """The loss turned nan or inf.

    Attributes:
        step: the step (from 1) whose loss it was.
        history: the run up to and including that step; the unfinished epoch has no epoch_loss.
    """

    def __init__(self, message: str, step: int, history: History) -> None:
        super().__init__(message)
        self.step, self.history = step, history


class _Numbers:
    """float64 numbers that more are added to; looking at all of them copies nothing."""

    def __init__(self) -> None:
        self._memory, self._count = torch.empty(64, dtype=torch.float64), 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> float:
        return self.so_far()[index].item()

    def extend(self, more: Tensor) -> None:
        end = self._count + len(more)
        if end > len(self._memory):
            grown = torch.empty(max(end, 2 * len(self._memory)), dtype=torch.float64)
            grown[: self._count] = self.so_far()
            self._memory = grown
        self._memory[self._count : end] = more
        self._count = end

    def append(self, number: float) -> None:
        self.extend(torch.tensor([number], dtype=torch.float64))

    def so_far(self) -> Tensor:
        return self._memory[: self._count]


class Recorder:
    """What :class:`History` will hold.

    Attributes:
        summed: the loss of a batch is a sum over its rows, not their mean.
        epoch_loss, val_loss: of the epochs so far.
    """

    def __init__(self, summed: bool) -> None:
        self.summed = summed
        self.epoch_loss, self.val_loss = _Numbers(), _Numbers()
        self._step_loss, self._lr = _Numbers(), _Numbers()
        self._steps: list[tuple[Tensor, int, float | Tensor]] = []  # loss, rows and rate, of the epoch that goes on
        self._read = torch.empty(0)  # the losses that were read last
        self._last_epoch = torch.empty(0)

    @property
    def last_loss(self) -> float:
        """The loss of the last epoch's last batch."""
        return self._last_epoch[-1].item() if len(self._last_epoch) else math.nan

    def add(self, loss: Tensor, rows: int, lr: float | Tensor) -> None:
        """A step."""
        self._steps.append((loss, rows, lr.detach().clone() if isinstance(lr, Tensor) else lr))

    def end_epoch(self) -> None:
        """The steps since the last epoch were an epoch."""
        rows = [step[1] for step in self._steps]
        self._read_steps()
        self._last_epoch = self._read
        self.epoch_loss.append(mean_over_rows(list(self._read), rows, self.summed))

    def add_epochs(self, losses: Tensor, rows: Tensor, lr: float | Tensor, validation: Tensor) -> None:
        """The steps of epochs, the last of which may not have come to its end.

        Args:
            losses: of the steps.
            rows: [steps of an epoch], of each batch.
            lr: of every step.
            validation: the losses on the validation rows after the epochs that have ended; empty without.
        """
        losses = losses.double().cpu()
        self._add_read(losses, torch.full((len(losses),), float(lr), dtype=torch.float64))
        epochs = len(losses) // len(rows)
        by_epoch = losses[: epochs * len(rows)].view(epochs, len(rows))
        sums = by_epoch.sum(1) if self.summed else by_epoch @ rows
        self.epoch_loss.extend(sums / rows.sum())
        self.val_loss.extend(validation[:epochs].double().cpu())
        if epochs:
            self._last_epoch = by_epoch[-1]

    def raise_if_diverged(self) -> None:
        """Raise DivergenceError if a loss of the last epoch, or of the one that goes on, is nan or inf."""
        if self._steps:
            self._read_steps()
        if bool(self._read.isfinite().all()):
            return
        bad = int((~self._read.isfinite()).nonzero()[0])
        step = len(self._step_loss) - len(self._read) + bad + 1
        raise DivergenceError(
            f"fit: the loss is {self._read[bad].item()} at step {step}: training diverges; scale the features or lower "
            "the learning rate (the parameters are those before that step)",
            step,
            self.history(len(self.val_loss) > 0),
        )

    def history(self, validated: bool) -> History:
        """Everything so far, with validation losses or without: copies."""
        parts = vars(self.look(validated)).values()
        return History(*(None if t is None else t.clone() for t in parts))

    def look(self, validated: bool) -> History:
        """The same as a view of what is recorded, which nobody may change."""
        val_loss = self.val_loss.so_far() if validated else None
        return History(self._step_loss.so_far(), self.epoch_loss.so_far(), val_loss, self._lr.so_far())

    def _read_steps(self) -> None:
        losses, rates = [step[0] for step in self._steps], [float(step[2]) for step in self._steps]
        self._add_read(
            torch.stack(losses).flatten().double().cpu() if losses else torch.empty(0, dtype=torch.float64),
            torch.tensor(rates, dtype=torch.float64),
        )
        self._steps = []

    def _add_read(self, losses: Tensor, rates: Tensor) -> None:
        self._read = losses
        self._step_loss.extend(losses)
        self._lr.extend(rates)
