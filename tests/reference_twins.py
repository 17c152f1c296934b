# SPDX-License-Identifier: BSD-3-Clause
"""The public functions, computed by the operators of `linreg_ext.reference`.

Tests use the reference only through this file, so that a changed operator is adapted to here alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linreg_ext import reference
from linreg_ext.check import check_momentum_buffers, require_tensors, run_sizes

sgd_run = reference.sgd_run  # the operator itself


def _linear_loss(loss: str, threshold: str = "") -> Callable[..., Tensor]:
    def twin(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        **options: Any,
    ) -> Tensor:
        delta = options.pop(threshold, 1.0)
        assert not options, f"linear_{loss}_loss has no {list(options)}"
        return reference.linear_loss(input, linear_weight, target, linear_bias, weight, loss, delta, reduction)

    return twin


linear_mse_loss = _linear_loss("mse")
linear_l1_loss = _linear_loss("l1")
linear_huber_loss = _linear_loss("huber", "delta")
linear_smooth_l1_loss = _linear_loss("smooth_l1", "beta")


class _State:
    """The momentum buffers of a weight and a bias: new ones for the parameters that have not stepped yet."""

    def __init__(self, op: str, momentum: float, buffers: Any, parameters: tuple[Tensor, Tensor | None]) -> None:
        self._given = buffers
        self.buffers = list(check_momentum_buffers(momentum, buffers, op))
        self.first_step = [momentum != 0 and buffer is None for buffer in self.buffers]
        for i, parameter in enumerate(parameters):
            if self.first_step[i] and parameter is not None:
                self.buffers[i] = torch.empty_like(parameter)

    def keep(self) -> None:
        """Hand the buffers of the first step to the caller."""
        if any(self.first_step):
            self._given[:] = self.buffers


def _rates(lr: float | Tensor) -> tuple[Tensor | None, float]:
    return (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)


def sgd_step_(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    loss: str = "mse",
    delta: float = 1.0,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffers: list[Tensor | None] | None = None,
) -> Tensor:
    required = {"input": input, "linear_weight": linear_weight, "target": target}
    require_tensors("sgd_step_", required, {"linear_bias": linear_bias, "weight": weight})
    state = _State("sgd_step_", momentum, momentum_buffers, (linear_weight, linear_bias))
    value = reference.sgd_step(
        input, linear_weight, target, linear_bias, weight, *state.buffers, loss, delta, "mean", *_rates(lr), momentum,
        dampening, weight_decay, nesterov, maximize, *state.first_step, False, False, False,
    )  # fmt: skip
    state.keep()
    return value


def sgd_run_(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    order: Tensor | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    epochs: int | None = None,
    loss: str = "mse",
    delta: float = 1.0,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffers: list[Tensor | None] | None = None,
    stop_nonfinite: bool = False,
) -> Tensor:
    required = {"input": input, "linear_weight": linear_weight, "target": target}
    require_tensors("sgd_run_", required, {"linear_bias": linear_bias, "weight": weight, "order": order})
    batch_size, epochs, steps = run_sizes("sgd_run_", input, order, batch_size, drop_last, epochs)
    state = _State("sgd_run_", momentum, momentum_buffers, (linear_weight, linear_bias))
    losses, _, done = reference.sgd_run(
        input, linear_weight, target, linear_bias, weight, *state.buffers, order, None, None, batch_size, drop_last,
        epochs, 0, steps, loss, delta, "mean", *_rates(lr), momentum, dampening, weight_decay, nesterov, maximize,
        *state.first_step, False, False, stop_nonfinite,
    )  # fmt: skip
    if done > 0:
        state.keep()
    return losses[: done + 1]
