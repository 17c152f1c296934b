# SPDX-License-Identifier: BSD-3-Clause
"""`LinearLoss`, the differentiable form of the operators, and the fake kernels with which PyTorch traces them."""

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

OPERANDS = ("input", "linear_weight", "linear_bias", "target")  # the differentiable ones, in the order of gradients


class LinearLoss(Function):
    """The loss of a linear layer, followed by the wanted gradients in the order of `OPERANDS`.

    One pass computes them all, and backward scales the gradients. Those of float16 operands are float32 until then,
    since unscaled ones may exceed float16's range. Second derivatives and unreduced losses recompute
    G = dloss/dprediction.

    For reduced losses of plain tensors, eager code uses `csrc/torch/autograd.cpp`, the same in C++.
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
        if reduction == "none":  # the gradients depend on each element's grad_output
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
            if torch.is_grad_enabled() or is_transforming() or _is_batched(grad_loss):  # must itself be differentiable
                values = differentiable_grads(grad_loss, *operands, ctx.loss, ctx.delta, ctx.reduction, ctx.wanted)
            elif ctx.reduction == "none":  # as for a sum whose weights are multiplied by grad_output
                *others, weight = operands
                weight = grad_loss if weight is None else grad_loss * _like(weight, grad_loss)
                values = torch.ops.linreg_ext.linear_loss_grads(
                    *others, weight, ctx.loss, ctx.delta, "sum", ctx.wanted
                )[1]
            else:
                # A 0-dim grad_loss would be rounded to a 16-bit gradient's dtype first.
                values = [grad_loss.reshape([1] * saved_grad.dim()) * saved_grad for saved_grad in saved]
            of = _wanted_operands(operands, ctx.wanted)
            grads = {name: value.to(operand.dtype) for (name, operand), value in zip(of.items(), values, strict=True)}
        return (
            grads.get("input"), grads.get("linear_weight"), grads.get("target"), grads.get("linear_bias"),
            None, None, None, None, None,
        )  # fmt: skip


Arguments = Any  # an operator's: input, linear_weight, target, linear_bias, weight, loss, delta, reduction


def recorded_loss(*arguments: Arguments) -> Tensor:
    """The operator `linear_loss` under autograd, called by `csrc/torch/ops.cpp`."""
    input, linear_weight, target, linear_bias, weight, loss, *_ = arguments
    if weight is not None and weight.requires_grad:
        raise RuntimeError(f"linear_{loss}_loss: weight must not require grad, got one that does; detach it")
    if is_transforming():
        with no_autocast(input):
            return reference.linear_loss(*arguments)
    operands = (input, linear_weight, linear_bias, target)
    return LinearLoss.apply(*arguments, [t is not None and t.requires_grad for t in operands])[0]


def recorded_loss_grads(*arguments: Arguments) -> tuple[Tensor, list[Tensor]]:
    """The operator `linear_loss_grads` under autograd; plain PyTorch computes the gradients, differentiably."""
    *arguments, wanted = arguments
    value = torch.ops.linreg_ext.linear_loss(*arguments)
    of = _wanted_operands(arguments, wanted).values()
    grads = differentiable_grads(torch.ones_like(value), *arguments, wanted)
    return value, [grad.to(_gradient_dtype(operand)) for grad, operand in zip(grads, of, strict=True)]


def _wanted_operands(arguments: Arguments, wanted: list[bool]) -> dict[str, Tensor]:
    """The operands whose gradients `linear_loss_grads` returns, by name."""
    input, linear_weight, target, linear_bias, *_ = arguments
    operands = dict(zip(OPERANDS, (input, linear_weight, linear_bias, target), strict=True))
    return {name: operands[name] for name, asked in zip(OPERANDS, wanted, strict=True) if asked}


def _gradient_dtype(operand: Tensor) -> torch.dtype:
    return torch.float32 if operand.dtype == torch.float16 else operand.dtype


def is_transforming() -> bool:
    """Whether torch.func or forward-mode AD is active.

    Both differentiate without regard to `requires_grad`, so plain PyTorch runs instead of the kernels.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


# As torch.compiler.assume_constant_result does, without importing the compiler. Dynamo enters the transforms that it
# traces and guards on those around them, so the result is indeed constant.
is_transforming._dynamo_marked_constant = True


def refuse_transforms(op: str) -> None:
    """The check of `csrc/torch/plain.h`, for calls that do not reach the compiled part."""
    if is_transforming():
        raise RuntimeError(
            f"{op}: must not be called inside a torch.func transform or forward-mode AD, which can neither "
            "differentiate nor batch an in-place step; transform linear_mse_loss or a sibling instead"
        )


def _is_batched(grad_loss: Tensor) -> bool:
    """Whether backward runs under `is_grads_batched`."""
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
    """The wanted gradients in plain PyTorch, differentiable in `grad_loss` and operands; float32 for 16-bit ones."""
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
    """`weight`, one per element or per row, expanded to the shape of `rows`."""
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


def _fake_sgd_run_many_(input: Tensor, target: Tensor, parameters: list[Tensor], *others: Any) -> Tensor:
    refuse_transforms("sgd_run_many_")
    *_, epochs, begin, end = others
    return parameters[0].new_empty((end - begin, epochs), dtype=loss_dtype(parameters[0], target))


if not REFERENCE:
    torch.library.register_fake("linreg_ext::linear_loss", _fake_linear_loss)
    torch.library.register_fake("linreg_ext::linear_loss_grads", _fake_linear_loss_grads)
    torch.library.register_fake("linreg_ext::sgd_step_", _fake_sgd_step_)
    torch.library.register_fake("linreg_ext::sgd_run_", _fake_sgd_run_)
    torch.library.register_fake("linreg_ext::sgd_run_many_", _fake_sgd_run_many_)
    torch.library.register_fake("linreg_ext::moments_", lambda *_: None)
    torch.library.register_fake(
        "linreg_ext::residual_moments", lambda x, y, v, w, *_: w.new_empty(w.shape[0], w.shape[1] + 2)
    )
    torch.library.register_fake("linreg_ext::descend_", lambda *operands: operands[5].new_empty(operands[5].shape))
