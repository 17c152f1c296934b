# SPDX-License-Identifier: BSD-3-Clause
"""One training step, at the fastest level that agrees with the plain loop.

A fused step enters C++ at `bound_step` in `csrc/torch/bound_step.cpp`; functional.py describes the rest of its path.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from itertools import compress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import SGD, Optimizer

from .._extension import _C, REFERENCE
from .batch_loss import BatchLoss
from .batches import Batch, rows_of
from .distributed import GOES_ON, LOSS, WEIGHT, Group, reduction_of_its_own
from .match import NotFusable, match, reduction_of, with_article


def make_train_step(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    *,
    process_group: dist.ProcessGroup | None = None,
) -> TrainStep:
    """Make a function that takes one training step: `step(x, y) -> loss`, or `step(x, y, weight)`.

    It works with any model, loss and optimizer, and fuses those it recognises:

    - *fused*: an affine model, a squared, absolute, Huber or smooth L1 loss, and `torch.optim.SGD`. One pass over `x`
      computes the loss and the update. Every step reads the optimizer's param_groups and maintains its state.
    - *gradients*: the same with another optimizer. One pass computes the gradients; `optimizer.step()` follows.
    - *eager*: anything else, as under "Equivalent to".

    `make_train_step` analyses the model, loss and optimizer once. Before every step, the step checks the parameters in
    their modules and in the optimizer's groups, with their `requires_grad`, dtype, device and `.grad`; hooks on
    modules, parameters and optimizers, and global hooks; the numbers that forward and the loss module read; the
    optimizer's hyper-parameters and state; modes (autocast, function and dispatch modes, anomaly detection, torch.func
    transforms); and the batch. After replacing anything else, such as a module's method, make a new step.

    A step that is not *fused* warns once with the reason; `TrainStep.explain` returns it at any time.

    Args:
        model: the model, whose parameters `optimizer` holds.
        loss_fn: called as `loss_fn(model(x), y)`.
        optimizer: any torch.optim optimizer whose step needs no closure.
        process_group: processes that share every step, such as `torch.distributed.group.WORLD`; all of them must call
            the step, with a batch of any size, even 0 rows. They take the step that one process would take on all
            their rows, in one all-reduce of the gradients' sums, and return its loss. At the start, all of them get
            the parameters, buffers and optimizer state of the group's first rank. None trains locally.

    Returns:
        The step. `step(x, y)` with `x` [N, D] and `y` [N, K] returns the detached 0-dim loss before the update,
        without synchronising the device. With `weight`, of y's shape, [N] or [N, 1], the loss is the weighted mean (or
        sum), as in `F.mse_loss(…, weight=weight)`; this needs a recognised loss.

    An affine model inside DistributedDataParallel is recognised: one all-reduce averages the ranks' gradients, as in
    the plain loop, and the step returns the mean of the ranks' losses.

    Raises:
        TypeError: an argument is of the wrong kind, or the optimizer's step needs a closure.
        ValueError: from the step, if the loss is not a single number, or is not recognised but there are weights.
        RuntimeError: from the step, if the target does not have the prediction's shape and the loss would broadcast
            them. No parameter changes. With a process group, also if another rank fails.

    Equivalent to:
        `model.train(); loss = loss_fn(model(x), y); loss.backward(); optimizer.step(); optimizer.zero_grad()`

    Example:
        >>> model = nn.Linear(8, 1)
        >>> step = make_train_step(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        >>> loss = step(torch.randn(32, 8), torch.randn(32, 1))
    """
    return TrainStep(model, loss_fn, optimizer, process_group=process_group)


class TrainStep:
    """A training step made by `make_train_step`.

    Attributes:
        level: the level of the last step, or the expected level of the first: "fused", "gradients" or "eager".
        bound: the step in C++; None if the model or loss is not recognised.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        op: str = "step",
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        name = "make_train_step" if op == "step" else op
        _check(name, model, loss_fn, optimizer)
        self._parts, self._op, self._process_group = (model, loss_fn, optimizer), op, process_group
        self._parallel = model if isinstance(model, DistributedDataParallel) else None
        self._local_model = model if self._parallel is None else model.module
        if self._parallel is None:
            self._group = None if process_group is None else Group(name, process_group, model)
        elif process_group is None:
            self._group = Group(name, model.process_group, model, averages=True)
        else:
            raise ValueError(
                f"{name}: process_group must be None with a DistributedDataParallel model, which has its own"
            )
        if process_group is not None:
            self._group.bind(model, optimizer)
        self._eager_loss = BatchLoss(op, model, loss_fn)
        self._local_loss = BatchLoss(op, self._local_model, loss_fn)
        self._warned: set[str] = set()
        self._bind()
        self._say(*self.level_of())

    model: nn.Module = property(lambda self: self._parts[0], doc="The model.")
    loss_fn: Callable[..., Tensor] = property(lambda self: self._parts[1], doc="The loss function.")
    optimizer: Optimizer = property(lambda self: self._parts[2], doc="The optimizer.")

    @property
    def group(self) -> Group | None:
        """The processes to share the next step with; None if there are none, or DistributedDataParallel sees to it."""
        return None if self._parallel is not None and self._why_parallel() else self._group

    @property
    def rank(self) -> int | None:
        """The rank of this process among those that share the steps, by `group` or by DistributedDataParallel."""
        return None if self._group is None else self._group.rank

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self._parts, self._op, self._process_group)  # a copy is bound to copies

    def __call__(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.step(x, y, weight)

    def step(self, x: Tensor, y: Tensor, weight: Tensor | None = None, *, skip_nonfinite: bool = False) -> Tensor:
        """Take one step; with `skip_nonfinite`, change nothing when the loss is nan or inf."""
        bound = self.bound
        if self._group is not None:
            if self.group is not None:
                return self.shared_step(lambda: (x, y, weight), skip_nonfinite)[0]
            bound = None
        found = None if bound is None else bound.step(x, y, weight, skip_nonfinite)
        if found is None:
            found = self._ask("step", x, y, weight, skip_nonfinite)
        if type(found) is Tensor:
            if self.level != "fused":
                self._say(*self.level_of())
            return found
        level, reason = found
        if (level, reason) != (self.level, self._reason):
            self._say(level, reason)
        if level == "gradients":
            loss = self.bound.loss(x, y, weight)
        else:
            self.model.train()
            loss = self._eager_loss(x, y, weight)
            if self._lazy:  # the lazy module has become a regular one
                self._bind()
        if not (skip_nonfinite and not math.isfinite(loss.detach().sum().item())):
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach()

    def shared_step(
        self, draw: Callable[[], Batch | None], skip_nonfinite: bool
    ) -> tuple[Tensor, float, Batch | None] | None:
        """Take one step together with the other ranks of `group`.

        Args:
            draw: returns this rank's batch; None if it has no more.

        Returns:
            The loss, its weight in the mean over an epoch, and this rank's batch; None, without a step, if no rank has
            a batch.
        """

        def run(sums: Tensor) -> Batch | None:
            batch = draw()
            if batch is not None:
                self._run_pass(batch, sums)
                sums[WEIGHT], sums[GOES_ON] = rows_of(batch), 1
            return batch

        sums = self._sums  # rebinding replaces it
        numbers, batch = self._group.add_up(sums, run)
        if not numbers[GOES_ON]:
            return None
        divisor = numbers[GOES_ON] if self._group.averages else numbers[WEIGHT] if self._is_mean else 1.0
        mean = sums / (divisor or math.nan)  # 0: neither rows nor weights
        loss = mean[LOSS].to(self._shared[0].dtype)
        if divisor == 0 or (skip_nonfinite and not math.isfinite(loss.item())):
            return loss, numbers[WEIGHT], batch
        if self._ask("update", mean)[0] != "fused":
            for parameter, grad in zip(self._shared, mean[:LOSS].split(self._sizes), strict=True):
                if parameter.requires_grad:
                    grad = grad.view(parameter.shape).to(parameter.dtype)
                    parameter.grad = grad if parameter.grad is None else parameter.grad + grad
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, numbers[WEIGHT], batch

    def _run_pass(self, batch: Batch, sums: Tensor) -> None:
        """Write the sums over a batch's rows of the gradients and the loss; with DistributedDataParallel, those of the
        batch's loss itself."""
        averages = self._group.averages
        if self._parallel is not None and self._parallel.device_ids:
            batch = (batch[0].to(self._parallel.device), *batch[1:])  # as DistributedDataParallel does
        found = self._ask("sums", *batch, sums, not averages)
        if found != (self.level, self._reason):
            self._say(*found)
        if found[0] != "eager":
            return
        self._local_model.train()
        loss = self._local_loss(*batch)
        rows = float(rows_of(batch)) if self._is_mean and not averages else 1.0
        if rows:  # else the loss may be 0 / 0
            trained = [p.requires_grad for p in self._shared]
            grads = iter(torch.autograd.grad(loss, list(compress(self._shared, trained)), allow_unused=True))
            for part, is_trained in zip(sums[:LOSS].split(self._sizes), trained, strict=True):
                if is_trained and (grad := next(grads)) is not None:
                    part.copy_(grad.reshape(-1)).mul_(rows)
            sums[LOSS] = loss.detach() * rows

    def level_of(
        self, x: Tensor | None = None, y: Tensor | None = None, weight: Tensor | None = None
    ) -> tuple[str, str]:
        """The level of a step on a batch, or on unknown data, and the reason."""
        return self._ask("level", x, y, weight)

    def explain(self) -> str:
        """The level and its reason, as `level: reason`, of the last step or, before any, of the next."""
        reason = self._reason
        if self.level == "fused" and self._group is not None:
            reason = reason.replace(
                "pass and update in one kernel", f"one all-reduce of {self._group.size} ranks between pass and update"
            )
        return f"{self.level}: {reason}"

    @property
    def reduction(self) -> str:
        """The loss's reduction over the rows of a batch; "mean" if unknown."""
        return reduction_of(self.loss_fn)

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the bound step, rebinding the step whenever it is outdated."""
        if self._parallel is not None and (reason := self._why_parallel()):
            return "eager", reason
        while (bound := self.bound) is not None:
            found = getattr(bound, method)(*arguments)
            if found is not None:
                return found
            self._bind()
        return "eager", self._not_fusable

    def _why_parallel(self) -> str:
        """The reason why DistributedDataParallel itself must run a step; empty if it need not."""
        return self._not_fusable if self.bound is None else reduction_of_its_own(self._parallel)

    def _bind(self) -> None:
        bound, self._not_fusable = None, "LINREG_EXT_REFERENCE=1 runs plain PyTorch"
        self._lazy = any(is_lazy(p) for p in self.model.parameters())
        shared = [*self.model.parameters()]
        if not REFERENCE:
            try:
                found = match(*self._parts)
                bound, shared = _C.bind_step(self._op, *found), [p for p in (found.weight, found.bias) if p is not None]
            except NotFusable as reason:
                self._not_fusable = str(reason)
        self.bound = bound
        if self._group is not None:
            self._shared, self._sizes, self._is_mean = shared, [p.numel() for p in shared], self.reduction == "mean"
            self._sums = torch.empty(sum(self._sizes) + 4, dtype=torch.float64, device=shared[0].device)

    def _say(self, level: str, reason: str) -> None:
        self.level, self._reason = level, reason
        sentence = self.explain()
        if level != "fused" and sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(f"linreg_ext: {sentence}", UserWarning, stacklevel=4)


def _check(op: str, model: Any, loss_fn: Any, optimizer: Any) -> None:
    """Raise TypeError unless the arguments are a model, a loss and an optimizer."""
    order = "fit(num_epochs, model, loss_fn, opt, train_dl)" if op == "fit" else f"{op}(model, loss_fn, optimizer)"
    name = "opt" if op == "fit" else "optimizer"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be an nn.Module, got {_named(model)}; the order is {order}")
    if isinstance(loss_fn, type) or not callable(loss_fn):
        cure = f"pass {loss_fn.__name__}()" if isinstance(loss_fn, type) else f"the order is {order}"
        raise TypeError(f"{op}: loss_fn must be a function of (prediction, target), got {_named(loss_fn)}; {cure}")
    if isinstance(optimizer, type) or not all(hasattr(optimizer, a) for a in ("step", "zero_grad", "param_groups")):
        raise TypeError(f"{op}: {name} must be an optimizer, got {_named(optimizer)}; the order is {order}")
    if type(optimizer) is not SGD and _needs_closure(optimizer.step):
        raise TypeError(
            f"{op}: {name} must be an optimizer whose step needs no closure, got {type(optimizer).__name__}; call its "
            "step(closure) in your own loop"
        )


def _named(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else with_article(type(value))


def _needs_closure(step: Callable[..., Any]) -> bool:
    try:
        closure = inspect.signature(step).parameters.get("closure")
    except (TypeError, ValueError):  # no signature
        return False
    return closure is not None and closure.default is closure.empty
