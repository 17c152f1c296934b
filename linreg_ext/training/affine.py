# SPDX-License-Identifier: BSD-3-Clause
"""Recognises models that compute an affine function, by what they compute."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from .evidence import ABSENT, Evidence, is_pytorchs
from .tracing import Unrecognised, called, evaluate, require_plain, with_article


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
        modules: the modules of the model.
    """

    weight: Slot
    bias: Slot | None
    layout: str
    flat: bool = False
    modules: tuple[nn.Module, ...] = ()

    def training(self) -> bool:
        """Whether every module is in training mode."""
        return all(module.training for module in self.modules)

    def as_rows(self, parameter: Tensor) -> Tensor:
        """The weight parameter, or a tensor of its shape, as the kernels take W: [K, D] or [D]."""
        if self.layout == "rows" or self.layout == "vector":
            return parameter
        return parameter.t() if self.layout == "columns" else parameter.reshape(1, 1)

    def as_bias(self, parameter: Tensor) -> Tensor:
        """The bias parameter, or a tensor of its shape, as the kernels take b: [K]."""
        return parameter if parameter.dim() == 1 else parameter.reshape(1)


def recognise_model(model: nn.Module, evidence: Evidence) -> Affine:
    """The affine function that `model` computes.

    Raises:
        Unrecognised: it computes something else, or what it computes cannot be established.
    """
    if not isinstance(model, nn.Module):
        raise Unrecognised(f"the model is {with_article(type(model))}, not an nn.Module")
    numbers: list[tuple[nn.Module, str]] = []
    modules: list[nn.Module] = []
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and not any(module is other for other in modules):
            modules.append(module)
            waiting += _see(module, evidence, numbers)
    if any(evidence.contents(module_hooks, f"_global{name}") for name in HOOKS):
        raise Unrecognised("the model has hooks")
    affine = _stock(model) or evaluate(model, _Rules(model), "the model")
    if not isinstance(affine, Affine):
        raise Unrecognised("the model's output is not an affine function of its input")
    if affine.bias is not None:
        targets = affine.as_rows(affine.weight.tensor).shape[0] if affine.layout != "vector" else 1
        shape = list(affine.bias.tensor.shape)
        if shape not in ([targets], []) or affine.bias.tensor.numel() != targets:
            raise Unrecognised(f"the bias of shape {shape} is broadcast over {targets} targets")
    for module, name in numbers:  # only now, so that numbers which change at every step do not have it traced as often
        evidence.entry(module, name)
    return replace(affine, modules=tuple(modules))


def _stock(model: nn.Module) -> Affine | None:
    """The affine function of a linear layer alone or in a Sequential, which need not be traced (0.4 ms) to be known."""
    if type(model) is nn.Linear:
        return Affine(Slot(model, "weight"), Slot(model, "bias") if model.bias is not None else None, "rows")
    if type(model) is nn.Sequential:
        layers = [layer for layer in model if type(layer) is not nn.Identity]
        return _stock(layers[0]) if len(layers) == 1 else None
    return None


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TRANSPARENT = {nn.Linear, nn.Identity, nn.Flatten, nn.Sequential, nn.ModuleList, nn.ModuleDict}
_ADD = {operator.add, torch.add, "add"}
_MUL = {operator.mul, torch.mul, "mul"}
_MATMUL = {operator.matmul, torch.matmul, torch.mm, torch.mv, "matmul", "mm", "mv"}
_TRANSPOSE = {torch.t, "t"}
_LINEAR = {F.linear, torch._C._nn.linear}


def _see(module: nn.Module, evidence: Evidence, numbers: list[tuple[nn.Module, str]]) -> list[nn.Module]:
    """The children of a module whose call runs its forward, which is plain code.

    Args:
        numbers: gets the (module, name) of the plain attributes that forward reads.
    """
    cls = evidence.type_of(module)
    if cls.__module__.partition(".")[0] == "torch" and cls not in _TRANSPARENT:
        raise Unrecognised(f"the model holds {with_article(cls)}")  # such as DistributedDataParallel or a compiled one
    require_module(module, evidence, "the model", "train")
    children, parameters = evidence.contents(module, "_modules"), evidence.contents(module, "_parameters")
    if children is None or parameters is None:
        raise Unrecognised(f"{cls.__name__} keeps its parameters elsewhere")
    forward = evidence.method(cls, "forward")
    if cls in _TRANSPARENT:
        if not is_pytorchs(forward, f"{cls.__name__}.forward", "_forward_unimplemented"):
            raise Unrecognised(f"{cls.__name__} runs a forward that is not PyTorch's")
        if cls is nn.Linear and not is_pytorchs(evidence.entry(F, "linear"), "linear"):
            raise Unrecognised("nn.Linear runs a linear that is not PyTorch's")
        if any(evidence.entry(module, name) is not ABSENT for name in (*parameters, *children)):
            raise Unrecognised(f"{cls.__name__} has attributes in place of its parameters")
        numbers += [(module, name) for name in ("start_dim", "end_dim") if cls is nn.Flatten]
        return list(children.values())
    plain = {name for name, value in vars(module).items() if type(value) in (int, float, str)}
    require_plain(forward, f"{cls.__name__}.forward", evidence, [*parameters, *children, *plain])
    for name in forward.__code__.co_names:
        # The class's own attributes come first, and any but a plain number may do or become anything.
        if evidence.method(cls, name) is not ABSENT:
            raise Unrecognised(f"{cls.__name__}.forward uses `{name}`")
        if name in plain:
            numbers.append((module, name))
        elif evidence.entry(module, name) is not ABSENT:
            raise Unrecognised(f"{cls.__name__}.forward uses `{name}`")
    return list(children.values())


def require_module(module: nn.Module, evidence: Evidence, name: str, *methods: str) -> None:
    """Raise unless calling the module is nothing but calling the forward of its class.

    Args:
        name: what to call it in the reason.
        methods: further ones that must be nn.Module's own.
    """
    cls = evidence.type_of(module)
    for method in ("__call__", "_call_impl", "__getattr__", *methods):
        function = evidence.method(cls, method)
        names = (f"Module.{method}", "Module._wrapped_call_impl")
        if function is not vars(nn.Module)[method] or not is_pytorchs(function, *names):
            raise Unrecognised(f"{cls.__name__} has a {method} of its own")
    if evidence.method(cls, "__getattribute__") is not object.__getattribute__:
        raise Unrecognised(f"{cls.__name__} has a __getattribute__ of its own")
    for method in ("forward", "_call_impl", *methods):
        if evidence.entry(module, method) is not ABSENT:
            raise Unrecognised(f"{cls.__name__} has a {method} of its own making")
    if evidence.entry(module, "_compiled_call_impl") not in (ABSENT, None):
        raise Unrecognised(f"{name} is compiled")
    if any(evidence.contents(module, hooks) != {} for hooks in HOOKS):
        raise Unrecognised(f"{name} has hooks")


@dataclass(frozen=True)
class _Parameter:
    slot: Slot
    transposed: bool = False


_INPUT = "input"


class _Rules:
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
            return Affine(Slot(module, "weight"), Slot(module, "bias") if module.bias is not None else None, "rows")
        if type(module) is nn.Flatten and len(args) == 1:
            return self.call(torch.flatten, (args[0], module.start_dim, module.end_dim), {})
        raise Unrecognised(f"the model holds {with_article(type(module))} that is not a linear layer of its input")

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in _LINEAR:
            x, w, b = (*args, *kwargs.values(), None)[:3]
            if x == _INPUT and _is_parameter(w, 2) and (b is None or _is_parameter(b, 1)):
                return Affine(w.slot, b.slot if b else None, "columns" if w.transposed else "rows")
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
            if _is_parameter(b, 1) and product.layout != "vector":
                return replace(product, bias=b.slot)
        elif function in _MUL and not kwargs and _INPUT in args:
            w = args[0] if args[1] == _INPUT else args[1]
            if isinstance(w, _Parameter) and w.slot.tensor.numel() == 1 and w.slot.tensor.dim() <= 1:
                return Affine(w.slot, None, "scalar")
        elif function in _ADD and len(args) == 2 and not kwargs:
            affine, b = args if isinstance(args[0], Affine) else args[::-1]
            if isinstance(affine, Affine) and isinstance(b, _Parameter) and affine.bias is None and not b.transposed:
                return replace(affine, bias=b.slot)
        elif isinstance(args[0], Affine) and not args[0].flat and _drops_last_dimension(function, args[1:], kwargs):
            one_target = args[0].as_rows(args[0].weight.tensor).shape[0] == 1
            return replace(args[0], flat=True) if one_target else None
        raise Unrecognised(f"the model computes `{called(function)}` where an affine function does not")


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
    return function in (torch.flatten, "flatten") and arguments in ((), (0,), (0, -1), (0, 1))
