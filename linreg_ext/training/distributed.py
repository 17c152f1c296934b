# SPDX-License-Identifier: BSD-3-Clause
"""Several processes that train one model: each passes over its own rows, one all-reduce adds up, and all update alike.

Every exchange is an all-reduce of one float64 buffer that ends in four numbers: the sum of the losses, the sum of the
weights, the number of ranks that go on, and the number of ranks that failed. What may fail on one rank, such as drawing
a batch, happens just before an exchange, so that no rank waits for one that has failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only
from torch.utils.data import DistributedSampler

LOSS, WEIGHT, GOES_ON, FAILED = -4, -3, -2, -1  # the last numbers of a buffer

T = TypeVar("T")


class Group:
    """The processes of a process group.

    Args:
        op: the name of the public function, for messages.
        model: the model that they train, on the device for exchanges.
        averages: whether a step averages the ranks' own gradients, as DistributedDataParallel does, instead of adding
            up those of all rows.

    Attributes:
        rank, size: of this process in the group, and of the group.
    """

    def __init__(self, op: str, process_group: dist.ProcessGroup, model: nn.Module, *, averages: bool = False) -> None:
        if not isinstance(process_group, dist.ProcessGroup):
            raise TypeError(
                f"{op}: process_group must be a ProcessGroup with this process or None, got {process_group!r}"
            )
        self.op, self.process_group, self.averages = op, process_group, averages
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)

    def add_up(self, sums: Tensor, work: Callable[[Tensor], T]) -> tuple[list[float], T]:
        """Sum over all ranks what `work` writes to `sums` (float64, zeroed first).

        Returns:
            The last four sums, and what `work` returned.

        Raises:
            RuntimeError: `work` failed on another rank, or that rank is lost. An error of this rank is raised as it is.
        """
        failure, found = None, None
        sums.zero_()
        try:
            found = work(sums)
        except BaseException as error:
            failure = error
            sums.zero_()[FAILED] = 1
        try:
            dist.all_reduce(sums, group=self.process_group)
            numbers = sums[LOSS:].tolist()
            report = None if failure is None else f"{type(failure).__name__}: {failure}"
            reports = self.gather(report) if numbers[FAILED] else []
        except RuntimeError as error:
            raise failure or RuntimeError(
                f"{self.op}: rank {self.rank} of {self.size} has lost another rank, which was killed or did not answer "
                f"before the timeout of the process group: {error}"
            ) from error
        if failure is not None:
            raise failure
        failed = [f"rank {rank} failed with {report}" for rank, report in enumerate(reports) if report is not None]
        if failed:
            raise RuntimeError(f"{self.op}: {'; '.join(failed)} (this is rank {self.rank} of {self.size})")
        return numbers, found

    def agree(self, work: Callable[[], bool]) -> bool:
        """Whether `work` returns True on every rank."""

        def vote(numbers: Tensor) -> None:
            numbers[GOES_ON] = work()

        return self.add_up(self.numbers(), vote)[0][GOES_ON] == self.size

    def numbers(self) -> Tensor:
        """A buffer for the four numbers alone."""
        return torch.empty(4, dtype=torch.float64, device=self._device)

    def gather(self, value: Any) -> list[Any]:
        """The `value` of each rank."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.process_group)
        return found

    def bind(self, model: nn.Module, optimizer: Any) -> None:
        """Give all ranks the parameters, buffers and optimizer state of the first.

        Raises:
            RuntimeError: the ranks' models differ in their parameters.
            ValueError: the model has lazy parameters.
        """
        tensors = [*model.parameters(), *model.buffers()]
        if any(map(is_lazy, tensors)):
            raise ValueError(f"{self.op}: with a process_group, lazy modules must have run once")
        shapes = self.gather([f"{[*t.shape]} {t.dtype}" for t in tensors])
        for rank, other in enumerate(shapes):
            if other != shapes[0]:
                raise RuntimeError(
                    f"{self.op}: all ranks must have a model of the same shapes, got {', '.join(shapes[0])} on rank 0 "
                    f"and {', '.join(other)} on rank {rank}"
                )
        with torch.no_grad():
            for tensor in tensors:
                values = tensor.detach().contiguous()
                dist.broadcast(values, group=self.process_group, group_src=0)
                tensor.copy_(values)
        state = [tree_map_only(Tensor, Tensor.cpu, optimizer.state_dict()) if self.rank == 0 else None]
        dist.broadcast_object_list(state, group=self.process_group, group_src=0)
        if self.rank > 0:
            optimizer.load_state_dict(state[0])


def reduction_of_its_own(model: DistributedDataParallel) -> str:
    """The reason why a backward pass does not just average the gradients of all processes; empty if it does."""
    for is_used, feature in (
        (not model.require_backward_grad_sync, "is inside no_sync()"),
        (model._join_config.enable, "is inside join()"),
        (model._comm_hooks, "has a communication hook"),
        (model.static_graph, "has a static graph"),
        (model.mixed_precision, "has mixed precision"),
        (model.parameters_to_ignore, "ignores parameters"),
        (model._use_python_reducer, "is reduced in Python"),
    ):
        if is_used:
            return f"the DistributedDataParallel model {feature}"
    return ""


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the loader's sampler the number of the epoch, as DistributedSampler needs it to shuffle anew."""
    for sampler in (getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
        if callable(getattr(sampler, "set_epoch", None)):
            sampler.set_epoch(epoch)


def warn_if_padded(op: str, name: str, loader: Any) -> None:
    """Warn if the loader's sampler repeats rows to give all ranks the same number."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return
    extra = sampler.total_size - len(sampler.dataset)
    if extra > 0:
        warnings.warn(
            f"linreg_ext: {op}: the DistributedSampler of {name} counts {extra} of {len(sampler.dataset)} rows twice "
            "so that all ranks have the same number; ranks may have shards of different sizes, such as "
            "Subset(dataset, range(rank, len(dataset), world_size))",
            UserWarning,
            stacklevel=3,
        )
