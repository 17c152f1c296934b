# SPDX-License-Identifier: BSD-3-Clause
"""An SGD step on NumPy arrays: in NumPy, and as a numba loop."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from .availability import UnavailableError, installed, needs_all_threads
from .clocks import Variant
from .problem import Answer, Problem

BLOCK = 1024  # rows that are summed in float32
SEVERAL_THREADS = 2**15  # elements from which threads pay


def with_numpy(problem: Problem) -> Variant:
    """Two products and an in-place update, in NumPy."""
    needs_all_threads("NumPy")
    x, y, w, b = _arrays(problem)
    lr, answer = problem.lr, {"weight": torch.from_numpy(w), "bias": torch.from_numpy(b)}

    def run() -> float:
        r = x @ w.T + b - y
        w[...] -= lr * (2 / r.size) * (r.T @ x)
        b[...] -= lr * (2 / r.size) * r.sum(0)
        return (r * r).mean()

    return _remembering(run, answer, problem.x.dtype, rest=0.05)  # OpenBLAS's threads spin for about 30 ms


def with_numba(problem: Problem) -> Variant:
    """One pass over the rows, in threads of compiled Python."""
    numba = installed("numba")
    if problem.k != 1:
        raise UnavailableError("the numba loop is written for one target")
    x, y, w, b = _arrays(problem)
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    step = _numba_step(numba, parallel=problem.x.numel() >= SEVERAL_THREADS)
    lr, answer = problem.lr, {"weight": torch.from_numpy(w), "bias": torch.from_numpy(b)}
    return _remembering(lambda: step(x, y[:, 0], w[0], b, lr), answer, problem.x.dtype)


def _remembering(run: Callable[[], float], answer: Answer, dtype: torch.dtype, rest: float = 0.01) -> Variant:
    last: dict[str, float] = {}

    def remembered() -> None:
        last["loss"] = run()

    return Variant(remembered, lambda: {"loss": torch.tensor(last["loss"], dtype=dtype), **answer}, rest=rest)


def _arrays(problem: Problem) -> tuple[Any, ...]:
    if problem.x.device.type != "cpu":
        raise UnavailableError("NumPy and numba compute on the CPU")
    tensors = (problem.x, problem.y, problem.weight.clone(), problem.bias.clone())
    return tuple(t.numpy() for t in tensors)


def _numba_step(numba: ModuleType, parallel: bool) -> Callable[..., float]:
    @numba.njit(parallel=parallel, fastmath=True)
    def step(x, y, w, b, lr):
        n, d = x.shape
        threads = numba.get_num_threads()
        sums = np.zeros((threads, d + 10))  # a cache line between the threads' sums
        for t in numba.prange(threads):
            stop = (t + 1) * n // threads
            for start in range(t * n // threads, stop, BLOCK):
                gradient, of_bias, loss = np.zeros(d, x.dtype), x.dtype.type(0), x.dtype.type(0)
                for i in range(start, min(start + BLOCK, stop)):
                    r = b[0] - y[i]
                    for j in range(d):
                        r += x[i, j] * w[j]
                    for j in range(d):
                        gradient[j] += r * x[i, j]
                    of_bias += r
                    loss += r * r
                for j in range(d):
                    sums[t, j] += gradient[j]
                sums[t, d] += of_bias
                sums[t, d + 1] += loss
        total = sums.sum(0)
        scale = lr * 2 / n
        for j in range(d):
            w[j] -= scale * total[j]
        b[0] -= scale * total[d]
        return total[d + 1] / n

    return step
