# SPDX-License-Identifier: BSD-3-Clause
"""Plain PyTorch twins of the public functions: same names, same signatures, same results.

This file defines what the kernels compute. 16-bit tensors are computed in float32 and rounded once, at the end;
everything else is what autograd and ``torch.optim.SGD`` do. ``LINREG_EXT_REFERENCE=1`` makes it the implementation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .autocast import cast, is_autocast, no_autocast
from .check import check_momentum_buffers, check_problem, check_run, check_sgd, loss_dtype, require_tensors, run_sizes

if TYPE_CHECKING:
    from .training import History


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
    require_tensors(
        "sgd_run_",
        {"input": input, "linear_weight": linear_weight, "target": target},
        {"linear_bias": linear_bias, "weight": weight, "order": order},
    )
    batch_size, epochs, steps = run_sizes("sgd_run_", input, order, batch_size, drop_last, epochs)
    buffers = list(check_momentum_buffers(momentum, momentum_buffers, "sgd_run_"))
    first_step = [momentum != 0 and buffer is None for buffer in buffers]
    for i, parameter in enumerate((linear_weight, linear_bias)):
        if first_step[i] and parameter is not None:
            buffers[i] = torch.empty_like(parameter)
    lr_tensor, lr_value = (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
    losses, _, done = sgd_run(
        input, linear_weight, target, linear_bias, weight, *buffers, order, None, None, batch_size, drop_last, epochs,
        0, steps, loss, delta, "mean", lr_tensor, lr_value, momentum, dampening, weight_decay, nesterov,
        maximize, *first_step, False, False, stop_nonfinite,
    )  # fmt: skip
    if any(first_step) and done > 0:
        momentum_buffers[:] = buffers
    return losses[: done + 1]


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


def make_train_step(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[Tensor, Tensor], Tensor]:
    def step(x: Tensor, y: Tensor) -> Tensor:
        model.train()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def fit(
    num_epochs: int,
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    opt: torch.optim.Optimizer,
    train_dl: Iterable[tuple[Tensor, Tensor]],
    *,
    val_dl: Iterable[tuple[Tensor, Tensor]] | None = None,
    scheduler: Any = None,
    device: torch.device | str | None = None,
    log_every: int | None = None,
    progress: bool | None = None,
    on_divergence: str = "stop",
    patience: int | None = None,
    on_epoch_end: Callable[[int, History], bool | None] | None = None,
) -> History:
    from .training import History  # here, because training is built on top of this module
    from .training.regression_loss import reduction_of

    summed = reduction_of(loss_fn) == "sum"
    model.to(device)
    step = make_train_step(model, loss_fn, opt)
    step_loss, epoch_loss, val_loss, lr = [], [], [], []

    def history() -> History:
        tensors = (torch.tensor(values, dtype=torch.float64) for values in (step_loss, epoch_loss, val_loss, lr))
        steps, epochs, validation, rates = tensors
        return History(steps, epochs, validation if val_dl is not None else None, rates)

    best, best_epoch, kept = math.inf, 0, None
    for epoch in range(num_epochs):
        total, rows = 0.0, 0
        for x, y in train_dl:
            lr.append(float(opt.param_groups[0]["lr"]))
            before = [p.detach().clone() for p in model.parameters()]
            step_loss.append(step(x.to(device), y.to(device)).item())
            if on_divergence == "stop" and not math.isfinite(step_loss[-1]):
                with torch.no_grad():
                    for p, old in zip(model.parameters(), before, strict=True):
                        p.copy_(old)
                raise RuntimeError(f"fit: the loss is {step_loss[-1]} at step {len(step_loss)}")
            total, rows = total + step_loss[-1] * (1 if summed else len(x)), rows + len(x)
        epoch_loss.append(total / rows if rows else math.nan)
        if val_dl is not None:
            val_loss.append(evaluate(model, loss_fn, ((x.to(device), y.to(device)) for x, y in val_dl)))
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step((val_loss or epoch_loss)[-1])
        elif scheduler is not None:
            scheduler.step()
        if log_every is not None and (epoch + 1) % log_every == 0:
            validation = f", Val loss: {val_loss[-1]:.4f}" if val_loss else ""
            print(f"Epoch [{epoch + 1}/{num_epochs}], Loss: {step_loss[-1]:.4f}{validation}")
        over = on_epoch_end is not None and on_epoch_end(epoch + 1, history())
        if patience is not None and (val_loss or epoch_loss)[-1] < best:
            best, best_epoch, kept = (val_loss or epoch_loss)[-1], epoch, copy.deepcopy(model.state_dict())
        if over or (patience is not None and epoch - (best_epoch if kept else -1) >= patience):
            break
    if kept is not None:
        model.load_state_dict(kept)
    return history()


def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], dataloader: Iterable[tuple[Tensor, Tensor]]
) -> float:
    from .training.regression_loss import reduction_of

    summed = reduction_of(loss_fn) == "sum"
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total, rows = 0.0, 0
    with torch.no_grad():
        for x, y in dataloader:
            total, rows = total + loss_fn(model(x), y).item() * (1 if summed else len(x)), rows + len(x)
    for module, training in modes:
        module.training = training
    return total / rows if rows else math.nan
