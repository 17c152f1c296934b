# SPDX-License-Identifier: BSD-3-Clause
"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .early_stopping import EarlyStopping
from .epochs import Residents, fused_epochs
from .evaluate import evaluate, pairs
from .history import History
from .recorder import Recorder
from .train_step import TrainStep


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
    patience: int | None = None,
    on_epoch_end: Callable[[int, History], bool | None] | None = None,
) -> History:
    """Train `model` for `num_epochs` passes over `train_dl`, each batch with the step of :func:`make_train_step`.

    Batches come in the loader's own order, and torch's random generators end where the plain loop would leave them. A
    fused step over a DataLoader of tensors in memory (a TensorDataset, a Subset of one, or a data set whose items are
    ``self.x[index], self.y[index]``) with torch's own samplers takes whole epochs in one call, on a GPU with the data
    moved to `device` once where half of its free memory holds them; anything else is iterated. Ctrl-C ends the run
    between two steps, with the generators where those steps leave them.

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
        patience: end the run when so many epochs in a row have brought no lower validation loss (without validation
            data, training loss), and put the parameters of the best epoch back; None never does.
        on_epoch_end: called with the number of the epoch that has ended (from 1) and the history so far, which must not
            be changed; the run ends when it returns True.

    Returns:
        The :class:`History` of the run.

    Raises:
        ValueError: num_epochs, log_every, on_divergence or patience is out of range; a loader yields something else
            than pairs, or nothing in an epoch after one in which it did, as an iterator does (the parameters are then
            as trained so far); or the loss of a batch is not one number.
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
    if patience is not None and patience < 1:
        raise ValueError(f"fit: patience must be >= 1 or None, got {patience}")
    if device is not None:
        model.to(device)
    step = TrainStep(model, loss_fn, opt)
    recorder = Recorder(step.reduction == "sum")
    stop = on_divergence == "stop"
    stopping = None if patience is None else EarlyStopping(model, patience)
    watched = scheduler is not None or stopping is not None or on_epoch_end is not None

    bar = _progress_bar(num_epochs, progress)
    pace, residents = _Pace(bar), Residents(device)
    train_batches, val_batches = _Batches("train_dl", train_dl, device), _Batches("val_dl", val_dl, device)
    epoch = 0
    try:
        while epoch < num_epochs:
            fused = fused_epochs(step, train_dl, val_dl, residents)
            if fused is None:
                count, validated = 1, False
                _train_epoch(step, train_batches, opt, recorder, stop)
            else:
                validated = fused.validates
                alone = watched or (val_dl is not None and not validated)
                until_log = num_epochs if log_every is None else log_every - epoch % log_every
                count = 1 if alone else min(num_epochs - epoch, until_log, fused.limit or num_epochs, pace.limit)
                with pace:
                    fused.take(count, recorder, stop)
            epoch += count
            if val_dl is not None and not validated:
                recorder.val_loss.append(evaluate(model, loss_fn, val_batches))
            if scheduler is not None:
                _step_scheduler(scheduler, recorder)
            if bar is not None:
                bar.set_postfix(loss=f"{recorder.epoch_loss[-1]:.4g}", refresh=False)
                bar.update(count)
            if log_every is not None and epoch % log_every == 0:
                validation = f", Val loss: {recorder.val_loss[-1]:.4f}" if val_dl is not None else ""
                print(f"Epoch [{epoch}/{num_epochs}], Loss: {recorder.last_loss:.4f}{validation}", flush=True)
            over = on_epoch_end is not None and on_epoch_end(epoch, recorder.look(val_dl is not None))
            if stopping is not None and stopping.is_over((recorder.val_loss or recorder.epoch_loss)[-1]):
                over = True
            if over:
                break
        if stopping is not None:
            stopping.restore()
    finally:
        if bar is not None:
            bar.close()
    return recorder.history(val_dl is not None)


def _train_epoch(step: TrainStep, batches: _Batches, opt: Any, recorder: Recorder, stop: bool) -> None:
    """Go through the loader once, batch by batch."""
    for x, y in batches:
        rate = opt.param_groups[0]["lr"]
        loss = step.step(x, y, skip_nonfinite=stop)
        recorder.add(loss, len(x), rate)
        if stop and loss.device.type == "cpu" and not math.isfinite(loss.item()):
            recorder.raise_if_diverged()
    recorder.end_epoch()
    if stop:
        recorder.raise_if_diverged()


class _Pace:
    """How many epochs to take at once, so that a progress bar moves some twenty times a second."""

    def __init__(self, bar: Any) -> None:
        self.limit: int | float = 1 if bar is not None else math.inf

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self.limit != math.inf and time.perf_counter() - self._started < 0.025:
            self.limit *= 2


def _progress_bar(num_epochs: int, progress: bool | None) -> Any:
    """A progress bar over the epochs; None where none is shown."""
    if progress is False:
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        if progress:
            raise ImportError("fit: progress=True needs tqdm (`pip install tqdm`)") from None
        return None
    bar = tqdm(total=num_epochs, desc="fit", unit="epoch", disable=None if progress is None else False)
    return None if bar.disable else bar


class _Batches:
    """The batches of a loader on a device, to be gone through once an epoch."""

    def __init__(self, name: str, dataloader: Iterable[tuple[Tensor, Tensor]] | None, device: Any) -> None:
        self._name, self._dataloader, self._device = name, dataloader, device
        self._had_some = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device, has_some = self._device, False
        for x, y in pairs("fit", self._dataloader):
            has_some = True
            yield (x, y) if device is None else (x.to(device, non_blocking=True), y.to(device, non_blocking=True))
        if self._had_some and not has_some:
            raise ValueError(
                f"fit: {self._name} must yield its batches in every epoch, got none after an epoch that had some: an "
                "iterator can be gone through only once (the parameters are as trained so far)"
            )
        self._had_some = has_some


def _step_scheduler(scheduler: Any, recorder: Recorder) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(recorder.val_loss[-1] if recorder.val_loss else recorder.epoch_loss[-1])
    else:
        scheduler.step()
