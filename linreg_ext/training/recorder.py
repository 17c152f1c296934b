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


class Recorder:
    """What :class:`History` will hold.

    Attributes:
        summed: the loss of a batch is a sum over its rows, not their mean.
        epoch_loss, val_loss: of the epochs so far.
    """

    def __init__(self, summed: bool) -> None:
        self.summed = summed
        self.epoch_loss: list[float] = []
        self.val_loss: list[float] = []
        self._read: list[Tensor] = []  # the losses of steps, an epoch or several in each
        self._lr: list[tuple[float | Tensor, int]] = []  # and for how many steps
        self._losses: list[Tensor] = []  # of the epoch that goes on
        self._rows: list[int] = []
        self._last_epoch = torch.empty(0)

    @property
    def last_loss(self) -> float:
        """The loss of the last epoch's last batch."""
        return self._last_epoch[-1].item() if len(self._last_epoch) else math.nan

    def add(self, loss: Tensor, rows: int, lr: float | Tensor) -> None:
        """A step."""
        self._losses.append(loss)
        self._rows.append(rows)
        self._lr.append((lr.detach().clone() if isinstance(lr, Tensor) else lr, 1))

    def end_epoch(self) -> None:
        """The steps since the last epoch were an epoch."""
        self._last_epoch = self._read_losses()
        self.epoch_loss.append(mean_over_rows(list(self._last_epoch), self._rows, self.summed))
        self._rows = []

    def add_epochs(self, losses: Tensor, rows: Tensor, lr: float | Tensor, validation: Tensor) -> None:
        """The steps of epochs, the last of which may not have come to its end.

        Args:
            losses: of the steps.
            rows: [steps of an epoch], of each batch.
            lr: of every step.
            validation: the losses on the validation rows after the epochs that have ended; empty without.
        """
        losses = losses.double().cpu()
        self._read.append(losses)
        self._lr.append((lr.detach().clone() if isinstance(lr, Tensor) else lr, len(losses)))
        epochs = len(losses) // len(rows)
        by_epoch = losses[: epochs * len(rows)].view(epochs, len(rows))
        sums = by_epoch.sum(1) if self.summed else by_epoch @ rows
        self.epoch_loss += (sums / rows.sum()).tolist()
        self.val_loss += validation.tolist()[:epochs]
        if epochs:
            self._last_epoch = by_epoch[-1]

    def raise_if_diverged(self) -> None:
        """Raise DivergenceError if a loss of the last epoch, or of the one that goes on, is nan or inf."""
        last = self._read_losses() if self._losses else self._read[-1] if self._read else torch.empty(0)
        if bool(last.isfinite().all()):
            return
        bad = int((~last.isfinite()).nonzero()[0])
        step = sum(len(losses) for losses in self._read[:-1]) + bad + 1
        raise DivergenceError(
            f"fit: the loss is {last[bad].item()} at step {step}: training diverges; scale the features or lower the "
            "learning rate (the parameters are those before that step)",
            step,
            self.history(bool(self.val_loss)),
        )

    def history(self, validated: bool) -> History:
        """Everything so far, with validation losses or without."""
        lr = torch.tensor([float(lr) for lr, _ in self._lr], dtype=torch.float64)
        return History(
            step_loss=torch.cat(self._read) if self._read else torch.empty(0, dtype=torch.float64),
            epoch_loss=torch.tensor(self.epoch_loss, dtype=torch.float64),
            val_loss=torch.tensor(self.val_loss, dtype=torch.float64) if validated else None,
            lr=lr.repeat_interleave(torch.tensor([steps for _, steps in self._lr], dtype=torch.int64)),
        )

    def _read_losses(self) -> Tensor:
        losses = torch.stack(self._losses).double().cpu() if self._losses else torch.empty(0, dtype=torch.float64)
        self._read.append(losses)
        self._losses = []
        return losses
