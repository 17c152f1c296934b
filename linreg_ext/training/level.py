# SPDX-License-Identifier: BSD-3-Clause
"""At which level a step is taken, and why at no faster one, from all that may change before every step."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .._extension import _C, REFERENCE, has_kernels
from ..autograd import is_transforming
from .affine import Affine
from .decision import Decision
from .tracing import with_article


class Level(NamedTuple):
    """How a step is taken.

    Attributes:
        name: "fused", "gradients" or "eager".
        reason: why, as the end of a sentence.
        decision: what the model, the loss and the optimizer are.
        group: the optimizer's param_group of the parameters that a fused step trains; else None.
    """

    name: str
    reason: str
    decision: Decision
    group: dict[str, Any] | None = None


def find_level(decision: Decision, x: Tensor | None = None, y: Tensor | None = None) -> Level:
    """The level of a step on `x` and `y`, or of one on data of which nothing is known, as everything stands now."""
    affine = decision.affine
    if REFERENCE:
        return Level("eager", "LINREG_EXT_REFERENCE=1 runs plain PyTorch", decision)
    if affine is None:
        return Level("eager", decision.not_affine, decision)
    weight, bias = affine.weight.tensor, affine.bias.tensor if affine.bias else None
    reason = _not_plain_parameters(weight, bias)
    if not reason and x is not None:
        reason = _not_plain_data(affine, x, y, weight) or _not_plain_modes(x, y)
    if reason:
        return Level("eager", reason, decision)
    if decision.not_sgd:
        return Level("gradients", decision.not_sgd, decision)
    group, reason = _group_of(decision.optimizer, weight, bias)
    reason = reason or _overlap(affine, group, decision.optimizer.state, x, y)
    if reason:
        return Level("gradients", reason, decision)
    reason = f"an affine model under {decision.loss.loss} with SGD, pass and update in one kernel"
    return Level("fused", reason, decision, group)


def _group_of(optimizer: torch.optim.SGD, weight: Tensor, bias: Tensor | None) -> tuple[dict[str, Any] | None, str]:
    """The param_group that says how both are updated; or None, and why the optimizer's step is more than its rule."""
    found: dict[int, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter is weight or parameter is bias:
                if id(parameter) in found:
                    return None, "the optimizer has a parameter twice"
                found[id(parameter)] = group
            elif parameter.grad is not None:
                return None, "another parameter of the optimizer has a gradient waiting"
    trained = [p for p in (weight, bias) if p is not None and p.requires_grad]
    if len(trained) == 0:
        return None, "no parameter requires grad"
    if any(id(p) not in found for p in trained):
        return None, "a parameter of the model is not the optimizer's"
    missing = [name for name in (*_RULE, "foreach", "differentiable") for p in trained if name not in found[id(p)]]
    if missing:
        return None, f"a group of the optimizer has no '{missing[0]}'"  # of which its step complains
    group = found[id(trained[0])]
    if any(found[id(p)][name] != group[name] for p in trained[1:] for name in _RULE):
        return None, "weight and bias have different settings in the optimizer"
    if group["differentiable"] or any(isinstance(group[name], Tensor) for name in _RULE[1:]):
        return None, "the optimizer is differentiable or has tensors for settings"
    if not _within_range(group):
        return None, "the optimizer has settings that torch.optim.SGD does not accept when it is made"
    if isinstance(group["lr"], Tensor) and group["lr"].dtype not in (torch.float32, torch.float64):
        return None, f"the learning rate is a tensor of {group['lr'].dtype}"
    state = optimizer.state
    for p in trained:
        if group["momentum"] != 0 and p not in state and not isinstance(state, defaultdict):
            return None, "the optimizer's state has nothing for a parameter, and would not make it"
        buffer = state[p].get("momentum_buffer") if p in state else None
        if buffer is not None and (buffer.dtype != p.dtype or buffer.device != p.device):
            return None, "a momentum buffer is of another dtype or device than its parameter"
        if p._backward_hooks or p._post_accumulate_grad_hooks or _C.has_gradient_hooks(p):
            return None, "a parameter has hooks"
    if any(p is not None and id(p) in found and p.grad is not None for p in (weight, bias)):
        return None, "a parameter has a gradient waiting"  # which SGD takes for a frozen parameter, too
    return group, ""


def _overlap(affine: Affine, group: dict[str, Any], state: dict[Any, Any], x: Tensor | None, y: Tensor | None) -> str:
    """Why the kernel must not write where it reads: a parameter that shares memory with something else."""
    if torch.compiler.is_compiling():  # which asks the operator
        return ""
    written, read = [], []
    for name, part, view in (("weight", affine.weight, affine.as_rows), ("bias", affine.bias, affine.as_bias)):
        if part is None:
            continue
        parameter = part.tensor
        (written if parameter.requires_grad else read).append((f"the {name}", view(parameter.detach())))
        buffer = state[parameter].get("momentum_buffer") if parameter in state else None
        if parameter.requires_grad and buffer is not None and group["momentum"] != 0:
            written.append((f"the {name}'s momentum", view(buffer)))
    lr = group["lr"]
    read += [("the batch", t) for t in (x, y) if t is not None]
    read += [("the learning rate", lr)] if isinstance(lr, Tensor) else []
    named = written + read
    found = _C.find_overlap([tensor for _, tensor in named], len(written))
    if found is None:
        return ""
    first, second = found
    return f"{named[first][0]} overlaps {'itself' if first == second else named[second][0]} in memory"


_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
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
        if parameter.dtype not in _DTYPES or parameter.layout is not torch.strided:
            return f"a parameter is {parameter.layout} of {parameter.dtype}"
        if not parameter.is_leaf:
            return "a parameter is the result of an operation"
        if parameter.is_neg():
            return "a parameter has the negative bit"
    return ""
