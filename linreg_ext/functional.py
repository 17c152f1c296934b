# SPDX-License-Identifier: BSD-3-Clause
"""The fused losses and SGD steps as functions of tensors.

A call goes through the operators, `csrc/torch/ops.cpp` (eager losses: `autograd.cpp`), to a pass or a run,
`csrc/cpu/{linear_loss,sgd_step,sgd_run}.cpp` or `csrc/cuda/{pass,sgd_run}.cu`, or to many runs,
`csrc/cpu/sgd_run_many.cpp`. The CPU multiplies rows and weights in `csrc/cpu/tiles.h` (few features: `columns.h`; many
targets: `products.cpp`; SGD steps on small batches: `small_steps.cpp`) and sums losses in `csrc/cpu/residuals.h`; a GPU
does both in `csrc/cuda/tiles.cuh`. The formulas are in `csrc/math/losses.h`.
"""

from __future__ import annotations

import inspect
import itertools
import operator
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import reference
from ._extension import _C, REFERENCE, has_kernels
from .autocast import cast, is_autocast, no_autocast
from .autograd import refuse_transforms
from .losses import LOSSES, Loss, threshold_of

_OPS = reference if REFERENCE else torch.ops.linreg_ext


class LossFunction(Protocol):
    """The signature of every `linear_<loss>_loss`; `threshold` is the loss's parameter, if any."""

    def __call__(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        **threshold: float,
    ) -> Tensor: ...


_SUMMARY = """{title} of a linear layer, in one pass over `input`.

        P = X Wᵀ + b,   R = P − Y,   loss = reduce(ℓ(R)),   ℓ(r) = {formula}

    {derivative}
"""

_ARGUMENTS = """
    Autocast casts the operands as for `F.linear` and its loss: `input`, `linear_weight` and `linear_bias` to its dtype,
    `target` and `weight` to float32. The loss is float32, and the predictions are not rounded.

    Args:
        input: X, of shape [*, D]; float32, float64, bfloat16 or float16. Any row stride is read in place; input whose
            last dimension is not contiguous is copied.
        linear_weight: W, of shape [K, D], or [D] for a single target without a dimension of its own; of input's dtype,
            or float32 if `input` is 16-bit.
        target: Y, of shape [*, K], or [*] if `linear_weight` is [D]; of input's dtype, or float32 if `input` is 16-bit.
            It is never broadcast.
        linear_bias: b, of shape [K], or [] or [1] if `linear_weight` is [D]; of linear_weight's dtype.
        weight: v, of target's shape, or one per row: [*] or [*, 1]. `"mean"` then divides by the sum of the weights.
            Not differentiable.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Returns:
        The loss: 0-dim, or of target's shape with `reduction="none"`; of the dtype to which those of linear_weight and
        target promote. Twice differentiable in `input`, `linear_weight`, `linear_bias` and `target`.

    Raises:
        TypeError: an argument is not a tensor, a threshold is not a number, or `reduction` is not a str.
        ValueError: `reduction` is unknown, or a threshold is out of range.
        RuntimeError: a shape, dtype or device does not match, or `weight` requires grad.
"""

_EXAMPLE = """
    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> layer = torch.nn.Linear(8, 1)
        >>> loss = {function}(x, layer.weight, y, linear_bias=layer.bias)
        >>> loss.backward()
    """


def _docstring(loss: Loss, function: str) -> str:
    """Complete for `linear_mse_loss`; its siblings' say only what differs."""
    text = _SUMMARY.format(title=loss.title, formula=loss.formula, derivative=loss.derivative)
    own, option = loss.threshold, ""
    if loss.name == "mse":
        text += _ARGUMENTS
    else:
        text += "\n    Everything else is as in `linear_mse_loss`.\n"
    if own is not None:
        text += f"\n    Args:\n        {own.name}: {own.meaning}.\n"
        option = f", {own.name}={own.name}"
    if loss.function is not None:
        call = f"F.{loss.function.__name__}(F.linear(input, linear_weight, linear_bias), target, "
        text += f"\n    Equivalent to:\n        `{call}reduction=reduction{option})`\n"
    return text + _EXAMPLE.format(function=function)


def _loss_function(loss: Loss) -> LossFunction:
    """The public function for a row of the table."""
    name, own = f"linear_{loss.name}_loss", loss.threshold

    def function(
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        *,
        linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
        reduction: str = "mean",
        **threshold: float,
    ) -> Tensor:
        value = 1.0
        if own is not None:
            value = threshold.pop(own.name, own.default)
        if threshold:
            raise TypeError(f"{name}() got an unexpected keyword argument '{next(iter(threshold))}'")
        return linear_loss(loss.name, value, input, linear_weight, target, linear_bias, weight, reduction)

    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if own is not None:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(own.name, kind, default=own.default, annotation="float"))
    function.__signature__ = signature.replace(parameters=parameters)
    function.__name__ = function.__qualname__ = name
    function.__module__ = __package__  # where pickle and torch.fx find it
    function.__doc__ = _docstring(loss, name)
    return function


def linear_loss(
    loss: str,
    threshold: float,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """Every loss, by name."""
    compiling = torch.compiler.is_compiling()
    if _C is not None and not compiling:
        value = _C.linear_loss(input, linear_weight, target, linear_bias, weight, loss, threshold, reduction)
        if value is not NotImplemented:
            return value
    operands = (input, linear_weight, target, linear_bias, weight)
    if not compiling and has_torch_function(operands):
        options = {"linear_bias": linear_bias, "weight": weight, "reduction": reduction}
        options |= LOSSES[loss].options(threshold)
        return handle_torch_function(FUNCTIONS[loss], operands, *operands[:3], **options)
    if is_autocast(input):
        operands = cast(*operands)
        with no_autocast(input):
            return linear_loss(loss, threshold, *operands, reduction)
    try:
        return _OPS.linear_loss(*operands, loss, threshold, reduction)
    except RuntimeError as error:
        _explain(f"linear_{loss}_loss", error, *operands)
        raise


FUNCTIONS = {loss.name: _loss_function(loss) for loss in LOSSES.values()}


def sgd_step_(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    loss: str = "mse",
    delta: float | None = None,
    beta: float | None = None,
    quantile: float | None = None,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffers: list[Tensor | None] | None = None,
) -> Tensor:
    """Take one SGD step of a linear model under a mean loss, in place, in one pass over `input`.

    For the mean squared error over N rows and K targets:

        R = X Wᵀ + b − Y,   loss = (1/NK) Σ R²,   g_W = (2/NK) Rᵀ X,   g_b = (2/NK) Σ_rows R

    Each parameter p is then updated in this order: g = −g if maximize; g += weight_decay·p; with momentum, buf = g at
    the first step, momentum·buf + (1 − dampening)·g later, and g = g + momentum·buf if nesterov else buf; p −= lr·g.

    Like an optimizer, it takes no part in autograd or autocast: parameters that require grad are updated in any grad
    mode, and nothing is cast.

    Args:
        input: X, of shape [*, D], as in `linear_mse_loss`.
        linear_weight: W, of shape [K, D] or [D]; updated in place.
        target: Y, of shape [*, K], or [*] if `linear_weight` is [D].
        linear_bias: b, of shape [K]; updated in place.
        weight: one per element of `target` or one per row; the mean divides by their sum.
        loss: the `<loss>` of a function `linear_<loss>_loss`, such as `"mse"`.
        delta, beta, quantile: the threshold of the loss that has one of this name; None is its default.
        lr: a float, or a 1-element float32 or float64 tensor, which is read on its device. torch.compile recompiles
            for every float, but not for every value of a tensor.
        momentum, dampening, weight_decay, nesterov, maximize: as in `torch.optim.SGD`.
        momentum_buffers: with momentum, a list [buffer of linear_weight, buffer of linear_bias] that carries the state
            from step to step. None marks a parameter that has not stepped yet; the call replaces it with a new buffer.

    Returns:
        The loss before the update: a new 0-dim tensor, with the dtype of the loss in `linear_mse_loss`.

    Raises:
        TypeError: as in `linear_mse_loss`, or a hyper-parameter is not a number.
        ValueError: as in `linear_mse_loss`, a hyper-parameter is out of range, or a threshold belongs to another loss.
        RuntimeError: as in `linear_mse_loss`, a tensor has the negative bit, a tensor to be written overlaps itself or
            another argument in memory, or a torch.func transform is active. An error leaves all arguments unchanged.

    Equivalent to:
        `loss = F.mse_loss(F.linear(input, linear_weight, linear_bias), target); loss.backward()`, then `step()` and
        `zero_grad()` of `torch.optim.SGD([linear_weight, linear_bias], lr, …)`.

    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> w, b = torch.zeros(1, 8), torch.zeros(1)
        >>> for _ in range(100):
        ...     loss = sgd_step_(x, w, y, linear_bias=b, lr=0.1)
    """
    threshold = 1.0
    if loss != "mse" or delta is not None or beta is not None or quantile is not None:
        threshold = threshold_of("sgd_step_", loss, delta=delta, beta=beta, quantile=quantile)
    parameters = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    state = _NO_STATE if momentum == 0 else _momentum_state("sgd_step_", parameters, momentum, momentum_buffers)
    rate, lr_tensor = (lr, None) if type(lr) is float or not isinstance(lr, Tensor) else (0.0, lr)
    value = sgd_step(
        input, target, parameters, state[0], (rate, momentum, dampening, weight_decay, nesterov, maximize), loss,
        threshold, weight, lr_tensor, "mean", state[1], 0, False,
    )  # fmt: skip
    if state[1]:
        momentum_buffers[: len(parameters)] = state[0]
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
    delta: float | None = None,
    beta: float | None = None,
    quantile: float | None = None,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffers: list[Tensor | None] | None = None,
    stop_nonfinite: bool = False,
) -> Tensor:
    """Take many SGD steps of a linear model under a mean loss, in place, in one call.

    An epoch splits its rows into batches, and each batch is one `sgd_step_`, on the CPU bit for bit.

    Ctrl-C ends the run between two steps, within about 50 ms or one step, whichever is longer. On a GPU a shorter run
    never waits for the device, unless `stop_nonfinite` is set.

    Arguments that are not listed are as in `sgd_step_`.

    Args:
        input: X, of shape [N, D].
        target: Y, of shape [N, K], or [N] if `linear_weight` is [D].
        order: the rows of an epoch in order, int64 of shape [rows], or [epochs, rows] with an order for each epoch; on
            the CPU or on input's device. None takes all rows in sequence, in place.
        batch_size: the rows of a step; the last batch of an epoch may be smaller. None takes them all.
        drop_last: whether to drop a smaller last batch.
        epochs: the number of epochs; None is 1, or the number of orders in `order`.
        lr: a float, a 1-element tensor, or a tensor of shape [steps] with a learning rate for each step.
        stop_nonfinite: whether to end the run before the first step whose loss is nan or inf.

    Returns:
        The loss before each update: a new tensor of shape [steps], of the dtype of a step's loss. If `stop_nonfinite`
        ended the run, it is shorter, and its last entry is the loss of the step that was not taken.

    Raises:
        TypeError: as in `sgd_step_`, or `batch_size` or `epochs` is not an int.
        ValueError, RuntimeError: as in `sgd_step_`.
        IndexError: `order` is on the CPU and contains an out-of-range index; on a GPU such a row is read as nan.

    Equivalent to:
        `for _ in range(epochs):` `for B in order.split(batch_size):`
        `sgd_step_(input[B], linear_weight, target[B], …)`

    Example:
        >>> x, y = torch.randn(80, 1), torch.randn(80, 1)
        >>> w, b = torch.zeros(1, 1), torch.zeros(1)
        >>> order = torch.stack([torch.randperm(80) for _ in range(100)])
        >>> losses = sgd_run_(x, w, y, linear_bias=b, order=order, batch_size=16, lr=0.1)
    """
    refuse_transforms("sgd_run_")
    threshold = threshold_of("sgd_run_", loss, delta=delta, beta=beta, quantile=quantile)
    parameters = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    state = _NO_STATE if momentum == 0 else _momentum_state("sgd_run_", parameters, momentum, momentum_buffers)
    rate, lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    batch_size, epochs, steps = _run_sizes(input, order, batch_size, drop_last, epochs)
    step = (
        input, target, parameters, state[0], (rate, momentum, dampening, weight_decay, nesterov, maximize), loss,
        threshold, weight, lr_tensor, "mean", state[1], 0, stop_nonfinite,
    )  # fmt: skip
    chunks: list[Chunk] = []
    try:
        sizes = (batch_size, drop_last, epochs)
        if torch.compiler.is_compiling() and not REFERENCE:  # one call: chunks would specialise on the number of steps
            chunks.append(_OPS.sgd_run_(*_schema_arguments(step), order, None, None, None, *sizes, 0, steps))
        else:
            sgd_run(step, order, (None, None, None), sizes, steps, chunks)
    finally:
        if state[1] and steps and chunks and (not stop_nonfinite or steps_taken(chunks)):
            momentum_buffers[: len(parameters)] = state[0]
    losses = torch.cat([part[0] for part in chunks]) if len(chunks) > 1 else chunks[0][0]
    return losses[: steps_taken(chunks) + 1] if stop_nonfinite else losses


def sgd_run_many_(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    offsets: Tensor | None = None,
    order: Tensor | None = None,
    batch_size: int | None = None,
    drop_last: bool = False,
    epochs: int = 1,
    loss: str = "mse",
    delta: float | None = None,
    beta: float | None = None,
    quantile: float | None = None,
    lr: float | Tensor,
    momentum: float | Tensor = 0.0,
    dampening: float = 0.0,
    weight_decay: float | Tensor = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    momentum_buffers: list[Tensor | None] | None = None,
) -> Tensor:
    """Train P linear models at once, each by a `sgd_run_` of its own, in place, in one call.

    Each problem ends as its `sgd_run_` alone would end it, on the CPU bit for bit. The problems have their own rows,
    share the rows and differ in targets or hyper-parameters, or are groups of rows of different sizes.

    Ctrl-C ends the call between problems. On a GPU, those that fit in a block's shared memory run at once, one per
    block; larger ones run one after another.

    Arguments that are not listed are as in `sgd_run_`.

    Args:
        input: X, of shape [P, N, D]; [N, D], rows that all problems share; or [rows, D] with `offsets`.
        linear_weight: W, of shape [P, K, D], or [P, D] for a single target without a dimension of its own; updated in
            place.
        target: Y, of shape [P, N, K], or without its dimension K beside a `linear_weight` of shape [P, D]. If all
            problems share the rows, it may do without P, and with `offsets` it does.
        linear_bias: b, of shape [P, K]; updated in place.
        weight: one per element of `target` or one per row, with a dimension P if `target` has one.
        offsets: int64 of shape [P + 1], on the CPU: problem p has the rows from offsets[p] to offsets[p + 1] − 1.
        order: the rows of an epoch in order, for every problem, as in `sgd_run_`. With `offsets`, problem p takes the
            entries from offsets[p] to offsets[p + 1] − 1 of an order of rows of `input`.
        batch_size: the rows of a step. None takes all of a problem's.
        epochs: the number of epochs.
        lr, momentum, weight_decay: a float, or a tensor of shape [P] with a number for each problem.
        momentum_buffers: as in `sgd_step_`, with the shapes of the parameters. If Ctrl-C ends the call, new buffers are
            not kept.

    Returns:
        The mean loss of each epoch, weighted by its batches' rows or sums of weights: a new tensor of shape
        [P, epochs], of the dtype of a step's loss; nan for a problem that has no steps.

    Raises:
        TypeError, ValueError, RuntimeError, IndexError: as in `sgd_run_`. The offsets fall, or lie outside the rows.

    Equivalent to:
        `for p in range(P): sgd_run_(input[p], linear_weight[p], target[p], linear_bias=linear_bias[p], …)`

    Example:
        >>> x, y = torch.randn(1000, 80, 3), torch.randn(1000, 80, 1)
        >>> w, b = torch.zeros(1000, 1, 3), torch.zeros(1000, 1)
        >>> losses = sgd_run_many_(x, w, y, linear_bias=b, epochs=100, lr=0.1)
    """
    op = "sgd_run_many_"
    refuse_transforms(op)
    threshold = threshold_of(op, loss, delta=delta, beta=beta, quantile=quantile)
    parameters = [linear_weight] if linear_bias is None else [linear_weight, linear_bias]
    numbers = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    tensors = [number if isinstance(number, Tensor) else None for number in numbers.values()]
    lr, momentum, weight_decay = (1.0 if isinstance(number, Tensor) else number for number in numbers.values())
    state = _NO_STATE if momentum == 0 else _momentum_state(op, parameters, momentum, momentum_buffers)
    if batch_size is None:  # as many rows as any problem may have
        rows = input.shape[-2] if isinstance(input, Tensor) and input.dim() >= 2 else 1
        batch_size, drop_last = max(1, rows if not isinstance(order, Tensor) else order.numel()), False
    sizes = (_integer(op, "batch_size", batch_size), drop_last, _integer(op, "epochs", epochs))
    step = (
        input, target, parameters, state[0], (lr, momentum, dampening, weight_decay, nesterov, maximize), loss,
        threshold, weight, *tensors, state[1], offsets, order, *sizes,
    )  # fmt: skip
    problems = len(linear_weight) if isinstance(linear_weight, Tensor) and linear_weight.dim() else 0
    if torch.compiler.is_compiling() and not REFERENCE:
        losses = _OPS.sgd_run_many_(*_schema_arguments(step), 0, problems)
    else:
        losses = _run_many(step, problems)
    if state[1]:
        momentum_buffers[: len(parameters)] = state[0]
    return losses


def _run_many(step: tuple[Any, ...], problems: int) -> Tensor:
    """Call the operator `linreg_ext::sgd_run_many_` in chunks of problems, with all arguments but these given."""
    op = reference.sgd_run_many_ if REFERENCE else _C.sgd_run_many_
    input, target, parameters, *_, epochs = step
    own_rows = step[12] is not None or (isinstance(input, Tensor) and input.dim() == 3)
    together = torch.get_num_threads() * (1 if own_rows else _SHARED_READINGS)  # at least, so that no thread waits
    size, device, result = 0, torch.device("cpu"), []
    if problems and isinstance(input, Tensor) and input.dim():
        size = input.numel() // (problems if own_rows else 1) * max(1, epochs) * together
        device = input.device
    most = problems  # at once
    if device.type == "cpu":
        most = max(1, _LOSSES // max(1, epochs) // together) * together

    def take(begin: int, end: int) -> tuple[None, None, int]:
        stop = min(end * together, problems)
        for first in range(begin * together, max(stop, 1), most):
            last = min(first + most, stop)
            losses = op(*step, first, last)
            if last - first == problems:
                result.append(losses)
                break
            if not result:
                result.append(losses.new_empty(problems, epochs))
            result[0][first:last] = losses
        return None, None, end - begin

    try:
        run_in_chunks(take, lambda begin, end: (begin, end), -(-problems // together), size, device, [])
    except RuntimeError as error:
        _explain("sgd_run_many_", error, input, parameters[0], target, *parameters[1:], step[7])
        raise
    return result[0]


_NO_STATE: tuple[list[Tensor], int] = ([], 0)


def _momentum_state(
    op: str, parameters: list[Tensor], momentum: float, buffers: list[Tensor | None] | None
) -> tuple[list[Tensor], int]:
    """The momentum buffers, new where there is none yet, and a bit for each parameter whose first step this is."""
    try:
        if not momentum > 0:
            return _NO_STATE  # the operator rejects it
    except TypeError:
        return _NO_STATE
    if not isinstance(buffers, list) or len(buffers) != 2:
        got = f"{len(buffers)} entries" if isinstance(buffers, list) else type(buffers).__name__
        raise ValueError(
            f"{op}: momentum_buffers must be a list [buffer of linear_weight, buffer of linear_bias] "
            f"when momentum != 0, got {got}; start with [None, None]"
        )
    first = [i < len(parameters) and buffers[i] is None for i in range(2)]
    if not any(first):
        return buffers[: len(parameters)], 0
    state = [
        torch.zeros_like(p) if is_first and isinstance(p, Tensor) else buffer
        for p, buffer, is_first in zip(parameters, buffers, first, strict=False)
    ]
    return state, first[0] | first[1] << 1


def _run_sizes(
    input: Tensor, order: Tensor | None, batch_size: int | None, drop_last: bool, epochs: int | None
) -> tuple[int, int, int]:
    """The batch size, epochs and steps of a run; 0 steps for arguments that the operator rejects."""
    rows = 0
    if isinstance(input, Tensor) and input.dim() and (order is None or (isinstance(order, Tensor) and order.dim())):
        rows = input.shape[0] if order is None else order.shape[-1]
    if epochs is None:
        epochs = order.shape[0] if isinstance(order, Tensor) and order.dim() == 2 else 1
    batch_size = max(1, rows) if batch_size is None else _integer("sgd_run_", "batch_size", batch_size)
    epochs = _integer("sgd_run_", "epochs", epochs)
    if batch_size < 1 or epochs < 0:
        return batch_size, epochs, 0
    return batch_size, epochs, epochs * (rows // batch_size if drop_last else -(-rows // batch_size))


def _integer(op: str, name: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int or None, got {type(value).__name__}") from None


def sgd_run(
    step: tuple[Any, ...],
    order: Tensor | None,
    validation: tuple[Tensor | None, ...],
    sizes: tuple[int, bool, int],
    steps: int,
    chunks: list[Chunk],
) -> None:
    """Call the operator `linreg_ext::sgd_run_` in chunks, with all arguments but `begin` and `end` given.

    Args:
        step: as for `sgd_step`.
        validation: the input, target and weight on which to compute the loss after each epoch.
        sizes: batch_size, drop_last and epochs.
        chunks: as in `run_in_chunks`.
    """
    input = step[0]

    def arguments(begin: int, end: int) -> tuple[Any, ...]:
        nonlocal order, step
        if begin and len(chunks) == 1:  # copy what needs it once, not in every chunk
            order = None if order is None else order.to(input.device)
            step = (input if input.stride(1) == 1 else input.contiguous(), *step[1:10], 0, *step[11:])
        return (*step, order, *validation, *sizes, begin, end)

    size, device = 0, torch.device("cpu")
    if steps:  # else the arguments may not even be tensors, which the operator rejects
        size, device = min(sizes[0], len(input)) * (step[2][0].numel() + 1), input.device
    try:
        op = reference.sgd_run_ if REFERENCE else _C.sgd_run_
        run_in_chunks(op, arguments, steps, size, device, chunks)
    except RuntimeError as error:
        _explain("sgd_run_", error, *_operands(step))
        raise


Chunk = tuple[Tensor, Tensor, Tensor]  # losses, validation losses and the number of steps taken
_SHARED_READINGS = 8  # problems of a thread that share a reading of their rows: kMostTogether in csrc/cpu/plan.h
_LOSSES = 1 << 15  # that a call for some of many problems returns; they are copied to those of all
_CHUNK_SECONDS = 0.03  # between checks for signals
_FIRST_CHUNK_SECONDS = 0.01  # estimated, perhaps an order of magnitude off


def run_in_chunks(
    op: Callable[..., Chunk],
    arguments: Callable[[int, int], tuple[Any, ...]],
    steps: int,
    step_size: int,
    device: torch.device,
    chunks: list[Chunk],
) -> None:
    """Take the steps of a run in chunks, between which Python handles signals.

    Args:
        op: takes steps. If it is implemented in C, no signal handler can run before its result is stored.
        arguments: of `op` for the steps [begin, end).
        steps: the number of steps.
        step_size: the approximate number of multiplications in a step.
        device: where the steps run.
        chunks: receives op's result for each chunk, including the one that a signal interrupts.
    """
    overhead, per_product = (5e-8, 1e-9) if device.type == "cpu" else (5e-6, 4e-12)
    seconds = overhead + per_product * max(1, step_size)  # estimated for a step
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    count = steps
    if count * seconds > _FIRST_CHUNK_SECONDS and not captured:  # a capture cannot wait between chunks
        count = max(1, int(_FIRST_CHUNK_SECONDS / seconds))
    begin = 0
    while True:
        end = min(steps, begin + count)
        started = time.perf_counter()
        chunks.extend(itertools.starmap(op, (arguments(begin, end),)))
        if end == steps or int(chunks[-1][2]) < end - begin:  # reading it waits for the GPU, as the clock must
            return
        elapsed = max(1e-9, time.perf_counter() - started)
        count = max(1, min(4 * count, int(count * _CHUNK_SECONDS / elapsed)))
        begin = end


def steps_taken(chunks: list[Chunk]) -> int:
    """The number of steps that the chunks of a run took."""
    return sum(int(done) for _, _, done in chunks)


def sgd_step(*arguments: Any) -> Tensor:
    """The operator `linreg_ext::sgd_step_` by the shortest path; it takes its arguments positionally."""
    if REFERENCE or torch.compiler.is_compiling():
        refuse_transforms("sgd_step_")
        return _OPS.sgd_step_(*_schema_arguments(arguments))
    try:
        return _C.sgd_step_(*arguments)
    except RuntimeError as error:
        _explain("sgd_step_", error, *_operands(arguments))
        raise


def _schema_arguments(step: tuple[Any, ...]) -> tuple[Any, ...]:
    """A step's arguments in the types of its schema, which is stricter than the direct entry.

    AOTInductor turns an empty list into None, so a rule without momentum gets buffers that it ignores.
    """
    buffers = step[3] or [p.new_empty(0) for p in step[2]]
    return (*step[:3], buffers, [float(number) for number in step[4]], *step[5:])


def _operands(step: tuple[Any, ...]) -> tuple[Any, ...]:
    return step[0], step[2][0], step[1], *step[2][1:], step[7]


def _explain(op: str, error: RuntimeError, input: Tensor, linear_weight: Tensor, target: Tensor, *others: Any) -> None:
    """Raise a clearer error if the dispatcher's is about DTensors or a device without kernels."""
    operands = {"linear_weight": linear_weight, "input": input, "target": target, "linear_bias or weight": others}
    for name, operand in operands.items():
        if any(type(t).__name__ == "DTensor" for t in (operand if isinstance(operand, tuple) else (operand,))):
            raise NotImplementedError(
                f"{op}: {name} is a DTensor, and the operator has no sharding rule; pass to_local() or full_tensor()"
            ) from None
    if isinstance(error, NotImplementedError) and not has_kernels(input.device.type):
        raise NotImplementedError(
            f"{op}: this build has no kernels for tensors on {input.device.type} (see linreg_ext.build_info()); "
            "move them to cpu, or set LINREG_EXT_REFERENCE=1 to run on plain PyTorch"
        )
