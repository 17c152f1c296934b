# SPDX-License-Identifier: BSD-3-Clause
"""Recognises the computation of a model, a loss and an optimizer, once, when a step is bound.

The types of the modules and a torch.fx trace identify what the model and the loss compute. A trace shows only one run.
Before tracing, the bytecode must therefore consist of known names only: parameters, submodules, plain numbers and
operations without side effects. This rules out branches, calls of unknown code and stores, so tracing has no side
effects.

`csrc/torch/bound_step.cpp` checks everything that may change between steps, before every step.
"""

from __future__ import annotations

import dis
import functools
import inspect
import operator
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType, GetSetDescriptorType, MethodDescriptorType, ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parallel import DistributedDataParallel

from ..losses import LOSSES

LAYOUTS = ("rows", "vector", "columns", "scalar")  # numbered as in csrc/torch/bound_step.cpp


class NotFusable(Exception):  # noqa: N818 - the answer to a question, not a failure
    """The reason why something cannot be fused, worded to follow a colon."""


@dataclass(frozen=True, eq=False)
class Affine:
    """A model that computes `input @ W.T + b`.

    Attributes:
        weight, bias: the parameters.
        layout: how the weight parameter stores W: "rows" [K, D], "columns" [D, K], "vector" [D], "scalar" (one number,
            for one feature).
        flat: whether the prediction drops its last dimension, of size 1.
    """

    weight: Tensor
    bias: Tensor | None
    layout: str
    flat: bool = False

    @property
    def targets(self) -> int:
        """K, the number of targets."""
        if self.layout in ("vector", "scalar"):
            return 1
        return self.weight.shape[0 if self.layout == "rows" else 1]


@dataclass(frozen=True)
class RegressionLoss:
    """A loss of `LOSSES`.

    Attributes:
        loss, threshold, reduction: the operators' arguments.
        flattens: whether the prediction is first reshaped to the target's shape.
    """

    loss: str
    threshold: float = 1.0
    reduction: str = "mean"
    flattens: bool = False


class Match(NamedTuple):
    """The arguments of `_C.bind_step`.

    Attributes:
        modules: the model's modules, without duplicates.
        not_sgd: why the optimizer's step is not plain SGD; empty if it is.
        attributes: (module, name) of each plain attribute that the forward of a module or loss module reads.
    """

    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    modules: tuple[nn.Module, ...]
    weight: Tensor
    bias: Tensor | None
    layout: int  # of LAYOUTS
    flat: bool
    flattens: bool
    objective: tuple[str, float, str]  # loss, threshold, reduction
    not_sgd: str
    attributes: tuple[tuple[nn.Module, str], ...]
    expected_hooks: int  # of each parameter: DistributedDataParallel's


def match(model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Match:
    """Recognise what the three compute.

    Raises:
        NotFusable: the model is not affine, or the loss is not in `LOSSES`.
    """
    loss = match_loss(loss_fn)
    parallel = type(model) is DistributedDataParallel
    affine, modules, attributes = match_model(model.module if parallel else model)
    if parallel:
        modules = (model, *modules)
    if not hasattr(optimizer, "__dict__"):
        raise NotFusable(f"the optimizer is {with_article(type(optimizer))}, whose attributes cannot be watched")
    if not _is_pytorchs(Tensor.backward, "Tensor.backward"):
        raise NotFusable("Tensor has a backward that is not PyTorch's")
    if isinstance(loss_fn, nn.Module):
        threshold = LOSSES[loss.loss].threshold
        attributes += [(loss_fn, name) for name in ("reduction", *([threshold.name] if threshold else []))]
    return Match(
        model, loss_fn, optimizer, modules, affine.weight, affine.bias, LAYOUTS.index(affine.layout), affine.flat,
        loss.flattens, (loss.loss, loss.threshold, loss.reduction), _not_sgd(optimizer), tuple(attributes),
        int(parallel),
    )  # fmt: skip


# ---- Optimizers ------------------------------------------------------------------------------------------------------


def _not_sgd(optimizer: torch.optim.Optimizer) -> str:
    """The reason why the optimizer's step and zero_grad are not PyTorch's SGD; empty if they are."""
    cls = type(optimizer)
    if cls is not torch.optim.SGD:
        return f"the optimizer is {cls.__name__}, not torch.optim.SGD"
    for name in ("step", "zero_grad"):
        function, own = getattr(cls, name), vars(optimizer).get(name)
        if not _is_pytorchs(function, "SGD.step", "Optimizer.zero_grad"):
            return f"torch.optim.SGD has a {name} that is not PyTorch's"
        if own is not None and not (name == "step" and _is_schedulers(own, function)):
            return f"the optimizer's {name} has been replaced"
    return ""


def _is_schedulers(step: Any, function: Any) -> bool:
    """Whether `step`, set on an SGD instance, is a learning-rate scheduler's wrapper of `function`."""
    wraps = hasattr(step, "_wrapped_by_lr_sched") and getattr(step, "__wrapped__", None) is function
    return wraps and _is_pytorchs(step, "SGD.step")


# ---- Models ----------------------------------------------------------------------------------------------------------


def match_model(model: nn.Module) -> tuple[Affine, tuple[nn.Module, ...], list[tuple[nn.Module, str]]]:
    """The affine function that `model` computes, its modules, and the plain attributes that their forwards read.

    Raises:
        NotFusable: the model computes something else, or its computation cannot be determined.
    """
    if not isinstance(model, nn.Module):
        raise NotFusable(f"the model is {with_article(type(model))}, not an nn.Module")
    modules = tuple(model.modules())
    attributes = [(module, name) for module in modules for name in _attributes_read(module)]
    affine = _stock(model) or _evaluate(model, _ModelRules(model), "the model")
    if not isinstance(affine, Affine):
        raise NotFusable("the model's output is not an affine function of its input")
    for parameter in (affine.weight, affine.bias):
        if parameter is not None and type(parameter) is not nn.Parameter and type(parameter) is not Tensor:
            raise NotFusable(f"a parameter is {with_article(type(parameter))}")
    if affine.weight is affine.bias:
        raise NotFusable("weight and bias are one parameter")
    if affine.bias is not None:
        shape = list(affine.bias.shape)
        if shape not in ([affine.targets], []) or affine.bias.numel() != affine.targets:
            raise NotFusable(f"the bias of shape {shape} is broadcast over {affine.targets} targets")
    return affine, modules, attributes


def _stock(model: nn.Module) -> Affine | None:
    """The affine function of a linear layer, alone or in a Sequential, without the cost of a trace (0.4 ms)."""
    if type(model) is nn.Linear:
        return Affine(model.weight, model.bias, "rows")
    if type(model) is nn.Sequential:
        layers = [layer for layer in model if type(layer) is not nn.Identity]
        return _stock(layers[0]) if len(layers) == 1 else None
    return None


_TRANSPARENT = {nn.Linear, nn.Identity, nn.Flatten, nn.Sequential, nn.ModuleList, nn.ModuleDict}


def _attributes_read(module: nn.Module) -> list[str]:
    """The plain attributes that a module's forward reads.

    Raises:
        NotFusable: calling the module does not just run its forward, or the forward is not plain code.
    """
    cls = type(module)
    if cls.__module__.partition(".")[0] == "torch" and cls not in _TRANSPARENT:
        raise NotFusable(f"the model holds {with_article(cls)}")  # such as DistributedDataParallel
    _require_module(module, "the model", "train")
    parts = {*module._parameters, *module._modules}
    if cls in _TRANSPARENT:
        if not _is_pytorchs(cls.forward, f"{cls.__name__}.forward", "_forward_unimplemented"):
            raise NotFusable(f"{cls.__name__} runs a forward that is not PyTorch's")
        if cls is nn.Linear and not _is_pytorchs(F.linear, "linear"):
            raise NotFusable("nn.Linear runs a linear that is not PyTorch's")
        if parts & {*vars(module)}:
            raise NotFusable(f"{cls.__name__} has attributes in place of its parameters")
        return ["start_dim", "end_dim"] if cls is nn.Flatten else []
    plain = {name for name, value in vars(module).items() if type(value) in (int, float, str)}
    _require_plain(cls.forward, f"{cls.__name__}.forward", parts | plain)
    for name in cls.forward.__code__.co_names:
        # Class attributes take precedence, and anything but a plain number may run code or change.
        if hasattr(cls, name) or (name in vars(module) and name not in plain):
            raise NotFusable(f"{cls.__name__}.forward uses `{name}`")
    return [name for name in cls.forward.__code__.co_names if name in plain]


def _require_module(module: nn.Module, name: str, *methods: str) -> None:
    """Raise unless calling the module only calls the forward of its class.

    Args:
        name: the module's name in the reason.
        methods: further methods that must be nn.Module's own.
    """
    cls = type(module)
    for method in ("__call__", "_call_impl", "__getattr__", *methods):
        function, names = getattr(cls, method), (f"Module.{method}", "Module._wrapped_call_impl")
        if function is not vars(nn.Module)[method] or not _is_pytorchs(function, *names):
            raise NotFusable(f"{cls.__name__} has a {method} of its own")
    if cls.__getattribute__ is not object.__getattribute__:
        raise NotFusable(f"{cls.__name__} has a __getattribute__ of its own")
    for method in ("forward", "_call_impl", *methods):
        if method in vars(module):
            raise NotFusable(f"{cls.__name__} has a {method} set on the instance")
    if vars(module).get("_compiled_call_impl") is not None:
        raise NotFusable(f"{name} is compiled")


@dataclass(frozen=True, eq=False)
class _Parameter:
    tensor: Tensor
    transposed: bool = False


_ADD = {operator.add, torch.add, "add"}
_MUL = {operator.mul, torch.mul, "mul"}
_MATMUL = {operator.matmul, torch.matmul, torch.mm, torch.mv, "matmul", "mm", "mv"}
_TRANSPOSE = {torch.t, "t"}
_LINEAR = {F.linear, torch._C._nn.linear}
_INPUT = "input"


class _ModelRules:
    """Evaluates traced operations on the input, parameters and affine functions."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def placeholder(self, index: int) -> Any:
        if index:
            raise NotFusable("the model's forward takes more than one argument")
        return _INPUT

    def attribute(self, target: str) -> Any:
        *path, name = target.split(".")
        parameter = self.model.get_submodule(".".join(path))._parameters.get(name)
        if parameter is None:
            raise NotFusable(f"the model uses `{target}`, which is not a parameter")
        return _Parameter(parameter)

    def module(self, target: str, args: tuple[Any, ...]) -> Any:
        module = self.model.get_submodule(target)
        if type(module) is nn.Identity and len(args) == 1:
            return args[0]
        if type(module) is nn.Linear and args == (_INPUT,):
            return Affine(module.weight, module.bias, "rows")
        if type(module) is nn.Flatten and len(args) == 1:
            return self.call(torch.flatten, (args[0], module.start_dim, module.end_dim), {})
        raise NotFusable(f"the model holds {with_article(type(module))} that is not a linear layer of its input")

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not args and function not in _LINEAR:
            raise NotFusable(f"the model calls `{called(function)}` with keyword arguments only")
        if function in _LINEAR:
            x, w, b = (*args, *kwargs.values(), None)[:3]
            if x is _INPUT and _is_parameter(w, 2) and (b is None or _is_parameter(b, 1)):
                return Affine(w.tensor, b.tensor if b else None, "columns" if w.transposed else "rows")
        elif function in _TRANSPOSE or (function is getattr and args[1] in ("T", "mT")):
            if _is_parameter(args[0], 2):
                return replace(args[0], transposed=not args[0].transposed)
        elif function in _MATMUL and len(args) == 2 and args[0] is _INPUT and isinstance(args[1], _Parameter):
            w = args[1]
            if _is_parameter(w, 2):
                return Affine(w.tensor, None, "rows" if w.transposed else "columns")
            if _is_parameter(w, 1):
                return Affine(w.tensor, None, "vector", flat=True)
        elif function is torch.addmm and len(args) == 3 and not kwargs:
            b, product = args[0], self.call(torch.mm, args[1:], {})
            if _is_parameter(b, 1) and product.layout != "vector":
                return replace(product, bias=b.tensor)
        elif function in _MUL and not kwargs and any(argument is _INPUT for argument in args):
            w = args[0] if args[1] is _INPUT else args[1]
            if isinstance(w, _Parameter) and w.tensor.numel() == 1 and w.tensor.dim() <= 1:
                return Affine(w.tensor, None, "scalar")
        elif function in _ADD and len(args) == 2 and not kwargs:
            affine, b = args if isinstance(args[0], Affine) else args[::-1]
            if isinstance(affine, Affine) and isinstance(b, _Parameter) and affine.bias is None and not b.transposed:
                return replace(affine, bias=b.tensor)
        elif isinstance(args[0], Affine) and not args[0].flat and _drops_last_dimension(function, args[1:], kwargs):
            return replace(args[0], flat=True) if args[0].targets == 1 else None
        raise NotFusable(f"the model computes `{called(function)}`, which is not part of an affine function")


def _is_parameter(value: Any, dims: int) -> bool:
    return isinstance(value, _Parameter) and value.tensor.dim() == dims


def _drops_last_dimension(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call turns [N, 1] into [N]."""
    arguments = (*args, *kwargs.values())
    if function in (torch.squeeze, "squeeze"):
        return arguments in ((-1,), (1,))
    if function in (torch.reshape, "reshape", "view"):
        return arguments in ((-1,), ((-1,),))
    if function is operator.getitem:
        return arguments in (((slice(None), 0),), ((..., 0),))
    return function in (torch.flatten, "flatten") and arguments in ((), (0,), (0, -1), (0, 1))


# ---- Losses ----------------------------------------------------------------------------------------------------------


def match_loss(loss_fn: Callable[..., Tensor]) -> RegressionLoss:
    """The loss that `loss_fn(prediction, target)` computes.

    Raises:
        NotFusable: the loss is not in `LOSSES` or not reduced, or its computation cannot be determined.
    """
    if type(loss_fn) in _MODULES:
        return _module_loss(loss_fn)
    if type(loss_fn) is functools.partial and not loss_fn.args and _is_loss(loss_fn.func):
        return _LossRules().call(loss_fn.func, (_PREDICTION, _TARGET), loss_fn.keywords)
    if not isinstance(loss_fn, FunctionType):
        raise NotFusable(f"the loss is {called(loss_fn)}")
    if _is_loss(loss_fn):
        return _function_loss(loss_fn, (_PREDICTION, _TARGET), {})
    _require_plain(loss_fn, "the loss")
    value = _evaluate(loss_fn, _LossRules(), "the loss")
    if isinstance(value, _Elementwise) and value.summed:
        return RegressionLoss(value.kind, 1.0, "sum", value.flattens)
    if not isinstance(value, RegressionLoss):
        raise NotFusable("the loss is not a mean or sum over the residuals")
    return value


def reduction_of(loss_fn: Callable[..., Tensor]) -> str:
    """The reduction of a loss function, if known; else "mean"."""
    try:
        return match_loss(loss_fn).reduction
    except NotFusable:
        return getattr(loss_fn, "reduction", "mean")


_FUNCTIONS = {loss.function: loss for loss in LOSSES.values() if loss.function is not None}
_MODULES = {loss.module: loss for loss in LOSSES.values() if loss.module is not None}
_SUB = {operator.sub, torch.sub, "sub"}
_DIV = {operator.truediv, torch.div, "div"}
_SQUARE = {torch.square, "square"}
_POWER = {operator.pow, torch.pow, "pow"}
_ABS = {abs, operator.abs, torch.abs, "abs"}


def _is_loss(function: Any) -> bool:
    return isinstance(function, FunctionType) and function in _FUNCTIONS and _is_pytorchs(function, function.__name__)


def _module_loss(loss_fn: nn.Module) -> RegressionLoss:
    _require_module(loss_fn, "the loss")
    loss = _MODULES[type(loss_fn)]
    function = loss.function.__name__
    for name, found in ((f"{type(loss_fn).__name__}.forward", type(loss_fn).forward), (function, vars(F)[function])):
        if not _is_pytorchs(found, name):
            raise NotFusable(f"the loss runs a {name} that is not PyTorch's")
    threshold = 1.0 if loss.threshold is None else getattr(loss_fn, loss.threshold.name)
    return _regression_loss(loss.name, threshold, loss_fn.reduction, False)


def _regression_loss(loss: str, threshold: Any, reduction: Any, flattens: bool) -> RegressionLoss:
    if reduction not in ("mean", "sum"):
        raise NotFusable(f"the loss has reduction '{reduction}'")
    if type(threshold) not in (int, float):
        raise NotFusable(f"the loss's threshold is {with_article(type(threshold))}")
    return RegressionLoss(loss, float(threshold), reduction, flattens)


@dataclass(frozen=True)
class _Elementwise:
    """The residual ("r", prediction − target, or "-r"), its square ("mse") or absolute value ("l1"), or their sum."""

    kind: str
    flattens: bool
    summed: bool = False


_PREDICTION, _TARGET, _FLAT_PREDICTION = "prediction", "target", "prediction in the target's shape"
_SHAPE, _NUMEL = "target's shape", "number of elements"
_RESHAPES = [(function, (_PREDICTION, _SHAPE)) for function in (torch.reshape, "reshape", "view")]
_RESHAPES += [(function, (_PREDICTION, _TARGET)) for function in ("view_as", "reshape_as")]


class _LossRules:
    """Evaluates traced operations on the prediction and the target, in either order."""

    def placeholder(self, index: int) -> Any:
        if index > 1:
            raise NotFusable("the loss takes more than two arguments")
        return (_PREDICTION, _TARGET)[index]

    def attribute(self, target: str) -> Any:
        raise NotFusable(f"the loss uses `{target}`")

    def module(self, target: str, args: tuple[Any, ...]) -> Any:
        return self.attribute(target)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = None
        if function in _FUNCTIONS:
            value = _function_loss(function, args, kwargs)
        elif kwargs:
            pass
        elif (function, args) in ((getattr, (_TARGET, "shape")), ("size", (_TARGET,))):
            value = _SHAPE
        elif function == "numel" and args[0] in (_TARGET, _FLAT_PREDICTION):
            value = _NUMEL
        elif (function, args) in _RESHAPES:
            value = _FLAT_PREDICTION
        elif function in _SUB and _are_both(args):
            value = _Elementwise("r" if args[1] == _TARGET else "-r", _FLAT_PREDICTION in args)
        elif args and isinstance(args[0], _Elementwise):
            value = _of_residual(function, args[0], args[1:])
        if value is None:
            raise NotFusable(f"the loss computes `{called(function)}`")
        return value


def _of_residual(function: Any, value: _Elementwise, others: tuple[Any, ...]) -> Any:
    if value.summed:
        divided = function in _DIV and others == (_NUMEL,)
        return RegressionLoss(value.kind, flattens=value.flattens) if divided else None
    if value.kind in ("r", "-r"):
        if function == "numel" and not others:
            return _NUMEL
        squares = (function in _POWER and others == (2,)) or (function in _SQUARE and not others)
        if squares or (function in _MUL and others == (value,)):
            return replace(value, kind="mse")
        return replace(value, kind="l1") if function in _ABS and not others else None
    if others:
        return None
    if function in (torch.mean, "mean"):
        return RegressionLoss(value.kind, flattens=value.flattens)
    return replace(value, summed=True) if function in (torch.sum, "sum") else None


def _function_loss(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RegressionLoss | None:
    """A call of one of torch.nn.functional's losses on the prediction and the target."""
    options = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    operands = options.pop("input"), options.pop("target")
    if not _are_both(operands) or any(options.get(name) is not None for name in ("weight", "size_average", "reduce")):
        return None
    loss, reduction = _FUNCTIONS[function], options.get("reduction", "mean")
    threshold = options.get(loss.threshold.name, loss.threshold.default) if loss.threshold else 1.0
    return _regression_loss(loss.name, threshold, reduction, _FLAT_PREDICTION in operands)


def _are_both(operands: tuple[Any, ...]) -> bool:
    return len(operands) == 2 and _TARGET in operands and bool({_PREDICTION, _FLAT_PREDICTION} & set(operands))


# ---- Reading code ----------------------------------------------------------------------------------------------------

# Operations that neither change their arguments nor draw random numbers, and the modules that contain them.
# fmt: off
_OPERATIONS = frozenset((
    "torch", "nn", "functional", "F",
    "add", "sub", "mul", "div", "matmul", "mm", "mv", "addmm", "linear", "t", "T", "mT",
    "reshape", "view", "view_as", "reshape_as", "squeeze", "flatten", "shape", "size", "numel",
    "sum", "mean", "abs", "pow", "square", *(loss.function.__name__ for loss in LOSSES.values() if loss.function),
))
# fmt: on
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_IN_C = (BuiltinFunctionType, GetSetDescriptorType, MethodDescriptorType)
_ROOT = nn.Module.children.__code__.co_filename.removesuffix("nn/modules/module.py")  # of torch


def _require_plain(function: Any, name: str, attributes: Collection[str] = ()) -> None:
    """Raise unless every run of `function` performs the same operations.

    Args:
        function: a Python function.
        name: the function's name in the reason.
        attributes: the names, besides `_OPERATIONS`, that it may read from its first argument.
    """
    if not isinstance(function, FunctionType):
        raise NotFusable(f"{name} is not a plain Python function")
    code = function.__code__
    if code.co_freevars:
        raise NotFusable(f"{name} uses `{code.co_freevars[0]}` from outside")
    if any(hasattr(constant, "co_code") for constant in code.co_consts):
        raise NotFusable(f"{name} defines functions of its own")
    for instruction in dis.get_instructions(code):
        operation, argument = instruction.opname, instruction.argval
        if instruction.opcode in _JUMPS:
            raise NotFusable(f"{name} has control flow")
        if operation.startswith("INPLACE_") or (operation == "BINARY_OP" and instruction.argrepr.endswith("=")):
            raise NotFusable(f"{name} works in place")  # a trace shows `+=` as `+`
        if operation.startswith(("STORE_", "DELETE_", "IMPORT_")) and not operation.startswith("STORE_FAST"):
            raise NotFusable(f"{name} changes `{argument}`")
        if operation == "LOAD_GLOBAL" or operation == "LOAD_NAME":
            _require_torch(function.__globals__.get(argument), argument, name)
        elif instruction.opcode in dis.hasname and argument not in _OPERATIONS and argument not in attributes:
            raise NotFusable(f"{name} uses `{argument}`")
    for operation in _OPERATIONS.intersection(code.co_names):
        meanings = [getattr(owner, operation, None) for owner in (torch, F, Tensor)]
        if not all(meaning is None or _is_pytorchs(meaning, operation) for meaning in meanings):
            raise NotFusable(f"{name} uses a `{operation}` that is not PyTorch's")


def _require_torch(value: Any, variable: str, name: str) -> None:
    """Raise unless a global variable is a torch module or a known operation."""
    word = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    is_operation = callable(value) and getattr(value, "__name__", None) in _OPERATIONS
    if word.partition(".")[0] not in ("torch", "_operator") or not (isinstance(value, ModuleType) or is_operation):
        raise NotFusable(f"{name} uses `{variable}` from outside")


def _is_pytorchs(function: Any, *names: str) -> bool:
    """Whether a function is PyTorch's own, under one of these (qualified) names.

    Decorated Python functions are unwrapped. Functions in C are assumed to be PyTorch's.
    """
    if isinstance(function, ModuleType):
        return True
    if isinstance(function, _IN_C):
        return function.__name__ in names
    if not isinstance(function, FunctionType) or function.__qualname__ not in names:
        return False
    while isinstance(function, FunctionType):
        if not function.__code__.co_filename.startswith(_ROOT):
            return False
        function = getattr(function, "__wrapped__", None)
    return function is None or isinstance(function, _IN_C)


def _evaluate(root: nn.Module | Callable[..., Any], rules: _ModelRules | _LossRules, name: str) -> Any:
    """Trace `root` and evaluate its operations with `rules`; return its output."""
    try:
        graph = fx.Tracer().trace(root)
    except Exception as error:
        raise NotFusable(f"torch.fx cannot trace {name} ({type(error).__name__}: {error})") from None
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "placeholder":
            values[node] = rules.placeholder(len(values))  # placeholders come first
        elif node.op == "get_attr":
            values[node] = rules.attribute(node.target)
        elif node.op == "call_module":
            values[node] = rules.module(node.target, tuple(args))
        elif node.op == "output":
            return args[0]
        else:
            values[node] = rules.call(node.target, tuple(args), dict(kwargs))
    raise NotFusable(f"{name} returns nothing")


def with_article(cls: type) -> str:
    """A class's name with its article, such as "a ReLU" or "an LSTM"."""
    article = "an" if re.match("[AEIO]|U[np]|[FHLMNRSX][A-Z]", cls.__name__) else "a"
    return f"{article} {cls.__name__}"


def called(function: Any) -> str:
    """The name of a function or method in a reason."""
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
