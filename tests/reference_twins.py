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
from linreg_ext.autocast import cast, is_autocast, no_autocast
from linreg_ext.losses import LOSSES, Loss


def _linear_loss(loss: Loss) -> Callable[..., Tensor]:
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
        threshold = _threshold(loss.name, options)
        operands = (input, linear_weight, target, linear_bias, weight)
        operands = cast(*operands) if is_autocast(input) else operands
        with no_autocast(input):
            return reference.linear_loss(*operands, loss.name, threshold, reduction)

    return twin


def _threshold(loss: str, options: dict[str, Any]) -> float:
    own = LOSSES[loss].threshold
    threshold = options.pop(own.name, own.default) if own else 1.0
    assert not options, f"{loss} has no {list(options)}"
    return threshold


globals().update({f"linear_{loss.name}_loss": _linear_loss(loss) for loss in LOSSES.values()})


def _step(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    loss: str = "mse",
    lr: float | Tensor = 0.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffers: list[Tensor | None] | None = None,
    **threshold: float,
) -> list[Any]:
    """The operators' arguments, but for whether nonfinite losses are skipped."""
    parameters = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    buffers: list[Tensor] = []
    first = 0
    if momentum != 0:
        first = sum((momentum_buffers[i] is None) << i for i in range(len(parameters)))
        buffers = [
            b if b is not None else torch.zeros_like(p) for p, b in zip(parameters, momentum_buffers, strict=False)
        ]
    rate, lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    rule = [rate, momentum, dampening, weight_decay, nesterov, maximize]
    return [
        input, target, parameters, buffers, rule, loss, _threshold(loss, threshold), weight, lr_tensor, "mean", first, 0,
    ]  # fmt: skip


def _keep(step: list[Any], momentum_buffers: list[Tensor | None] | None) -> None:
    if step[10]:
        momentum_buffers[: len(step[3])] = step[3]


def sgd_step_(*tensors: Tensor, momentum_buffers: list[Tensor | None] | None = None, **options: Any) -> Tensor:
    step = _step(*tensors, momentum_buffers=momentum_buffers, **options)
    value = reference.sgd_step_(*step, False)
    _keep(step, momentum_buffers)
    return value


def sgd_run_(
    *tensors: Tensor,
    order: Tensor | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    epochs: int | None = None,
    momentum_buffers: list[Tensor | None] | None = None,
    stop_nonfinite: bool = False,
    **options: Any,
) -> Tensor:
    step = _step(*tensors, momentum_buffers=momentum_buffers, **options)
    rows = len(tensors[0]) if order is None else order.shape[-1]
    batch_size = batch_size or max(1, rows)
    epochs = epochs if epochs is not None else order.shape[0] if order is not None and order.dim() == 2 else 1
    steps = epochs * (rows // batch_size if drop_last else -(-rows // batch_size))
    losses, _, done = reference.sgd_run_(
        *step, stop_nonfinite, order, None, None, None, batch_size, drop_last, epochs, 0, steps
    )
    if done > 0:
        _keep(step, momentum_buffers)
    return losses[: done + 1]


def sgd_run_many_(
    *tensors: Tensor,
    offsets: Tensor | None = None,
    order: Tensor | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    epochs: int = 1,
    momentum_buffers: list[Tensor | None] | None = None,
    **options: Any,
) -> Tensor:
    numbers = [options.get(name) for name in ("lr", "momentum", "weight_decay")]
    tensor = [number if isinstance(number, Tensor) else None for number in numbers]
    scalars = {name: 1.0 for name, t in zip(("lr", "momentum", "weight_decay"), tensor, strict=True) if t is not None}
    step = _step(*tensors, momentum_buffers=momentum_buffers, **options | scalars)
    rows = tensors[0].shape[-2] if order is None else order.numel()
    sizes = (batch_size or max(1, rows), drop_last and batch_size is not None, epochs)
    losses = reference.sgd_run_many_(*step[:8], *tensor, step[10], offsets, order, *sizes, 0, len(tensors[1]))
    _keep(step, momentum_buffers)
    return losses
