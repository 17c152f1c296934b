# SPDX-License-Identifier: BSD-3-Clause
"""The batches of a loader: as the loader yields them or, if they are rows of tensors in memory, as an order of rows.

In each epoch, iterating a DataLoader first draws a base seed for the workers from the loader's generator, even without
workers; then the sampler draws. An order draws the same numbers by iterating the loader's own batch sampler. Sequential
rows and permutations bypass the sampler, because iterating it takes longer than training a small epoch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

Batch = tuple[Tensor, Tensor, Tensor | None]  # input, target and weight
_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Batches:
    """An iterable, once per epoch, over a loader's batches on a device.

    Args:
        may_be_empty: whether an epoch may have no batch.

    Raises:
        ValueError: the loader is known to be empty.
    """

    def __init__(self, name: str, loader: Iterable[Any] | None, device: Any, *, may_be_empty: bool = False) -> None:
        self._name, self._loader, self._device = name, loader, device
        self._had_some, self._may_be_empty = False, may_be_empty
        if not may_be_empty and _is_empty(loader):
            raise ValueError(f"fit: {name} must yield at least one batch, {_why_empty(loader)}")

    def __iter__(self) -> Iterator[Batch]:
        has_some = False
        for batch in batches_of("fit", self._loader):
            has_some = True
            yield batch if self._device is None else to_device(batch, self._device)
        if not (has_some or self._may_be_empty):
            why = _why_empty(self._loader)
            if self._had_some:
                why = (
                    "got none after the first epoch: an iterator can be consumed only once (the parameters are as "
                    "trained so far)"
                )
            raise ValueError(f"fit: {self._name} must yield at least one batch in every epoch, {why}")
        self._had_some = True


def batches_of(op: str, loader: Iterable[Any]) -> Iterator[Batch]:
    """Iterate over a loader's batches: pairs, or triples with weights."""
    for batch in loader:
        count = len(batch) if isinstance(batch, (tuple, list)) else 0
        if count not in (2, 3):
            got = f"{count} items" if count else type(batch).__name__
            raise ValueError(f"{op}: a loader must yield (input, target) or (input, target, weight), got {got}")
        yield batch[0], batch[1], batch[2] if count == 3 else None


def to_device(batch: Batch, device: Any) -> Batch:
    """Move a batch to a device."""
    return tuple([None if part is None else part.to(device, non_blocking=True) for part in batch])


def rows_of(batch: Batch) -> int | Tensor:
    """The weight of a batch in a mean over batches: its number of rows, or their total weight (0-dim float64)."""
    x, _, weight = batch
    return len(x) if weight is None else weight_by_row(weight).sum()


def weight_by_row(weight: Tensor) -> Tensor:
    """[rows], float64: each row's mean weight."""
    return weight.detach().double().unsqueeze(-1).flatten(1).mean(1)


def length_of(loader: Any) -> int | None:
    """The number of batches per epoch; None if the loader has no length."""
    try:
        return len(loader)
    except TypeError:
        return None


def _is_empty(loader: Any) -> bool:
    """Whether a loader is known to be empty without running user code."""
    if type(loader) is DataLoader and type(loader.batch_sampler) is BatchSampler:
        return type(loader.sampler) in _SAMPLERS and len(loader) == 0
    return type(loader) in (list, tuple) and not loader


def _why_empty(loader: Any) -> str:
    if isinstance(loader, DataLoader):
        rows, size = length_of(loader.dataset), loader.batch_size
        if rows and size and loader.drop_last and rows < size:
            return f"but drop_last=True drops the only one: it has {rows} rows, fewer than batch_size={size}"
        return "but its data set is empty" if rows == 0 else "got none"
    return "got none"


class BatchOrder:
    """The order in which a DataLoader visits the rows of tensors in memory.

    Attributes:
        tensors: the input, the target and any weights.
        length: the number of rows per epoch.
        batch_size, drop_last: the loader's.
        is_static: whether every epoch has the same order, `static`, where None means sequential.
        generators: the generators that an epoch draws from, besides torch's default generator.
        numbers: how many 64-bit numbers an epoch draws from the default generator, to draw those of many epochs at
            once; None if the epoch draws anything else from it.
    """

    def __init__(self, loader: DataLoader[Any], tensors: tuple[Tensor, ...], rows: Tensor | None) -> None:
        batches = loader.batch_sampler
        sampler = batches.sampler
        self.tensors, self.batch_size, self.drop_last = tensors, batches.batch_size, batches.drop_last
        self._loader, self._rows, self._seeded = loader, rows, torch.Generator(device="cpu")
        kind, own = type(sampler), getattr(sampler, "generator", None)
        size = len(tensors[0]) if rows is None else len(rows)
        self.length = len(sampler)
        if kind is SubsetRandomSampler:
            population = _row_numbers(sampler.indices, size)
        else:
            count = len(sampler.weights if kind is WeightedRandomSampler else sampler.data_source)
            if count > size:  # iterating raises a better error for the out-of-range index
                raise NotInMemoryError
            population = None if count == size else torch.arange(count, device="cpu")
        if rows is not None:
            population = rows if population is None else rows[population]

        self.is_static = kind is SequentialSampler
        if self.is_static and rows is None and population is not None:  # the first rows, in sequence
            self.tensors, population = tuple([t[: self.length] for t in tensors]), None
        self.static: Tensor | None = population if self.is_static else None
        self._permutes = kind is RandomSampler and not sampler.replacement and self.length == count
        self._once = (self.is_static or self._permutes or kind is SubsetRandomSampler) and not self.drop_last
        self._population = population

        # The default generator supplies the base seed and a permutation's seed, unless the loader or the sampler has
        # its own.
        generators = [loader.generator, own]
        if any(g is not None and g.device.type != "cpu" for g in generators):
            raise NotInMemoryError
        self.generators = [g for g in generators if g is not None]
        self._own = own
        self.numbers: int | None = int(loader.generator is None) + int(self._permutes and own is None)
        if torch.default_generator in generators or not (self.is_static or self._permutes):
            self.numbers = None

    @property
    def epoch_steps(self) -> int:
        """The number of batches per epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def batch(self) -> Batch:
        """All rows of the tensors, as one batch."""
        return (*self.tensors, None)[:3]

    def whole(self) -> Batch | None:
        """The rows of an epoch in any order, if every epoch visits the same rows once each; else None."""
        if not self._once:
            return None
        rows = self._population
        return (*(t if rows is None else t[rows] for t in self.tensors), None)[:3]

    def draw(self, numbers: list[int] | None, wanted: bool) -> Tensor | None:
        """Draw an epoch's random numbers and return its order, [length]; None for sequential rows.

        Args:
            numbers: the values of the `self.numbers` draws, if already made.
            wanted: whether the order is needed; if not, only draws with outside effects are made.
        """
        numbers = list(numbers or ())
        if self._loader.generator is not None or not numbers:
            _draw(self._loader.generator)
        else:
            numbers.pop(0)
        if self.is_static:
            return self.static
        if self._permutes:
            generator = self._own
            if generator is None:
                seed = numbers.pop() if numbers else int(_draw(None))
                if not wanted:
                    return None
                generator = self._seeded.manual_seed(seed)
            order = torch.randperm(self.length, generator=generator, device="cpu")
            if generator is self._own:
                torch.randperm(self.length, generator=generator, device="cpu")  # as the sampler does at its end
        else:
            order = [row for batch in self._loader.batch_sampler for row in batch]
            order = torch.tensor(order, dtype=torch.int64, device="cpu")
            size = len(self.tensors[0]) if self._rows is None else len(self._rows)
            order = torch.where(order < 0, order + size, order)
        return order if self._rows is None else self._rows[order]

    def resume(self, batches: int) -> None:
        """Draw the random numbers of an epoch's first `batches` batches."""
        sampled = iter(self._loader.batch_sampler)
        _draw(self._loader.generator)
        for _ in range(batches):
            next(sampled)

    def batch_at(self, order: Tensor | None, i: int) -> Batch:
        """Batch `i` of an epoch with this order."""
        rows: Any = slice(i * self.batch_size, min((i + 1) * self.batch_size, self.length))
        if order is not None:
            rows = order[rows].to(self.tensors[0].device)
        return (*(t[rows] for t in self.tensors), None)[:3]


def _draw(generator: torch.Generator | None) -> Tensor:
    return torch.empty((), dtype=torch.int64, device="cpu").random_(generator=generator)


def order_of(loader: Any, device: torch.device | None = None) -> BatchOrder | None:
    """The order of a loader whose batches are unmodified rows of tensors; None for any other loader.

    A user's own sampler or batch sampler has no order: it may depend on the training so far, so `fit` must ask it for
    each batch.

    Args:
        device: the destination of the batches. A loader may pin those bound for a GPU.
    """
    if type(loader) is not DataLoader or loader.num_workers != 0 or loader.timeout != 0:
        return None
    if torch.get_default_device().type != "cpu":  # on which a DataLoader would draw
        return None
    if loader.pin_memory and (device is None or device.type != "cuda"):
        return None
    batches = loader.batch_sampler
    if loader.collate_fn is not default_collate or type(batches) is not BatchSampler:
        return None
    if type(batches.sampler) not in _SAMPLERS:
        return None
    try:
        order = BatchOrder(loader, *_tensors_of(loader.dataset))
    except NotInMemoryError:
        return None
    return None if loader.pin_memory and order.tensors[0].device.type != "cpu" else order


def draw_epochs(count: int, train: BatchOrder, val: BatchOrder | None) -> Tensor | None:
    """Draw the random numbers of `count` epochs of training, each followed by validation.

    Returns:
        The order of their rows: [length] if all epochs share it, else [count, length]; None for sequential rows.
    """
    numbers = [0 if order is None else order.numbers for order in (train, val)]
    drawn: Iterator[Any] = itertools.repeat(None)
    if None not in numbers and _draws_one_by_one():
        bulk = torch.empty(count * sum(numbers), dtype=torch.int64, device="cpu").random_()
        if train.is_static and not train.generators and (val is None or not val.generators):
            return train.static  # no other draws
        rest = iter(bulk.tolist())
        drawn = (list(itertools.islice(rest, size)) for size in itertools.cycle(numbers))
    orders = []
    for _ in range(count):
        orders.append(train.draw(next(drawn), wanted=not train.is_static))
        for_validation = next(drawn)
        if val is not None:
            val.draw(for_validation, wanted=False)
    if train.is_static:
        return train.static
    return orders[0] if count == 1 else torch.stack(orders)


@functools.cache
def _draws_one_by_one() -> bool:
    """Whether drawing many numbers at once gives the same numbers as drawing them one by one."""
    together, alone = (torch.Generator(device="cpu").manual_seed(0) for _ in range(2))
    for count in (3, 64):
        numbers = torch.empty(count, dtype=torch.int64, device="cpu").random_(generator=together).tolist()
        if numbers != [int(_draw(alone)) for _ in range(count)]:
            return False
    return torch.equal(together.get_state(), alone.get_state())


class DeviceCache:
    """Copies of data sets on the run's device, renewed when their tensors change."""

    def __init__(self, device: Any) -> None:
        self._device = (
            None if device is None else torch.empty(0, dtype=torch.float32, device=device).device
        )  # with its index
        self._copies: dict[tuple[str, int], tuple[tuple[Any, ...], Tensor, Tensor]] = {}

    def order_of(self, name: str, loader: Any) -> BatchOrder | None:
        """`order_of` with the tensors on the device; also None if copies would exceed half of its free memory."""
        order = order_of(loader, self._device)
        if order is None or self._device is None:
            return order
        tensors = {(name, i): t for i, t in enumerate(order.tensors)}
        stale = {key: t for key, t in tensors.items() if t.device != self._device and not self._holds(key, t)}
        if any(t.is_inference() for t in stale.values()) or not _has_room(stale.values(), self._device):
            return None
        for key, t in stale.items():
            self._copies[key] = _identity(t), t, t.to(self._device)
        copies = [t if t.device == self._device else self._copies[key][2] for key, t in tensors.items()]
        order.tensors = tuple(copies)
        return order

    def _holds(self, key: tuple[str, int], tensor: Tensor) -> bool:
        return key in self._copies and not tensor.is_inference() and self._copies[key][0] == _identity(tensor)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Identifies a live tensor and the version of its contents."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _has_room(tensors: Iterable[Tensor], device: torch.device) -> bool:
    """Whether copies would fit in half of the device's free memory."""
    needed = sum(t.numel() * t.element_size() for t in tensors)
    return needed == 0 or device.type != "cuda" or 2 * needed <= torch.cuda.mem_get_info(device)[0]


class NotInMemoryError(Exception):
    """The items are not known to be rows of tensors."""


def _tensors_of(dataset: Any) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """(tensors, rows) of a data set whose item i is row rows[i] of each tensor, or row i if rows is None."""
    if type(dataset) is Subset:
        tensors, rows = _tensors_of(dataset.dataset)
        indices = _row_numbers(dataset.indices, len(tensors[0]) if rows is None else len(rows))
        return tensors, indices if rows is None else rows[indices]
    tensors = dataset.tensors if type(dataset) is TensorDataset else _attributes_of(dataset)
    if len(tensors) not in (2, 3) or any(type(t) is not Tensor or t.dim() == 0 for t in tensors):
        raise NotInMemoryError
    count = len(dataset)
    if len({t.device for t in tensors}) > 1 or tensors[0].device.type not in ("cpu", "cuda"):
        raise NotInMemoryError
    if count > min(len(t) for t in tensors):
        raise NotInMemoryError
    return tuple([t if len(t) == count else t[:count] for t in tensors]), None


def _row_numbers(indices: Any, size: int) -> Tensor:
    """Indices into `size` rows, as a tensor without negative indices."""
    if isinstance(indices, range) and indices.step == 1 and 0 <= indices.start <= indices.stop <= size:
        return torch.arange(indices.start, indices.stop, device="cpu")
    try:
        rows = indices if isinstance(indices, Tensor) else torch.tensor(list(indices), device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise NotInMemoryError from None
    if rows.numel() == 0 and rows.dim() == 1:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if rows.dim() != 1 or rows.dtype != torch.int64 or rows.device.type != "cpu" or type(rows) is not Tensor:
        raise NotInMemoryError
    low, high = (int(bound) for bound in rows.aminmax())
    if low < -size or high >= size:
        raise NotInMemoryError
    return torch.where(rows < 0, rows + size, rows) if low < 0 else rows


def _attributes_of(dataset: Any) -> tuple[Any, ...]:
    """The two tensors of a user's data set whose items are literally `self.x[index], self.y[index]`."""
    cls = type(dataset)
    getitem, template = cls.__dict__.get("__getitem__"), _Template.__getitem__.__code__
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
    """The `__getitem__` whose bytecode is recognised, with any attribute names."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]  # type: ignore[attr-defined]
