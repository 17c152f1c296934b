# SPDX-License-Identifier: BSD-3-Clause
"""How long one call takes: by the wall clock, or by the GPU's own events around replays of a captured graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .problem import Answer

# A graph is long enough to hide the launch of the next one behind it, and short enough that kernels which count their
# launches in a graph do not run out of counters.
GRAPH_SECONDS, MOST_CALLS = 0.002, 50

Sampler = Callable[[], float]  # seconds a call, measured once


@dataclass
class Variant:
    """One way to do a piece of work."""

    run: Callable[[], object]
    answer: Callable[[], Answer] | None = None  # what the last call left behind; None: a bound, which has no answer
    role: str = "peer"  # "ours", "peer" or "bound"
    bytes: int = 0  # what it moves at least, where that is not what the case moves
    tolerance: float | None = None  # how far off the answer may be, where that is not what the case allows
    clock: str = "graph"  # "wall" on a GPU: from Python to Python, as a user waits for it
    finish: Callable[[], object] = field(default=lambda: None)  # wait for what `run` started
    rest: float = 0.01  # seconds after which its threads have stopped spinning and the next variant has the CPU


def wall(variant: Variant, at_least: float) -> Sampler:
    """So many calls in a row that they take `at_least` seconds, then a wait for what they started.

    Several come after one that is not timed: the caches are then as the variant leaves them, not as the one before it.
    """

    def timed(calls: int) -> float:
        if calls > 1:
            variant.run()
            variant.finish()
        start = time.perf_counter()
        for _ in range(calls):
            variant.run()
        variant.finish()
        return time.perf_counter() - start

    calls, seconds = 1, timed(1)
    while seconds < at_least:
        calls = min(100 * calls, 1 + int(1.2 * calls * at_least / seconds))
        seconds = timed(calls)
    return lambda: timed(calls) / calls


def graph(variant: Variant, at_least: float) -> Sampler:
    """Replays of a CUDA graph of several calls, `at_least` seconds of them between two events.

    Raises whatever keeps the call from being captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            variant.run()
    stream.synchronize()
    replay = _captured(variant, stream, 1)
    seconds = min(_between_events(replay) for _ in range(3))
    calls = max(1, min(MOST_CALLS, int(GRAPH_SECONDS / seconds)))
    if calls > 1:
        replay = _captured(variant, stream, calls)
    replays = max(1, int(at_least / (seconds * calls)))

    def run() -> None:
        for _ in range(replays):
            replay()

    _between_events(run)
    return lambda: _between_events(run) / (replays * calls)


def events(variant: Variant, at_least: float) -> Sampler:
    """Calls between two events, for what cannot be captured: includes Python where Python is the slower one."""
    variant.run()
    seconds = max(_between_events(variant.run), 1e-6)
    calls = max(1, min(1000, int(at_least / seconds)))

    def run() -> None:
        for _ in range(calls):
            variant.run()

    return lambda: _between_events(run) / calls


def _captured(variant: Variant, stream: torch.cuda.Stream, calls: int) -> Callable[[], None]:
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        for _ in range(calls):
            variant.run()
    return captured.replay


def _between_events(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
