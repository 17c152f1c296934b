# SPDX-License-Identifier: BSD-3-Clause
"""What a call makes the GPU do, according to the profiler and the allocator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def device_work(run: Callable[[], object], calls: int = 10) -> Counter[str]:
    """Count the kernels, copies and fills on the GPU and the waits for it, by name, over all calls.

    The counts of an empty profile, which also waits for the GPU, are subtracted.
    """
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    return _profiled(run, calls) - _profiled(run, 0)


def kernels(work: Counter[str]) -> int:
    return sum(count for name, count in work.items() if not _moves(name) and not _waits(name))


def copies_and_fills(work: Counter[str]) -> int:
    return sum(count for name, count in work.items() if _moves(name))


def waits(work: Counter[str]) -> int:
    return sum(count for name, count in work.items() if _waits(name))


def driver_allocations(run: Callable[[], object], calls: int = 100) -> int:
    """Count PyTorch's requests to the driver for memory in a number of calls, after warming up."""
    for _ in range(3):
        run()
    before = torch.cuda.memory_stats()["segment.all.allocated"]
    for _ in range(calls):
        run()
    return torch.cuda.memory_stats()["segment.all.allocated"] - before


def _profiled(run: Callable[[], object], calls: int) -> Counter[str]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as recorded:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    return Counter(
        event.name
        for event in recorded.events()
        if (event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False))
        or _waits(event.name)
    )


def _moves(name: str) -> bool:
    return name.startswith(("Memcpy", "Memset"))


def _waits(name: str) -> bool:
    return name.startswith(("cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize"))
