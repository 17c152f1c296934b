# SPDX-License-Identifier: BSD-3-Clause
"""The order in which a DataLoader goes through tensors in memory, and its random draws, without iterating it.

What iterating a loader draws in an epoch is, in this order: a base seed for its workers, from the loader's generator,
even when there are none; then what the sampler draws. Everything here draws the same from the same generators.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from .in_memory import NotInMemoryError, row_numbers, tensors_of


class LoaderOrder:
    """How a loader goes through an epoch.

    Attributes:
        x, y: the tensors whose rows it goes through.
        length: the rows of an epoch.
        batch_size, drop_last: of the loader.
        static: the order of every epoch where it is always the same, `None` for every row in turn.
        is_static: whether it is.
        once: every epoch goes through the same rows, each of them once.
        numbers: how many 64-bit numbers an epoch draws from torch's default generator, if it draws nothing else from
            it; else None. Those of many epochs can then be drawn at once.
    """

    def __init__(self, loader: DataLoader[Any], x: Tensor, y: Tensor, rows: Tensor | None) -> None:
        batches = loader.batch_sampler
        sampler = batches.sampler
        self.x, self.y, self.batch_size, self.drop_last = x, y, batches.batch_size, batches.drop_last
        self._loader, self._sampler, self._rows = loader, sampler, rows
        self.static: Tensor | None = None
        self._indices: Tensor | None = None
        size = len(x) if rows is None else len(rows)
        kind, own = type(sampler), getattr(sampler, "generator", None)
        self.is_static = kind is SequentialSampler
        if kind is SequentialSampler:
            self.length = _at_most(len(sampler.data_source), size)
            self.once = True
            if rows is not None:
                self.static = rows[: self.length]
            elif self.length < size:
                self.x, self.y = x[: self.length], y[: self.length]
        elif kind is RandomSampler:
            self._population = _at_most(len(sampler.data_source), size)
            self.length = sampler.num_samples
            self.once = not sampler.replacement and self.length == self._population
        elif kind is SubsetRandomSampler:
            self._indices = row_numbers(sampler.indices, size)
            self.length = len(self._indices)
            self.once = True
        else:
            _at_most(len(sampler.weights), size)
            self.length = sampler.num_samples
            self.once = False
        self.once = self.once and not self.drop_last

        # From the default generator come the base seed and a RandomSampler's seed, unless they have generators of
        # their own; anything else that is drawn from it is not a 64-bit number.
        generators = [loader.generator, own]
        self.numbers: int | None = int(loader.generator is None) + int(kind is RandomSampler and own is None)
        if torch.default_generator in generators or (kind in (SubsetRandomSampler, WeightedRandomSampler) and not own):
            self.numbers = None
        if any(g is not None and g.device.type != "cpu" for g in generators):
            raise NotInMemoryError
        self.generators = [g for g in generators if g is not None]

    @property
    def epoch_steps(self) -> int:
        """The batches of an epoch."""
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def draw(self, numbers: Sequence[int] | None = None, wanted: bool = True) -> Tensor | None:
        """Draw what an epoch draws, and return its order, [length]; None for every row in turn.

        Args:
            numbers: what `self.numbers` draws from the default generator have given, if they are done already.
            wanted: whether the order is; else only what others can notice is drawn.
        """
        numbers = list(numbers or ())
        base = self._loader.generator
        if base is not None or not numbers:
            torch.empty((), dtype=torch.int64).random_(generator=base)
        else:
            numbers.pop(0)
        order = self._sample(numbers, wanted)
        if order is None or not wanted:
            return None
        return order if self._rows is None else self._rows[order]

    def resume(self, batches: int) -> None:
        """Draw what going through the first `batches` batches of an epoch draws."""
        sampled = iter(self._loader._index_sampler)
        torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)
        for _ in range(batches):
            next(sampled)

    def whole(self) -> tuple[Tensor, Tensor]:
        """The rows that every epoch goes through, in any order."""
        if self.is_static:
            rows = self.static
        else:
            rows = self._indices if self._indices is not None else torch.arange(self._population)
            rows = rows if self._rows is None else self._rows[rows]
            if self._rows is None and self._indices is None and self._population == len(self.x):
                rows = None
        return (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])

    def _sample(self, numbers: list[int], wanted: bool) -> Tensor | None:
        """The sampler's own order, as its __iter__ goes through it to the end."""
        sampler = self._sampler
        if self.is_static:
            return None if self._rows is None else torch.arange(self.length)
        if type(sampler) is SubsetRandomSampler:
            return self._indices[torch.randperm(self.length, generator=sampler.generator)]
        if type(sampler) is WeightedRandomSampler:
            return torch.multinomial(
                sampler.weights, sampler.num_samples, sampler.replacement, generator=sampler.generator
            )
        generator = sampler.generator
        if generator is None:
            seed = numbers.pop() if numbers else int(torch.empty((), dtype=torch.int64).random_().item())
            if not wanted:
                return None
            generator = _SEEDED.manual_seed(seed)
        n, count = self._population, self.length
        if sampler.replacement:
            sizes = [32] * (count // 32) + [count % 32]
            parts = [torch.randint(high=n, size=(size,), dtype=torch.int64, generator=generator) for size in sizes]
        elif count == n and generator is _SEEDED:
            return torch.randperm(n, generator=generator)
        else:  # the last one is drawn even when nothing of it is needed
            parts = [torch.randperm(n, generator=generator) for _ in range(count // n + 1)]
        return torch.cat(parts)[:count]


def follow(loader: Any, pinned: bool = False) -> LoaderOrder | None:
    """The order of a loader whose batches are rows of two tensors, taken as they are; None for any other.

    A sampler or batch sampler of the user's own is not followed: what it yields may depend on the training so far, so
    it has to be asked batch by batch.

    Args:
        pinned: whether the loader may pin its batches, of tensors on the CPU, since they are to go to a GPU.
    """
    if type(loader) is not DataLoader or loader.num_workers != 0 or loader.timeout != 0:
        return None
    if loader.pin_memory and not pinned:
        return None
    batches = loader.batch_sampler
    if loader.collate_fn is not default_collate or type(batches) is not BatchSampler:
        return None
    if type(batches.sampler) not in (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler):
        return None
    try:
        order = LoaderOrder(loader, *tensors_of(loader.dataset))
    except NotInMemoryError:
        return None
    return None if loader.pin_memory and order.x.device.type != "cpu" else order


def draw_epochs(count: int, train: LoaderOrder, val: LoaderOrder | None) -> Tensor | None:
    """Draw what `count` epochs of training, each followed by validation, draw; the order of their rows.

    Returns:
        [length] if every epoch has the same order, else [count, length]; None for every row in turn.
    """
    numbers = [0 if order is None else order.numbers for order in (train, val)]
    drawn: Iterator[Any] = itertools.repeat(None)
    if None not in numbers and _draws_one_by_one():
        bulk = torch.empty(count * sum(numbers), dtype=torch.int64).random_()
        if train.is_static and not train.generators and (val is None or not val.generators):
            return train.static  # nothing else is drawn
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


_SEEDED = torch.Generator()  # stands for the one that a RandomSampler without a generator makes every epoch


@functools.cache
def _draws_one_by_one() -> bool:
    """Whether many numbers that are drawn at once are those that are drawn one by one."""
    together, alone = (torch.Generator().manual_seed(0) for _ in range(2))
    for count in (3, 64):
        numbers = torch.empty(count, dtype=torch.int64).random_(generator=together).tolist()
        if numbers != [int(torch.empty((), dtype=torch.int64).random_(generator=alone)) for _ in range(count)]:
            return False
    return torch.equal(together.get_state(), alone.get_state())


def _at_most(count: int, size: int) -> int:
    if count > size:  # an index will be out of range, which iterating says better
        raise NotInMemoryError
    return count
