# SPDX-License-Identifier: BSD-3-Clause
"""What a fused step has looked at, written down for ``csrc/torch/train_step.cpp`` to look at again.

`TrainStep` decides the level of a step, which takes ten times as long as the step itself. While a plan holds, the
compiled code takes the next step by it. A plan may hold less often than the decision, never more often. What belongs to
a single step (the batch, modes, gradients, hyper-parameters, momentum buffers) is not written down but read every time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from .affine import Affine
from .regression_loss import RegressionLoss

LAYOUTS = ("rows", "vector", "columns", "scalar")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Watched(NamedTuple):
    """What must hold of an object. The names of its attributes are looked up in its ``__dict__``.

    Attributes:
        object, type: the object and its type.
        same: (name, value) that must be there, the same object.
        absent: names that must not be there.
        empty: names of dictionaries that must be empty.
        contents: (name, ((key, value), ...)): dictionaries and all that is in them.
    """

    object: Any
    type: type
    same: tuple[tuple[str, Any], ...] = ()
    absent: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    contents: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()


class Plan(NamedTuple):
    """All that a fused step needs beside the batch."""

    model: nn.Module
    loss_fn: Any
    optimizer: torch.optim.SGD
    objects: tuple[Watched, ...]
    classes: tuple[tuple[type, str, Any], ...]  # what an attribute of a class must be
    weight: Tensor
    bias: Tensor | None
    trains_weight: bool
    trains_bias: bool
    layout: int  # of LAYOUTS
    flat: bool
    flattens: bool
    loss: str
    delta: float
    reduction: str
    scheduled: bool  # a scheduler watches the optimizer's step


def make_plan(
    model: nn.Module, loss_fn: Any, optimizer: torch.optim.SGD, affine: Affine, loss: RegressionLoss
) -> Plan | None:
    """The plan of steps like the one that was just found to be fused.

    None where the objects would not tell what has changed, and where weight and bias have a group each.
    """
    weight, bias = affine.weight.tensor, affine.bias.tensor if affine.bias else None
    modules = [seen.module for seen in affine.modules]
    if any(hasattr(type(module), name) for module in modules for name in ("training", *_HOOKS)):
        return None  # an instance's __dict__ would not tell
    groups = [g for g in optimizer.param_groups if any(p is weight or p is bias for p in g["params"])]
    if len(groups) != 1:
        return None
    objects = [
        Watched(
            seen.module, seen.type, (("training", True), *_same(seen.module, [name for name, _ in seen.numbers])),
            ("forward",), _HOOKS,
            (("_modules", _contents(seen.module._modules)), ("_parameters", _contents(seen.module._parameters))),
        )
        for seen in affine.modules
    ]  # fmt: skip
    if loss.module is not None:
        names = [name for name in ("reduction", "delta", "beta") if name in loss.module.__dict__]
        absent = ("forward", *(name for name in ("delta", "beta") if name not in names))
        objects.append(Watched(loss.module, type(loss.module), _same(loss.module, names), absent, _HOOKS))
    scheduled = "step" in optimizer.__dict__
    objects += [
        Watched(
            optimizer, torch.optim.SGD, _same(optimizer, ["step"] if scheduled else []),
            ("zero_grad",) if scheduled else ("zero_grad", "step"),
            ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"),
        ),
        Watched(module_hooks, type(module_hooks), empty=tuple(f"_global{name}" for name in _HOOKS)),
        Watched(
            optimizer_hooks, type(optimizer_hooks),
            empty=("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks"),
        ),
    ]  # fmt: skip
    classes = {seen.type: (seen.type, "forward", seen.forward) for seen in affine.modules}
    classes[torch.optim.SGD] = (torch.optim.SGD, "step", torch.optim.SGD.step)
    return Plan(
        model, loss_fn, optimizer, tuple(objects), tuple(classes.values()), weight, bias, weight.requires_grad,
        bias is not None and bias.requires_grad, LAYOUTS.index(affine.layout), affine.flat, loss.flattens,
        loss.loss, loss.delta, loss.reduction, scheduled,
    )  # fmt: skip


def _same(owner: Any, names: list[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, owner.__dict__[name]) for name in names)


def _contents(mapping: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(mapping.items())
