# SPDX-License-Identifier: BSD-3-Clause
"""What a fused step needs, written down for ``csrc/torch/train_step.cpp``, which takes the next ones without Python.

A plan holds while the decision behind it stands (evidence.py). What belongs to a single step (the batch, modes,
gradients, hyper-parameters, momentum buffers) is not written down but read every time. A plan may hold less often than
`TrainStep` would decide for the fused level, never more often.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from .decision import Decision
from .evidence import Watched

LAYOUTS = ("rows", "vector", "columns", "scalar")


class Plan(NamedTuple):
    """All that a fused step needs beside the batch."""

    model: nn.Module
    loss_fn: Any
    optimizer: torch.optim.SGD
    objects: tuple[Watched, ...]
    harmless_mode: type  # of torch functions: the one that set_default_device puts there
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


def make_plan(decision: Decision) -> Plan | None:
    """The plan of steps like the one that was just found to be fused; None where weight and bias have a group each."""
    affine, loss, optimizer = decision.affine, decision.loss, decision.optimizer
    weight, bias = affine.weight.tensor, affine.bias.tensor if affine.bias else None
    groups = [g for g in optimizer.param_groups if any(p is weight or p is bias for p in g["params"])]
    if len(groups) != 1:
        return None
    modes = {id(module): (("training", True),) for module in affine.modules}  # what model.train() would set
    objects = [w._replace(same=(*w.same, *modes.get(id(w.object), ()))) for w in decision.watched]
    return Plan(
        decision.model, decision.loss_fn, optimizer, tuple(objects), DeviceContext, weight, bias, weight.requires_grad,
        bias is not None and bias.requires_grad, LAYOUTS.index(affine.layout), affine.flat, loss.flattens,
        loss.loss, loss.delta, loss.reduction, "step" in vars(optimizer),
    )  # fmt: skip
