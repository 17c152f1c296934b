# SPDX-License-Identifier: BSD-3-Clause
"""Each operator in plain PyTorch, with the operator's arguments.

This file defines what the kernels compute. 16-bit tensors are computed in float32 and rounded once, at the end;
everything else is what autograd and ``torch.optim.SGD`` do. ``LINREG_EXT_REFERENCE=1`` makes it the implementation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import cast, is_autocast, no_autocast
from .check import check_problem, check_run, check_sgd, loss_dtype, require_tensors


def sgd_run(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    weight_momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    order: Tensor | None,
    validation_input: Tensor | None,
    validation_target: Tensor | None,
    batch_size: int,
    drop_last: bool,
    epochs: int,
    begin: int,
    end: int,
    loss: str,
    delta: float,
    reduction: str,
    lr_tensor: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    weight_first_step: bool,
    bias_first_step: bool,
    weight_frozen: bool,
    bias_frozen: bool,
    stop_nonfinite: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The run with every setting that the operator has."""
    op = "sgd_run_"
    check_problem(op, input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    epoch_steps = check_run(op, input, order, batch_size, drop_last, epochs, begin, end)
    check_sgd(
        op, input, linear_weight, target, linear_bias, weight, weight_momentum_buffer, bias_momentum_buffer,
        reduction, lr_tensor, lr, momentum, dampening, weight_decay, nesterov, weight_frozen, bias_frozen,
        epoch_steps * epochs,
        {"order": order, "validation_input": validation_input, "validation_target": validation_target},
    )  # fmt: skip
    if (validation_input is None) != (validation_target is None):
        raise ValueError(f"{op}: validation_input and validation_target must be given together")
    if validation_input is not None:
        check_problem(
            f"{op}: validation", validation_input, linear_weight, validation_target, linear_bias, None, loss, delta,
            reduction,
        )  # fmt: skip
    rows = input.shape[0] if order is None else order.shape[-1]
    if order is not None and order.numel() and not 0 <= order.min() <= order.max() < len(input):
        wrong = order[(order < 0) | (order >= len(input))][0].item()
        raise IndexError(f"{op}: order must name rows from 0 to {len(input) - 1}, got {wrong}")

    losses = linear_weight.detach().new_full((end - begin,), math.nan, dtype=loss_dtype(linear_weight, target))
    epochs_ended = end // epoch_steps - begin // epoch_steps if epoch_steps else 0
    validation_dtype = losses.dtype if validation_target is None else loss_dtype(linear_weight, validation_target)
    validation = losses.new_full((0 if validation_input is None else epochs_ended,), math.nan, dtype=validation_dtype)
    taken = validated = 0
    for step in range(begin, end):
        epoch, first = step // epoch_steps, step % epoch_steps * batch_size
        batch: slice | Tensor = slice(first, min(rows, first + batch_size))
        if order is not None:
            batch = (order if order.dim() == 1 else order[epoch])[batch]
        rate = lr_tensor
        if lr_tensor is not None and lr_tensor.numel() > 1:
            rate = lr_tensor[step]
        losses[taken] = value = sgd_step(
            input[batch], linear_weight, target[batch], linear_bias, None if weight is None else weight[batch],
            weight_momentum_buffer, bias_momentum_buffer, loss, delta, reduction, rate, lr, momentum, dampening,
            weight_decay, nesterov, maximize, weight_first_step and taken == 0, bias_first_step and taken == 0,
            weight_frozen, bias_frozen, stop_nonfinite,
        )  # fmt: skip
        if stop_nonfinite and not value.isfinite():
            break
        taken += 1
        if validation_input is not None and (step + 1) % epoch_steps == 0:
            with torch.no_grad(), no_autocast(input):
                validation[validated] = linear_loss(
                    validation_input, linear_weight, validation_target, linear_bias, None, loss, delta, reduction
                )
            validated += 1
    return losses, validation, torch.tensor(taken)


def sgd_step(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    weight_momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
    lr_tensor: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    weight_first_step: bool,
    bias_first_step: bool,
    weight_frozen: bool,
    bias_frozen: bool,
    skip_nonfinite: bool,
) -> Tensor:
    """The step with every setting that the operator has."""
    check_problem("sgd_step_", input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    check_sgd(
        "sgd_step_", input, linear_weight, target, linear_bias, weight, weight_momentum_buffer, bias_momentum_buffer,
        reduction, lr_tensor, lr, momentum, dampening, weight_decay, nesterov, weight_frozen, bias_frozen,
    )  # fmt: skip

    compute, dtype = _compute_dtype(input), loss_dtype(linear_weight, target)
    parameters = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    leaves = [p.detach().to(compute, copy=True).requires_grad_() for p in parameters]
    with torch.enable_grad(), no_autocast(input):
        value = linear_loss(
            input.detach().to(compute), leaves[0], target.detach().to(compute),
            leaves[1] if len(leaves) == 2 else None,
            None if weight is None else weight.detach().to(compute), loss, delta, reduction,
        )  # fmt: skip
        grads = torch.autograd.grad(value, leaves)

    with torch.no_grad():
        if skip_nonfinite and not value.isfinite():
            return value.to(dtype)
        rate = lr if lr_tensor is None else lr_tensor.item()
        states = (
            (weight_momentum_buffer, weight_first_step, weight_frozen),
            (bias_momentum_buffer, bias_first_step, bias_frozen),
        )
        for parameter, p, g, (stored, first_step, frozen) in zip(parameters, leaves, grads, states, strict=False):
            if frozen:
                continue
            g = -g if maximize else g
            if weight_decay != 0:
                g = g + weight_decay * p
            if momentum != 0:
                buffer = g if first_step else momentum * stored + (1 - dampening) * g
                stored.copy_(buffer)
                g = g + momentum * buffer if nesterov else buffer
            parameter.copy_(p - rate * g)
    return value.detach().to(dtype)


def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
) -> Tensor:
    """The four losses under one name, as the operators have it."""
    op = f"linear_{loss}_loss"
    require_tensors(
        op,
        {"input": input, "linear_weight": linear_weight, "target": target},
        {"linear_bias": linear_bias, "weight": weight},
    )
    if is_autocast(input):
        operands = cast(input, linear_weight, target, linear_bias, weight)
        with no_autocast(input):
            return linear_loss(*operands, loss, delta, reduction)
    check_problem(op, input, linear_weight, target, linear_bias, weight, loss, delta, reduction)

    compute = _compute_dtype(input)
    prediction = F.linear(input.to(compute), linear_weight.to(compute))
    if linear_bias is not None:
        prediction = prediction + linear_bias.to(compute).reshape(linear_weight.shape[:-1])
    target = target.to(compute)
    if loss == "mse":
        value = F.mse_loss(prediction, target, reduction="none")
    elif loss == "l1":
        value = F.l1_loss(prediction, target, reduction="none")
    elif loss == "huber":
        value = F.huber_loss(prediction, target, reduction="none", delta=delta)
    else:
        value = F.smooth_l1_loss(prediction, target, reduction="none", beta=delta)
    if weight is not None:
        v = weight.to(compute)
        v = v.unsqueeze(-1) if v.dim() < value.dim() else v
        v = v.expand_as(value)
        value = value * v

    if reduction == "sum":
        value = value.sum()
    elif reduction == "mean":
        value = value.mean() if weight is None else value.sum() / v.sum()
    return value.to(loss_dtype(linear_weight, target))


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.dtype.itemsize == 2 else input.dtype
