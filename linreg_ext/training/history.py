# SPDX-License-Identifier: BSD-3-Clause
"""What a training run leaves behind besides its weights, and how it is recorded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .evaluate import mean_over_rows


@dataclass(frozen=True)
class History:
    """The losses and learning rates of a run, as float64 tensors on the CPU.

    Attributes:
        step_loss: [steps], each batch's loss as the loss function gave it, before that batch's update.
        epoch_loss: [epochs], the mean of those over the epoch's rows.
        val_loss: [epochs], the mean over the validation rows after each epoch; None without validation data.
        lr: [steps], the learning rate of the first parameter group at each step.
    """

    step_loss: Tensor
    epoch_loss: Tensor
    val_loss: Tensor | None
    lr: Tensor

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw training (and validation) loss per epoch.

        Args:
            path: where to save the picture (its suffix names the format); None saves nothing.

        Returns:
            The :class:`matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib is not installed.

        Example:
            >>> history = fit(10, model, loss_fn, opt, train_dl)
            >>> history.plot("loss.png")
        """
        from ..plots import loss_curves

        return loss_curves(self, path)


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
    """A growable array of float64 numbers; `so_far()` returns a view, not a copy."""

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
    """Collects a :class:`History`. Losses are read from the device once an epoch, or after every step with `stop`.

    Args:
        summed: the loss of a batch is a sum over its rows, not their mean.
        stop: raise DivergenceError at the first nan or inf.
        validated: there are validation losses.

    Attributes:
        step_loss, epoch_loss, val_loss: so far.
    """

    def __init__(self, *, summed: bool, stop: bool, validated: bool) -> None:
        self._summed, self._stop, self._validated = summed, stop, validated
        self.step_loss, self.epoch_loss, self.val_loss, self._lr = (_Numbers() for _ in range(4))
        self._steps: list[tuple[Tensor, int, float | Tensor]] = []  # loss, rows and rate, of the current epoch

    def add(self, loss: Tensor, rows: int, lr: float | Tensor) -> None:
        """Record one step."""
        self._steps.append((loss, rows, lr.detach().clone() if isinstance(lr, Tensor) else lr))
        if self._stop and not math.isfinite(loss.item()):  # also on a GPU: no later step may be taken
            self._read_steps()

    def end_epoch(self) -> None:
        """Close the epoch formed by the steps added since the last one ended."""
        rows = [step[1] for step in self._steps]
        losses = self._read_steps()
        self.epoch_loss.append(mean_over_rows(list(losses), rows, self._summed))

    def add_epochs(self, losses: Tensor, rows: Tensor, lr: float | Tensor, validation: Tensor) -> None:
        """Record the steps of several epochs, the last of which may be incomplete.

        Args:
            losses: of the steps.
            rows: [steps of an epoch], of each batch.
            lr: of every step.
            validation: the losses on the validation rows after the epochs that have ended; empty without.
        """
        losses = losses.double().cpu()
        bad = self._bad(losses)
        epochs = (len(losses) if bad is None else bad) // len(rows)
        by_epoch = losses[: epochs * len(rows)].view(epochs, len(rows))
        self.epoch_loss.extend((by_epoch.sum(1) if self._summed else by_epoch @ rows) / rows.sum())
        self.val_loss.extend(validation[:epochs].double().cpu())
        self._read(losses, torch.full((len(losses),), float(lr), dtype=torch.float64))

    def history(self) -> History:
        """Everything so far."""
        return History(*(None if t is None else t.clone() for t in vars(self.look()).values()))

    def look(self) -> History:
        """The same as a view of what is recorded, which nobody may change."""
        val_loss = self.val_loss.so_far() if self._validated else None
        return History(self.step_loss.so_far(), self.epoch_loss.so_far(), val_loss, self._lr.so_far())

    def _read_steps(self) -> Tensor:
        losses, rates = [step[0] for step in self._steps], [float(step[2]) for step in self._steps]
        self._steps = []
        read = torch.stack(losses).flatten().double().cpu() if losses else torch.empty(0, dtype=torch.float64)
        self._read(read, torch.tensor(rates, dtype=torch.float64))
        return read

    def _bad(self, losses: Tensor) -> int | None:
        """The first loss that ends the run."""
        finite = losses.isfinite()
        return None if not self._stop or bool(finite.all()) else int((~finite).nonzero()[0])

    def _read(self, losses: Tensor, rates: Tensor) -> None:
        """Record steps; raise DivergenceError at the first one that ends the run."""
        bad = self._bad(losses)
        end = len(losses) if bad is None else bad + 1
        self.step_loss.extend(losses[:end])
        self._lr.extend(rates[:end])
        if bad is None:
            return
        step = len(self.step_loss)
        raise DivergenceError(
            f"fit: the loss is {losses[bad].item()} at step {step}: training diverges; scale the features or lower "
            "the learning rate (the parameters are those before that step)",
            step,
            self.history(),
        )
