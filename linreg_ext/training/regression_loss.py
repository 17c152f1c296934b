# SPDX-License-Identifier: BSD-3-Clause
"""Recognises loss functions that are one of the losses of the table, by what they compute."""

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

from ..losses import LOSSES
from .affine import require_module
from .evidence import ABSENT, Evidence, is_pytorchs
from .tracing import Unrecognised, called, evaluate, require_plain


@dataclass(frozen=True)
class RegressionLoss:
    """A recognised loss function.

    Attributes:
        loss, delta, reduction: as the operators take them.
        flattens: the prediction is given the target's shape first.
    """

    loss: str
    delta: float = 1.0
    reduction: str = "mean"
    flattens: bool = False


def recognise_loss(loss_fn: Callable[..., Tensor], evidence: Evidence) -> RegressionLoss:
    """The loss that ``loss_fn(prediction, target)`` computes.

    Raises:
        Unrecognised: it is none of the table's, is not reduced, or what it computes cannot be established.
    """
    if evidence.type_of(loss_fn) in MODULES:
        return _read_module(loss_fn, evidence)
    if type(loss_fn) is functools.partial:
        function, options = evidence.attribute(loss_fn, "func"), evidence.attribute(loss_fn, "keywords")
        if not evidence.attribute(loss_fn, "args") and _is_loss(function, evidence):
            given = {name: evidence.entry(options, name) for name in inspect.signature(function).parameters}
            keywords = {name: value for name, value in given.items() if value is not ABSENT}
            return _Rules().call(function, (_PREDICTION, _TARGET), keywords)
    if not isinstance(loss_fn, FunctionType):
        raise Unrecognised(f"the loss is {called(loss_fn)}")
    if _is_loss(loss_fn, evidence):
        return RegressionLoss(FUNCTIONS[loss_fn].name)
    require_plain(loss_fn, "the loss", evidence)
    value = evaluate(loss_fn, _Rules(), "the loss")
    if isinstance(value, _Elementwise) and value.summed:
        return RegressionLoss(value.kind, 1.0, "sum", value.flattens)
    if not isinstance(value, RegressionLoss):
        raise Unrecognised("the loss is not a mean or sum over the residuals")
    return value


def reduction_of(loss_fn: Callable[..., Tensor]) -> str:
    """How a loss function reduces a batch: "sum" or, where nothing else is known, "mean"."""
    try:
        return recognise_loss(loss_fn, Evidence()).reduction
    except Unrecognised:
        return getattr(loss_fn, "reduction", "mean")


FUNCTIONS = {loss.function: loss for loss in LOSSES.values() if loss.function is not None}
MODULES = {loss.module: loss for loss in LOSSES.values() if loss.module is not None}
_SUB = {operator.sub, torch.sub, "sub"}
_MUL = {operator.mul, torch.mul, "mul"}
_DIV = {operator.truediv, torch.div, "div"}
_SQUARE = {torch.square, "square"}
_POWER = {operator.pow, torch.pow, "pow"}
_ABS = {abs, operator.abs, torch.abs, "abs"}


def _is_loss(function: Any, evidence: Evidence) -> bool:
    if not isinstance(function, FunctionType) or function not in FUNCTIONS:
        return False
    evidence.attribute(function, "__code__")
    return is_pytorchs(function, function.__name__)


def _read_module(loss_fn: nn.Module, evidence: Evidence) -> RegressionLoss:
    require_module(loss_fn, evidence, "the loss")
    loss = MODULES[type(loss_fn)]
    for name, function in (
        (f"{type(loss_fn).__name__}.forward", evidence.method(type(loss_fn), "forward")),
        (loss.function.__name__, evidence.entry(F, loss.function.__name__)),
    ):
        if not is_pytorchs(function, name):
            raise Unrecognised(f"the loss runs a {name} that is not PyTorch's")
    reduction, delta = evidence.entry(loss_fn, "reduction"), 1.0
    if loss.threshold is not None:
        delta = evidence.entry(loss_fn, loss.threshold.name)
    return _regression_loss(loss.name, delta, reduction, False)


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
        if function in FUNCTIONS:
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
    loss, reduction = FUNCTIONS[function], options.get("reduction", "mean")
    delta = options.get(loss.threshold.name, loss.threshold.default) if loss.threshold else 1.0
    return _regression_loss(loss.name, delta, reduction, _FLAT_PREDICTION in operands)


def _are_both(operands: tuple[Any, ...]) -> bool:
    return len(operands) == 2 and _TARGET in operands and bool({_PREDICTION, _FLAT_PREDICTION} & set(operands))
