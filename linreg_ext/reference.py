# SPDX-License-Identifier: BSD-3-Clause
"""The operators in plain PyTorch: the definition of what the kernels compute.

16-bit tensors are computed in float32 and rounded once, at the end; otherwise these are autograd and
`torch.optim.SGD`. The arguments are those of the operators' schemas, unchecked. `LINREG_EXT_REFERENCE=1` makes this
file the implementation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .autocast import no_autocast
from .losses import LOSSES


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
    compute = _compute_dtype(input)
    prediction = F.linear(input.to(compute), linear_weight.to(compute))
    if linear_bias is not None:
        prediction = prediction + linear_bias.to(compute).reshape(linear_weight.shape[:-1])
    value = LOSSES[loss].plain(prediction, target.to(compute), delta)
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


def sgd_step_(
    input: Tensor,
    target: Tensor,
    parameters: list[Tensor],
    momentum_buffers: list[Tensor],
    rule: list[float],
    loss: str,
    delta: float,
    weight: Tensor | None,
    lr: Tensor | None,
    reduction: str,
    first_step: int,
    frozen: int,
    skip_nonfinite: bool,
) -> Tensor:
    rate, momentum, dampening, weight_decay, nesterov, maximize = (*rule, *[0.0] * 5)[:6]
    rate = rate if lr is None else lr.item()
    compute, dtype = _compute_dtype(input), loss_dtype(parameters[0], target)
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
        for i, (parameter, p, g) in enumerate(zip(parameters, leaves, grads, strict=True)):
            if frozen >> i & 1:
                continue
            g = -g if maximize else g
            if weight_decay != 0:
                g = g + weight_decay * p
            if momentum != 0:
                buffer = g if first_step >> i & 1 else momentum * momentum_buffers[i] + (1 - dampening) * g
                momentum_buffers[i].copy_(buffer)
                g = g + momentum * buffer if nesterov else buffer
            parameter.copy_(p - rate * g)
    return value.detach().to(dtype)


def sgd_run_(
    input: Tensor,
    target: Tensor,
    parameters: list[Tensor],
    momentum_buffers: list[Tensor],
    rule: list[float],
    loss: str,
    delta: float,
    weight: Tensor | None,
    lr: Tensor | None,
    reduction: str,
    first_step: int,
    frozen: int,
    stop_nonfinite: bool,
    order: Tensor | None,
    validation_input: Tensor | None,
    validation_target: Tensor | None,
    validation_weight: Tensor | None,
    batch_size: int,
    drop_last: bool,
    epochs: int,
    begin: int,
    end: int,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = input.shape[0] if order is None else order.shape[-1]
    epoch_steps = rows // batch_size if drop_last else -(-rows // batch_size)
    dtype = loss_dtype(parameters[0], target)
    losses = parameters[0].detach().new_full((end - begin,), math.nan, dtype=dtype)
    epochs_ended = end // epoch_steps - begin // epoch_steps if epoch_steps else 0
    validation_dtype = dtype if validation_target is None else loss_dtype(parameters[0], validation_target)
    validation_losses = losses.new_full(
        (0 if validation_input is None else epochs_ended,), math.nan, dtype=validation_dtype
    )
    taken = validated = 0
    for step in range(begin, end):
        epoch, first = step // epoch_steps, step % epoch_steps * batch_size
        batch: slice | Tensor = slice(first, min(rows, first + batch_size))
        if order is not None:
            batch = (order if order.dim() == 1 else order[epoch])[batch]
        losses[taken] = value = sgd_step_(
            input[batch], target[batch], parameters, momentum_buffers, rule, loss, delta,
            None if weight is None else weight[batch], lr if lr is None or lr.numel() == 1 else lr[step], reduction,
            0 if taken else first_step, frozen, stop_nonfinite,
        )  # fmt: skip
        if stop_nonfinite and not value.isfinite():
            break
        taken += 1
        if validation_input is not None and (step + 1) % epoch_steps == 0:
            with torch.no_grad(), no_autocast(input):
                bias = parameters[1] if len(parameters) == 2 else None
                validation_losses[validated] = linear_loss(
                    validation_input, parameters[0], validation_target, bias, validation_weight, loss, delta, reduction
                )
            validated += 1
    return losses, validation_losses, torch.tensor(taken, device=input.device)


def sgd_run_many_(
    input: Tensor,
    target: Tensor,
    parameters: list[Tensor],
    momentum_buffers: list[Tensor],
    rule: list[float],
    loss: str,
    delta: float,
    weight: Tensor | None,
    lr: Tensor | None,
    momentum: Tensor | None,
    weight_decay: Tensor | None,
    first_step: int,
    offsets: Tensor | None,
    order: Tensor | None,
    batch_size: int,
    drop_last: bool,
    epochs: int,
    begin: int,
    end: int,
) -> Tensor:
    shared_input = input.dim() == 2
    shared_target = shared_input and target.dim() == parameters[0].dim() - 1
    losses = parameters[0].detach().new_full((end - begin, epochs), math.nan, dtype=loss_dtype(parameters[0], target))
    for p in range(begin, end):
        x = input if shared_input else input[p]
        y, v = (t if t is None or shared_target else t[p] for t in (target, weight))
        its_order = order
        if offsets is not None:
            part = slice(int(offsets[p]), int(offsets[p + 1]))
            if order is None:
                x, y, v = x[part], y[part], None if v is None else v[part]
            else:
                its_order = order[..., part]
        its_rule = [*rule]
        for i, number in enumerate((lr, momentum, None, weight_decay)):
            if number is not None:
                its_rule[i] = number.flatten()[p if number.numel() > 1 else 0].item()
        rows = len(x) if its_order is None else its_order.shape[-1]
        steps = rows // batch_size if drop_last else -(-rows // batch_size)
        if not steps:
            continue
        step_losses, *_ = sgd_run_(
            x, y, [t[p] for t in parameters], [t[p] for t in momentum_buffers], its_rule, loss, delta, v, None, "mean",
            first_step, 0, False, its_order, None, None, None, batch_size, drop_last, epochs, 0, epochs * steps,
        )  # fmt: skip
        v = x.new_ones(len(x), 1) if v is None else v.reshape(len(x), -1)
        v = (
            v.double().sum(1).expand(epochs, -1)
            if its_order is None
            else v.double().sum(1)[its_order].expand(epochs, -1)
        )
        weights = torch.stack([part.sum(1) for part in v.split(batch_size, 1)[:steps]], 1)
        losses[p - begin] = (step_losses.view(epochs, steps).double() * weights).sum(1) / weights.sum(1)
    return losses


def loss_dtype(linear_weight: Tensor, target: Tensor) -> torch.dtype:
    """The dtype of the loss: what those of prediction and target promote to."""
    return torch.promote_types(linear_weight.dtype, target.dtype)


def _compute_dtype(input: Tensor) -> torch.dtype:
    return torch.float32 if input.dtype.itemsize == 2 else input.dtype


def moments_(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    group: Tensor | None,
    counts: Tensor,
    mean: Tensor,
    moments: Tensor,
    single: bool,
) -> None:
    z = torch.cat([input, target], 1).double()
    v = z.new_ones(len(z)) if weight is None else weight.double()
    if (v < 0).any():
        raise ValueError("moments_: weight must be >= 0, got a negative number")
    used = v > 0
    z, v = z[used], v[used]
    g = torch.zeros_like(v, dtype=torch.int64) if group is None else group[used]
    more = torch.zeros_like(counts).index_add(0, g, torch.stack([torch.ones_like(v), v], 1))
    its_mean = torch.zeros_like(mean).index_add(0, g, v[:, None] * z) / more[:, 1:].clamp(min=1e-300)
    z = z - its_mean[g]
    if len(counts) == 1:
        its_moments = (z.T @ (v[:, None] * z))[None]
    else:
        its_moments = torch.zeros_like(moments).index_add(0, g, (v[:, None] * z)[:, :, None] * z[:, None])
    merge_moments_(counts, mean, moments, more, its_mean, its_moments)


def merge_moments_(
    counts: Tensor, mean: Tensor, moments: Tensor, more: Tensor, its_mean: Tensor, its_moments: Tensor
) -> None:
    """Add the moments about each mean and those of the two means, so that nothing cancels."""
    weight = counts[:, 1] + more[:, 1]
    share = torch.where(more[:, 1] > 0, more[:, 1] / weight, 0.0)
    apart = its_mean - mean
    moments += its_moments + (counts[:, 1] * share)[:, None, None] * (apart[:, :, None] * apart[:, None])
    mean += share[:, None] * apart
    counts += more


def residual_moments(
    input: Tensor, target: Tensor, weight: Tensor | None, linear_weight: Tensor, offset: Tensor, center: Tensor
) -> Tensor:
    d = input.shape[1]
    x, y = input.double() - center[:d], target.double() - center[d:]
    v = x.new_ones(len(x)) if weight is None else weight.double()
    x, y, v = x[v > 0], y[v > 0], v[v > 0, None]
    r = x @ linear_weight.T + offset - y
    return torch.cat([(v * r).T @ x, (v * r).sum(0)[:, None], (v * r * r).sum(0)[:, None]], 1)


def mean_squares(
    counts: Tensor, mean: Tensor, moments: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean squared errors of coefficients [..., K, D], one for each target, and the gradients of their mean."""
    k, d = weight.shape[-2:]
    negative = -torch.eye(k, dtype=weight.dtype, device=weight.device).expand(*weight.shape[:-2], k, k)
    both = torch.cat([weight, negative], -1)  # the residual is `both` [x | y] + bias
    spread = both @ moments  # [..., K, D + K]
    level = (both @ mean.unsqueeze(-1)).squeeze(-1)  # the mean residual
    if bias is not None:
        level = level + bias
    squares = (spread * both).sum(-1).clamp(min=0) / counts[:, 1:] + level.square()
    grad = spread[..., :d] / counts[:, 1, None, None] + level.unsqueeze(-1) * mean[:, None, :d]
    return squares, 2 / k * grad, 2 / k * level


def descend_(
    counts: Tensor,
    mean: Tensor,
    moments: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> Tensor:
    values = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    buffers: list[Tensor | None] = [None, None]
    losses = torch.zeros_like(lr)
    for step, rates in enumerate(lr.T):
        loss, *grads = mean_squares(counts, mean, moments, linear_weight, linear_bias)
        losses[:, step] = loss.mean(-1)
        for i, (value, g) in enumerate(zip(values, grads, strict=False)):
            g = -g if maximize else g
            g = g + weight_decay * value
            if momentum:
                before = buffers[i]
                buffers[i] = g if before is None else momentum * before + (1 - dampening) * g
                g = g + momentum * buffers[i] if nesterov else buffers[i]
            value -= rates.reshape(-1, *[1] * (g.dim() - 1)) * g
    return losses
