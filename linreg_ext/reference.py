# SPDX-License-Identifier: BSD-3-Clause
"""Plain PyTorch twins of the public functions: same names, same signatures, same results.

This file defines what the kernels compute. 16-bit tensors are computed in float32 and rounded once, at the end;
everything else is what autograd and ``torch.optim.SGD`` do. ``LINREG_EXT_REFERENCE=1`` makes it the implementation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .check import check_momentum_buffers, check_problem, check_sgd, require_tensors


def linear_mse_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    return linear_loss(input, linear_weight, target, linear_bias, weight, "mse", 1.0, reduction)


def linear_l1_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    return linear_loss(input, linear_weight, target, linear_bias, weight, "l1", 1.0, reduction)


def linear_huber_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    delta: float = 1.0,
) -> Tensor:
    return linear_loss(input, linear_weight, target, linear_bias, weight, "huber", delta, reduction)


def linear_smooth_l1_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    return linear_loss(input, linear_weight, target, linear_bias, weight, "smooth_l1", beta, reduction)


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
    require_tensors(
        "sgd_step_",
        {"input": input, "linear_weight": linear_weight, "target": target},
        {"linear_bias": linear_bias, "weight": weight},
    )
    buffers = list(check_momentum_buffers(momentum, momentum_buffers))
    first_step = [momentum != 0 and buffer is None for buffer in buffers]
    for i, parameter in enumerate((linear_weight, linear_bias)):
        if first_step[i] and parameter is not None:
            buffers[i] = torch.empty_like(parameter)
    lr_tensor, lr_value = (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
    value = sgd_step(
        input, linear_weight, target, linear_bias, weight, *buffers, loss, delta, "mean", lr_tensor, lr_value,
        momentum, dampening, weight_decay, nesterov, maximize, *first_step, False, False, False,
    )  # fmt: skip
    if any(first_step):
        momentum_buffers[:] = buffers
    return value


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

    compute = _compute_dtype(input)
    parameters = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    leaves = [p.detach().to(compute, copy=True).requires_grad_() for p in parameters]
    with torch.enable_grad():
        value = linear_loss(
            input.detach().to(compute), leaves[0], target.detach().to(compute),
            leaves[1] if len(leaves) == 2 else None,
            None if weight is None else weight.detach().to(compute), loss, delta, reduction,
        )  # fmt: skip
        grads = torch.autograd.grad(value, leaves)

    with torch.no_grad():
        if skip_nonfinite and not value.isfinite():
            return value.to(linear_weight.dtype)
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
    return value.detach().to(linear_weight.dtype)


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
    return value.to(linear_weight.dtype)


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.dtype.itemsize == 2 else input.dtype
