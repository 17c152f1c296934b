# SPDX-License-Identifier: BSD-3-Clause
"""One training step, at the fastest level that is still exactly the plain loop's step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from .._extension import _C, REFERENCE
from .decision import Decision, decide
from .evaluate import require_one_number
from .fused_call import FusedCall, fused_loss
from .level import Level, find_level
from .plan import Plan, make_plan
from .regression_loss import reduction_of


def make_train_step(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> TrainStep:
    """A function that takes one training step: ``step(x, y) -> loss``.

    Works with any model, loss and optimizer, and is fast for those it recognises:

    - *fused*: an affine model, a loss of :mod:`linreg_ext.losses`, and :class:`torch.optim.SGD`: one pass over `x`
      yields the loss and the update. The optimizer's param_groups are read, and its state kept, at every step;
    - *gradients*: the same with another optimizer: one pass yields the gradients, then ``optimizer.step()``;
    - *eager*: anything else, as written below.

    A step that is not *fused* warns once, saying why; :meth:`TrainStep.explain` says it any time.

    Args:
        model: the model; its parameters belong to `optimizer`.
        loss_fn: called as ``loss_fn(model(x), y)``.
        optimizer: any torch.optim optimizer whose step needs no closure.

    Returns:
        The step. ``step(x, y)`` with `x` [N, D] and `y` [N, K] returns the detached 0-dim loss of before the update,
        without waiting for the device.

    Raises:
        ValueError: (the step) the loss is not one number; nothing has changed then.

    Equivalent to:
        ``model.train(); loss = loss_fn(model(x), y); loss.backward(); optimizer.step(); optimizer.zero_grad()``

    Example:
        >>> model = nn.Linear(8, 1)
        >>> step = make_train_step(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        >>> loss = step(torch.randn(32, 8), torch.randn(32, 1))
    """
    return TrainStep(model, loss_fn, optimizer)


class TrainStep:
    """A training step made by :func:`make_train_step`."""

    def __init__(
        self, model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        self.model, self.loss_fn, self.optimizer = model, loss_fn, optimizer
        self._warned: set[str] = set()
        self._plan: Plan | None = None
        self._decision: Decision | None = None
        self._say(self._find_level())

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.step(x, y)

    def step(self, x: Tensor, y: Tensor, *, skip_nonfinite: bool = False) -> Tensor:
        """Take one step; with `skip_nonfinite`, change nothing when the loss is nan or inf."""
        if self._plan is not None and not torch.compiler.is_compiling():
            value = _by_plan(self._plan, self.model, self.loss_fn, self.optimizer, x, y, skip_nonfinite)
            if value is not NotImplemented:
                return value
            self._plan = None
        found = self._find_level(x, y)
        level, affine = found.name, found.decision.affine
        if level == "eager" or not affine.training():
            self.model.train()
        if level != self.level or found.reason != self._reason:
            self._say(found)
        if level == "fused":
            value = self._fused(found, x, y, skip_nonfinite)
            if not torch.compiler.is_compiling():
                self._plan = make_plan(found.decision)
            return value
        if level == "gradients":
            loss = fused_loss(affine, found.decision.loss, x, y)
        else:
            loss = self.loss_fn(self.model(x), y)
            require_one_number("step", loss)
        if not (skip_nonfinite and not math.isfinite(loss.detach().sum().item())):
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def explain(self) -> str:
        """One sentence: the level of the last step (before the first: of the next), a colon, and the reason."""
        return f"{self.level}: {self._reason}"

    @property
    def reduction(self) -> str:
        """How the loss is reduced over the rows of a batch; "mean" where that is not known."""
        read = self._decision.loss if self._decision else None
        return read.reduction if read else reduction_of(self.loss_fn)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None, "_decision": None}  # a copy has objects of its own

    def if_fused(self, x: Tensor, y: Tensor) -> Level | None:
        """The level of a step on `x` and `y` where that is fused, which :meth:`explain` then says; else None."""
        found = self._find_level(x, y)
        if found.name != "fused":
            return None
        if self.level != "fused":
            self._say(found)
        return found

    def _find_level(self, x: Tensor | None = None, y: Tensor | None = None) -> Level:
        """The level of a step on `x` and `y` as everything stands now."""
        decision = self._decision
        if decision is None or not decision.stands(self.model, self.loss_fn, self.optimizer):
            self._decision = decision = decide(self.model, self.loss_fn, self.optimizer)
        return find_level(decision, x, y)

    def _fused(self, found: Level, x: Tensor, y: Tensor, skip_nonfinite: bool) -> Tensor:
        call = FusedCall(found.decision, found.group)
        with torch.no_grad():
            value = functional.sgd_step(*call.arguments(x, y, skip_nonfinite))
        if any(call.first_step) and not (skip_nonfinite and not math.isfinite(value.item())):
            call.keep_buffers()
        call.tell_scheduler()
        return value

    def _say(self, found: Level) -> None:
        self.level, self._reason = found.name, found.reason
        sentence = self.explain()
        if found.name != "fused" and sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(sentence, UserWarning, stacklevel=4)


_by_plan = None if REFERENCE else _C.train_step
