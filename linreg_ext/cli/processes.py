# SPDX-License-Identifier: BSD-3-Clause
"""The processes that torchrun starts: each fits a part of the table, and the first prints and writes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from ..least_squares import LeastSquares
from ..tables import TableError
from .errors import CommandError, print_error

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


class LostRankError(CommandError):
    """Another process was killed or does not answer."""


class Processes:
    """The processes of this run.

    Attributes:
        started: whether torchrun, or a launcher that sets the same variables, started this process.
        rank, size: of this process, and their number.
    """

    def __init__(self) -> None:
        self.started = all(name in os.environ for name in _VARIABLES)
        self.rank, self.size = 0, 1
        if self.started:
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def together(self, work: Callable[[], T]) -> T:
        """Do `work`, in which anything that fails on one rank alone must be, so that it fails on all.

        Raises:
            SystemExit: it failed on some rank with an error that the user can fix, which the first rank has printed.
        """
        results: list[T] = []
        self.gather(lambda: results.append(work()))
        return results[0]

    def gather(self, work: Callable[[], T]) -> list[T]:
        """The results of `work` on each rank; otherwise as `together`."""
        if self.size == 1:
            return [work()]
        result, failure, found = None, None, [None] * self.size
        try:
            result = work()
        except BaseException as error:
            failure = error
        with self.exchange():
            dist.all_gather_object(found, (result, None if failure is None else str(failure) or type(failure).__name__))
        failed = {rank: message for rank, (_, message) in enumerate(found) if message is not None}
        if not failed:
            return [result for result, _ in found]
        if self.rank == 0:
            rank = min(failed)
            print_error(failed[0] if rank == 0 else f"rank {rank} of {self.size}: {failed[rank]}")
        with self.exchange():
            dist.barrier()  # once a rank has ended, torchrun ends the others
        if failure is None or isinstance(failure, (CommandError, TableError, OSError)):
            raise SystemExit(2)
        raise failure

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """What this encloses is communication, and fails only if another process is lost."""
        try:
            yield
        except RuntimeError as error:
            raise LostRankError(f"rank {self.rank} of {self.size} has lost another rank: {error}") from None

    def all_reduce(self, moments: LeastSquares) -> LeastSquares:
        """Add up the rows of all ranks."""
        with self.exchange():
            return moments if self.size == 1 else moments.all_reduce()

    def fail(self, error: Exception) -> NoReturn:
        """Raise an error that `together` has not seen: on all ranks, if it is one of theirs."""

        def work() -> NoReturn:
            raise error

        self.gather(work)
        raise error

    def close(self) -> None:
        """Leave the others."""
        if self.started:
            dist.destroy_process_group()

    def thread_note(self) -> str:
        """A line about cores that torchrun leaves idle; empty if there are none."""
        local, cores = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), len(os.sched_getaffinity(0))
        if not self.started or os.environ.get("OMP_NUM_THREADS") != "1" or local >= cores:
            return ""
        return (
            f"OMP_NUM_THREADS=1, as torchrun sets it, leaves {cores - local} of {cores} cores idle; "
            f"OMP_NUM_THREADS={cores // local} uses them"
        )
