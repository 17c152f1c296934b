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
from ._extension import REFERENCE
from .autocast import no_autocast
from .losses import LOSSES
from .reference import loss_dtype

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
        operands, saved = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
        grads: dict[str, Tensor] = {}
        if grad_loss is not None:
            if (
                torch.is_grad_enabled() or is_transforming() or _is_batched(grad_loss)
            ):  # it must be differentiable itself
                values = differentiable_grads(grad_loss, *operands, ctx.loss, ctx.delta, ctx.reduction, ctx.wanted)
            elif (
                ctx.reduction == "none"
            ):  # the gradients of a sum, with the weight scaled by each element's grad_output
                *others, weight = operands
                weight = grad_loss if weight is None else grad_loss * _like(weight, grad_loss)
                values = torch.ops.linreg_ext.linear_loss_grads(
                    *others, weight, ctx.loss, ctx.delta, "sum", ctx.wanted
                )[1]
            else:
                # As a number, it would be rounded to a 16-bit gradient's dtype first.
                values = [grad_loss.reshape([1] * saved_grad.dim()) * saved_grad for saved_grad in saved]
            of = _wanted_operands(operands, ctx.wanted)
            grads = {name: value.to(operand.dtype) for (name, operand), value in zip(of.items(), values, strict=True)}
        return (
            grads.get("input"), grads.get("linear_weight"), grads.get("target"), grads.get("linear_bias"),
            None, None, None, None, None,
        )  # fmt: skip


Arguments = Any  # of the operators: input, linear_weight, target, linear_bias, weight, loss, delta, reduction


def recorded_loss(*arguments: Arguments) -> Tensor:
    """The operator ``linear_loss`` where a derivative may be asked for; ``csrc/torch/ops.cpp`` calls it."""
    input, linear_weight, target, linear_bias, weight, loss, *_ = arguments
    if weight is not None and weight.requires_grad:
        raise RuntimeError(f"linear_{loss}_loss: weight must not require grad, got one that does")
    if is_transforming():
        with no_autocast(input):
            return reference.linear_loss(*arguments)
    operands = (input, linear_weight, linear_bias, target)
    return LinearLoss.apply(*arguments, [t is not None and t.requires_grad for t in operands])[0]


def recorded_loss_grads(*arguments: Arguments) -> tuple[Tensor, list[Tensor]]:
    """The operator ``linear_loss_grads`` there: its gradients come from plain PyTorch, which differentiates them."""
    *arguments, wanted = arguments
    value = torch.ops.linreg_ext.linear_loss(*arguments)
    of = _wanted_operands(arguments, wanted).values()
    grads = differentiable_grads(torch.ones_like(value), *arguments, wanted)
    return value, [grad.to(_gradient_dtype(operand)) for grad, operand in zip(grads, of, strict=True)]


def _wanted_operands(arguments: Arguments, wanted: list[bool]) -> dict[str, Tensor]:
    """What ``linear_loss_grads`` returns the gradients of, by name."""
    input, linear_weight, target, linear_bias, *_ = arguments
    operands = dict(zip(OPERANDS, (input, linear_weight, linear_bias, target), strict=True))
    return {name: operands[name] for name, asked in zip(OPERANDS, wanted, strict=True) if asked}


def _gradient_dtype(operand: Tensor) -> torch.dtype:
    return torch.float32 if operand.dtype == torch.float16 else operand.dtype


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
    g = LOSSES[loss].dloss(r, delta)
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
    return [grads[name]() for name, asked in zip(OPERANDS, wanted, strict=True) if asked]


def _like(weight: Tensor, rows: Tensor) -> Tensor:
    """`weight`, one value an element or one a row, in the shape of `rows`."""
    return (weight.unsqueeze(-1) if weight.dim() < rows.dim() else weight).expand_as(rows)


def _fake_linear_loss(*arguments: Arguments) -> Tensor:
    _, linear_weight, target, *_, reduction = arguments
    shape = target.shape if reduction == "none" else ()
    return linear_weight.new_empty(shape, dtype=loss_dtype(linear_weight, target))


def _fake_linear_loss_grads(*arguments: Arguments) -> tuple[Tensor, list[Tensor]]:
    _, linear_weight, target, *_, wanted = arguments
    value = linear_weight.new_empty((), dtype=loss_dtype(linear_weight, target))
    of = _wanted_operands(arguments, wanted).values()
    return value, [t.new_empty(t.shape, dtype=_gradient_dtype(t)) for t in of]


def _fake_sgd_step_(input: Tensor, target: Tensor, parameters: list[Tensor], *_: Any, **__: Any) -> Tensor:
    refuse_transforms("sgd_step_")
    return parameters[0].new_empty((), dtype=loss_dtype(parameters[0], target))


def _fake_sgd_run_(
    input: Tensor, target: Tensor, parameters: list[Tensor], *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_transforms("sgd_run_")
    *_, order, validation_input, validation_target, _, batch_size, drop_last, _, begin, end = others
    rows = input.shape[0] if order is None else order.shape[-1]
    epoch_steps = rows // batch_size if drop_last else -(-rows // batch_size)
    new_empty, dtype = parameters[0].new_empty, loss_dtype(parameters[0], target)
    losses, done = new_empty(end - begin, dtype=dtype), new_empty((), dtype=torch.int64)
    if validation_input is None:
        return losses, new_empty(0, dtype=dtype), done
    epochs_ended = end // epoch_steps - begin // epoch_steps if epoch_steps else 0
    return losses, new_empty(epochs_ended, dtype=loss_dtype(parameters[0], validation_target)), done


if not REFERENCE:
    torch.library.register_fake("linreg_ext::linear_loss", _fake_linear_loss)
    torch.library.register_fake("linreg_ext::linear_loss_grads", _fake_linear_loss_grads)
    torch.library.register_fake("linreg_ext::sgd_step_", _fake_sgd_step_)
    torch.library.register_fake("linreg_ext::sgd_run_", _fake_sgd_run_)
