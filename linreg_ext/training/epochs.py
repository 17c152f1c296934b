# SPDX-License-Identifier: BSD-3-Clause
"""Whole epochs of fused steps in one call, where the order of the loader's batches is known ahead."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .. import functional
from .fused_call import FusedCall, target_rows
from .level import Level
from .loader_order import LoaderOrder, draw_epochs, follow
from .recorder import Recorder
from .train_step import TrainStep

_ORDER_NUMBERS = 1 << 17  # 1 MB of row numbers, unless one epoch has more


class FusedEpochs:
    """What the next epochs are made of.

    Attributes:
        validates: they include validation.
        limit: how many can be taken at once; None is any number.
    """

    def __init__(self, step: TrainStep, level: Level, train: LoaderOrder, val: LoaderOrder | None) -> None:
        self._step, self._level, self._train, self._val = step, level, train, val
        self.validates = val is not None
        self.limit = None if train.is_static else max(1, _ORDER_NUMBERS // train.length)
        self._validation = None if val is None else val.whole()

    def take(self, count: int, recorder: Recorder, stop: bool) -> None:
        """Take the steps of `count` epochs.

        With `stop` the first whose loss is nan or inf is not taken, and DivergenceError is raised. Then, and when the
        user interrupts, the random generators are left as going through the loaders up to that batch would leave them.
        """
        step, train = self._step, self._train
        affine, loss = self._level.decision.affine, self._level.decision.loss
        if not affine.training():
            step.model.train()
        call = FusedCall(self._level.decision, self._level.group)
        validation: tuple[Tensor | None, Tensor | None] = (None, None)
        if self._validation is not None:
            validation = self._validation[0], target_rows(affine, loss, *self._validation)
        parts: list[functional.Stretch] = []
        taken, steps = 0, count * train.epoch_steps
        before = self._generator_states()
        try:
            order = draw_epochs(count, train, self._val)
            with torch.no_grad():
                sizes = (train.batch_size, train.drop_last, count)
                arguments = call.arguments(train.x, train.y, stop)
                functional.sgd_run(arguments, order, validation, sizes, range(steps), parts)
        except BaseException:
            self._rewind(before, functional.steps_taken(parts), 0)
            raise
        finally:
            taken = functional.steps_taken(parts)
            if taken:
                call.keep_buffers()
                call.tell_scheduler()
        if taken < steps:
            self._rewind(before, taken, 1)
        losses, validation_losses = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:2])
        rate = step.optimizer.param_groups[0]["lr"]
        validation_losses = self._validation_means(validation_losses)
        ended = taken // train.epoch_steps  # the last may lack the step that was not taken, and has no validation then
        recorder.add_epochs(losses[: taken + 1], self._batch_rows(), rate, validation_losses[:ended])
        if taken < steps:
            recorder.raise_if_diverged()

    def _batch_rows(self) -> Tensor:
        train = self._train
        rows = torch.full((train.epoch_steps,), float(train.batch_size), dtype=torch.float64)
        rows[-1] = min(train.batch_size, train.length - train.batch_size * (train.epoch_steps - 1))
        return rows

    def _validation_means(self, losses: Tensor) -> Tensor:
        if self._validation is None:
            return losses
        rows = len(self._validation[0])
        losses = losses.double()
        return losses / rows if self._step.reduction == "sum" else losses

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


class Residents:
    """Data sets where a run goes on: on `device`, copies of their tensors, made again when they have changed."""

    def __init__(self, device: Any) -> None:
        self._device = None if device is None else torch.empty(0, device=device).device  # with its index
        self._copies: dict[str, tuple[tuple[Any, ...], Tensor, Tensor]] = {}

    def follow(self, name: str, loader: Any) -> LoaderOrder | None:
        """The order of a loader, as :func:`follow` has it, through rows on the device; None where it has no room."""
        order = follow(loader, pinned=self._device is not None and self._device.type == "cuda")
        if order is None or self._device is None:
            return order
        pair = {f"{name} input": order.x, f"{name} target": order.y}
        stale = {key: t for key, t in pair.items() if t.device != self._device and not self._holds(key, t)}
        if any(t.is_inference() for t in stale.values()) or not _has_room(stale.values(), self._device):
            return None
        for key, t in stale.items():
            self._copies[key] = _identity(t), t, t.to(self._device)
        order.x, order.y = (t if t.device == self._device else self._copies[key][2] for key, t in pair.items())
        return order

    def _holds(self, key: str, tensor: Tensor) -> bool:
        return key in self._copies and not tensor.is_inference() and self._copies[key][0] == _identity(tensor)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """What tells a tensor, for as long as it lives, from others and from what it held before."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _has_room(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether copies would leave half of the device's free memory to others."""
    needed = sum(t.numel() * t.element_size() for t in tensors)
    return needed == 0 or device.type != "cuda" or 2 * needed <= torch.cuda.mem_get_info(device)[0]


def fused_epochs(step: TrainStep, train_dl: Any, val_dl: Any, residents: Residents) -> FusedEpochs | None:
    """The next epochs of `train_dl`, if their steps are fused and come in an order known ahead.

    Validation on `val_dl` is part of them where it goes through the same rows every time.
    """
    train = residents.follow("train", train_dl)
    level = None if train is None or train.epoch_steps == 0 else _if_fused(step, train.x, train.y)
    if level is None:
        return None
    val = None if val_dl is None else residents.follow("validation", val_dl)
    if val is not None and not (val.once and _if_fused(step, *val.whole())):
        val = None
    return FusedEpochs(step, level, train, val)


def _if_fused(step: TrainStep, x: Tensor, y: Tensor) -> Level | None:
    """The level of a step on batches of rows of `x` and `y` if that is fused."""
    return step.if_fused(x, y) if x.dim() == 2 else None
