# SPDX-License-Identifier: BSD-3-Clause
"""What arguments must look like: the checks of the reference and of the fake kernels.

``csrc/torch/check.cpp`` makes the same checks in the same words for the compiled operators; one table of bad inputs
in ``tests/test_errors.py`` holds all three to that.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

LOSSES = ("mse", "l1", "huber", "smooth_l1")
REDUCTIONS = ("none", "mean", "sum")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require_tensors(op: str, required: dict[str, Any], optional: dict[str, Any]) -> None:
    """Raise TypeError for the first argument that is not a tensor (or, where optional, None)."""
    for name, value in required.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    for name, value in optional.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor or None, got {type(value).__name__}")


def require_options(op: str, loss: Any, delta: Any, reduction: Any) -> None:
    """Raise TypeError for the first of a loss's options that is of another type."""
    _require_text(op, "loss", loss)
    require_number(op, _threshold(op), delta)
    _require_text(op, "reduction", reduction)


def require_number(op: str, name: str, value: Any) -> None:
    """Raise TypeError for what does not become a float."""
    several = isinstance(value, Tensor) and value.numel() != 1
    if several or not (isinstance(value, (float, int)) or hasattr(type(value), "__float__")):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}") from None


def _require_text(op: str, name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} must be a str, got {type(value).__name__}")


def _integer(op: str, name: str, value: Any) -> int:
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an int or None, got {type(value).__name__}") from None


def _threshold(op: str) -> str:
    return "beta" if op == "linear_smooth_l1_loss" else "delta"


def check_problem(
    op: str,
    input: Tensor,  # [*, D]
    linear_weight: Tensor,  # [K, D] or [D]
    target: Tensor,  # [*, K] or [*]
    linear_bias: Tensor | None,  # [K] or []
    weight: Tensor | None,  # target's shape, or one value a row
    loss: str,
    delta: float,
    reduction: str,
) -> None:
    """Check everything that the pass needs to be true of its arguments."""
    require_options(op, loss, delta, reduction)
    if loss not in LOSSES:
        raise ValueError(f"{op}: loss must be one of {_quoted(LOSSES)}, got '{loss}'")
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {_quoted(REDUCTIONS)}, got '{reduction}'")
    if loss == "huber" and not delta > 0:
        raise ValueError(f"{op}: delta must be > 0, got {delta:g}")
    if loss == "smooth_l1" and not delta >= 0:
        raise ValueError(f"{op}: {_threshold(op)} must be >= 0, got {delta:g}")

    named = {"input": input, "linear_weight": linear_weight, "target": target}
    named |= {"linear_bias": linear_bias} if linear_bias is not None else {}
    named |= {"weight": weight} if weight is not None else {}
    for name, tensor in named.items():
        if tensor.layout != torch.strided or tensor.is_nested:
            raise RuntimeError(f"{op}: {name} must be a dense tensor, not a sparse or nested one")

    if input.dtype not in DTYPES:
        raise RuntimeError(f"{op}: input must have dtype {_words(DTYPES)}, got {_word(input.dtype)}")
    data = (input.dtype, torch.float32) if input.dtype.itemsize == 2 else (input.dtype,)
    _check_dtype(op, "linear_weight", linear_weight, data)
    _check_dtype(op, "target", target, data)
    if linear_bias is not None:
        _check_dtype(op, "linear_bias", linear_bias, (linear_weight.dtype,))
    if weight is not None:
        _check_dtype(op, "weight", weight, tuple(dict.fromkeys((input.dtype, loss_dtype(linear_weight, target)))))

    if input.dim() < 1:
        raise RuntimeError(f"{op}: input must have at least 1 dimension, got shape []")
    rows, d = list(input.shape[:-1]), input.shape[-1]
    if linear_weight.dim() not in (1, 2) or linear_weight.shape[-1] != d:
        raise RuntimeError(
            f"{op}: linear_weight must have shape [out_features, {d}] or [{d}], got {list(linear_weight.shape)}"
        )
    outputs = [linear_weight.shape[0]] if linear_weight.dim() == 2 else []
    _check_shape(op, "target", target, [rows + outputs])
    if linear_bias is not None:
        _check_shape(op, "linear_bias", linear_bias, [outputs] if outputs else [[], [1]])
    if weight is not None:
        _check_shape(op, "weight", weight, [rows + outputs] + ([rows, [*rows, 1]] if outputs else []))

    for name, tensor in named.items():
        if tensor.device != input.device:
            raise RuntimeError(f"{op}: {name} must be on {input.device}, got {tensor.device}")


def loss_dtype(linear_weight: Tensor, target: Tensor) -> torch.dtype:
    """The dtype of the loss, as PyTorch promotes those of prediction and target."""
    return torch.promote_types(linear_weight.dtype, target.dtype)


def check_sgd(
    op: str,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    weight_momentum_buffer: Tensor | None,
    bias_momentum_buffer: Tensor | None,
    reduction: str,
    lr_tensor: Tensor | None,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    weight_frozen: bool,
    bias_frozen: bool,
    steps: int = 1,
    also_read: dict[str, Tensor | None] | None = None,
) -> None:
    """Check what the rule adds to the pass: hyper-parameters, state, and that nothing it writes is also read.

    Of a run, `steps` says how many learning rates there may be and `also_read` which tensors it has beside these.
    """
    numbers = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    for name, value in numbers.items():
        require_number(op, name, value)
    if reduction == "none":
        raise ValueError(f"{op}: reduction must be 'mean' or 'sum', got 'none'")
    if lr_tensor is not None:
        if lr_tensor.numel() != 1 and list(lr_tensor.shape) != [steps]:
            one = "a float or a 1-element tensor"
            expected = one if steps == 1 else f"a float, a 1-element tensor or one of shape [{steps}]"
            raise ValueError(f"{op}: lr must be {expected}, got shape {list(lr_tensor.shape)}")
        _check_dtype(op, "lr", lr_tensor, (torch.float32, torch.float64))
        if lr_tensor.device != input.device and lr_tensor.device.type != "cpu":
            raise RuntimeError(f"{op}: lr must be on {input.device} or cpu, got {lr_tensor.device}")
    elif not lr >= 0:
        raise ValueError(f"{op}: lr must be >= 0, got {lr:g}")
    if not momentum >= 0:
        raise ValueError(f"{op}: momentum must be >= 0, got {momentum:g}")
    if not weight_decay >= 0:
        raise ValueError(f"{op}: weight_decay must be >= 0, got {weight_decay:g}")
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError(
            f"{op}: nesterov must be False unless momentum > 0 and dampening == 0, "
            f"got momentum {momentum:g} and dampening {dampening:g}"
        )
    if math.isnan(dampening):
        raise ValueError(f"{op}: dampening must be a number, got nan")

    written: list[tuple[str, Tensor]] = []
    read: list[tuple[str, Tensor]] = []
    (read if weight_frozen else written).append(("linear_weight", linear_weight))
    if linear_bias is not None:
        (read if bias_frozen else written).append(("linear_bias", linear_bias))
    if momentum != 0:
        for i, parameter, buffer, frozen in (
            (0, linear_weight, weight_momentum_buffer, weight_frozen),
            (1, linear_bias, bias_momentum_buffer, bias_frozen),
        ):
            if parameter is None or frozen:
                continue
            name = f"momentum_buffers[{i}]"
            if buffer is None:
                raise ValueError(f"{op}: {name} must be a tensor when momentum != 0, got None")
            _check_dtype(op, name, buffer, (parameter.dtype,))
            _check_shape(op, name, buffer, [list(parameter.shape)])
            if buffer.device != input.device:
                raise RuntimeError(f"{op}: {name} must be on {input.device}, got {buffer.device}")
            written.append((name, buffer))
    for name, tensor in written:
        if tensor.is_neg():
            raise RuntimeError(
                f"{op}: {name} must not have the negative bit, since it is written to; "
                "pass its resolve_neg(), which is a copy"
            )
    read += [("input", input), ("target", target)]
    if weight is not None:
        read.append(("weight", weight))
    if lr_tensor is not None:
        read.append(("lr", lr_tensor))
    read += [(name, tensor) for name, tensor in (also_read or {}).items() if tensor is not None]
    if found := find_overlap(written, read):
        name, other = found
        raise RuntimeError(
            f"{op}: {name} must not overlap itself in memory (is it expanded?)"
            if name == other
            else f"{op}: {name} must not overlap {other} in memory"
        )


def find_overlap(written: list[tuple[str, Tensor]], read: list[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The names of two tensors that share memory, the first of them written; twice its own for one that is expanded."""
    for i, (name, tensor) in enumerate(written):
        expanded = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if expanded and tensor.numel():
            return name, name
        for other_name, other in written[i + 1 :] + read:
            if overlap(tensor, other):
                return name, other_name
    return None


def check_run(
    op: str,
    input: Tensor,  # [N, D]
    order: Tensor | None,  # [rows] or [epochs, rows]
    batch_size: int,
    drop_last: bool,
    epochs: int,
    begin: int,
    end: int,
) -> int:
    """Check what orders the steps of a run, but for the rows that `order` names; returns the steps of an epoch."""
    if input.dim() != 2:
        raise RuntimeError(f"{op}: input must have shape [rows, in_features], got {list(input.shape)}")
    if batch_size < 1:
        raise ValueError(f"{op}: batch_size must be >= 1, got {batch_size}")
    if epochs < 0:
        raise ValueError(f"{op}: epochs must be >= 0, got {epochs}")
    rows = input.shape[0]
    if order is not None:
        _check_dtype(op, "order", order, (torch.int64,))
        if order.dim() != 1 and not (order.dim() == 2 and order.shape[0] == epochs):
            raise RuntimeError(f"{op}: order must have shape [rows] or [{epochs}, rows], got {list(order.shape)}")
        if not order.is_contiguous():
            raise RuntimeError(f"{op}: order must be contiguous")
        if order.device not in (input.device, torch.device("cpu")):
            either = "" if input.device.type == "cpu" else " or cpu"
            raise RuntimeError(f"{op}: order must be on {input.device}{either}, got {order.device}")
        rows = order.shape[-1]
    epoch_steps = rows // batch_size if drop_last else -(-rows // batch_size)
    steps = epoch_steps * epochs
    if not 0 <= begin <= end <= steps:
        raise ValueError(f"{op}: begin and end must be in order and at most {steps}, got {begin} and {end}")
    return epoch_steps


def run_sizes(
    op: str, input: Tensor, order: Tensor | None, batch_size: int | None, drop_last: bool, epochs: int | None
) -> tuple[int, int, int]:
    """The batch size, epochs and steps of a run as its arguments mean them, in range or not.

    Raises:
        TypeError: `batch_size` or `epochs` is not an int.
    """
    shape = input.shape if order is None else order.shape[-1:]
    rows = shape[0] if len(shape) else 0
    batch_size = max(1, rows) if batch_size is None else _integer(op, "batch_size", batch_size)
    if epochs is None:
        epochs = order.shape[0] if order is not None and order.dim() == 2 else 1
    epochs = _integer(op, "epochs", epochs)
    if batch_size < 1 or epochs < 0:
        return batch_size, epochs, 0
    return batch_size, epochs, epochs * (rows // batch_size if drop_last else -(-rows // batch_size))


def check_momentum_buffers(
    momentum: float, buffers: list[Tensor | None] | None, op: str = "sgd_step_"
) -> list[Tensor | None]:
    """The two momentum buffers, of the weight and of the bias; both None where there is no momentum."""
    try:
        if not momentum > 0:  # a momentum below 0 is check_sgd's to refuse
            return [None, None]
    except TypeError:
        require_number(op, "momentum", momentum)
        raise
    if not isinstance(buffers, list) or len(buffers) != 2:
        got = f"{len(buffers)} entries" if isinstance(buffers, list) else type(buffers).__name__
        raise ValueError(
            f"{op}: momentum_buffers must be a list [buffer of linear_weight, buffer of linear_bias] "
            f"when momentum != 0, got {got}"
        )
    for i, buffer in enumerate(buffers):
        if buffer is not None and not isinstance(buffer, Tensor):
            raise TypeError(f"{op}: momentum_buffers[{i}] must be a Tensor or None, got {type(buffer).__name__}")
    return buffers


def overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors share an element, exactly for tensors that are rows at one distance from each other.

    Columns of one matrix interleave without sharing anything (a weight and the bias column beside it), so comparing
    the first and last address is not enough.
    """
    if a.numel() == 0 or b.numel() == 0 or a.untyped_storage()._cdata != b.untyped_storage()._cdata:
        return False
    (start, length, count, step), other = sorted((_rows(a), _rows(b)), key=lambda rows: rows[2])
    other_start, other_length, other_count, other_step = other
    for begin in range(start, start + count * step, step):
        # Of the other's rows, the last that starts at or before `begin` and the one after it can reach this row.
        j = max(0, (begin - other_start) // other_step)
        for other_begin in (other_start + j * other_step, other_start + (j + 1) * other_step):
            exists = other_begin < other_start + other_count * other_step
            if exists and begin < other_begin + other_length and other_begin < begin + length:
                return True
    return False


def _rows(t: Tensor) -> tuple[int, int, int, int]:
    """First byte, length, count and distance of the rows of `t` in bytes; one row from end to end if it has no rows."""
    size = t.element_size()
    start = t.storage_offset() * size
    if t.dim() in (1, 2) and not t.is_contiguous():
        width = t.shape[1] if t.dim() == 2 else 1
        if t.stride(0) >= width and (width == 1 or t.stride(1) == 1):
            return start, width * size, t.shape[0], t.stride(0) * size
    length = size * (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)))
    return start, length, 1, length


def _check_dtype(op: str, name: str, tensor: Tensor, expected: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in expected:
        raise RuntimeError(f"{op}: {name} must have dtype {_words(expected)}, got {_word(tensor.dtype)}")


def _check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[list[int]]) -> None:
    if all(list(tensor.shape) != shape for shape in expected):
        shapes = _joined([str(shape) for shape in expected])
        raise RuntimeError(f"{op}: {name} must have shape {shapes}, got {list(tensor.shape)}")


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _words(dtypes: Sequence[torch.dtype]) -> str:
    return _joined([_word(dtype) for dtype in dtypes])


def _quoted(words: Sequence[str]) -> str:
    return _joined([f"'{word}'" for word in words])


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
