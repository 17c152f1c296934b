# SPDX-License-Identifier: BSD-3-Clause
"""Autocast for a linear layer and its loss: `F.linear` in the lower precision, the loss in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

Operands = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for tensor's device."""
    device = tensor.device.type
    return _has_autocast(device) and torch.is_autocast_enabled(device)


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


_has_autocast._dynamo_marked_constant = True  # torch 2.11's Dynamo cannot trace the query


def no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast is off for tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False) if is_autocast(tensor) else nullcontext()


def cast(
    input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None, weight: Tensor | None
) -> Operands:
    """The operands as autocast casts those of `F.linear` and the loss; float64 is left alone."""
    lower = torch.get_autocast_dtype(input.device.type)
    return (
        _to(lower, input), _to(lower, linear_weight), _to(torch.float32, target), _to(lower, linear_bias),
        _to(torch.float32, weight),
    )  # fmt: skip


def _to(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(dtype)
