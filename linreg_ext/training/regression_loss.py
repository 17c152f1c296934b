# SPDX-License-Identifier: BSD-3-Clause
"""Recognises loss functions that are one of the four losses, by what they compute."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .affine import has_hooks
from .tracing import Unrecognised, called, evaluate, require_plain


@dataclass(frozen=True)
class RegressionLoss:
    """A recognised loss function.

    Attributes:
        loss, delta, reduction: as the operators take them.
        flattens: the prediction is given the target's shape first.
        module: the loss module that was read, if it is one.
    """

    loss: str
    delta: float = 1.0
    reduction: str = "mean"
    flattens: bool = False
    module: nn.Module | None = None

    def unchanged(self) -> bool:
        """Whether the loss function is still the one that was read."""
        if self.module is None:
            return True
        state = self.module.__dict__
        same = state["reduction"] == self.reduction and state.get("delta", state.get("beta", 1.0)) == self.delta
        return bool(same) and "forward" not in state and not has_hooks(self.module)


def recognise_loss(loss_fn: Callable[..., Tensor]) -> RegressionLoss:
    """The loss that ``loss_fn(prediction, target)`` computes.

    Raises:
        Unrecognised: it is none of the four, is not reduced, or what it computes cannot be established.
    """
    if type(loss_fn) in _MODULES:
        return _read_module(loss_fn)
    if isinstance(loss_fn, functools.partial) and not loss_fn.args and _is_loss(loss_fn.func):
        return _Rules().call(loss_fn.func, (_PREDICTION, _TARGET), dict(loss_fn.keywords))
    if not isinstance(loss_fn, FunctionType):
        raise Unrecognised(f"the loss is {called(loss_fn)}")
    if _is_loss(loss_fn):
        return RegressionLoss(_FUNCTIONS[loss_fn])
    require_plain(loss_fn, "the loss")
    value = evaluate(loss_fn, _Rules(), "the loss")
    if isinstance(value, _Elementwise) and value.summed:
        return RegressionLoss(value.kind, 1.0, "sum", value.flattens)
    if not isinstance(value, RegressionLoss):
        raise Unrecognised("the loss is not a mean or sum over the residuals")
    return value


def reduction_of(loss_fn: Callable[..., Tensor]) -> str:
    """How a loss function reduces a batch: "sum" or, where nothing else is known, "mean"."""
    try:
        return recognise_loss(loss_fn).reduction
    except Unrecognised:
        return getattr(loss_fn, "reduction", "mean")


_FUNCTIONS = {F.mse_loss: "mse", F.l1_loss: "l1", F.huber_loss: "huber", F.smooth_l1_loss: "smooth_l1"}
_MODULES = {nn.MSELoss: "mse", nn.L1Loss: "l1", nn.HuberLoss: "huber", nn.SmoothL1Loss: "smooth_l1"}
_SUB = {operator.sub, torch.sub, "sub"}
_MUL = {operator.mul, torch.mul, "mul"}
_DIV = {operator.truediv, torch.div, "div"}
_SQUARE = {torch.square, "square"}
_POWER = {operator.pow, torch.pow, "pow"}
_ABS = {abs, operator.abs, torch.abs, "abs"}


def _is_loss(function: Any) -> bool:
    return isinstance(function, FunctionType) and function in _FUNCTIONS


def _read_module(loss_fn: nn.Module) -> RegressionLoss:
    if has_hooks(loss_fn) or "forward" in loss_fn.__dict__:
        raise Unrecognised("the loss has hooks or a forward of its own")
    delta = getattr(loss_fn, "delta", getattr(loss_fn, "beta", 1.0))
    return replace(_regression_loss(_MODULES[type(loss_fn)], delta, loss_fn.reduction, False), module=loss_fn)


def _regression_loss(loss: str, delta: Any, reduction: Any, flattens: bool) -> RegressionLoss:
    if reduction not in ("mean", "sum"):
        raise Unrecognised(f"the loss has reduction '{reduction}'")
    if type(delta) not in (int, float):
        raise Unrecognised(f"the loss has a {type(delta).__name__} for its threshold")
    return RegressionLoss(loss, float(delta), reduction, flattens)


@dataclass(frozen=True)
class _Elementwise:
    """Of the residual: itself ("r", prediction − target, or its negative), its square or absolute value; their sum."""

    kind: str
    flattens: bool
    negative: bool = False
    summed: bool = False


_PREDICTION, _TARGET, _FLAT_PREDICTION = "prediction", "target", "prediction in the target's shape"
_SHAPE, _NUMEL = "target's shape", "number of elements"
_RESHAPES = [(function, (_PREDICTION, _SHAPE)) for function in (torch.reshape, "reshape", "view")]
_RESHAPES += [(function, (_PREDICTION, _TARGET)) for function in ("view_as", "reshape_as")]


class _Rules:
    """What each traced operation makes of the prediction and the target, which may stand in either order."""

    def placeholder(self, index: int) -> Any:
        if index > 1:
            raise Unrecognised("the loss takes more than two arguments")
        return (_PREDICTION, _TARGET)[index]

    def attribute(self, target: str) -> Any:
        raise Unrecognised(f"the loss uses `{target}`")

    def module(self, target: str, args: tuple[Any, ...]) -> Any:
        return self.attribute(target)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = None
        if function in _FUNCTIONS:
            value = _loss_call(function, args, kwargs)
        elif kwargs:
            pass
        elif (function, args) in ((getattr, (_TARGET, "shape")), ("size", (_TARGET,))):
            value = _SHAPE
        elif function == "numel" and args[0] in (_TARGET, _FLAT_PREDICTION):
            value = _NUMEL
        elif (function, args) in _RESHAPES:
            value = _FLAT_PREDICTION
        elif function in _SUB and _are_both(args):
            value = _Elementwise("r", _FLAT_PREDICTION in args, negative=args[0] == _TARGET)
        elif args and isinstance(args[0], _Elementwise):
            value = _of_residual(function, args[0], args[1:])
        if value is None:
            raise Unrecognised(f"the loss computes `{called(function)}`")
        return value


def _of_residual(function: Any, value: _Elementwise, others: tuple[Any, ...]) -> Any:
    if value.summed:
        divided = function in _DIV and others == (_NUMEL,)
        return RegressionLoss(value.kind, flattens=value.flattens) if divided else None
    if value.kind == "r":
        if function == "numel" and not others:
            return _NUMEL
        squares = (function in _POWER and others == (2,)) or (function in _SQUARE and not others)
        if squares or (function in _MUL and others == (value,)):
            return replace(value, kind="mse", negative=False)
        return replace(value, kind="l1", negative=False) if function in _ABS and not others else None
    if others:
        return None
    if function in (torch.mean, "mean"):
        return RegressionLoss(value.kind, flattens=value.flattens)
    return replace(value, summed=True) if function in (torch.sum, "sum") else None


def _loss_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RegressionLoss | None:
    """A call of one of torch.nn.functional's losses on the prediction and the target."""
    options = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    operands = options.pop("input"), options.pop("target")
    if not _are_both(operands) or any(options.get(name) is not None for name in ("weight", "size_average", "reduce")):
        return None
    delta, reduction = options.get("delta", options.get("beta", 1.0)), options.get("reduction", "mean")
    return _regression_loss(_FUNCTIONS[function], delta, reduction, _FLAT_PREDICTION in operands)


def _are_both(operands: tuple[Any, ...]) -> bool:
    return len(operands) == 2 and _TARGET in operands and bool({_PREDICTION, _FLAT_PREDICTION} & set(operands))
