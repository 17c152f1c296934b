# SPDX-License-Identifier: BSD-3-Clause
"""The time of one call: by the wall clock, or by GPU events around replays of a captured graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .problem import Answer

# A graph must be long enough to hide the launch of the next one, and short enough that kernels with a counter for each
# launch in a graph do not run out of counters.
GRAPH_SECONDS, MOST_CALLS = 0.002, 50

Sampler = Callable[[], float]  # one measurement, in seconds per call


@dataclass
class Variant:
    """One implementation of a case."""

    run: Callable[[], object]
    answer: Callable[[], Answer] | None = None  # the result of the last call; None: a bound, which has none
    role: str = "peer"  # "ours", "peer" or "bound"
    bytes: int = 0  # the least it must move, if not the case's
    tolerance: float | None = None  # of the answer, if not the case's
    clock: str = "graph"  # "wall" on a GPU: from Python to Python, as a user would wait
    finish: Callable[[], object] = field(default=lambda: None)  # waits for what `run` started
    rest: float = 0.01  # seconds until its threads stop spinning and leave the CPU to the next variant


def wall(variant: Variant, at_least: float) -> Sampler:
    """Time enough calls in a row to take `at_least` seconds, including the wait for what they started.

    More than one call follows an untimed one, so that the caches hold what this variant left, not its predecessor.
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
    """Time replays of a CUDA graph of several calls, `at_least` seconds of them, between two events.

    Raises whatever prevents the capture.
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
    """Time calls that cannot be captured, between two events; this includes Python's time if it is the longer."""
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
