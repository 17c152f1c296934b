# SPDX-License-Identifier: BSD-3-Clause
"""The history of a training run, and its recorder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import Batch
from .distributed import Group
from .evaluate import sum_over_rows


@dataclass(frozen=True)
class History:
    """The losses and learning rates of a run, as float64 tensors on the CPU.

    Attributes:
        step_loss: [steps], the loss of each batch before its update, as returned by the loss function (with weights,
            the weighted mean or sum).
        epoch_loss: [epochs], the weighted mean of these losses over the epoch's rows.
        val_loss: [epochs], the mean over the validation rows after each epoch; None without validation data.
        lr: [steps], the learning rate of the first parameter group at each step.
    """

    step_loss: Tensor
    epoch_loss: Tensor
    val_loss: Tensor | None
    lr: Tensor

    def plot(self, path: str | Path | None = None) -> Any:
        """Plot the training (and validation) loss per epoch.

        Args:
            path: the file to save the figure to, in the format of its suffix; None saves nothing.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib is not installed.

        Example:
            >>> history = fit(10, model, loss_fn, opt, train_dl)
            >>> history.plot("loss.png")
        """
        from ..plots import loss_curves

        return loss_curves(self, path)


class DivergenceError(RuntimeError):
    """The loss became nan or inf.

    Attributes:
        step: the number of the step (from 1) with that loss.
        history: the run up to and including that step; the unfinished epoch has no epoch_loss.
    """

    def __init__(self, message: str, step: int, history: History) -> None:
        super().__init__(message)
        self.step, self.history = step, history


class _Numbers:
    """A growable float64 array; `so_far()` returns a view of it."""

    def __init__(self) -> None:
        self._memory, self._count = torch.empty(64, dtype=torch.float64, device="cpu"), 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> float:
        return self.so_far()[index].item()

    def extend(self, more: Tensor) -> None:
        end = self._count + len(more)
        if end > len(self._memory):
            grown = torch.empty(max(end, 2 * len(self._memory)), dtype=torch.float64, device="cpu")
            grown[: self._count] = self.so_far()
            self._memory = grown
        self._memory[self._count : end] = more
        self._count = end

    def append(self, number: float) -> None:
        self.extend(_numbers([number]))

    def so_far(self) -> Tensor:
        return self._memory[: self._count]


def _numbers(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


class Recorder:
    """Collects a `History`. It reads losses from the device once per epoch, or after every step with `stop`.

    Args:
        summed: whether a batch's loss is the sum over its rows, not the mean.
        stop: whether to raise DivergenceError at the first nan or inf.
        validated: whether there are validation losses.
        group: the processes that share every step.

    Attributes:
        step_loss, epoch_loss, val_loss: the losses so far.
    """

    def __init__(self, *, summed: bool, stop: bool, validated: bool, group: Group | None) -> None:
        self._summed, self._stop, self._validated, self._group = summed, stop, validated, group
        self.step_loss, self.epoch_loss, self.val_loss, self._lr = (_Numbers() for _ in range(4))
        self._ends: list[int] = []  # the number of steps taken by the end of each epoch
        self._steps: list[tuple[Tensor, int | float | Tensor, float | Tensor]] = []  # loss, rows, rate

    def add(self, loss: Tensor, rows: int | float | Tensor, batch: Batch | None, lr: float | Tensor) -> None:
        """Record one step, with the weight `rows` in its epoch's mean."""
        self._steps.append((loss, rows, lr.detach().clone() if isinstance(lr, Tensor) else lr))
        if self._stop and not math.isfinite(loss.item()):  # synchronises a GPU: no further step may follow
            self._read_steps(batch)

    def end_epoch(self) -> None:
        """End the epoch of the steps added since the last one ended."""
        rows = [step[1] for step in self._steps]
        losses = self._read_steps()
        total, weight = sum_over_rows(list(losses), rows, self._summed)
        self.epoch_loss.append(total / weight if weight else math.nan)
        self._ends.append(len(self.step_loss))

    def add_epochs(
        self, losses: Tensor, rows: Tensor, lr: Tensor, validation: Tensor, batch_at: Callable[[int], Batch]
    ) -> None:
        """Record the steps of several epochs; the last epoch may be incomplete.

        Args:
            losses: [steps].
            rows: [1 or epochs, steps per epoch], the weight of each batch in its epoch's mean.
            lr: [steps].
            validation: the validation loss after each completed epoch; empty without validation data.
            batch_at: maps a step's number, from 0, to its batch.
        """
        losses, size = losses.double().cpu(), rows.shape[1]
        bad = self._bad(losses)
        epochs = (len(losses) if bad is None else bad) // size
        by_epoch, rows = losses[: epochs * size].view(epochs, size), rows[:epochs]
        self.epoch_loss.extend((by_epoch if self._summed else by_epoch * rows).sum(1) / rows.sum(1))
        self.val_loss.extend(validation[:epochs].double().cpu())
        begin = len(self.step_loss)
        self._ends.extend(range(begin + size, begin + epochs * size + 1, size))
        if bad is None:
            self._read(losses, lr)
        else:
            self._read(losses, lr[: len(losses)], bad % size + 1, batch_at(bad))

    def line(self, epoch: int, num_epochs: int) -> str:
        """The log line of an epoch (from 1), with the loss of its last batch."""
        loss = self.step_loss[self._ends[epoch - 1] - 1]
        validation = f", Val loss: {self.val_loss[epoch - 1]:.4f}" if self._validated else ""
        return f"Epoch [{epoch}/{num_epochs}], Loss: {loss:.4f}{validation}"

    def history(self) -> History:
        """A copy of the history so far."""
        return History(*(None if t is None else t.clone() for t in vars(self.look()).values()))

    def look(self) -> History:
        """A read-only view of the history so far."""
        val_loss = self.val_loss.so_far() if self._validated else None
        return History(self.step_loss.so_far(), self.epoch_loss.so_far(), val_loss, self._lr.so_far())

    def _read_steps(self, batch: Batch | None = None) -> Tensor:
        losses, rates = [step[0] for step in self._steps], [float(step[2]) for step in self._steps]
        self._steps = []
        read = torch.stack(losses).flatten().double().cpu() if losses else _numbers([])
        self._read(read, _numbers(rates), len(losses), batch)
        return read

    def _bad(self, losses: Tensor) -> int | None:
        """The index of the first loss that ends the run; None if there is none."""
        finite = losses.isfinite()
        return None if not self._stop or bool(finite.all()) else int((~finite).nonzero()[0])

    def _read(self, losses: Tensor, rates: Tensor, number: int = 0, batch: Batch | None = None) -> None:
        """Record steps; raise DivergenceError at the first one that ends the run.

        Args:
            number, batch: the number in its epoch, and the contents on this rank, of the batch that may end the run.
        """
        bad = self._bad(losses)
        end = len(losses) if bad is None else bad + 1
        self.step_loss.extend(losses[:end])
        self._lr.extend(rates[:end])
        if bad is None:
            return
        step, cause = len(self.step_loss), _cause(batch)
        if self._group is not None:
            causes = enumerate(self._group.gather(cause))
            cause = "; ".join(f"rank {rank}: {its}" for rank, its in causes if its != _cause(None)) or _cause(None)
        raise DivergenceError(
            f"fit: the loss is {losses[bad].item()} at step {step} (epoch {len(self.epoch_loss) + 1}, batch {number}): "
            f"{cause} (the parameters are those before that step)",
            step,
            self.history(),
        )


def _cause(batch: Batch | None) -> str:
    """The likely cause of a batch's nan or inf loss."""
    for name, tensor in zip(("input", "target", "weight"), batch or (), strict=False):
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.is_floating_point():
            bad = (~tensor.isfinite()).nonzero()
            if len(bad):
                place = ", ".join(map(str, bad[0].tolist()))
                return f"{name}[{place}] of that batch is {tensor[tuple(bad[0])].item()}; clean the data"
    if batch and isinstance(batch[2], Tensor) and batch[2].sum() == 0:
        return "the weights of that batch add up to 0"
    return "training diverges; scale the features or lower the learning rate"
