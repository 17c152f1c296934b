# SPDX-License-Identifier: BSD-3-Clause
"""`LinearLoss`, the differentiable face of the operators, and the fake kernels that let PyTorch trace them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import reference
from .check import check_problem, check_run, check_sgd, loss_dtype

OPERANDS = ("input", "linear_weight", "linear_bias", "target")  # what a gradient can be asked for, in this order


class LinearLoss(Function):
    """``(loss, *gradients)`` of a linear layer under a regression loss.

    One pass yields the loss and the gradients that `wanted` names, in the order of `OPERANDS`; those of float16
    operands in float32, since they may leave float16's range until they are scaled. Backward scales them. A second
    derivative and a loss that is not reduced need G = dloss/dprediction again and recompute it.

    Eager code on plain tensors gets a reduced loss from ``csrc/torch/autograd.cpp``, which does the same in C++.
    """

    @staticmethod
    def forward(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None,
        weight: Tensor | None,
        loss: str,
        delta: float,
        reduction: str,
        wanted: list[bool],
    ) -> tuple[Tensor, ...]:
        arguments = (input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
        if reduction == "none":  # what each element's gradient will be multiplied by is not known yet
            return (torch.ops.linreg_ext.linear_loss(*arguments),)
        value, grads = torch.ops.linreg_ext.linear_loss_grads(*arguments, wanted)
        return (value, *grads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.loss, ctx.delta, ctx.reduction, ctx.wanted = inputs
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        input, linear_weight, target, linear_bias, weight, *saved = ctx.saved_tensors
        grads: dict[str, Tensor] = {}
        if grad_loss is not None:
            names = _names(ctx.wanted)
            if (
                torch.is_grad_enabled() or is_transforming() or _is_batched(grad_loss)
            ):  # the result must be differentiable itself
                values = differentiable_grads(
                    grad_loss, input, linear_weight, target, linear_bias, weight,
                    ctx.loss, ctx.delta, ctx.reduction, ctx.wanted,
                )  # fmt: skip
            elif ctx.reduction == "none":
                values = _elementwise_grads(
                    grad_loss, input, linear_weight, target, linear_bias, weight, ctx.loss, ctx.delta, ctx.wanted
                )
            else:
                # As a number, it would be rounded to a 16-bit gradient's dtype first.
                values = [grad_loss.reshape([1] * saved_grad.dim()) * saved_grad for saved_grad in saved]
            dtypes = _dtypes(input, linear_weight, target)
            grads = {name: value.to(dtypes[name]) for name, value in zip(names, values, strict=True)}
        return (
            grads.get("input"), grads.get("linear_weight"), grads.get("target"), grads.get("linear_bias"),
            None, None, None, None, None,
        )  # fmt: skip


def recorded_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
) -> Tensor:
    """The operator ``linear_loss`` where a derivative may be asked for; ``csrc/torch/derivatives.cpp`` calls it."""
    arguments = (input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    if weight is not None and weight.requires_grad:
        raise RuntimeError(f"linear_{loss}_loss: weight must not require grad, got one that does")
    if is_transforming():
        return reference.linear_loss(*arguments)
    operands = (input, linear_weight, linear_bias, target)
    return LinearLoss.apply(*arguments, [t is not None and t.requires_grad for t in operands])[0]


def recorded_loss_grads(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
    wanted: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    """The operator ``linear_loss_grads`` there: its gradients come from plain PyTorch, which differentiates them."""
    arguments = (input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    value = torch.ops.linreg_ext.linear_loss(*arguments)
    of = _wanted_operands(input, linear_weight, target, linear_bias, loss, reduction, wanted)
    grads = differentiable_grads(torch.ones_like(value), *arguments, wanted)
    return value, [grad.to(_gradient_dtype(operand)) for grad, operand in zip(grads, of, strict=True)]


def _names(wanted: list[bool]) -> list[str]:
    return [name for name, asked in zip(OPERANDS, wanted, strict=True) if asked]


def _dtypes(input: Tensor, linear_weight: Tensor, target: Tensor) -> dict[str, torch.dtype]:
    """The dtypes of the operands."""
    return dict(zip(OPERANDS, (input.dtype, linear_weight.dtype, linear_weight.dtype, target.dtype), strict=True))


def is_transforming() -> bool:
    """Whether torch.func or forward-mode AD is at work, which need every derivative of every operation.

    Inside of them `requires_grad` does not say what will be differentiated; plain PyTorch runs instead of the kernels.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# As torch.compiler.assume_constant_result has it, which would import the compiler. While Dynamo traces, what it traces
# is at work, and it guards on the transforms outside of that.
is_transforming._dynamo_marked_constant = True


def refuse_transforms(op: str) -> None:
    """What ``csrc/torch/plain.h`` says of calls that come by the compiled part."""
    if is_transforming():
        raise RuntimeError(
            f"{op}: must not be called inside a torch.func transform or forward-mode AD, which would neither "
            "differentiate nor batch a step in place; transform linear_mse_loss or a sibling of it"
        )


def _is_batched(grad_loss: Tensor) -> bool:
    """Whether `is_grads_batched` calls backward for many grad_outputs at once."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(grad_loss)


def _elementwise_grads(
    grad_loss: Tensor,  # the loss's shape
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients under a grad_output for every element: those of a sum with the weight scaled by it."""
    weight = grad_loss if weight is None else grad_loss * _like(weight, grad_loss)
    return torch.ops.linreg_ext.linear_loss_grads(
        input, linear_weight, target, linear_bias, weight, loss, delta, "sum", wanted
    )[1]


def differentiable_grads(
    grad_loss: Tensor,
    input: Tensor,  # [*, D]
    linear_weight: Tensor,  # [K, D] or [D]
    target: Tensor,  # [*, K] or [*]
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
    wanted: list[bool],
) -> list[Tensor]:
    """The gradients that are wanted in plain PyTorch, in float32 where operands are 16-bit; differentiable in
    `grad_loss` and in every operand."""
    compute = torch.float32 if input.dtype.itemsize == 2 else input.dtype
    x, w, y = (tensor.to(compute) for tensor in (input, linear_weight, target))
    r = F.linear(x, w) - y
    if linear_bias is not None:
        r = r + linear_bias.to(compute).reshape(w.shape[:-1])
    if loss == "mse":
        g = 2 * r
    elif loss == "l1" or (loss == "smooth_l1" and delta == 0):
        g = r.sgn()
    elif loss == "huber":
        g = torch.where(r.abs() < delta, r, r.detach().clamp(-delta, delta))
    else:
        g = torch.where(r.abs() < delta, r / delta, (r.detach() / delta).clamp(-1, 1))
    if weight is not None:
        v = _like(weight.to(compute), r)
        g = g * v
    g = g * grad_loss
    if reduction == "mean":
        g = g / (r.numel() if weight is None else v.sum())

    k, d = (w.shape[0], w.shape[1]) if w.dim() == 2 else (1, w.shape[0])
    n = math.prod(x.shape[:-1])
    g_rows, x_rows = g.reshape(n, k), x.reshape(n, d)
    grads = {
        "input": lambda: (g_rows @ w.reshape(k, d)).reshape(x.shape),
        "linear_weight": lambda: (g_rows.t() @ x_rows).reshape(w.shape),
        "linear_bias": lambda: g_rows.sum(0).reshape(linear_bias.shape),
        "target": lambda: -g,
    }
    return [grads[name]() for name in _names(wanted)]


def _like(weight: Tensor, rows: Tensor) -> Tensor:
    """`weight`, one value an element or one a row, in the shape of `rows`."""
    return (weight.unsqueeze(-1) if weight.dim() < rows.dim() else weight).expand_as(rows)


def _fake_linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
) -> Tensor:
    check_problem(f"linear_{loss}_loss", input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    shape = target.shape if reduction == "none" else ()
    return linear_weight.new_empty(shape, dtype=loss_dtype(linear_weight, target))


def _fake_linear_loss_grads(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    loss: str,
    delta: float,
    reduction: str,
    wanted: list[bool],
) -> tuple[Tensor, list[Tensor]]:
    value = _fake_linear_loss(input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    of = _wanted_operands(input, linear_weight, target, linear_bias, loss, reduction, wanted)
    return value, [t.new_empty(t.shape, dtype=_gradient_dtype(t)) for t in of]


def _wanted_operands(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    loss: str,
    reduction: str,
    wanted: list[bool],
) -> list[Tensor]:
    """What ``linear_loss_grads`` returns the gradients of; raises as it does where there are none."""
    op = f"linear_{loss}_loss"
    if reduction == "none":
        raise ValueError(f"{op}: reduction must be 'mean' or 'sum', got 'none'")
    if wanted[2] and linear_bias is None:
        raise ValueError(f"{op}: linear_bias must be given when its gradient is asked for, got None")
    operands = (input, linear_weight, linear_bias, target)
    return [operand for operand, asked in zip(operands, wanted, strict=True) if asked]


def _gradient_dtype(operand: Tensor) -> torch.dtype:
    return torch.float32 if operand.dtype == torch.float16 else operand.dtype


def _fake_sgd_step_(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    weight_momentum_buffer: Tensor | None = None,
    bias_momentum_buffer: Tensor | None = None,
    loss: str = "mse",
    delta: float = 1.0,
    reduction: str = "mean",
    lr_tensor: Tensor | None = None,
    lr: float = -1.0,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    weight_first_step: bool = False,
    bias_first_step: bool = False,
    weight_frozen: bool = False,
    bias_frozen: bool = False,
    skip_nonfinite: bool = False,
) -> Tensor:
    refuse_transforms("sgd_step_")
    check_problem("sgd_step_", input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    check_sgd(
        "sgd_step_", input, linear_weight, target, linear_bias, weight, weight_momentum_buffer, bias_momentum_buffer,
        reduction, lr_tensor, lr, momentum, dampening, weight_decay, nesterov, weight_frozen, bias_frozen,
    )  # fmt: skip
    return linear_weight.new_empty((), dtype=loss_dtype(linear_weight, target))


def _fake_sgd_run_(
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
    op = "sgd_run_"
    refuse_transforms(op)
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
    epochs_ended = end // epoch_steps - begin // epoch_steps if epoch_steps else 0
    dtype = loss_dtype(linear_weight, target)
    validation_dtype = dtype if validation_target is None else loss_dtype(linear_weight, validation_target)
    return (
        linear_weight.new_empty(end - begin, dtype=dtype),
        linear_weight.new_empty(0 if validation_input is None else epochs_ended, dtype=validation_dtype),
        linear_weight.new_empty((), dtype=torch.int64),
    )


def register_fakes() -> None:
    torch.library.register_fake("linreg_ext::linear_loss", _fake_linear_loss)
    torch.library.register_fake("linreg_ext::linear_loss_grads", _fake_linear_loss_grads)
    torch.library.register_fake("linreg_ext::sgd_step_", _fake_sgd_step_)
    torch.library.register_fake("linreg_ext::sgd_run_", _fake_sgd_run_)
