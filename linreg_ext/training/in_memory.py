# SPDX-License-Identifier: BSD-3-Clause
"""Data sets whose items are rows of two tensors in memory."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset


class NotInMemoryError(Exception):
    """The items are not known to be rows of two tensors."""


def tensors_of(dataset: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """(x, y, rows) of a data set whose item i is (x[rows[i]], y[rows[i]]); rows is None for i itself."""
    if type(dataset) is Subset:
        x, y, rows = tensors_of(dataset.dataset)
        indices = row_numbers(dataset.indices, len(x) if rows is None else len(rows))
        return x, y, indices if rows is None else rows[indices]
    if type(dataset) is TensorDataset:
        pair = dataset.tensors
    else:
        pair = _attributes_of(dataset)
    if len(pair) != 2 or any(type(t) is not Tensor or t.dim() == 0 for t in pair):
        raise NotInMemoryError
    x, y = pair
    if x.device != y.device or x.device.type not in ("cpu", "cuda"):
        raise NotInMemoryError
    count = len(dataset)
    if count > min(len(x), len(y)):
        raise NotInMemoryError
    return (x, y, None) if count == len(x) == len(y) else (x[:count], y[:count], None)


def row_numbers(indices: Any, size: int) -> Tensor:
    """Indices into `size` rows as a tensor, none of them negative."""
    if isinstance(indices, range) and indices.step == 1 and 0 <= indices.start <= indices.stop <= size:
        return torch.arange(indices.start, indices.stop)
    try:
        rows = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices))
    except (TypeError, ValueError, RuntimeError):
        raise NotInMemoryError from None
    if rows.numel() == 0 and rows.dim() == 1:
        return torch.empty(0, dtype=torch.int64)
    if rows.dim() != 1 or rows.dtype != torch.int64 or rows.device.type != "cpu" or type(rows) is not Tensor:
        raise NotInMemoryError
    low, high = (int(bound) for bound in rows.aminmax())
    if low < -size or high >= size:
        raise NotInMemoryError
    return torch.where(rows < 0, rows + size, rows) if low < 0 else rows


def _attributes_of(dataset: Any) -> tuple[Any, ...]:
    """The two tensors of a data set of the user's own whose item is ``self.x[index], self.y[index]``, as written."""
    cls = type(dataset)
    getitem = cls.__dict__.get("__getitem__")
    template = _Template.__getitem__.__code__
    if (
        not isinstance(getitem, FunctionType)
        or getitem.__code__.co_code != template.co_code
        or getitem.__code__.co_argcount != template.co_argcount
        or len(getitem.__code__.co_names) != 2
        or cls.__getattribute__ is not object.__getattribute__
        or hasattr(dataset, "__getitems__")
        or hasattr(cls, "__iter__")
    ):
        raise NotInMemoryError
    names = getitem.__code__.co_names
    if any(hasattr(cls, name) or name not in dataset.__dict__ for name in names):
        raise NotInMemoryError
    return tuple([dataset.__dict__[name] for name in names])


class _Template:
    """The items that are recognised, by their bytecode, whatever the attributes are called."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]  # type: ignore[attr-defined]
