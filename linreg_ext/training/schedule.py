# SPDX-License-Identifier: BSD-3-Clause
"""Steps learning-rate schedulers, and computes the rates of steps that are taken in one call."""

from __future__ import annotations

import builtins
import copy
import functools
import math
import warnings
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from .batches import length_of


class Schedule:
    """Steps a scheduler after every epoch or after every batch.

    Args:
        scheduler: the scheduler; None leaves the optimizer's settings unchanged.
        interval: `"epoch"` or `"step"`.
        optimizer: the optimizer that the scheduler controls.

    Attributes:
        changes: whether there is a scheduler.
        each_step: whether to step it after every batch.
    """

    def __init__(self, scheduler: Any, interval: str, optimizer: torch.optim.Optimizer) -> None:
        self._scheduler, self._optimizer = scheduler, optimizer
        self.changes = scheduler is not None
        self.each_step = self.changes and interval == "step"
        self._foresees = not self.changes or _is_foreseeable(scheduler)
        self._is_ahead = False

    def warn_if_longer(self, epochs: int, loader: Any) -> None:
        """Warn if the scheduler expects more steps than the run will take."""
        length = getattr(self._scheduler, "total_steps", None)
        if not isinstance(length, int):
            return
        epoch_steps = length_of(loader) if self.each_step else 1
        steps = length if epoch_steps is None else epochs * epoch_steps
        if length > (getattr(self._scheduler, "last_epoch", None) or 0) + steps:
            cure = "" if self.each_step else "; use scheduler_interval='step' to step it after every batch"
            warnings.warn(
                f"linreg_ext: fit: {type(self._scheduler).__name__} expects {length} steps, but the run takes only "
                f"{steps}{cure}",
                UserWarning,
                stacklevel=3,
            )

    def end_step(self, loss: Tensor) -> None:
        """Step the scheduler if its interval is the batch."""
        if self.each_step:
            self._step(loss)

    def end_epoch(self, loss: float) -> None:
        """Step the scheduler if its interval is the epoch and `rates` has not stepped it already."""
        if self.changes and not self.each_step and not self._is_ahead:
            self._step(loss)
        self._is_ahead = False

    def _step(self, loss: float | Tensor) -> None:
        if isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step(float(loss))
        else:
            self._scheduler.step()

    def rates(self, epochs: int, epoch_steps: int) -> Tensor | None:
        """Step the scheduler ahead through several epochs.

        Returns:
            [epochs * epoch_steps], the learning rate of each step; None, with nothing changed, if the schedule depends
            on the training or changes anything but one learning rate shared by all groups.
        """
        groups = self._optimizer.param_groups
        if not self._foresees:
            return None
        if not self.changes:
            return torch.full((epochs * epoch_steps,), float(groups[0]["lr"]), dtype=torch.float64, device="cpu")
        self._before = copy.deepcopy(self._scheduler.state_dict()), [_settings(group) for group in groups]
        if "step" in vars(self._optimizer):
            self._optimizer._opt_called = True  # prevents the scheduler's warning about the order
        rates = [float(groups[0]["lr"])]
        try:
            for _ in self._steps(epochs * (epoch_steps if self.each_step else 1)):
                rate = float(groups[0]["lr"])
                if not rate >= 0 or (len(groups) > 1 and any(group["lr"] != rate for group in groups)):
                    self._foresees = False
                    break
                rates.append(rate)
        except Exception:  # training may end before this step
            self._foresees = False
        except BaseException:
            self._foresees = False
            raise
        finally:
            if not self._foresees:
                self._restore()
        if not self._foresees:
            return None
        self._is_ahead = True
        column = torch.tensor(rates[:-1], dtype=torch.float64, device="cpu")
        return column if self.each_step else column.repeat_interleave(epoch_steps)

    def _steps(self, count: int) -> Iterator[None]:
        """Step the scheduler, yielding after each step.

        Steps between the first and the last do only what `LRScheduler.step` does to set the rates, in half of its time.
        """
        scheduler, groups = self._scheduler, self._optimizer.param_groups
        plain = type(scheduler).step is LRScheduler.step and all(type(group["lr"]) is float for group in groups)
        if plain and count > 2:
            scheduler.step()
            yield
            scheduler._get_lr_called_within_step = True
            for _ in range(count - 2):
                scheduler._step_count += 1
                scheduler.last_epoch += 1
                for group, rate in zip(groups, scheduler.get_lr(), strict=True):
                    group["lr"] = rate
                yield
            count = 1
        for _ in range(count):
            scheduler.step()
            yield

    def rewind(self, steps: int) -> None:
        """Set the scheduler back to its state after the first `steps` of the steps that `rates` took."""
        if not self._is_ahead:
            return
        self._restore()
        for _ in range(steps):
            self._scheduler.step()

    def _restore(self) -> None:
        state, settings = self._before
        self._scheduler.load_state_dict(copy.deepcopy(state))
        for group, before in zip(self._optimizer.param_groups, settings, strict=True):
            for name, value in before.items():
                if isinstance(group[name], Tensor):
                    with torch.no_grad():
                        group[name].copy_(value)
                else:
                    group[name] = value


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """A copy of a parameter group without its parameters."""
    return {name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in group.items() if name != "params"}  # fmt: skip


def _is_foreseeable(scheduler: Any) -> bool:
    """Whether a scheduler's steps depend only on their number, and set nothing but learning rates."""
    if not isinstance(scheduler, LRScheduler) or getattr(scheduler, "cycle_momentum", False):
        return False
    if not type(scheduler).__module__.startswith("torch.optim.") or "step" in vars(scheduler):
        return False
    functions = [*getattr(scheduler, "lr_lambdas", ()), getattr(scheduler, "_scale_fn_custom", None)]
    parts = getattr(scheduler, "_schedulers", ())
    return all(f is None or _is_pure(f) for f in functions) and all(map(_is_foreseeable, parts))


_NUMBERS = (int, float, str, type(None))
_BUILTINS = (*vars(builtins).values(), *vars(math).values())


def _is_pure(value: Any, callers: tuple[FunctionType, ...] = ()) -> bool:
    """Whether a value is a number, or a function that reads only its arguments, numbers, builtins and math.

    Args:
        callers: functions being examined, which may call each other.
    """
    if isinstance(value, _NUMBERS) or value is math or any(value is other for other in (*_BUILTINS, *callers)):
        return True
    if isinstance(value, functools.partial):
        return all(_is_pure(part, callers) for part in (value.func, *value.args, *value.keywords.values()))
    if not isinstance(value, FunctionType) or any(
        hasattr(constant, "co_code") for constant in value.__code__.co_consts
    ):
        return False
    read = [value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__]
    read += [cell.cell_contents for cell in value.__closure__ or ()]
    read += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return all(_is_pure(part, (*callers, value)) for part in read)
