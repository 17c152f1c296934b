# SPDX-License-Identifier: BSD-3-Clause
"""Sizes beyond 32 bits: rows, elements and offsets over 2³¹ and 2³²; rows of 131072 features; 4096 targets.

On a CPU they take only address space: unwritten pages share one page of zeros. The rows that matter are at the end,
which a truncated offset does not reach.
"""

import mmap

import pytest
import torch
from accuracy import DTYPES, Problem
from conftest import crossed
from test_parity import check

import linreg_ext

NORESERVE = 0x4000  # a flag of Linux's mmap that Python 3.10 lacks


def zeros(shape, dtype, device):
    """Zeros of any size, which occupy memory only once written to; on a GPU always."""
    count = torch.Size(shape).numel()
    if device == "cuda":
        if 2.5 * count * dtype.itemsize > torch.cuda.mem_get_info()[0]:
            pytest.skip("needs more memory than this GPU has left")
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype).view(shape)


def far_apart(t, span):
    """A copy of `t` whose first and last rows are more than `span` elements apart."""
    if t is None:
        return None
    rows = t if t.dim() == 2 else t[:, None]
    stride = span // (len(rows) - 1) + 3 + rows.shape[1] if len(rows) > 1 else rows.shape[1]
    far = zeros([(len(rows) - 1) * stride + rows.shape[1]], t.dtype, t.device.type)
    return far.as_strided(rows.shape, (stride, 1)).copy_(rows).view(t.shape)


def results(problem, order):
    """In a loss, a step and a run."""
    x, w, y, b, v = vars(problem).values()
    value, grads = torch.ops.linreg_ext.linear_loss_grads(x, w, y, b, v, "mse", 1.0, "mean", [True] * 4)
    none = linreg_ext.linear_mse_loss(x, w, y, linear_bias=b, weight=v, reduction="none")
    buffers = [None, None]
    options = {"linear_bias": b, "momentum": 0.9, "momentum_buffers": buffers, "lr": 0.1 / (10 + x.shape[1])}
    step = linreg_ext.sgd_step_(x, w, y, **options)
    losses = linreg_ext.sgd_run_(x, w, y, order=order, batch_size=33, **options)
    return [value, *grads, none, step, losses, w.clone(), b.clone(), *buffers]


# On a CPU: a small step; lanes along rows; lanes along features, for one target and several; matrix products.
@crossed(5, dtypes=DTYPES, shape=[(70, 5, 1), (500, 3, 2), (70, 20, 3), (70, 40, 8), (300, 40, 37)])
def test_rows_that_are_far_apart(dtypes, shape, device):
    problem = Problem.random(*shape, dtypes, weight="elements", device=device)
    order = torch.randperm(shape[0])[None]
    spans = {"input": 2**33, "linear_weight": 2**32, "target": 2**33, "linear_bias": 2**32, "weight": 2**32}
    far = Problem(*(far_apart(t, spans[name]) for name, t in vars(problem).items()))
    for weighted in (True, False):
        if not weighted:
            problem.weight = far.weight = None
        for ours, twin in zip(results(far, order), results(problem, order), strict=True):
            eps = torch.finfo(ours.dtype).eps  # a strided column of targets is read differently
            torch.testing.assert_close(ours, twin, rtol=8 * eps, atol=8 * eps * twin.abs().max().item())


def ended(n, d, k, device):
    """Rows [n, d] and targets [n, k] of zeros, except that the last three rows are 1, 2 and 3, with other targets."""
    x, y = zeros((n, d), torch.bfloat16, device), zeros((n, k), torch.bfloat16, device)
    x[-3:], y[-3:] = torch.tensor([[1.0], [2], [3]]), torch.tensor([[-1.0], [1], [5]])
    return x, y


# More elements of the input, and of the target.
SIZES = [(1, 1), (5, 2), (64, 1), (64, 8), (64, 16), (1025, 1), (1, 40)]


@pytest.mark.extended
@pytest.mark.parametrize("shape", [(2**31 // max(d, k) + 5, d, k) for d, k in SIZES], ids=str)
def test_more_elements_than_32_bits_count(shape, device):
    n, d, k = shape
    x, y = ended(n, d, k, device)
    w, b = torch.full((k, d), 2.0, device=device), torch.zeros(k, device=device)
    residuals = torch.tensor([2 * d * i - t for i, t in ((1, -1), (2, 1), (3, 5))], dtype=torch.float64)
    mean = linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=n * k / 2)
    assert mean.item() == pytest.approx((residuals @ residuals).item() / n, rel=1e-6)
    assert (w == 2 - residuals @ torch.tensor([1.0, 2, 3], dtype=torch.float64).to(residuals)).all()
    assert (b == -residuals.sum()).all()
    b.fill_(1)  # every row contributes
    loss = linreg_ext.linear_l1_loss(x, torch.zeros_like(w), y, linear_bias=b, reduction="sum")
    assert loss.item() == pytest.approx(k * (n - 3 + 2 + 0 + 4), rel=1e-7)


def test_a_run_that_picks_rows_beyond_32_bits(device):
    x, y = ended(2**31 + 5, 1, 1, device)
    w = torch.full((1, 1), 2.0, device=device)
    order = torch.tensor([[len(x) - 1, 0, len(x) - 2, len(x) - 3]])
    losses = linreg_ext.sgd_run_(x, w, y, order=order, batch_size=1, lr=0.0)
    assert losses.tolist() == [1, 0, 9, 9]


@pytest.mark.extended
def test_more_rows_than_32_bits_count_in_one(device):
    """A row and a target, expanded."""
    n = 2**31 + 5
    x, y = torch.tensor([[3.0]], device=device).expand(n, 1), torch.tensor([[1.0]], device=device).expand(n, 1)
    w = torch.ones(1, 1, device=device)
    loss, grads = torch.ops.linreg_ext.linear_loss_grads(
        x, w, y, None, None, "mse", 1.0, "sum", [False, True, False, False]
    )
    assert loss.item() == pytest.approx(4 * n, rel=1e-7)
    assert grads[0].item() == pytest.approx(12 * n, rel=1e-7)


@pytest.mark.extended
def test_results_of_more_elements_than_32_bits_count(device):
    """4.3 GB each of losses and gradients."""
    x, y = ended(2**31 + 5, 1, 1, device)
    w = torch.full((1, 1), 2.0, dtype=torch.bfloat16, device=device)
    losses = linreg_ext.linear_mse_loss(x, w, y, reduction="none")
    assert losses[-4:, 0].tolist() == [0, 9, 9, 1]
    assert losses.count_nonzero() == 3
    del losses
    arguments = (x, w, y, None, None, "mse", 1.0, "sum")
    _, (grad,) = torch.ops.linreg_ext.linear_loss_grads(*arguments, [True, False, False, False])
    assert grad[-4:, 0].tolist() == [0, 12, 12, 4]
    assert grad.count_nonzero() == 3


@crossed(2, shape=[(2, 131072, 5), (1, 131072, 17), (1, 7, 4096), (70, 9, 4096)], dtype=["float32", "bfloat16"])
def test_many_features_or_targets(shape, dtype, device):
    # With enough noise that the rounding of matrix products, which may happen to cancel in one loss, does not decide.
    check(Problem.random(*shape, DTYPES[dtype], noise=300.0, device=device))
