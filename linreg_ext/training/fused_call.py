# SPDX-License-Identifier: BSD-3-Clause
"""What a recognised model, loss and optimizer hand to the operators, and get back from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import functional
from .affine import Affine
from .decision import Decision
from .regression_loss import RegressionLoss


class FusedCall:
    """A call of ``sgd_step_`` or ``sgd_run_`` on what stands in the model and the optimizer now.

    Args:
        decision: of which model, loss and optimizer.
        group: the optimizer's param_group of the parameters that it trains.

    Attributes:
        first_step: whether the next step is the first of weight and bias.
    """

    def __init__(self, decision: Decision, group: dict[str, Any]) -> None:
        self._affine, self._loss, self._optimizer = decision.affine, decision.loss, decision.optimizer
        parts = [self._affine.weight] + ([self._affine.bias] if self._affine.bias else [])
        self._parameters = [part.tensor for part in parts]
        self._frozen = [not p.requires_grad for p in self._parameters]
        self._buffers: list[Tensor] = []
        self.first_step = [False, False]
        if group["momentum"] != 0:
            state = decision.optimizer.state
            for i, parameter in enumerate(self._parameters):
                buffer = state[parameter].get("momentum_buffer") if parameter in state else None
                self.first_step[i] = buffer is None and not self._frozen[i]
                self._buffers.append(torch.empty_like(parameter) if buffer is None else buffer)
        lr = group["lr"]
        rate, self._lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
        names = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
        self._rule = (rate, *(group[name] for name in names))

    def arguments(self, x: Tensor, y: Tensor, skip_nonfinite: bool) -> tuple[Any, ...]:
        """The arguments of ``sgd_step_``, with views that must not become part of a graph."""
        affine, loss = self._affine, self._loss
        views = (affine.as_rows, affine.as_bias)
        return (
            x, target_rows(affine, loss, x, y),
            [view(p) for view, p in zip(views, self._parameters, strict=False)],
            [view(buffer) for view, buffer in zip(views, self._buffers, strict=False)],
            self._rule, loss.loss, loss.delta, None, self._lr_tensor, loss.reduction, _bits(self.first_step),
            _bits(self._frozen), skip_nonfinite,
        )  # fmt: skip

    def keep_buffers(self) -> None:
        """Give the optimizer the momentum buffers of parameters whose first step it was."""
        for i, parameter in enumerate(self._parameters):
            if self.first_step[i]:
                self._optimizer.state[parameter]["momentum_buffer"] = self._buffers[i]

    def tell_scheduler(self) -> None:
        """Leave the mark by which a scheduler sees that the optimizer stepped."""
        if "step" in self._optimizer.__dict__:
            self._optimizer._opt_called = True


def _bits(flags: list[bool]) -> int:
    return sum(flag << i for i, flag in enumerate(flags))


def fused_loss(affine: Affine, loss: RegressionLoss, x: Tensor, y: Tensor) -> Tensor:
    """The loss of a recognised model, in one pass; differentiable in its parameters."""
    weight, bias = affine.as_rows(affine.weight.tensor), affine.bias
    bias = None if bias is None else affine.as_bias(bias.tensor)
    return functional.linear_loss(
        loss.loss, loss.delta, x, weight, target_rows(affine, loss, x, y), bias, None, loss.reduction
    )


def target_rows(affine: Affine, loss: RegressionLoss, x: Tensor, y: Tensor) -> Tensor:
    """The target in the shape that the kernels give the prediction."""
    if loss.flattens:
        outputs = affine.as_rows(affine.weight.tensor).shape[:-1]
        return y.reshape(*x.shape[:-1], *outputs)
    if affine.flat and y.shape != x.shape[:-1]:
        raise RuntimeError(f"step: target must have shape {list(x.shape[:-1])}, got {list(y.shape)}")
    return y.unsqueeze(-1) if affine.flat and affine.layout != "vector" else y
