# SPDX-License-Identifier: BSD-3-Clause
"""Recognises affine models and regression losses by what they compute.

The model and the loss are traced with torch.fx and their graphs evaluated over a handful of symbols. A graph that
leaves those symbols is not recognised; `Unrecognised` then says where. What a trace cannot show (control flow, values
read from outside, hooks) is looked for separately, so that a model is never taken for simpler than it is.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType, ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules import module as module_hooks


class Unrecognised(Exception):  # noqa: N818 - the answer to a question, not a failure
    """Why something is not of the recognised kind, as the end of a sentence."""


State = tuple[tuple[nn.Module, str, Any], ...]  # modules, names of their attributes, the values seen there


@dataclass(frozen=True)
class Slot:
    """A parameter by where it lives, so that replacing or moving it is seen."""

    module: nn.Module
    name: str

    @property
    def tensor(self) -> Tensor:
        """The parameter that is there now."""
        return self.module._parameters[self.name]


@dataclass(frozen=True)
class Affine:
    """A model that computes ``input @ W.T + b``.

    Attributes:
        weight, bias: the parameters.
        layout: how the weight parameter holds W: "rows" [K, D], "columns" [D, K], "vector" [D], "scalar" (one number,
            for one feature).
        flat: the prediction has lost its last dimension, of size 1.
        structure: the modules, each with the children and the names of the parameters that it had.
        state: plain attributes of the modules that the trace may have read, with their values.
    """

    weight: Slot
    bias: Slot | None
    layout: str
    flat: bool = False
    structure: tuple[tuple[nn.Module, tuple[nn.Module, ...], tuple[str, ...]], ...] = ()
    state: State = ()

    def unchanged(self) -> bool:
        """Whether the model is still the one that was traced."""
        return _holds(self.state) and all(
            _children(module) == children and _parameter_names(module) == names and "forward" not in module.__dict__
            for module, children, names in self.structure
        )

    def hooked(self) -> bool:
        """Whether hooks run when the model does."""
        return any(
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
            for module, *_ in self.structure
        ) or any(
            (
                module_hooks._global_forward_hooks,
                module_hooks._global_forward_pre_hooks,
                module_hooks._global_backward_hooks,
                module_hooks._global_backward_pre_hooks,
            )
        )

    def as_rows(self, parameter: Tensor) -> Tensor:
        """The weight parameter, or a tensor of its shape, as the kernels take W: [K, D] or [D]."""
        if self.layout == "rows" or self.layout == "vector":
            return parameter
        return parameter.t() if self.layout == "columns" else parameter.reshape(1, 1)

    def as_bias(self, parameter: Tensor) -> Tensor:
        """The bias parameter, or a tensor of its shape, as the kernels take b: [K]."""
        return parameter if parameter.dim() == 1 else parameter.reshape(1)


@dataclass(frozen=True)
class RegressionLoss:
    """A recognised loss function: one of the four losses, its threshold and its reduction.

    `flattens` says that it gives the prediction the target's shape first.
    """

    loss: str
    delta: float = 1.0
    reduction: str = "mean"
    flattens: bool = False
    state: State = ()

    def unchanged(self) -> bool:
        """Whether the loss function is still the one that was read."""
        return _holds(self.state)


def _children(module: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module._modules.values())


def _parameter_names(module: nn.Module) -> tuple[str, ...]:
    return tuple([name for name, parameter in module._parameters.items() if parameter is not None])


def _holds(state: State) -> bool:
    return all(module.__dict__.get(name, _MISSING) == value for module, name, value in state)


_MISSING = object()
_TRANSPARENT = {nn.Linear, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_SUB = {operator.sub, torch.sub, "sub"}
_MUL = {operator.mul, torch.mul, "mul"}
_MATMUL = {operator.matmul, torch.matmul, torch.mm, torch.mv, "matmul", "mm", "mv"}
_TRANSPOSE = {torch.t, "t"}
_LINEAR = {F.linear, torch._C._nn.linear}
_FLATTEN = {torch.flatten, "flatten"}
_RESHAPE = {torch.reshape, "reshape", "view", "view_as", "reshape_as"}
_LOSSES = {F.mse_loss: "mse", F.l1_loss: "l1", F.huber_loss: "huber", F.smooth_l1_loss: "smooth_l1"}
_LOSS_MODULES = {nn.MSELoss: "mse", nn.L1Loss: "l1", nn.HuberLoss: "huber", nn.SmoothL1Loss: "smooth_l1"}


@dataclass(frozen=True)
class _Parameter:
    slot: Slot
    transposed: bool = False


_INPUT = "input"


def recognise_model(model: nn.Module) -> Affine:
    """The affine function that `model` computes.

    Raises:
        Unrecognised: it computes something else, or what it computes cannot be established.
    """
    if not isinstance(model, nn.Module):
        raise Unrecognised(f"the model is a {type(model).__name__}, not an nn.Module")
    state = []
    for module in model.modules():
        if type(module).__module__.partition(".")[0] == "torch":
            if type(module) not in _TRANSPARENT:  # among them DistributedDataParallel and compiled modules
                raise Unrecognised(f"the model holds a {type(module).__name__}")
        else:
            _require_straight_line(type(module).forward, f"{type(module).__name__}.forward")
            state += [
                (module, name, value)
                for name, value in module.__dict__.items()
                if name != "training" and isinstance(value, (int, float, str, type(None)))
            ]
        if type(module).__call__ is not nn.Module.__call__ or "forward" in module.__dict__:
            raise Unrecognised(f"{type(module).__name__} has a forward or __call__ of its own making")

    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:
        raise Unrecognised(f"torch.fx cannot trace the model ({type(error).__name__}: {error})") from None
    value = _evaluate(graph, _ModelRules(model))
    if not isinstance(value, Affine):
        raise Unrecognised("the model's output is not an affine function of its input")
    structure = tuple((module, _children(module), _parameter_names(module)) for module in model.modules())
    affine = replace(value, structure=structure, state=tuple(state))
    if affine.bias is not None:
        if affine.bias.tensor is affine.weight.tensor:
            raise Unrecognised("weight and bias are one parameter")
        targets = affine.as_rows(affine.weight.tensor).shape[0] if affine.layout != "vector" else 1
        if affine.bias.tensor.numel() != targets or affine.bias.tensor.dim() > 1:
            raise Unrecognised(
                f"the bias of shape {list(affine.bias.tensor.shape)} is broadcast over {targets} targets"
            )
    return affine


class _ModelRules:
    """What each traced operation makes of the input, of parameters and of affine functions."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def placeholder(self, index: int) -> Any:
        if index:
            raise Unrecognised("the model's forward takes more than one argument")
        return _INPUT

    def attribute(self, target: str) -> Any:
        *path, name = target.split(".")
        module = self.model.get_submodule(".".join(path))
        if module._parameters.get(name) is None:
            raise Unrecognised(f"the model uses `{target}`, which is not a parameter")
        return _Parameter(Slot(module, name))

    def module(self, target: str, args: tuple[Any, ...]) -> Any:
        module = self.model.get_submodule(target)
        if type(module) is nn.Identity and len(args) == 1:
            return args[0]
        if type(module) is nn.Linear and args == (_INPUT,):
            return _linear(Slot(module, "weight"), Slot(module, "bias") if module.bias is not None else None)
        raise Unrecognised(f"the model holds a {type(module).__name__} that is not a linear layer of its input")

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in _LINEAR:
            x, w, b = (*args, *kwargs.values(), None)[:3]
            if x == _INPUT and _is_parameter(w, 2) and (b is None or _is_parameter(b, 1)):
                return _linear(w.slot, b.slot if b else None)
        elif function in _TRANSPOSE or (function is getattr and args[1] in ("T", "mT")):
            if _is_parameter(args[0], 2):
                return replace(args[0], transposed=not args[0].transposed)
        elif function in _MATMUL and len(args) == 2 and args[0] == _INPUT and isinstance(args[1], _Parameter):
            w = args[1]
            if _is_parameter(w, 2):
                return Affine(w.slot, None, "rows" if w.transposed else "columns")
            if _is_parameter(w, 1):
                return Affine(w.slot, None, "vector", flat=True)
        elif function is torch.addmm and len(args) == 3 and not kwargs:
            b, product = args[0], self.call(torch.mm, args[1:], {})
            if _is_parameter(b, 1):
                return replace(product, bias=b.slot)
        elif function in _MUL and not kwargs and _INPUT in args:
            w = args[0] if args[1] == _INPUT else args[1]
            if isinstance(w, _Parameter) and w.slot.tensor.numel() == 1 and w.slot.tensor.dim() <= 1:
                return Affine(w.slot, None, "scalar")
        elif function in _ADD and len(args) == 2 and not kwargs:
            affine, b = args if isinstance(args[0], Affine) else args[::-1]
            if isinstance(affine, Affine) and isinstance(b, _Parameter) and affine.bias is None and not b.transposed:
                return replace(affine, bias=b.slot)
        elif isinstance(args[0], Affine) and _drops_last_dimension(function, args[1:], kwargs):
            affine = args[0]
            if affine.flat or affine.as_rows(affine.weight.tensor).shape[0] == 1:
                return replace(affine, flat=True)
        raise Unrecognised(f"the model computes `{_name(function)}` where an affine function does not")


def _linear(weight: Slot, bias: Slot | None) -> Affine:
    return Affine(weight, bias, "rows")


def _is_parameter(value: Any, dims: int) -> bool:
    return isinstance(value, _Parameter) and value.slot.tensor.dim() == dims


def _drops_last_dimension(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call turns [N, 1] into [N]."""
    arguments = (*args, *kwargs.values())
    if function in (torch.squeeze, "squeeze"):
        return arguments in ((-1,), (1,))
    if function in (torch.reshape, "reshape", "view"):
        return arguments in ((-1,), ((-1,),))
    if function is operator.getitem:
        return arguments in (((slice(None), 0),), ((..., 0),))
    return function in _FLATTEN and not arguments


@dataclass(frozen=True)
class _Shape:
    """The target's shape or number of elements."""


@dataclass(frozen=True)
class _Elementwise:
    """Of the residual: itself ("r"), its square or absolute value, or the sum of these."""

    kind: str
    flattens: bool
    summed: bool = False


_PREDICTION, _TARGET, _FLAT_PREDICTION = "prediction", "target", "prediction in the target's shape"
_OPERANDS = (_PREDICTION, _TARGET, _FLAT_PREDICTION)


def recognise_loss(loss_fn: Callable[..., Tensor]) -> RegressionLoss:
    """The loss that ``loss_fn(prediction, target)`` computes.

    Raises:
        Unrecognised: it is none of the four, is not reduced, or what it computes cannot be established.
    """
    if type(loss_fn) in _LOSS_MODULES:
        if loss_fn._forward_hooks or loss_fn._forward_pre_hooks or loss_fn._backward_hooks:
            raise Unrecognised("the loss has hooks")
        delta = getattr(loss_fn, "delta", getattr(loss_fn, "beta", 1.0))
        known = _regression_loss(_LOSS_MODULES[type(loss_fn)], delta, loss_fn.reduction, False)
        names = [name for name in ("reduction", "delta", "beta") if hasattr(loss_fn, name)]
        return replace(known, state=tuple((loss_fn, name, getattr(loss_fn, name)) for name in names))
    if isinstance(loss_fn, FunctionType) and loss_fn in _LOSSES:
        return RegressionLoss(_LOSSES[loss_fn])
    if isinstance(loss_fn, functools.partial) and loss_fn.func in _LOSSES and not loss_fn.args:
        return _LossRules().call(loss_fn.func, (_PREDICTION, _TARGET), loss_fn.keywords)
    if not isinstance(loss_fn, FunctionType):
        raise Unrecognised(f"the loss is {_name(loss_fn)}")
    _require_straight_line(loss_fn, "the loss")
    try:
        graph = fx.Tracer().trace(loss_fn)
    except Exception as error:
        raise Unrecognised(f"torch.fx cannot trace the loss ({type(error).__name__}: {error})") from None
    value = _evaluate(graph, _LossRules())
    if not isinstance(value, RegressionLoss):
        raise Unrecognised("the loss is not a mean or sum over the residuals")
    return value


class _LossRules:
    """What each traced operation makes of the prediction and the target, which may stand in either order."""

    def placeholder(self, index: int) -> Any:
        if index > 1:
            raise Unrecognised("the loss takes more than two arguments")
        return (_PREDICTION, _TARGET)[index]

    def attribute(self, target: str) -> Any:
        raise Unrecognised(f"the loss uses `{target}`")

    module = attribute

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in _LOSSES:
            operands, options = _loss_call(function, args, kwargs)
            plain = all(options.get(name) is None for name in ("weight", "size_average", "reduce"))
            if _are_both(operands) and plain:
                delta = options.get("delta", options.get("beta", 1.0))
                reduction = options.get("reduction", "mean")
                return _regression_loss(_LOSSES[function], delta, reduction, _FLAT_PREDICTION in operands)
        elif (function, args) in ((getattr, (_TARGET, "shape")), ("size", (_TARGET,)), ("numel", (_TARGET,))):
            return _Shape()
        elif args in ((_PREDICTION, _Shape()), (_PREDICTION, _TARGET)) and function in _RESHAPE:
            return _FLAT_PREDICTION
        elif function in _SUB and not kwargs and _are_both(args):
            return _Elementwise("r", _FLAT_PREDICTION in args)
        elif args and isinstance(args[0], _Elementwise):
            value = self._of_residual(function, args, kwargs)
            if value is not None:
                return value
        raise Unrecognised(f"the loss computes `{_name(function)}`")

    def _of_residual(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = args[0]
        if kwargs or value.summed:
            divides = value.summed and function in (operator.truediv, torch.div) and args[1] == _Shape()
            return RegressionLoss(value.kind, flattens=value.flattens) if divides else None
        if value.kind == "r":
            if function in (operator.pow, torch.pow, "pow") and args[1] == 2:
                return replace(value, kind="mse")
            if function in (torch.square, "square") or (function in _MUL and args[1] == value):
                return replace(value, kind="mse")
            if function in (operator.abs, builtins.abs, torch.abs, "abs"):
                return replace(value, kind="l1")
            if function in ("numel",):
                return _Shape()
            return None
        if len(args) == 1 and function in (torch.mean, "mean"):
            return RegressionLoss(value.kind, flattens=value.flattens)
        if len(args) == 1 and function in (torch.sum, "sum"):
            return replace(value, summed=True)
        return None


def _loss_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, Any], dict[str, Any]]:
    options = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    return (options.pop("input"), options.pop("target")), options


def _are_both(operands: tuple[Any, ...]) -> bool:
    return len(operands) == 2 and _TARGET in operands and bool({_PREDICTION, _FLAT_PREDICTION} & set(operands))


def _regression_loss(loss: str, delta: float, reduction: str, flattens: bool) -> RegressionLoss:
    if reduction not in ("mean", "sum"):
        raise Unrecognised(f"the loss has reduction '{reduction}'")
    return RegressionLoss(loss, float(delta), reduction, flattens)


def _evaluate(graph: fx.Graph, rules: _ModelRules | _LossRules) -> Any:
    """The symbol that a traced graph returns."""
    values: dict[fx.Node, Any] = {}
    placeholders = 0
    for node in graph.nodes:
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "placeholder":
            values[node] = rules.placeholder(placeholders)
            placeholders += 1
        elif node.op == "get_attr":
            values[node] = rules.attribute(node.target)
        elif node.op == "call_module":
            values[node] = rules.module(node.target, tuple(args))
        elif node.op == "output":
            value = args[0]
            return RegressionLoss(value.kind, 1.0, "sum", value.flattens) if _is_sum(value) else value
        else:
            values[node] = rules.call(node.target, tuple(args), dict(kwargs))
    raise Unrecognised("it returns nothing")


def _is_sum(value: Any) -> bool:
    return isinstance(value, _Elementwise) and value.summed


def _require_straight_line(function: Any, name: str) -> None:
    """Raise unless running `function` once shows all that it can ever do.

    A branch may go the other way at the next step, and a value read from outside may have changed by then.
    """
    if not isinstance(function, FunctionType):
        raise Unrecognised(f"{name} is not a plain Python function")
    jumps = {*dis.hasjrel, *dis.hasjabs}
    if any(instruction.opcode in jumps for instruction in dis.get_instructions(function)):
        raise Unrecognised(f"{name} has control flow")
    outside = inspect.getclosurevars(function)
    for variable, value in {**outside.nonlocals, **outside.globals}.items():
        source = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
        known = source.split(".")[0] in ("torch", "operator", "builtins", "_operator")
        if not known or not (isinstance(value, ModuleType) or callable(value)):
            raise Unrecognised(f"{name} uses `{variable}` from outside")


def _name(function: Any) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
