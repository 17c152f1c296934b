# SPDX-License-Identifier: BSD-3-Clause
"""The fused losses and the fused SGD steps as functions of tensors.

The formula of a loss is a row of ``csrc/math/losses.h``, summed over the rows by ``csrc/cpu/rows.cpp`` (small steps:
``small_steps.cpp``) or ``csrc/cuda/rows.cuh``. In between are the operators, in ``csrc/torch/ops.cpp`` (an eager loss:
``autograd.cpp``), and the passes: ``csrc/cpu/{linear_loss,sgd_step,sgd_run}.cpp``, ``csrc/cuda/{pass,sgd_run}.cu``.
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
    """What the functions ``linear_<loss>_loss`` have in common; `threshold` is the loss's own keyword, if any."""

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


_SUMMARY = r"""{title} of a linear layer, in one pass over `input`.

    .. math::
        P = X W^T + b, \quad R = P - Y, \quad
        \text{{loss}} = \text{{reduce}}(\ell(R)), \quad \ell(r) = {formula}

    {derivative}
"""

_ARGUMENTS = """
    Under autocast, as `F.linear` and the loss there, `input`, `linear_weight` and `linear_bias` are cast to its dtype,
    `target` and `weight` to float32, and the loss is float32. Nothing is rounded between the two.

    Args:
        input: X, of shape [*, D]; float32, float64, bfloat16 or float16. Any row stride is read in place; a copy is
            made when the last dimension is not contiguous.
        linear_weight: W, of shape [K, D], or [D] for one target without a dimension of its own. Of input's dtype, or
            float32 when input is 16-bit.
        target: Y, of shape [*, K], or [*] when `linear_weight` is [D]; of input's dtype, or float32 when input is
            16-bit. It is never broadcast.
        linear_bias: b, of shape [K] ([] or [1] when `linear_weight` is [D]); of linear_weight's dtype.
        weight: v, of target's shape, or one value a row: [*] or [*, 1]. ``"mean"`` then divides by its sum. No gradient
            flows to it.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss: 0-dim, or of target's shape with ``reduction="none"``; of the dtype that linear_weight's and target's
        promote to. Differentiable, twice, in input, linear_weight, linear_bias and target.

    Raises:
        TypeError: an argument is not a tensor, a threshold is not a number, or `reduction` is not a str.
        ValueError: `reduction` or a threshold is out of range.
        RuntimeError: a shape, dtype or device does not fit, or `weight` requires grad.
"""

_EXAMPLE = """
    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> layer = torch.nn.Linear(8, 1)
        >>> loss = {function}(x, layer.weight, y, linear_bias=layer.bias)
        >>> loss.backward()
    """


def _docstring(loss: Loss, function: str) -> str:
    """All of it for `linear_mse_loss`; its siblings' say what differs."""
    text = _SUMMARY.format(title=loss.title, formula=loss.formula, derivative=loss.derivative)
    own, option = loss.threshold, ""
    if loss.name == "mse":
        text += _ARGUMENTS
    else:
        text += "\n    Further arguments, shapes, results and errors are those of :func:`linear_mse_loss`.\n"
    if own is not None:
        text += f"\n    Args:\n        {own.name}: {own.meaning}.\n"
        option = f", {own.name}={own.name}"
    if loss.function is not None:
        call = f"F.{loss.function.__name__}(F.linear(input, linear_weight, linear_bias), target, "
        text += f"\n    Equivalent to:\n        ``{call}reduction=reduction{option})``\n"
    return text + _EXAMPLE.format(function=function)


def _loss_function(loss: Loss) -> LossFunction:
    """The public function of a row of the table."""
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
    function.__module__ = __package__  # which has it under this name, for pickle and torch.fx
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
    """The losses under one name."""
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
    r"""One SGD step of a linear model under a mean loss, in place, in one pass over `input`.

    For the mean squared error over N rows and K targets:

    .. math::
        R = X W^T + b - Y, \quad \text{loss} = \tfrac{1}{NK} \sum R^2, \quad
        g_W = \tfrac{2}{NK} R^T X, \quad g_b = \tfrac{2}{NK} \sum_{rows} R

    and then for each parameter p, in this order: g = −g if maximize; g += weight_decay·p; with momentum, buf = g the
    first time and momentum·buf + (1 − dampening)·g later, and g = g + momentum·buf if nesterov else buf; p −= lr·g.

    No autograd takes part: a parameter that requires grad is updated as an optimizer would, in any grad mode. Neither
    does autocast: nothing is cast, as in an optimizer.

    Args:
        input: X, of shape [*, D], as in :func:`linear_mse_loss`.
        linear_weight: W, of shape [K, D] or [D]; updated in place.
        target: Y, of shape [*, K], or [*] when `linear_weight` is [D].
        linear_bias: b, of shape [K]; updated in place.
        weight: one value an element of target or one a row; the mean divides by its sum.
        loss: ``"mse"`` or another of the losses: a function ``linear_<loss>_loss`` exists for each.
        delta, beta, quantile: the threshold of the loss that has it under that name; None is its default.
        lr: a float, or a 1-element float32 or float64 tensor, which is read where it lives. torch.compile compiles anew
            for every float, and once for a tensor.
        momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`.
        momentum_buffers: with momentum, a list [buffer of linear_weight, buffer of linear_bias] that carries the
            state from step to step. A None entry says that this parameter has not stepped yet; the call puts its new
            buffer there.

    Returns:
        The loss before the update: a fresh 0-dim tensor of the dtype that linear_weight's and target's promote to.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`linear_mse_loss`; TypeError for a hyper-parameter that is not a
            number; ValueError for one out of range and for a threshold of another loss; RuntimeError when a tensor has
            the negative bit, when one to be written shares memory with itself or with another argument (`overlap`),
            and inside a torch.func transform. Nothing is changed when an error is raised.

    Equivalent to:
        ``loss = F.mse_loss(F.linear(input, linear_weight, linear_bias), target); loss.backward()`` and one
        ``torch.optim.SGD([linear_weight, linear_bias], lr, …).step()`` and ``zero_grad()``.

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
    r"""Many SGD steps of a linear model under a mean loss, in place, in one call.

    An epoch goes through the rows in batches, and each batch is a step of :func:`sgd_step_`, on the CPU bit for bit:

    .. math::
        W, b \leftarrow \text{sgd\_step\_}(X_B, W, Y_B, b), \quad
        B = \text{order}[i \cdot \text{batch\_size} : (i + 1) \cdot \text{batch\_size}]

    Ctrl-C ends the run within some 50 ms or one step, whichever is longer, with the parameters between two steps. On a
    GPU nothing waits for the device in a run that it takes less than that for, unless `stop_nonfinite` is set.

    Args:
        input, target: X, of shape [N, D], and Y, of shape [N, K], or [N] when `linear_weight` is [D].
        order: the rows of an epoch in their order, int64 of shape [rows], or [epochs, rows] with an order for every
            epoch, on the CPU or where `input` is. None takes every row in turn, and where they lie.
        batch_size: how many rows a step takes; the last batch of an epoch has what is left. None takes all.
        drop_last: leaves a last batch out that is shorter.
        epochs: how often to go through the rows; None is once, or once for every row of `order`.
        lr: a float, a 1-element tensor, or a tensor of shape [steps] with one for every step.
        linear_weight, linear_bias, weight, loss, delta, beta, quantile: as in :func:`sgd_step_`.
        momentum, dampening, weight_decay, nesterov, maximize, momentum_buffers: as in :func:`sgd_step_`.
        stop_nonfinite: end at the first step whose loss is nan or inf, with the parameters as that step found them.

    Returns:
        The loss before each update: a fresh tensor of shape [steps], of the dtype that a step's has. A run that
        `stop_nonfinite` has ended has fewer, and the last one is the loss that ended it, of a step not taken.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sgd_step_`; TypeError for a `batch_size` or `epochs` that is
            not an int.
        IndexError: `order`, on the CPU, contains an out-of-range index; on a GPU such a row is nan.
            Nothing is changed when an error is raised.

    Equivalent to:
        ``for _ in range(epochs):`` and ``for B in order.split(batch_size):`` the call
        ``sgd_step_(input[B], linear_weight, target[B], …)``.

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
        if torch.compiler.is_compiling() and not REFERENCE:  # in one piece: a range would be for one number of steps
            chunks.append(_OPS.sgd_run_(*_schema_arguments(step), order, None, None, None, *sizes, 0, steps))
        else:
            _run(step, order, sizes, steps, chunks)
    finally:
        if state[1] and steps and chunks and (not stop_nonfinite or steps_taken(chunks)):
            momentum_buffers[: len(parameters)] = state[0]
    losses = torch.cat([part[0] for part in chunks]) if len(chunks) > 1 else chunks[0][0]
    return losses[: steps_taken(chunks) + 1] if stop_nonfinite else losses


_NO_STATE: tuple[list[Tensor], int] = ([], 0)


def _momentum_state(
    op: str, parameters: list[Tensor], momentum: float, buffers: list[Tensor | None] | None
) -> tuple[list[Tensor], int]:
    """The parameters' momentum buffers, new ones where there are none, and the bits of those whose first step it is."""
    try:
        if not momentum > 0:
            return _NO_STATE  # the operator refuses it
    except TypeError:
        return _NO_STATE
    if not isinstance(buffers, list) or len(buffers) != 2:
        got = f"{len(buffers)} entries" if isinstance(buffers, list) else type(buffers).__name__
        raise ValueError(
            f"{op}: momentum_buffers must be a list [buffer of linear_weight, buffer of linear_bias] "
            f"when momentum != 0, got {got}"
        )
    first = [i < len(parameters) and buffers[i] is None for i in range(2)]
    if not any(first):
        return buffers[: len(parameters)], 0
    state = [
        torch.empty_like(p) if is_first and isinstance(p, Tensor) else buffer
        for p, buffer, is_first in zip(parameters, buffers, first, strict=False)
    ]
    return state, first[0] | first[1] << 1


def _run_sizes(
    input: Tensor, order: Tensor | None, batch_size: int | None, drop_last: bool, epochs: int | None
) -> tuple[int, int, int]:
    """The batch size, epochs and steps of a run. Arguments that the operator refuses make no steps."""
    rows = 0
    if isinstance(input, Tensor) and input.dim() and (order is None or (isinstance(order, Tensor) and order.dim())):
        rows = input.shape[0] if order is None else order.shape[-1]
    if epochs is None:
        epochs = order.shape[0] if isinstance(order, Tensor) and order.dim() == 2 else 1
    batch_size = max(1, rows) if batch_size is None else _integer("batch_size", batch_size)
    epochs = _integer("epochs", epochs)
    if batch_size < 1 or epochs < 0:
        return batch_size, epochs, 0
    return batch_size, epochs, epochs * (rows // batch_size if drop_last else -(-rows // batch_size))


def _integer(name: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"sgd_run_: {name} must be an int or None, got {type(value).__name__}") from None


def _run(
    step: tuple[Any, ...], order: Tensor | None, sizes: tuple[int, bool, int], steps: int, chunks: list[Chunk]
) -> None:
    """The operator ``linreg_ext::sgd_run_``, in chunks: its arguments but `begin` and `end`."""
    input = step[0]

    def arguments(begin: int, end: int) -> tuple[Any, ...]:
        nonlocal order, step
        if begin and len(chunks) == 1:  # else every chunk would copy all rows, and the order to a GPU
            order = None if order is None else order.to(input.device)
            step = (input if input.stride(1) == 1 else input.contiguous(), *step[1:10], 0, *step[11:])
        return (*step, order, None, None, None, *sizes, begin, end)

    size, device = 0, torch.device("cpu")
    if steps:  # else there may be something else than tensors, which the operator says
        size, device = min(sizes[0], len(input)) * (step[2][0].numel() + 1), input.device
    try:
        op = reference.sgd_run_ if REFERENCE else _C.sgd_run_
        run_in_chunks(op, arguments, steps, size, device, chunks)
    except RuntimeError as error:
        _explain("sgd_run_", error, *_operands(step))
        raise


Chunk = tuple[Tensor, Tensor, Tensor]  # of a run: its losses, validation losses, and how many steps it took
_CHUNK_SECONDS = 0.03  # between two looks at whether the user wants to stop
_FIRST_CHUNK_SECONDS = 0.01  # of estimated work, which may be an order of magnitude off


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
        op: takes steps; a function in C, so that no signal comes between its end and its result.
        arguments: those of `op` for the steps [begin, end).
        steps: how many to take.
        step_size: the products of a step, about.
        chunks: gets what `op` returns for each chunk, also of the one in which a signal arrived.
    """
    start, number = (5e-8, 1e-9) if device.type == "cpu" else (5e-6, 4e-12)
    seconds = start + number * max(1, step_size)  # of a step, about
    captured = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    count = steps
    if count * seconds > _FIRST_CHUNK_SECONDS and not captured:  # into a graph, which cannot wait
        count = max(1, int(_FIRST_CHUNK_SECONDS / seconds))
    begin = 0
    while True:
        end = min(steps, begin + count)
        started = time.perf_counter()
        chunks.extend(itertools.starmap(op, (arguments(begin, end),)))
        if end == steps or int(chunks[-1][2]) < end - begin:  # which waits for a GPU, so that there is a time to go by
            return
        elapsed = max(1e-9, time.perf_counter() - started)
        count = max(1, min(4 * count, int(count * _CHUNK_SECONDS / elapsed)))
        begin = end


def steps_taken(chunks: list[Chunk]) -> int:
    """How many steps the chunks of a run have taken."""
    return sum(int(done) for _, _, done in chunks)


def sgd_step(*arguments: Any) -> Tensor:
    """The operator ``linreg_ext::sgd_step_`` by its shortest way: its arguments in its order, positionally."""
    if REFERENCE or torch.compiler.is_compiling():
        refuse_transforms("sgd_step_")
        return _OPS.sgd_step_(*_schema_arguments(arguments))
    try:
        return _C.sgd_step_(*arguments)
    except RuntimeError as error:
        _explain("sgd_step_", error, *_operands(arguments))
        raise


def _schema_arguments(step: tuple[Any, ...]) -> tuple[Any, ...]:
    """A step's arguments in the types of its schema, of which the direct entry takes others, too.

    AOTInductor hands an empty list over as None, so there are buffers, which a rule without momentum does not look at.
    """
    buffers = step[3] or [p.new_empty(0) for p in step[2]]
    return (*step[:3], buffers, [float(number) for number in step[4]], *step[5:])


def _operands(step: tuple[Any, ...]) -> tuple[Any, ...]:
    return step[0], step[2][0], step[1], *step[2][1:], step[7]


def _explain(op: str, error: RuntimeError, input: Tensor, linear_weight: Tensor, target: Tensor, *others: Any) -> None:
    """Say what is wrong with tensors for which the dispatcher has no kernel, if that is what is wrong."""
    operands = {"linear_weight": linear_weight, "input": input, "target": target, "linear_bias or weight": others}
    for name, operand in operands.items():
        if any(type(t).__name__ == "DTensor" for t in (operand if isinstance(operand, tuple) else (operand,))):
            raise NotImplementedError(
                f"{op}: {name} is a DTensor, for which there is no sharding rule; pass its to_local() or full_tensor()"
            ) from None
    if isinstance(error, NotImplementedError) and not has_kernels(input.device.type):
        raise NotImplementedError(
            f"{op}: this build has no kernels for tensors on {input.device.type} (see linreg_ext.build_info()); "
            "move them to cpu, or set LINREG_EXT_REFERENCE=1 to run on plain PyTorch"
        )
