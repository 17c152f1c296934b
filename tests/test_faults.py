# SPDX-License-Identifier: BSD-3-Clause
"""What is left when a process is killed, a disk is full, a process forks or many threads train: whole files, no
deadlock, and the same bits. (Loaders that raise: test_fit.py. Ctrl-C: test_run.py, test_loader_order.py.)"""

import os
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import linreg_ext

FRUIT = Path(linreg_ext.__file__).parent / "data" / "apples_and_oranges.csv"


def in_a_fork(function):
    """The exit status of a forked process that calls `function`; it is killed after a minute."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is what is tested here
        child = os.fork()
    if child == 0:
        try:
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    for _ in range(6000):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the forked process hangs")


def large_problems():
    """One of rows and one of matrix products, each of which starts threads."""
    x = torch.randn(100_000, 17)
    return [(x, torch.randn(k, 17), torch.randn(100_000, k), torch.randn(k)) for k in (1, 20)]


def steps(x, w, y, b):
    w, b = w.clone(), b.clone()
    return [linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=0.01) for _ in range(3)], w, b


class Computed(Dataset):
    """Items that a worker computes by the kernels."""

    def __init__(self, problems):
        self.problems = problems

    def __len__(self):
        return 4

    def __getitem__(self, i):
        x, w, y, b = self.problems[i % 2]
        return linreg_ext.linear_mse_loss(x, w, y, linear_bias=b)


def test_a_process_that_is_forked_after_use():
    """OpenMP's threads are the parent's; a child that waits for them hangs."""
    torch.set_num_threads(4)
    problems = large_problems()
    once = [steps(*p) for p in problems]

    def same():
        for p, expected in zip(problems, once, strict=True):
            losses, w, b = steps(*p)
            assert losses == expected[0]
            assert w.numpy().tobytes() == expected[1].numpy().tobytes()
            assert b.numpy().tobytes() == expected[2].numpy().tobytes()

    assert in_a_fork(same) == 0
    assert in_a_fork(lambda: os._exit(in_a_fork(same))) == 0  # and its own child
    same()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader_compute(start):
    torch.set_num_threads(4)
    problems = large_problems()
    here = [Computed(problems)[i] for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        there = list(DataLoader(Computed(problems), None, num_workers=1, multiprocessing_context=start, timeout=60))
    assert here == there


def test_several_threads_train_at_once():
    """Each its own model, by whole runs and step by step; as one after the other, bit for bit."""
    torch.set_num_threads(2)
    x, y = torch.randn(20_000, 9), torch.randn(20_000, 1)
    start = threading.Barrier(4)

    def train(number, wait):
        generator = torch.Generator().manual_seed(number)
        model = nn.Linear(9, 1)
        nn.init.constant_(model.weight, number)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        if wait:
            start.wait()
        if number % 2:
            loader = DataLoader(TensorDataset(x, y), 4000, shuffle=True, generator=generator)
            linreg_ext.fit(10, model, nn.MSELoss(), optimizer, loader, progress=False)
        else:
            step = linreg_ext.make_train_step(model, nn.MSELoss(), optimizer)
            for _ in range(50):
                step(x, y)
        return [p.detach() for p in model.parameters()]

    alone = [train(number, False) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda number: train(number, True), range(4)))
    for ours, twin in zip(together, alone, strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, twin, strict=True))
