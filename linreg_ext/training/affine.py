# SPDX-License-Identifier: BSD-3-Clause
"""Recognises models that compute an affine function, by what they compute."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks

from .tracing import Unrecognised, called, evaluate, require_plain


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
class Seen:
    """What a module was when its model was traced."""

    module: nn.Module
    type: type[nn.Module]
    forward: Callable[..., Any]
    children: tuple[nn.Module, ...]
    parameters: tuple[str, ...]
    numbers: tuple[tuple[str, Any], ...]  # the plain attributes that forward reads

    def unchanged(self) -> bool:
        module = self.module
        return (
            type(module) is self.type
            and self.type.forward is self.forward
            and "forward" not in module.__dict__
            and _children(module) == self.children
            and _parameter_names(module) == self.parameters
            and all(module.__dict__.get(name) == value for name, value in self.numbers)
        )


@dataclass(frozen=True)
class Affine:
    """A model that computes ``input @ W.T + b``.

    Attributes:
        weight, bias: the parameters.
        layout: how the weight parameter holds W: "rows" [K, D], "columns" [D, K], "vector" [D], "scalar" (one number,
            for one feature).
        flat: the prediction has lost its last dimension, of size 1.
        modules: the modules of the model, as they were.
    """

    weight: Slot
    bias: Slot | None
    layout: str
    flat: bool = False
    modules: tuple[Seen, ...] = ()

    def unchanged(self) -> bool:
        """Whether the model is still the one that was traced."""
        return all(seen.unchanged() for seen in self.modules)

    def hooked(self) -> bool:
        """Whether hooks run when the model does."""
        return any(has_hooks(seen.module) for seen in self.modules) or bool(
            module_hooks._global_forward_hooks
            or module_hooks._global_forward_pre_hooks
            or module_hooks._global_backward_hooks
            or module_hooks._global_backward_pre_hooks
        )

    def training(self) -> bool:
        """Whether every module is in training mode."""
        return all(seen.module.training for seen in self.modules)

    def as_rows(self, parameter: Tensor) -> Tensor:
        """The weight parameter, or a tensor of its shape, as the kernels take W: [K, D] or [D]."""
        if self.layout == "rows" or self.layout == "vector":
            return parameter
        return parameter.t() if self.layout == "columns" else parameter.reshape(1, 1)

    def as_bias(self, parameter: Tensor) -> Tensor:
        """The bias parameter, or a tensor of its shape, as the kernels take b: [K]."""
        return parameter if parameter.dim() == 1 else parameter.reshape(1)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module runs hooks of its own."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def recognise_model(model: nn.Module) -> Affine:
    """The affine function that `model` computes.

    Raises:
        Unrecognised: it computes something else, or what it computes cannot be established.
    """
    if not isinstance(model, nn.Module):
        raise Unrecognised(f"the model is a {type(model).__name__}, not an nn.Module")
    modules = tuple([_see(module) for module in model.modules()])
    affine = _stock(model) or evaluate(model, _Rules(model), "the model")
    if not isinstance(affine, Affine):
        raise Unrecognised("the model's output is not an affine function of its input")
    if affine.bias is not None:
        targets = affine.as_rows(affine.weight.tensor).shape[0] if affine.layout != "vector" else 1
        shape = list(affine.bias.tensor.shape)
        if shape not in ([targets], []) or affine.bias.tensor.numel() != targets:
            raise Unrecognised(f"the bias of shape {shape} is broadcast over {targets} targets")
    return replace(affine, modules=modules)


def _stock(model: nn.Module) -> Affine | None:
    """The affine function of a linear layer alone or in a Sequential, which need not be traced (0.4 ms) to be known."""
    if type(model) is nn.Linear:
        return Affine(Slot(model, "weight"), Slot(model, "bias") if model.bias is not None else None, "rows")
    if type(model) is nn.Sequential:
        layers = [layer for layer in model if type(layer) is not nn.Identity]
        return _stock(layers[0]) if len(layers) == 1 else None
    return None


_TRANSPARENT = {nn.Linear, nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict}
_ADD = {operator.add, torch.add, "add"}
_MUL = {operator.mul, torch.mul, "mul"}
_MATMUL = {operator.matmul, torch.matmul, torch.mm, torch.mv, "matmul", "mm", "mv"}
_TRANSPOSE = {torch.t, "t"}
_LINEAR = {F.linear, torch._C._nn.linear}


def _see(module: nn.Module) -> Seen:
    """A module as it is, if calling it runs its forward and that is plain code."""
    cls, numbers = type(module), {}
    if cls.__module__.partition(".")[0] == "torch":
        if cls not in _TRANSPARENT:  # among them DistributedDataParallel and compiled modules
            raise Unrecognised(f"the model holds a {cls.__name__}")
    else:
        for name in ("__call__", "_call_impl", "__getattr__", "train"):
            if getattr(cls, name) is not getattr(nn.Module, name):
                raise Unrecognised(f"{cls.__name__} has a {name} of its own")
        if cls.__getattribute__ is not object.__getattribute__:
            raise Unrecognised(f"{cls.__name__} has a __getattribute__ of its own")
        plain = {name: value for name, value in module.__dict__.items() if type(value) in (int, float, str)}
        require_plain(cls.forward, f"{cls.__name__}.forward", [*module._parameters, *module._modules, *plain])
        for name in cls.forward.__code__.co_names:
            # The class's own attributes come first, and any but a plain number may do or become anything.
            if hasattr(cls, name) or (name in module.__dict__ and name not in plain):
                raise Unrecognised(f"{cls.__name__}.forward uses `{name}`")
        numbers = {name: value for name, value in plain.items() if name in cls.forward.__code__.co_names}
    if "forward" in module.__dict__:
        raise Unrecognised(f"{cls.__name__} has a forward of its own making")
    parameters = _parameter_names(module)
    return Seen(module, cls, cls.forward, _children(module), parameters, tuple(numbers.items()))


def _children(module: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module._modules.values())


def _parameter_names(module: nn.Module) -> tuple[str, ...]:
    return tuple([name for name, parameter in module._parameters.items() if parameter is not None])


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
        raise Unrecognised(f"the model holds a {type(module).__name__} that is not a linear layer of its input")

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
    return function in (torch.flatten, "flatten") and not arguments
