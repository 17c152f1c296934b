# SPDX-License-Identifier: BSD-3-Clause
"""The fused losses and the fused SGD step as functions of tensors."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import reference
from ._extension import _C, REFERENCE, has_kernels
from .autocast import cast, is_autocast, no_autocast
from .autograd import refuse_transforms, register_fakes
from .check import check_momentum_buffers, check_problem, require_options, require_tensors, run_sizes

if not REFERENCE:
    register_fakes()


def linear_mse_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean squared error of a linear layer, in one pass over `input`.

    .. math::
        P = X W^T + b, \quad R = P - Y, \quad
        \text{loss} = \text{reduce}(\ell(R)), \quad \ell(r) = r^2

    The factor is PyTorch's: :math:`dW = \tfrac{2}{NK} R^T X` for ``"mean"`` (scikit-learn halves the loss).

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
        TypeError: an argument is not a tensor, or `reduction` not a str.
        ValueError: `reduction` is out of range.
        RuntimeError: a shape, dtype or device does not fit, or `weight` requires grad.

    Equivalent to:
        ``F.mse_loss(F.linear(input, linear_weight, linear_bias), target, reduction=reduction)``

    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> layer = torch.nn.Linear(8, 1)
        >>> loss = linear_mse_loss(x, layer.weight, y, linear_bias=layer.bias)
        >>> loss.backward()
    """
    return linear_loss("mse", 1.0, input, linear_weight, target, linear_bias, weight, reduction)


def linear_l1_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Mean absolute error of a linear layer, in one pass over `input`.

    .. math::
        P = X W^T + b, \quad R = P - Y, \quad
        \text{loss} = \text{reduce}(\ell(R)), \quad \ell(r) = |r|

    The derivative is :math:`\mathrm{sign}(r)`, 0 at r = 0.

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
        TypeError: an argument is not a tensor, or `reduction` not a str.
        ValueError: `reduction` is out of range.
        RuntimeError: a shape, dtype or device does not fit, or `weight` requires grad.

    Equivalent to:
        ``F.l1_loss(F.linear(input, linear_weight, linear_bias), target, reduction=reduction)``

    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> layer = torch.nn.Linear(8, 1)
        >>> loss = linear_l1_loss(x, layer.weight, y, linear_bias=layer.bias)
        >>> loss.backward()
    """
    return linear_loss("l1", 1.0, input, linear_weight, target, linear_bias, weight, reduction)


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
    r"""Huber loss of a linear layer, in one pass over `input`.

    .. math::
        P = X W^T + b, \quad R = P - Y, \quad
        \text{loss} = \text{reduce}(\ell(R)), \quad
        \ell(r) = r^2/2 \text{ if } |r| \le \delta \text{ else } \delta(|r| - \delta/2)

    The derivative is r clamped to [−δ, δ].

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
        delta: δ, where the quadratic part ends; > 0.

    Returns:
        The loss: 0-dim, or of target's shape with ``reduction="none"``; of the dtype that linear_weight's and target's
        promote to. Differentiable, twice, in input, linear_weight, linear_bias and target.

    Raises:
        TypeError: an argument is not a tensor, `reduction` not a str or `delta` not a number.
        ValueError: `reduction` or `delta` is out of range.
        RuntimeError: a shape, dtype or device does not fit, or `weight` requires grad.

    Equivalent to:
        ``F.huber_loss(F.linear(input, linear_weight, linear_bias), target, reduction=reduction, delta=delta)``

    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> layer = torch.nn.Linear(8, 1)
        >>> loss = linear_huber_loss(x, layer.weight, y, linear_bias=layer.bias)
        >>> loss.backward()
    """
    return linear_loss("huber", delta, input, linear_weight, target, linear_bias, weight, reduction)


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
    r"""Smooth L1 loss of a linear layer, in one pass over `input`.

    .. math::
        P = X W^T + b, \quad R = P - Y, \quad
        \text{loss} = \text{reduce}(\ell(R)), \quad
        \ell(r) = r^2/(2\beta) \text{ if } |r| < \beta \text{ else } |r| - \beta/2

    The derivative is r/β clamped to [−1, 1]; β = 0 is the absolute error.

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
        beta: β, where the quadratic part ends; >= 0.

    Returns:
        The loss: 0-dim, or of target's shape with ``reduction="none"``; of the dtype that linear_weight's and target's
        promote to. Differentiable, twice, in input, linear_weight, linear_bias and target.

    Raises:
        TypeError: an argument is not a tensor, `reduction` not a str or `beta` not a number.
        ValueError: `reduction` or `beta` is out of range.
        RuntimeError: a shape, dtype or device does not fit, or `weight` requires grad.

    Equivalent to:
        ``F.smooth_l1_loss(F.linear(input, linear_weight, linear_bias), target, reduction=reduction, beta=beta)``

    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> layer = torch.nn.Linear(8, 1)
        >>> loss = linear_smooth_l1_loss(x, layer.weight, y, linear_bias=layer.bias)
        >>> loss.backward()
    """
    return linear_loss("smooth_l1", beta, input, linear_weight, target, linear_bias, weight, reduction)


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
        loss: ``"mse"``, ``"l1"``, ``"huber"`` or ``"smooth_l1"``.
        delta: the threshold of huber (> 0), the beta of smooth_l1 (>= 0).
        lr: a float, or a 1-element float32 or float64 tensor, which is read where it lives. torch.compile compiles anew
            for every float, and once for a tensor.
        momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`.
        momentum_buffers: with momentum, a list [buffer of linear_weight, buffer of linear_bias] that carries the
            state from step to step. A None entry says that this parameter has not stepped yet; the call puts its new
            buffer there.

    Returns:
        The loss of before the update: a fresh 0-dim tensor of the dtype that linear_weight's and target's promote to.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`linear_huber_loss`; TypeError for a hyper-parameter that is not a
            number, ValueError for one out of range; RuntimeError when a tensor to be written has the negative bit or,
            with the word `overlap`, shares memory with itself or with another argument, and inside a torch.func
            transform. Nothing is changed when an error is raised.

    Equivalent to:
        ``loss = F.mse_loss(F.linear(input, linear_weight, linear_bias), target); loss.backward()`` and one
        ``torch.optim.SGD([linear_weight, linear_bias], lr, …).step()`` and ``zero_grad()``.

    Example:
        >>> x, y = torch.randn(32, 8), torch.randn(32, 1)
        >>> w, b = torch.zeros(1, 8), torch.zeros(1)
        >>> for _ in range(100):
        ...     loss = sgd_step_(x, w, y, linear_bias=b, lr=0.1)
    """
    buffers: list[Tensor | None] = [None, None]
    first_step = [False, False]
    if momentum != 0:
        _require_tensors("sgd_step_", input, linear_weight, target, linear_bias, weight)
        buffers = list(check_momentum_buffers(momentum, momentum_buffers))
        for i, parameter in enumerate((linear_weight, linear_bias)):
            if parameter is not None and buffers[i] is None:
                buffers[i], first_step[i] = torch.empty_like(parameter), True
    lr_tensor, lr_value = (None, lr) if type(lr) is float or not isinstance(lr, Tensor) else (lr, 0.0)
    value = sgd_step(
        input, linear_weight, target, linear_bias, weight, buffers[0], buffers[1], loss, delta, "mean", lr_tensor,
        lr_value, momentum, dampening, weight_decay, nesterov, maximize, first_step[0], first_step[1], False, False,
        False,
    )  # fmt: skip
    if momentum != 0 and any(first_step):
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
    r"""Many SGD steps of a linear model under a mean loss, in place, in one call.

    An epoch goes through the rows in batches, and each batch is a step of :func:`sgd_step_`, on the CPU bit for bit:

    .. math::
        W, b \leftarrow \text{sgd\_step\_}(X_B, W, Y_B, b), \quad
        B = \text{order}[i \cdot \text{batch\_size} : (i + 1) \cdot \text{batch\_size}]

    Ctrl-C ends the run within some 50 ms or one step, whichever is longer, with the parameters between two steps. On a
    GPU nothing waits for the device in a run that it takes less than that for, unless `stop_nonfinite` is set.

    Args:
        input: X, of shape [N, D], as in :func:`linear_mse_loss`.
        linear_weight: W, of shape [K, D] or [D]; updated in place.
        target: Y, of shape [N, K], or [N] when `linear_weight` is [D].
        linear_bias: b, of shape [K]; updated in place.
        weight: one value an element of target or one a row; the mean divides by the batch's sum.
        order: the rows of an epoch in their order, int64 of shape [rows], or [epochs, rows] with an order for every
            epoch, on the CPU or where `input` is. None takes every row in turn, and where they lie.
        batch_size: how many rows a step takes; the last batch of an epoch has what is left. None takes all.
        drop_last: leaves a last batch out that is shorter.
        epochs: how often to go through the rows; None is once, or once for every row of `order`.
        loss: ``"mse"``, ``"l1"``, ``"huber"`` or ``"smooth_l1"``.
        delta: the threshold of huber (> 0), the beta of smooth_l1 (>= 0).
        lr: a float, a 1-element tensor, or a tensor of shape [steps] with one for every step.
        momentum, dampening, weight_decay, nesterov, maximize: as in :class:`torch.optim.SGD`.
        momentum_buffers: as in :func:`sgd_step_`; carries the state from call to call.
        stop_nonfinite: end at the first step whose loss is nan or inf, with the parameters as that step found them.

    Returns:
        The loss of before each update: a fresh tensor of shape [steps], of the dtype that a step's has. A run that
        `stop_nonfinite` has ended has fewer, and the last one is the loss that ended it, of a step not taken.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sgd_step_`; TypeError for a `batch_size` or `epochs` that is
            not an int.
        IndexError: `order`, on the CPU, names a row that there is not; on a GPU such a row is nan.
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
    require_tensors(
        "sgd_run_",
        {"input": input, "linear_weight": linear_weight, "target": target},
        {"linear_bias": linear_bias, "weight": weight, "order": order},
    )
    refuse_transforms("sgd_run_")
    batch_size, epochs, steps = run_sizes("sgd_run_", input, order, batch_size, drop_last, epochs)
    buffers = list(check_momentum_buffers(momentum, momentum_buffers, "sgd_run_"))
    first_step = [False, False]
    if momentum != 0:
        for i, parameter in enumerate((linear_weight, linear_bias)):
            if parameter is not None and buffers[i] is None:
                buffers[i], first_step[i] = torch.empty_like(parameter), True
    fresh = any(first_step)
    lr_tensor, lr_value = (lr, 0.0) if isinstance(lr, Tensor) else (None, lr)
    tensors = (input, linear_weight, target, linear_bias, weight, *buffers, order, None, None)
    sizes, frozen = (batch_size, drop_last, epochs), (False, False)
    rule = (loss, delta, "mean", lr_tensor, lr_value, momentum, dampening, weight_decay, nesterov, maximize)
    parts: list[Stretch] = []
    try:
        if torch.compiler.is_compiling() and not REFERENCE:  # in one piece: a range would be for one number of steps
            op = torch.ops.linreg_ext.sgd_run_
            parts.append(op(*tensors, *sizes, 0, steps, *rule, *first_step, *frozen, stop_nonfinite))
        else:
            sgd_run(tensors, sizes, range(steps), rule, first_step, frozen, stop_nonfinite, parts)
    finally:
        if fresh and steps and parts and (not stop_nonfinite or steps_taken(parts)):
            momentum_buffers[:] = buffers
    losses = torch.cat([part[0] for part in parts]) if len(parts) > 1 else parts[0][0]
    return losses[: steps_taken(parts) + 1] if stop_nonfinite else losses


Stretch = tuple[Tensor, Tensor, Tensor]  # what the operator returns: losses, validation losses, how many steps it took
_STRETCH = 0.03  # seconds between two looks at whether the user wants to stop
_FIRST_STRETCH = 0.01  # of estimated work, which may be an order of magnitude off


def sgd_run(
    tensors: tuple[Tensor | None, ...],
    sizes: tuple[int, bool, int],
    steps: range,
    rule: tuple[Any, ...],
    first_step: list[bool],
    frozen: tuple[bool, bool],
    stop_nonfinite: bool,
    parts: list[Stretch],
) -> None:
    """The operator ``linreg_ext::sgd_run_`` in stretches, between which Python handles signals.

    Args:
        tensors, sizes, rule, first_step, frozen, stop_nonfinite: its arguments in its order, between its flags and
            numbers; `first_step` is for the first of `steps`.
        steps: from the first step to take to the end.
        parts: gets what the operator returns for each stretch, also of the one in which a signal arrived.
    """
    begin, end = steps.start, steps.stop
    op, validation = reference.sgd_run if REFERENCE else _C.sgd_run_, tensors[8:]
    rows = min(sizes[0], len(tensors[0]) if tensors[0].dim() else 1)
    start, number = (5e-8, 1e-9) if tensors[0].device.type == "cpu" else (5e-6, 4e-12)
    seconds = start + number * max(1, rows) * (tensors[1].numel() + 1)  # of a step, about
    count = end - begin
    captured = tensors[0].device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if count * seconds > _FIRST_STRETCH and not captured:  # into a graph, which cannot wait
        count = max(1, int(_FIRST_STRETCH / seconds))
    while True:
        stop = min(end, begin + count)
        arguments = (*tensors, *sizes, begin, stop, *rule, *first_step, *frozen, stop_nonfinite)
        started = time.perf_counter()
        try:
            # Signals are handled between a call and whatever comes after it, so the call itself must keep its result.
            parts.extend(itertools.starmap(op, (arguments,)))
        except RuntimeError as error:
            _refuse("sgd_run_", error, *tensors[:5], *rule[:3])
            raise
        if stop == end or int(parts[-1][2]) < stop - begin:  # which waits for a GPU, so that there is a time to go by
            return
        if begin == steps.start:  # else every stretch would copy all rows, and the order to a GPU
            order = None if tensors[7] is None else tensors[7].to(tensors[0].device)
            tensors = (tensors[0] if tensors[0].stride(1) == 1 else tensors[0].contiguous(), *tensors[1:7], order)
            tensors += validation
        first_step = [False, False]
        count = max(1, min(4 * count, int(count * _STRETCH / max(1e-9, time.perf_counter() - started))))
        begin = stop


def steps_taken(parts: list[Stretch]) -> int:
    """How many steps stretches have taken."""
    return sum(int(done) for _, _, done in parts)


def sgd_step(*arguments: Any) -> Tensor:
    """The operator ``linreg_ext::sgd_step_`` by its shortest way: its arguments in its order, positionally."""
    if REFERENCE or torch.compiler.is_compiling():
        _require_tensors("sgd_step_", *arguments[:5])
        refuse_transforms("sgd_step_")
        return (reference.sgd_step if REFERENCE else torch.ops.linreg_ext.sgd_step_)(*arguments)
    try:
        return _C.sgd_step_(*arguments)
    except RuntimeError as error:
        _refuse("sgd_step_", error, *arguments[:5], *arguments[7:10])
        raise


_LOSSES = {
    "mse": linear_mse_loss, "l1": linear_l1_loss, "huber": linear_huber_loss, "smooth_l1": linear_smooth_l1_loss,
}  # fmt: skip


def linear_loss(
    loss: str,
    delta: float,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """The four losses under one name."""
    if REFERENCE:
        return reference.linear_loss(input, linear_weight, target, linear_bias, weight, loss, delta, reduction)
    if not torch.compiler.is_compiling():
        value = _C.linear_loss(loss, delta, input, linear_weight, target, linear_bias, weight, reduction)
        if value is not NotImplemented:
            return value
    op = f"linear_{loss}_loss"
    operands = (input, linear_weight, target, linear_bias, weight)
    if not torch.compiler.is_compiling() and has_torch_function(operands):
        options = {"linear_bias": linear_bias, "weight": weight, "reduction": reduction, **_threshold(loss, delta)}
        return handle_torch_function(_LOSSES[loss], operands, *operands[:3], **options)
    _require_tensors(op, *operands)
    require_options(op, loss, delta, reduction)
    if is_autocast(input):
        operands = cast(*operands)
        with no_autocast(input):
            return linear_loss(loss, delta, *operands, reduction)
    arguments = (*operands, loss, delta, reduction)
    try:
        return torch.ops.linreg_ext.linear_loss(*arguments)
    except RuntimeError as error:
        _refuse(op, error, *arguments)
        raise


def _threshold(loss: str, delta: float) -> dict[str, float]:
    return {"huber": {"delta": delta}, "smooth_l1": {"beta": delta}}.get(loss, {})


def _require_tensors(op: str, input: Any, linear_weight: Any, target: Any, linear_bias: Any, weight: Any) -> None:
    require_tensors(
        op,
        {"input": input, "linear_weight": linear_weight, "target": target},
        {"linear_bias": linear_bias, "weight": weight},
    )


def _refuse(op: str, error: RuntimeError, input: Tensor, *others: Any) -> None:
    """Say what is wrong with tensors for which the dispatcher has no kernel, if that is what is wrong."""
    operands = zip(("input", "linear_weight", "target", "linear_bias", "weight"), (input, *others[:4]), strict=True)
    distributed = [name for name, operand in operands if type(operand).__name__ == "DTensor"]
    if distributed:
        name = "linear_weight" if "linear_weight" in distributed else distributed[0]
        raise NotImplementedError(
            f"{op}: {name} is a DTensor, for which there is no sharding rule; pass its to_local() or full_tensor()"
        ) from None
    if not isinstance(error, NotImplementedError):
        return
    check_problem(op, input, *others)
    if has_kernels(input.device.type):
        return
    raise NotImplementedError(
        f"{op}: this build has no kernels for tensors on {input.device.type} (see linreg_ext.build_info()); "
        "move them to cpu, or set LINREG_EXT_REFERENCE=1 to run on plain PyTorch"
    )
