# SPDX-License-Identifier: BSD-3-Clause
"""One training step, at the fastest level that is still exactly the plain loop's step."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .. import functional
from .._extension import _C, REFERENCE, has_kernels
from ..autograd import is_transforming
from ..check import DTYPES, find_overlap
from .affine import Affine
from .decision import Decision, decide
from .evaluate import require_one_number
from .fused_call import FusedCall, fused_loss
from .plan import Plan, make_plan
from .regression_loss import reduction_of
from .tracing import with_article


def make_train_step(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> TrainStep:
    """A function that takes one training step: ``step(x, y) -> loss``.

    Works with any model, loss and optimizer, and is fast for those it recognises:

    - *fused*: an affine model, a loss among mse, l1, huber and smooth_l1, and :class:`torch.optim.SGD`: one pass over
      `x` yields the loss and the update. The optimizer's param_groups are read, and its state kept, at every step;
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
        self._say(*self._level())

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.step(x, y)

    def step(self, x: Tensor, y: Tensor, *, skip_nonfinite: bool = False) -> Tensor:
        """Take one step; with `skip_nonfinite`, change nothing when the loss is nan or inf."""
        if self._plan is not None and not torch.compiler.is_compiling():
            value = _by_plan(self._plan, self.model, self.loss_fn, self.optimizer, x, y, skip_nonfinite)
            if value is not NotImplemented:
                return value
            self._plan = None
        level, reason = self._level(x, y)
        affine, loss_read = self._decision.affine, self._decision.loss
        if level == "eager" or not affine.training():
            self.model.train()
        if level != self.level or reason != self._reason:
            self._say(level, reason)
        if level == "fused":
            value = self._fused(x, y, skip_nonfinite)
            if not torch.compiler.is_compiling():
                self._plan = make_plan(self._decision)
            return value
        if level == "gradients":
            loss = fused_loss(affine, loss_read, x, y)
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

    def _level(self, x: Tensor | None = None, y: Tensor | None = None) -> tuple[str, str]:
        """The level of a step on `x` and `y` as everything stands now, and why."""
        decision = self._decision
        if decision is None or not decision.stands(self.model, self.loss_fn, self.optimizer):
            self._decision = decision = decide(self.model, self.loss_fn, self.optimizer)
        affine = decision.affine
        if REFERENCE:
            return "eager", "LINREG_EXT_REFERENCE=1 runs plain PyTorch"
        if affine is None:
            return "eager", decision.not_affine
        weight, bias = affine.weight.tensor, affine.bias.tensor if affine.bias else None
        reason = _not_plain_parameters(weight, bias)
        if not reason and x is not None:
            reason = _not_plain_data(affine, x, y, weight) or _not_plain_modes(x, y)
        if reason:
            return "eager", reason
        reason = decision.not_sgd or self._not_plain_sgd(weight, bias) or self._overlap(affine, x, y)
        if reason:
            return "gradients", reason
        return "fused", f"an affine model under {decision.loss.loss} with SGD, pass and update in one kernel"

    def _not_plain_sgd(self, weight: Tensor, bias: Tensor | None) -> str:
        found: dict[int, dict[str, Any]] = {}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter is weight or parameter is bias:
                    if id(parameter) in found:
                        return "the optimizer has a parameter twice"
                    found[id(parameter)] = group
                elif parameter.grad is not None:
                    return "another parameter of the optimizer has a gradient waiting"
        trained = [p for p in (weight, bias) if p is not None and p.requires_grad]
        if len(trained) == 0:
            return "no parameter requires grad"
        if any(id(p) not in found for p in trained):
            return "a parameter of the model is not the optimizer's"
        for name in (*_RULE, "foreach", "differentiable"):
            if any(name not in found[id(p)] for p in trained):
                return f"a group of the optimizer has no '{name}'"  # of which its step complains
        self._group = group = found[id(trained[0])]
        if any(found[id(p)][name] != group[name] for p in trained[1:] for name in _RULE):
            return "weight and bias have different settings in the optimizer"
        if group["differentiable"] or any(isinstance(group[name], Tensor) for name in _RULE[1:]):
            return "the optimizer is differentiable or has tensors for settings"
        if not _within_range(group):
            return "the optimizer has settings that torch.optim.SGD does not accept when it is made"
        if isinstance(group["lr"], Tensor) and group["lr"].dtype not in (torch.float32, torch.float64):
            return f"the learning rate is a tensor of {group['lr'].dtype}"
        state = self.optimizer.state
        for p in trained:
            if group["momentum"] != 0 and p not in state and not isinstance(state, defaultdict):
                return "the optimizer's state has nothing for a parameter, and would not make it"
            buffer = state[p].get("momentum_buffer") if p in state else None
            if buffer is not None and (buffer.dtype != p.dtype or buffer.device != p.device):
                return "a momentum buffer is of another dtype or device than its parameter"
            if p._backward_hooks or p._post_accumulate_grad_hooks or _C.has_gradient_hooks(p):
                return "a parameter has hooks"
        if any(p is not None and id(p) in found and p.grad is not None for p in (weight, bias)):
            return "a parameter has a gradient waiting"  # which SGD takes for a frozen parameter, too
        return ""

    def _overlap(self, affine: Affine, x: Tensor | None, y: Tensor | None) -> str:
        """Why the kernel must not write where it reads: a parameter that shares memory with something else."""
        if torch.compiler.is_compiling():  # which asks the operator
            return ""
        state, written, read = self.optimizer.state, [], []
        for name, part, view in (("weight", affine.weight, affine.as_rows), ("bias", affine.bias, affine.as_bias)):
            if part is None:
                continue
            parameter = part.tensor
            (written if parameter.requires_grad else read).append((f"the {name}", view(parameter.detach())))
            buffer = state[parameter].get("momentum_buffer") if parameter in state else None
            if parameter.requires_grad and buffer is not None and self._group["momentum"] != 0:
                written.append((f"the {name}'s momentum", view(buffer)))
        lr = self._group["lr"]
        read += [("the batch", t) for t in (x, y) if t is not None]
        read += [("the learning rate", lr)] if isinstance(lr, Tensor) else []
        found = find_overlap(written, read)
        if found is None:
            return ""
        name, other = found
        return f"{name} overlaps {'itself' if name == other else other} in memory"

    def _fused(self, x: Tensor, y: Tensor, skip_nonfinite: bool) -> Tensor:
        call = FusedCall(self._decision, self._group)
        with torch.no_grad():
            tensors = call.tensors(x, y)
            value = functional.sgd_step(*tensors, *call.rule, *call.first_step, *call.frozen, skip_nonfinite)
        if any(call.first_step) and not (skip_nonfinite and not math.isfinite(value.item())):
            call.keep_buffers()
        call.tell_scheduler()
        return value

    def _say(self, level: str, reason: str) -> None:
        self.level, self._reason = level, reason
        sentence = self.explain()
        if level != "fused" and sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(sentence, UserWarning, stacklevel=4)


_by_plan = None if REFERENCE else _C.train_step

_RULE = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize")


def _within_range(group: dict[str, Any]) -> bool:
    lr, momentum = group["lr"], group["momentum"]
    plain_nesterov = not group["nesterov"] or (momentum > 0 and group["dampening"] == 0)
    return (isinstance(lr, Tensor) or lr >= 0) and momentum >= 0 and group["weight_decay"] >= 0 and plain_nesterov


def _not_plain_modes(x: Tensor, y: Tensor) -> str:
    """Why the plain loop's operations would do more, or something else, than they do by themselves."""
    if not torch.is_grad_enabled():
        return "grad mode is off"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    if torch.is_anomaly_enabled():
        return "anomaly detection is on"
    if torch.compiler.is_compiling():
        return ""
    if x.is_inference() or y.is_inference():
        return "a batch was made in inference mode"
    if any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack()):  # set_default_device's
        return "a TorchFunctionMode is active"
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode is active"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "hooks on saved tensors are active"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace is recording"
    if is_transforming():
        return "a transform of torch.func or forward-mode AD is active"
    return ""


def _not_plain_data(affine: Affine, x: Tensor, y: Tensor, weight: Tensor) -> str:
    if type(x) is not Tensor or type(y) is not Tensor:
        return f"a batch is {with_article(type(x))} and {with_article(type(y))}, not two tensors"
    if x.requires_grad or y.requires_grad:
        return "a batch requires grad"
    if x.layout is not torch.strided or y.layout is not torch.strided:
        return f"a batch is {x.layout} and {y.layout}"
    if any(t.dtype != x.dtype and (x.dtype.itemsize, t.dtype) != (2, torch.float32) for t in (y, weight)):
        return f"a batch of {x.dtype} and {y.dtype} meets parameters of {weight.dtype}"
    if (affine.flat or affine.layout == "scalar") and x.dim() != 2:
        return f"the input is {x.dim()}-dimensional, where only 2 dimensions are known to mean the same"
    if affine.layout == "scalar" and x.shape[1] != 1:
        return "the model multiplies several features by one number"
    return ""


def _not_plain_parameters(*parameters: Tensor | None) -> str:
    if parameters[0] is parameters[1]:
        return "weight and bias are one parameter"
    for parameter in parameters:
        if parameter is None:
            continue
        if type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
            return f"a parameter is {with_article(type(parameter))}"
        if not has_kernels(parameter.device.type):
            return f"this build has no kernels for {parameter.device.type}"
        if parameter.dtype not in DTYPES or parameter.layout is not torch.strided:
            return f"a parameter is {parameter.layout} of {parameter.dtype}"
        if not parameter.is_leaf:
            return "a parameter is the result of an operation"
    return ""
