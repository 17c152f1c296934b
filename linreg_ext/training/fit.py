# SPDX-License-Identifier: BSD-3-Clause
"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .evaluate import evaluate, mean_over_rows
from .history import History
from .train_step import TrainStep


class DivergenceError(RuntimeError):
    """The loss turned nan or inf.

    Attributes:
        step: the step (from 1) whose loss it was.
        history: the run up to and including that step; the unfinished epoch has no epoch_loss.
    """

    def __init__(self, message: str, step: int, history: History) -> None:
        super().__init__(message)
        self.step, self.history = step, history


def fit(
    num_epochs: int,
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    opt: torch.optim.Optimizer,
    train_dl: Iterable[tuple[Tensor, Tensor]],
    *,
    val_dl: Iterable[tuple[Tensor, Tensor]] | None = None,
    scheduler: Any = None,
    device: torch.device | str | None = None,
    log_every: int | None = None,
    progress: bool | None = None,
    on_divergence: str = "stop",
) -> History:
    """Train `model` for `num_epochs` passes over `train_dl`, each batch with the step of :func:`make_train_step`.

    Batches come in the loader's own order, and torch's random generators end where the plain loop would leave them.

    Args:
        num_epochs: how many times to go through `train_dl`; >= 0.
        model, loss_fn, opt: as in :func:`make_train_step`.
        train_dl: yields (x [N, D], y [N, K]); a DataLoader or any other iterable that can be gone through repeatedly.
        val_dl: validation data, evaluated after every epoch as :func:`evaluate` does.
        scheduler: a learning-rate scheduler of `opt`, stepped after every epoch (ReduceLROnPlateau with the
            validation loss, or without validation data the training loss).
        device: moves the model there and every batch; None leaves both where they are.
        log_every: print ``Epoch [10/100], Loss: 12.3456`` every so many epochs, with the loss of the epoch's last
            batch (and ``Val loss`` where there is validation data).
        progress: a progress bar over epochs on stderr (needs tqdm); None shows one on a terminal.
        on_divergence: ``"stop"`` raises :class:`DivergenceError` when a batch's loss is nan or inf and leaves the
            parameters as that batch found them; ``"continue"`` goes on as the plain loop does.

    Returns:
        The :class:`History` of the run.

    Raises:
        ValueError: num_epochs, log_every or on_divergence is out of range.
        DivergenceError: see `on_divergence`.

    Equivalent to:
        ``for epoch in range(num_epochs):`` over ``for x, y in train_dl:`` the lines of :func:`make_train_step`, then
        ``scheduler.step()``.

    Example:
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
        >>> history = fit(100, model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), loader, log_every=10)
    """
    if num_epochs < 0:
        raise ValueError(f"fit: num_epochs must be >= 0, got {num_epochs}")
    if log_every is not None and log_every < 1:
        raise ValueError(f"fit: log_every must be >= 1 or None, got {log_every}")
    if on_divergence not in ("stop", "continue"):
        raise ValueError(f"fit: on_divergence must be 'stop' or 'continue', got '{on_divergence}'")
    if device is not None:
        model.to(device)
    step = TrainStep(model, loss_fn, opt)
    recorder = _Recorder(step.reduction == "sum")
    stop = on_divergence == "stop"

    epochs = _epochs(num_epochs, progress)
    for epoch in epochs:
        for x, y in _batches(train_dl, device):
            rate = opt.param_groups[0]["lr"]
            loss = step.step(x, y, skip_nonfinite=stop)
            recorder.add(loss, len(x), rate)
            if stop and loss.device.type == "cpu" and not math.isfinite(loss.item()):
                recorder.raise_if_diverged()
        recorder.end_epoch()
        if stop:
            recorder.raise_if_diverged()
        if val_dl is not None:
            recorder.val_loss.append(evaluate(model, loss_fn, _batches(val_dl, device)))
        if scheduler is not None:
            _step_scheduler(scheduler, recorder)
        if not isinstance(epochs, range):
            epochs.set_postfix(loss=f"{recorder.epoch_loss[-1]:.4g}", refresh=False)
        if log_every is not None and (epoch + 1) % log_every == 0:
            validation = f", Val loss: {recorder.val_loss[-1]:.4f}" if val_dl is not None else ""
            print(f"Epoch [{epoch + 1}/{num_epochs}], Loss: {recorder.last_loss:.4f}{validation}", flush=True)
    return recorder.history(val_dl is not None)


class _Recorder:
    """Collects what History holds, reading losses from the device once an epoch."""

    def __init__(self, summed: bool) -> None:
        self.summed = summed
        self.step_loss: list[Tensor] = []  # one tensor an epoch
        self.epoch_loss: list[float] = []
        self.val_loss: list[float] = []
        self.lr: list[float | Tensor] = []
        self._losses: list[Tensor] = []
        self._rows: list[int] = []

    @property
    def last_loss(self) -> float:
        return self.step_loss[-1][-1].item() if len(self.step_loss[-1]) else math.nan

    def add(self, loss: Tensor, rows: int, lr: float | Tensor) -> None:
        self._losses.append(loss)
        self._rows.append(rows)
        self.lr.append(lr.detach().clone() if isinstance(lr, Tensor) else lr)

    def end_epoch(self) -> None:
        self._read()
        self.epoch_loss.append(mean_over_rows(list(self.step_loss[-1]), self._rows, self.summed))
        self._rows = []

    def raise_if_diverged(self) -> None:
        if self._losses:
            self._read()
        bad = (~self.step_loss[-1].isfinite()).nonzero()
        if len(bad):
            step = sum(len(losses) for losses in self.step_loss[:-1]) + int(bad[0]) + 1
            value = self.step_loss[-1][bad[0]].item()
            raise DivergenceError(
                f"fit: the loss is {value} at step {step}: training diverges; scale the features or lower the "
                "learning rate (the parameters are those before that step)",
                step,
                self.history(bool(self.val_loss)),
            )

    def history(self, validated: bool) -> History:
        return History(
            step_loss=torch.cat(self.step_loss) if self.step_loss else torch.empty(0, dtype=torch.float64),
            epoch_loss=torch.tensor(self.epoch_loss, dtype=torch.float64),
            val_loss=torch.tensor(self.val_loss, dtype=torch.float64) if validated else None,
            lr=torch.tensor([float(lr) for lr in self.lr], dtype=torch.float64),
        )

    def _read(self) -> None:
        losses = torch.stack(self._losses).double().cpu() if self._losses else torch.empty(0, dtype=torch.float64)
        self.step_loss.append(losses)
        self._losses = []


def _epochs(num_epochs: int, progress: bool | None) -> Any:
    """The epochs to go through: a range, or a progress bar over it."""
    if progress is False:
        return range(num_epochs)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            raise ImportError("fit: progress=True needs tqdm (`pip install tqdm`)") from None
        return range(num_epochs)
    return tqdm(range(num_epochs), desc="fit", unit="epoch", disable=None if progress is None else False)


def _batches(dataloader: Iterable[tuple[Tensor, Tensor]], device: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in dataloader:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            got = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
            raise ValueError(f"fit: a loader must yield (input, target) pairs, got {got}")
        x, y = batch
        yield (x, y) if device is None else (x.to(device, non_blocking=True), y.to(device, non_blocking=True))


def _step_scheduler(scheduler: Any, recorder: _Recorder) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(recorder.val_loss[-1] if recorder.val_loss else recorder.epoch_loss[-1])
    else:
        scheduler.step()
