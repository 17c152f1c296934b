# SPDX-License-Identifier: BSD-3-Clause
"""The training loop. Whole epochs of fused steps: `bound_run` in ``csrc/torch/bound_step.cpp``; see functional.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .batches import Batches, BatchOrder, DeviceCache, draw_epochs
from .evaluate import evaluate
from .history import History, Recorder
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
        log_every: print ``Epoch [10/100], Loss: 12.3456`` every `log_every` epochs, with the loss of the epoch's last
            batch (and ``Val loss`` where there is validation data).
        progress: a progress bar over epochs on stderr (needs tqdm); None shows one on a terminal.
        on_divergence: ``"stop"`` raises :class:`DivergenceError` when a batch's loss is nan or inf and leaves the
            parameters as that batch found them; ``"continue"`` goes on as the plain loop does.
        patience: stop after this many consecutive epochs without a lower validation loss (without validation data,
            training loss), and restore the best epoch's parameters; None: never.
        on_epoch_end: called with the number of the epoch that has ended (from 1) and the history so far, which must not
            be changed; the run ends when it returns True.

    Returns:
        The :class:`History` of the run.

    Raises:
        ValueError: num_epochs, log_every, on_divergence or patience is out of range; a loader yields anything
            other than pairs, or nothing in a later epoch, as an exhausted iterator does (the parameters are then as
            trained so far); or the loss of a batch is not one number.
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
    step, stop = TrainStep(model, loss_fn, opt), on_divergence == "stop"
    recorder = Recorder(summed=step.reduction == "sum", stop=stop, validated=val_dl is not None)
    stopping = None if patience is None else _EarlyStopping(model, patience)
    watched = scheduler is not None or stopping is not None or on_epoch_end is not None

    bar = _progress_bar(num_epochs, progress)
    cache, most = DeviceCache(device), math.inf if bar is None else 1  # epochs in one call
    train_batches, val_batches = Batches("train_dl", train_dl, device), Batches("val_dl", val_dl, device)
    epoch = 0
    try:
        while epoch < num_epochs:
            fused = _fused_epochs(step, train_dl, val_dl, cache)
            validated = fused is not None and fused.validates
            if fused is None:
                count = 1
                _train_epoch(step, train_batches, opt, recorder, stop)
            else:
                alone = watched or (val_dl is not None and not validated)
                until_log = num_epochs if log_every is None else log_every - epoch % log_every
                count = 1 if alone else min(num_epochs - epoch, until_log, fused.limit or num_epochs, most)
                started = time.perf_counter()
                fused.take(count, recorder, stop)
                if time.perf_counter() - started < 0.025:  # so that the bar moves some twenty times a second
                    most *= 2
            epoch += count
            if val_dl is not None and not validated:
                recorder.val_loss.append(evaluate(model, loss_fn, val_batches))
            if scheduler is not None:
                _step_scheduler(scheduler, recorder)
            if bar is not None:
                bar.set_postfix(loss=f"{recorder.epoch_loss[-1]:.4g}", refresh=False)
                bar.update(count)
            if log_every is not None and epoch % log_every == 0:
                last = recorder.step_loss[-1] if len(recorder.step_loss) else math.nan
                validation = f", Val loss: {recorder.val_loss[-1]:.4f}" if val_dl is not None else ""
                print(f"Epoch [{epoch}/{num_epochs}], Loss: {last:.4f}{validation}", flush=True)
            over = on_epoch_end is not None and on_epoch_end(epoch, recorder.look())
            if stopping is not None and stopping.is_over((recorder.val_loss or recorder.epoch_loss)[-1]):
                over = True
            if over:
                break
        if stopping is not None:
            stopping.restore()
    finally:
        if bar is not None:
            bar.close()
    return recorder.history()


def _train_epoch(step: TrainStep, batches: Batches, opt: Any, recorder: Recorder, stop: bool) -> None:
    """Go through the loader once, batch by batch."""
    for x, y in batches:
        rate = opt.param_groups[0]["lr"]
        recorder.add(step.step(x, y, skip_nonfinite=stop), len(x), rate)
    recorder.end_epoch()


_ORDER_NUMBERS = 1 << 17  # 1 MB of row numbers at once, unless one epoch has more


def _fused_epochs(step: TrainStep, train_dl: Any, val_dl: Any, cache: DeviceCache) -> _FusedEpochs | None:
    """The next epochs of `train_dl`, if their steps are fused and come in an order that is known ahead.

    Validation on `val_dl` is part of them where it goes through the same rows every time.
    """

    def is_fused(x: Tensor, y: Tensor) -> bool:
        return x.dim() == 2 and step.level_of(x, y)[0] == "fused"

    if step.bound is None:
        return None
    train = cache.order_of("train", train_dl)
    if train is None or train.epoch_steps == 0 or not is_fused(train.x, train.y):
        return None
    val = None if val_dl is None else cache.order_of("validation", val_dl)
    rows = None if val is None else val.whole()
    return _FusedEpochs(step, train, *((val, rows) if rows and is_fused(*rows) else (None, None)))


class _FusedEpochs:
    """What the next epochs are made of.

    Attributes:
        validates: they include validation.
        limit: how many can be taken at once; None is any number.
    """

    def __init__(
        self, step: TrainStep, train: BatchOrder, val: BatchOrder | None, val_rows: tuple[Tensor, Tensor] | None
    ) -> None:
        self._step, self._train, self._val, self._val_rows = step, train, val, val_rows
        self.validates = val is not None
        self.limit = None if train.is_static else max(1, _ORDER_NUMBERS // train.length)

    def take(self, count: int, recorder: Recorder, stop: bool) -> None:
        """Take the steps of `count` epochs.

        With `stop` the first whose loss is nan or inf is not taken, and DivergenceError is raised. Then, and when the
        user interrupts, the random generators are left as going through the loaders up to that batch would leave them.
        """
        step, train = self._step, self._train
        x = train.x if train.x.stride(1) == 1 else train.x.contiguous()  # else every chunk of a run would copy it
        rate = step.optimizer.param_groups[0]["lr"]
        rate = rate.item() if isinstance(rate, Tensor) else rate
        chunks: list[functional.Chunk] = []
        steps, before = count * train.epoch_steps, self._generator_states()
        try:
            order = draw_epochs(count, train, self._val)
            rest = (x, train.y, order, *(self._val_rows or (None, None)), train.batch_size, train.drop_last, count)
            size = min(train.batch_size, train.length) * (sum(p.numel() for p in step.model.parameters()) + 1)
            functional.run_in_chunks(
                step.bound.run, lambda begin, end: (*rest, begin, end, stop), steps, size, x.device, chunks
            )
        except BaseException:
            self._rewind(before, functional.steps_taken(chunks), 0)
            raise
        taken = functional.steps_taken(chunks)
        if taken < steps:
            self._rewind(before, taken, 1)
        losses, val_losses = (torch.cat(tensors) for tensors in list(zip(*chunks, strict=True))[:2])
        if self._val_rows is not None and step.reduction == "sum":
            val_losses = val_losses.double() / len(self._val_rows[0])
        recorder.add_epochs(losses[: taken + 1], self._batch_rows(), rate, val_losses)

    def _batch_rows(self) -> Tensor:
        train = self._train
        rows = torch.full((train.epoch_steps,), float(train.batch_size), dtype=torch.float64)
        rows[-1] = min(train.batch_size, train.length - train.batch_size * (train.epoch_steps - 1))
        return rows

    def _generator_states(self) -> list[tuple[torch.Generator, Tensor]]:
        generators = [torch.default_generator, *self._train.generators, *(self._val.generators if self._val else ())]
        return [(generator, generator.get_state()) for generator in {id(g): g for g in generators}.values()]

    def _rewind(self, states: list[tuple[torch.Generator, Tensor]], steps: int, more: int) -> None:
        """Leave the generators as they are after so many steps and with the batches of `more` further ones drawn."""
        for generator, state in states:
            generator.set_state(state)
        epochs, batches = divmod(steps, self._train.epoch_steps)
        if epochs:
            draw_epochs(epochs, self._train, self._val)
        if batches + more:
            self._train.resume(batches + more)


class _EarlyStopping:
    """Remembers the best epoch of a run.

    Args:
        model: whose parameters and buffers are remembered.
        patience: how many epochs may pass without a new best one.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self._model, self._patience = model, patience
        self._best, self._waited = math.inf, 0
        self._kept: list[Tensor] | None = None

    def is_over(self, loss: float) -> bool:
        """Whether the epoch that has just ended, with this loss, was the last to wait for."""
        if loss < self._best:
            self._best, self._waited = loss, 0
            self._kept = [tensor.detach().clone() for tensor in self._tensors()]
        else:
            self._waited += 1
        return self._waited >= self._patience

    def restore(self) -> None:
        """Put the best epoch's parameters and buffers back."""
        if self._kept is not None:
            with torch.no_grad():
                for tensor, kept in zip(self._tensors(), self._kept, strict=True):
                    tensor.copy_(kept)

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


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


def _step_scheduler(scheduler: Any, recorder: Recorder) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(recorder.val_loss[-1] if recorder.val_loss else recorder.epoch_loss[-1])
    else:
        scheduler.step()
