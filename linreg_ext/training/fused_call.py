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
        rule: the operators' arguments from `loss` to `maximize`.
        first_step, frozen: those of weight and bias.
    """

    def __init__(self, decision: Decision, group: dict[str, Any]) -> None:
        affine, loss = decision.affine, decision.loss
        self._affine, self._loss, self._optimizer = affine, loss, decision.optimizer
        weight, bias = affine.weight.tensor, affine.bias.tensor if affine.bias else None
        self._parameters = weight, bias
        self.frozen = (not weight.requires_grad, bias is None or not bias.requires_grad)
        self._buffers: list[Tensor | None] = [None, None]
        self.first_step = [False, False]
        if group["momentum"] != 0:
            state = decision.optimizer.state
            for i, parameter in enumerate((weight, bias)):
                if not self.frozen[i]:
                    buffer = state[parameter].get("momentum_buffer") if parameter in state else None
                    self.first_step[i] = buffer is None
                    self._buffers[i] = torch.empty_like(parameter) if buffer is None else buffer
        lr = group["lr"]
        lr_tensor, lr_value = (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
        self.rule = (
            loss.loss, loss.delta, loss.reduction, lr_tensor, lr_value, group["momentum"], group["dampening"],
            group["weight_decay"], group["nesterov"], group["maximize"],
        )  # fmt: skip

    def tensors(self, x: Tensor, y: Tensor) -> tuple[Tensor | None, ...]:
        """The operators' arguments from `input` to the buffers; views that must not become part of a graph."""
        affine, (weight, bias), buffers = self._affine, self._parameters, self._buffers
        return (
            x, affine.as_rows(weight), target_rows(affine, self._loss, x, y),
            None if bias is None else affine.as_bias(bias), None,
            None if buffers[0] is None else affine.as_rows(buffers[0]),
            None if buffers[1] is None else affine.as_bias(buffers[1]),
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
