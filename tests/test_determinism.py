# SPDX-License-Identifier: BSD-3-Clause
"""The same call gives the same bits for any number of threads and repeats, whatever else is running.

test_parity.py has other layouts and storage offsets. Bits may differ between processors, instruction sets, settings of
MKL_CBWR and versions of torch."""

import threading

import pytest
import torch
from accuracy import DTYPES, Problem
from conftest import crossed

import linreg_ext

SHAPES = [(100_003, 1, 1), (100_003, 7, 2), (30_011, 33, 1), (5_003, 257, 3), (301, 20_000, 1)]
SHAPES += [(5_003, 65, 40), (301, 520, 130), (4_096, 1_024, 64), (40, 64, 700)]  # by matrix products


def results(problem):
    x, w, y, b, v = vars(problem).values()
    value, grads = torch.ops.linreg_ext.linear_loss_grads(x, w, y, b, v, "huber", 1.0, "mean", [True] * 4)
    w, b, buffers = w.clone(), b.clone(), [None, None]
    losses = [
        linreg_ext.sgd_step_(x, w, y, linear_bias=b, weight=v, lr=0.01, momentum=0.9, momentum_buffers=buffers)
        for _ in range(3)
    ]
    return [value, *grads, w, b, *buffers, *losses]


@crossed(6, shape=SHAPES, dtypes=DTYPES)
def test_same_bits_for_any_number_of_threads(shape, dtypes, device):
    problem = Problem.random(*shape, dtypes, weight="elements", device=device)
    torch.set_num_threads(1)
    once = results(problem)
    for threads in (2, 3, 5, 16):
        torch.set_num_threads(threads)
        for a, b in zip(once, results(problem), strict=True):
            assert torch.equal(a, b)


def test_same_bits_for_any_number_of_threads_when_subnormals_are_flushed():
    """The mode is per thread; workers must adopt the caller's."""
    tiny = Problem(
        torch.full((200_000, 2), 2.0**-20).half(),
        torch.full((1, 2), 2.0**14).half(),
        torch.zeros(200_000, 1).half(),
        None,
    )
    small = Problem(torch.full((200_000, 2), 1e-42), torch.full((1, 2), 1e38), torch.zeros(200_000, 1), None)
    assert torch.set_flush_denormal(True)
    try:
        for p in (tiny, small):
            values = set()
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                values.add(linreg_ext.linear_l1_loss(p.input, p.linear_weight, p.target).item())
            assert len(values) == 1
        assert linreg_ext.linear_l1_loss(tiny.input, tiny.linear_weight, tiny.target).item() == 2 * 2.0**-6
    finally:
        torch.set_flush_denormal(False)


def test_same_bits_a_hundred_times(device):
    problem = Problem.random(40_000, 9, 1, DTYPES["float32"], device=device)
    once = results(problem)
    assert all(torch.equal(a, b) for _ in range(100) for a, b in zip(once, results(problem), strict=True))


def test_same_bits_from_several_python_threads():
    problem = Problem.random(40_000, 9, 1, DTYPES["float32"])
    once, different = results(problem), []

    def work():
        for _ in range(20):
            different.extend(1 for a, b in zip(once, results(problem), strict=True) if not torch.equal(a, b))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not different


@pytest.mark.filterwarnings("ignore:Deterministic behavior was enabled:UserWarning")
def test_pytorchs_deterministic_mode_refuses_and_changes_nothing(device):
    """This mode fills uninitialised memory, such as a new momentum buffer, with nan."""
    for shape in ((400, 9, 2), (300, 64, 40)):
        problem = Problem.random(*shape, DTYPES["float32"], device=device)
        once = results(problem)
        torch.use_deterministic_algorithms(True)
        try:
            again = results(problem)
        finally:
            torch.use_deterministic_algorithms(False)
        assert once[0].isfinite()
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_a_learning_rate_of_zero_leaves_the_bits_alone(device):
    for dtypes in DTYPES.values():
        problem = Problem.random(50, 6, 2, dtypes, device=device)
        w, b = problem.linear_weight.clone(), problem.linear_bias.clone()
        linreg_ext.sgd_step_(problem.input, w, problem.target, linear_bias=b, lr=0.0)
        assert torch.equal(w, problem.linear_weight)
        assert torch.equal(b, problem.linear_bias)


def test_small_problems_start_no_threads():
    """A problem below the threshold runs on the calling thread, and so also after a fork."""
    import multiprocessing

    problem = Problem.random(40_000, 9, 1, DTYPES["float32"])
    results(problem)  # the parent's threads are running
    small = Problem.random(64, 9, 1, DTYPES["float32"])
    expected = results(small)[0].item()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_loss_of, (small.operands(),)).get(timeout=60) == expected


def _loss_of(operands):
    return linreg_ext.linear_huber_loss(**operands).item()
