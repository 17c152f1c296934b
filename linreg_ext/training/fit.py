# SPDX-License-Identifier: BSD-3-Clause
"""The training loop. `bound_run` in `csrc/torch/bound_step.cpp` runs whole epochs of fused steps; see functional.py."""

from __future__ import annotations

import math
import operator
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import functional
from .batches import Batch, Batches, BatchOrder, DeviceCache, draw_epochs, rows_of, weight_by_row
from .distributed import set_epoch, warn_if_padded
from .evaluate import mean_loss
from .history import History, Recorder
from .schedule import Schedule
from .train_step import TrainStep


class StopTraining(Exception):  # noqa: N818 - as StopIteration
    """Raised by `on_epoch_end` to end a run after that epoch."""


def fit(
    num_epochs: int,
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    opt: torch.optim.Optimizer,
    train_dl: Iterable[Any],
    *,
    val_dl: Iterable[Any] | None = None,
    scheduler: Any = None,
    scheduler_interval: str = "epoch",
    device: torch.device | str | None = None,
    log_every: int | None = None,
    progress: bool | None = None,
    on_divergence: str = "stop",
    patience: int | None = None,
    on_epoch_end: Callable[[int, History], None] | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> History:
    """Train `model` for `num_epochs` passes over `train_dl`, each batch with the step of `make_train_step`.

    Batches come in the loader's order, and torch's random generators end up as in the plain loop. A fused step takes
    whole epochs in one call on a DataLoader of tensors in memory (a TensorDataset, a Subset of one, or a data set whose
    items are `self.x[index], self.y[index]`) with torch's own samplers. If the data fit in half of a GPU's free memory,
    they are copied to `device` once. Any other loader is iterated, after a call of its sampler's `set_epoch`, if it has
    one. Ctrl-C ends the run between two steps, with the generators in the state after those steps.

    Args:
        num_epochs: the number of passes over `train_dl`; >= 0.
        model, loss_fn, opt: as in `make_train_step`.
        train_dl: yields (x [N, D], y [N, K]) or (x, y, weight), weighted as in `make_train_step`; a DataLoader
            or any other iterable that can be iterated repeatedly.
        val_dl: validation data, evaluated as by `evaluate` after every epoch.
        scheduler: a learning-rate scheduler of `opt`. ReduceLROnPlateau receives the validation loss, or the training
            loss if there is no validation data; when stepped after a batch, that batch's loss.
        scheduler_interval: when to step the scheduler: after every `"epoch"`, or after every batch (`"step"`), as
            OneCycleLR requires.
        device: where to move the model and every batch; None moves neither.
        log_every: print `Epoch [10/100], Loss: 12.3456` every `log_every` epochs, with the loss of the epoch's last
            batch (and `Val loss` if there is validation data).
        progress: whether to show a progress bar over epochs on stderr (needs tqdm); None shows one on a terminal.
        on_divergence: `"stop"` raises `DivergenceError` if a batch's loss is nan or inf, and keeps the parameters
            from before that batch; `"continue"` trains on, as the plain loop does.
        patience: stop after this many consecutive epochs without a lower validation loss (training loss if there is
            no validation data), and restore the best epoch's parameters; None never stops early.
        on_epoch_end: called after each epoch with its number (from 1) and the history so far, which it must not
            change. It ends the run by raising `StopTraining`; its return value is ignored.
        process_group: processes that train one model together, as in `make_train_step`; each calls `fit` with its own
            rows in `train_dl` and `val_dl`, in any number of batches. Every step takes one batch from each rank that
            has any left, and an epoch ends when none has. The ranks agree on validation, scheduler, divergence,
            patience and `StopTraining`; only the group's first rank prints. None trains locally.

    Returns:
        The `History` of the run; with a process group, that of all rows, equal on all ranks.

    Raises:
        TypeError: model, loss_fn or opt is of the wrong kind, or a count is not an int.
        ValueError: an argument is out of range; a loader yields no batch, or something other than pairs or triples;
            or a batch's loss is not one number, or is not recognised but there are weights.
        RuntimeError: a shape, dtype or device does not match; or another rank of the process group failed or is lost.
        DivergenceError: see `on_divergence`.

    Equivalent to:
        `for epoch in range(num_epochs):`, in it `for x, y in train_dl:` with the lines of `make_train_step`, then
        `scheduler.step()`.

    Example:
        >>> loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
        >>> history = fit(100, model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), loader, log_every=10)
    """
    num_epochs = _count("num_epochs", num_epochs, 0)
    log_every = None if log_every is None else _count("log_every", log_every, 1)
    patience = None if patience is None else _count("patience", patience, 1)
    if on_divergence not in ("stop", "continue"):
        raise ValueError(f"fit: on_divergence must be 'stop' or 'continue', got {on_divergence!r}")
    if scheduler_interval not in ("epoch", "step"):
        raise ValueError(f"fit: scheduler_interval must be 'epoch' or 'step', got {scheduler_interval!r}")
    is_shared, stop = process_group is not None, on_divergence == "stop"
    loaders = {"train_dl": train_dl, "val_dl": val_dl}
    train_batches, val_batches = (Batches(*each, device, may_be_empty=is_shared) for each in loaders.items())
    if device is not None and isinstance(model, nn.Module):
        model.to(device)
    step = TrainStep(model, loss_fn, opt, "fit", process_group)
    group, is_first = step.group, not step.rank
    for name, loader in loaders.items() if is_shared else ():
        warn_if_padded("fit", name, loader)
    schedule = Schedule(scheduler, scheduler_interval, opt)
    schedule.warn_if_longer(num_epochs, train_dl)
    recorder = Recorder(summed=step.reduction == "sum", stop=stop, validated=val_dl is not None, group=group)
    stopping = None if patience is None else _EarlyStopping(model, patience)

    bar = _progress_bar(num_epochs, progress if is_first else False)
    log_every = log_every if is_first else None
    cache = DeviceCache(device)
    displays = bar is not None or log_every is not None
    speed: float | None = None  # epochs per second
    epoch, goes_on, returned, warned = 0, True, None, False

    def end_epoch() -> bool:
        """What follows an epoch and its validation; whether the run goes on."""
        nonlocal returned
        loss, over = (recorder.val_loss or recorder.epoch_loss)[-1], False
        schedule.end_epoch(loss)
        if bar is not None:
            bar.set_postfix(loss=f"{recorder.epoch_loss[-1]:.4g}", refresh=False)
            bar.update(count)
        if log_every is not None:
            for ended in range(epoch - count + 1, epoch + 1):
                if ended % log_every == 0:
                    print(recorder.line(ended, num_epochs), flush=True)
        if on_epoch_end is not None:
            try:
                returned = on_epoch_end(epoch, recorder.look())
            except StopTraining:
                over = True
        if stopping is not None and stopping.is_over(loss):
            over = True
        return not over

    try:
        while epoch < num_epochs and goes_on:
            fused = _fused_epochs(step, train_dl, val_dl, cache)
            count = 1
            if fused is None:
                set_epoch(train_dl, epoch)
                _train_epoch(step, train_batches, recorder, stop, schedule)
            else:
                alone = on_epoch_end is not None or stopping is not None or (val_dl is not None and not fused.validates)
                most = 1 if alone else num_epochs - epoch
                if displays:  # about forty times a second
                    most = min(most, max(1, 0.025 * (speed or fused.least_speed())))
                started = time.perf_counter()
                count = fused.take(most, recorder, stop, schedule)
                speed = count / (time.perf_counter() - started)
            epoch += count
            if val_dl is not None and len(recorder.val_loss) < epoch:
                recorder.val_loss.append(mean_loss("fit: val_dl", model, loss_fn, val_batches, group))
            goes_on = end_epoch() if group is None else group.agree(end_epoch)
            if returned is not None and not warned:
                warned = True
                warnings.warn(
                    f"linreg_ext: fit: on_epoch_end returned {returned!r}, which is ignored; raise "
                    "linreg_ext.StopTraining to end the run",
                    UserWarning,
                    stacklevel=2,
                )
        if stopping is not None:
            stopping.restore()
    finally:
        if bar is not None:
            bar.close()
    return recorder.history()


def _count(name: str, value: Any, least: int) -> int:
    """Validate an argument that is a count."""
    try:
        number = operator.index(value)
    except TypeError:
        order = "; the order is fit(num_epochs, model, loss_fn, opt, train_dl)" if name == "num_epochs" else ""
        raise TypeError(f"fit: {name} must be an int, got {type(value).__name__}{order}") from None
    if number < least:
        raise ValueError(f"fit: {name} must be >= {least}, got {number}")
    return number


def _train_epoch(step: TrainStep, batches: Iterable[Batch], recorder: Recorder, stop: bool, schedule: Schedule) -> None:
    """Train on each batch once."""
    for loss, rows, batch, rate in _steps(step, batches, stop):
        recorder.add(loss, rows, batch, rate)
        schedule.end_step(loss)
    recorder.end_epoch()


def _steps(
    step: TrainStep, batches: Iterable[Batch], stop: bool
) -> Iterator[tuple[Tensor, float | Tensor, Batch | None, float | Tensor]]:
    """Take the steps of an epoch; yield the loss of each, its weight, the batch and the learning rate."""
    if step.group is None:
        for batch in batches:
            rate = step.optimizer.param_groups[0]["lr"]
            yield step.step(*batch, skip_nonfinite=stop), rows_of(batch), batch, rate
        return
    rest, count = iter(batches), 0
    while True:
        rate = step.optimizer.param_groups[0]["lr"]
        taken = step.shared_step(lambda: next(rest, None), stop)
        if taken is None:
            break
        count += 1
        yield *taken, rate
    if count == 0:
        raise ValueError("fit: train_dl must yield at least one batch on some rank in every epoch, got none")


_FLOAT64 = {"dtype": torch.float64, "device": "cpu"}
_ORDER_NUMBERS = 1 << 17  # 1 MB of row numbers or rates per call, unless one epoch has more


def _fused_epochs(step: TrainStep, train_dl: Any, val_dl: Any, cache: DeviceCache) -> _FusedEpochs | None:
    """The next epochs of `train_dl`, if their steps are fused and their order is known in advance; else None.

    They include validation on `val_dl` if it visits the same rows in every epoch.
    """

    def is_fused(batch: Batch) -> bool:
        return batch[0].dim() == 2 and step.level_of(*batch)[0] == "fused"

    if step.bound is None or step.rank is not None:
        return None
    train = cache.order_of("train", train_dl)
    if train is None or train.epoch_steps == 0 or not is_fused(train.batch()):
        return None
    val = None if val_dl is None else cache.order_of("validation", val_dl)
    rows = None if val is None else val.whole()
    try:
        validates = rows is not None and is_fused(rows)
    except RuntimeError as error:
        raise RuntimeError(str(error).replace("fit:", "fit: val_dl:", 1)) from None
    return _FusedEpochs(step, train, *((val, rows) if validates else (None, None)))


class _FusedEpochs:
    """Epochs of fused steps to take in one call.

    Attributes:
        validates: whether they include validation.
    """

    def __init__(self, step: TrainStep, train: BatchOrder, val: BatchOrder | None, val_rows: Batch | None) -> None:
        self._step, self._train, self._val, self._val_rows = step, train, val, val_rows
        self.validates = val is not None

    def least_speed(self) -> float:
        """Epochs per second, at two microseconds a step and two nanoseconds a number."""
        x, y, _ = self._train.batch()
        return 5e8 / (1000 * self._train.epoch_steps + len(x) * (x.shape[1] + y.shape[1]))

    def take(self, most: float, recorder: Recorder, stop: bool, schedule: Schedule) -> int:
        """Take the steps of up to `most` epochs, and return the number of epochs.

        With `stop`, raise DivergenceError at the first nan or inf loss, without taking that step. Then, and after an
        interrupt, the random generators and the scheduler are in the state that iterating the loaders up to that batch
        would leave.
        """
        step, train = self._step, self._train
        numbers = max(0 if train.is_static else train.length, train.epoch_steps if schedule.changes else 0)
        count = int(most if numbers == 0 else max(1, min(most, _ORDER_NUMBERS // numbers)))
        chunks: list[functional.Chunk] = []
        before = self._generator_states()
        ahead = schedule.rates(count, train.epoch_steps)
        if ahead is None and schedule.each_step:
            self._take_one_by_one(recorder, stop, schedule)
            return 1
        count = count if ahead is not None else 1
        steps = count * train.epoch_steps
        try:
            x, y, weight = train.batch()
            x = x if x.stride(1) == 1 else x.contiguous()  # once, not in every chunk of a run
            order = draw_epochs(count, train, self._val)
            rest = (x, y, weight, order, *(self._val_rows or (None, None, None)), ahead if schedule.changes else None)
            rest = (*rest, train.batch_size, train.drop_last, count)
            size = min(train.batch_size, train.length) * (sum(p.numel() for p in step.model.parameters()) + 1)
            functional.run_in_chunks(
                step.bound.run, lambda begin, end: (*rest, begin, end, stop), steps, size, x.device, chunks
            )
        except BaseException:
            self._rewind(before, functional.steps_taken(chunks), 0, schedule)
            raise
        taken = functional.steps_taken(chunks)
        if taken < steps:
            self._rewind(before, taken, 1, schedule)
        losses, val_losses = (torch.cat(tensors) for tensors in list(zip(*chunks, strict=True))[:2])
        if self._val_rows is not None and step.reduction == "sum":
            val_losses = val_losses.double() / rows_of(self._val_rows)
        orders = order if order is not None and order.dim() == 2 else [order] * count

        def batch_at(i: int) -> Batch:
            return train.batch_at(orders[i // train.epoch_steps], i % train.epoch_steps)

        if ahead is None:
            ahead = torch.full((steps,), float(step.optimizer.param_groups[0]["lr"]), **_FLOAT64)
        recorder.add_epochs(losses[: taken + 1], self._batch_rows(order), ahead, val_losses, batch_at)
        return count

    def _take_one_by_one(self, recorder: Recorder, stop: bool, schedule: Schedule) -> None:
        """Take the steps of one epoch, without validation, stepping the scheduler after each."""
        train, before, begun = self._train, self._generator_states(), 0

        def batches() -> Iterator[Batch]:
            nonlocal begun
            for begun in range(1, train.epoch_steps + 1):
                yield train.batch_at(order, begun - 1)

        try:
            order = draw_epochs(1, train, None)
            order = order if order is None or order.dim() == 1 else order[0]
            _train_epoch(self._step, batches(), recorder, stop, schedule)
        except BaseException:
            self._rewind(before, 0, begun, None)
            raise

    def _batch_rows(self, order: Tensor | None) -> Tensor:
        """[1 or epochs, steps per epoch], the weight of each batch in its epoch's mean."""
        train, weight = self._train, self._train.batch()[2]
        size, steps = min(train.batch_size, train.length), train.epoch_steps
        if weight is None:
            rows = torch.full((1, steps), float(size), **_FLOAT64)
            rows[0, -1] = min(size, train.length - size * (steps - 1))
            return rows
        rows = weight_by_row(weight).cpu()
        rows = nn.functional.pad((rows if order is None else rows[order]).reshape(-1, train.length), (0, size))
        return rows[:, : steps * size].reshape(len(rows), steps, size).sum(2)

    def _generator_states(self) -> list[tuple[torch.Generator, Tensor]]:
        generators = [torch.default_generator, *self._train.generators, *(self._val.generators if self._val else ())]
        return [(generator, generator.get_state()) for generator in {id(g): g for g in generators}.values()]

    def _rewind(
        self, states: list[tuple[torch.Generator, Tensor]], steps: int, more: int, schedule: Schedule | None
    ) -> None:
        """Set the generators and the scheduler to their state after `steps` steps, with the batches of `more` further
        steps drawn."""
        for generator, state in states:
            generator.set_state(state)
        epochs, batches = divmod(steps, self._train.epoch_steps)
        if epochs:
            draw_epochs(epochs, self._train, self._val)
        if batches + more:
            self._train.resume(batches + more)
        if schedule is not None:
            schedule.rewind(steps if schedule.each_step else epochs)


class _EarlyStopping:
    """Keeps the best epoch's parameters and decides when to stop.

    Args:
        model: the model whose parameters and buffers to keep.
        patience: the number of consecutive epochs without improvement after which to stop.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self._model, self._patience = model, patience
        self._best, self._waited = math.inf, 0
        self._kept: list[Tensor] | None = None

    def is_over(self, loss: float) -> bool:
        """Whether to stop after an epoch with this loss."""
        if loss < self._best:
            self._best, self._waited = loss, 0
            self._kept = [tensor.detach().clone() for tensor in self._tensors()]
        else:
            self._waited += 1
        return self._waited >= self._patience

    def restore(self) -> None:
        """Restore the best epoch's parameters and buffers."""
        if self._kept is not None:
            with torch.no_grad():
                for tensor, kept in zip(self._tensors(), self._kept, strict=True):
                    tensor.copy_(kept)

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]


def _progress_bar(num_epochs: int, progress: bool | None) -> Any:
    """A progress bar over the epochs, or None."""
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
