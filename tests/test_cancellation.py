# SPDX-License-Identifier: BSD-3-Clause
"""Results that are small differences of large numbers: residuals near 0, means far above standard deviations, 10⁷ rows.

The predictions of up to 15 targets are in double, so the error is at most that of same-dtype PyTorch code or a few of
the result's last places. From 16 targets on they come from PyTorch's matrix products, and the accuracy rule holds: for
the loss, a single number in which PyTorch's rounding errors may happen to cancel, over many seeds.
"""

import numpy as np
import pytest
import torch
from accuracy import (
    DTYPES,
    LOSSES,
    PLACES,
    SEEDS,
    Exact,
    Problem,
    assert_as_accurate,
    assert_as_accurate_over_seeds,
    loss_and_grads,
    oracle,
    plain_loss,
)
from conftest import cases, crossed
from test_parity import fused_loss

import linreg_ext

MANY_TARGETS = 16
REGIMES = {  # of rows (mean + random) · scale, and of noise · scale in their targets
    "residuals near 0": {"noise": 1e-4},
    "residuals of 0": {"noise": 0.0},
    "means far above spreads": {"mean": 1e4, "noise": 1e-2},
    "numbers of 1e4": {"scale": 1e4, "noise": 1e-3},
    "numbers of 1e-4": {"scale": 1e-4, "noise": 1e-3},
}
SHAPES = [(d, 1) for d in (1, 2, 3, 5, 8, 16, 128, 1025)] + [(2, 2), (8, 3), (16, 4), (128, 9), (5, 15)]
SHAPES += [(1025, 3), (16, 16), (3, 40), (1025, 17)]  # features and targets


def problem_of(n, d, k, dtypes, *, mean=0.0, scale=1.0, noise):
    data, parameter = dtypes
    x = ((mean + torch.randn(n, d, dtype=torch.float64)) * scale).to(data)
    w = (torch.randn(k, d, dtype=torch.float64) / d).to(parameter)
    b = (torch.randn(k, dtype=torch.float64) * scale).to(parameter)
    y = x.double() @ w.double().T + b.double() + noise * scale * torch.randn(n, k, dtype=torch.float64)
    return Problem(x, w, y.to(data), b)


def assert_no_worse(name, ours, plain, exact, k):
    if k >= MANY_TARGETS:
        assert_as_accurate(name, ours, plain, exact)
        return
    info = torch.finfo(ours.dtype)
    ours, plain = (t.double().numpy().astype(np.longdouble) for t in (ours, plain))
    if not np.isfinite(plain).all() or (abs(exact.value) > info.max).any():
        return  # test_parity.py has these
    units = exact.terms if info.dtype == "float64" else exact.value
    subnormal = info.smallest_normal * info.eps / 2 * exact.value.size**0.5
    error, error_of_plain = (np.linalg.norm((t - exact.value).ravel()) for t in (ours, plain))
    allowed = max(error_of_plain, PLACES * info.eps * np.linalg.norm(units.ravel()), subnormal)
    assert error <= allowed, (
        f"{name}: error {error:.3g}, that of plain PyTorch {error_of_plain:.3g}, allowed {allowed:.3g}"
    )


def check(problem, loss="mse"):
    k = len(problem.linear_weight)
    plain = loss_and_grads(lambda p: plain_loss(p, loss, 0.75, "mean"), problem)
    exact = oracle(problem, loss, 0.75, "mean")
    judges_loss = k < MANY_TARGETS or problem.input.dtype == torch.float64  # others are in test_losses_of_many_targets
    for of in ("", "linear_"):
        ours = loss_and_grads(lambda p: fused_loss(p, loss, 0.75, "mean"), problem, of=of)
        for name, value in ours.items():
            if name != "loss" or judges_loss:
                assert_no_worse(name, value, plain[name], exact[name], k)
    if loss != "mse":
        return
    # A step whose update is as large as the weight.
    w, b = problem.linear_weight, problem.linear_bias
    size = np.linalg.norm(exact["linear_weight"].value.ravel())
    lr = float(w.double().norm() / size) if size > 0 else 1.0
    ours = [w.clone(), b.clone()]
    value = linreg_ext.sgd_step_(
        problem.input, ours[0], problem.target, linear_bias=ours[1], weight=problem.weight, lr=lr
    )
    if judges_loss:
        assert_no_worse("loss of a step", value, plain["loss"], exact["loss"], k)
    for name, before, after in (("linear_weight", w, ours[0]), ("linear_bias", b, ours[1])):
        g, start = exact[name], before.double().numpy().astype(np.longdouble)
        moved = Exact(start - lr * g.value, abs(start) + lr * g.terms)
        theirs = (before.double() - lr * plain[name].double()).to(before.dtype)
        assert_no_worse(name, after, theirs, moved, k)


def losses(problem):
    """The losses: ours, alone and from a step, PyTorch's, and the exact one."""
    x, w, y, b, _ = vars(problem).values()
    exact = oracle(problem, "mse", 1.0, "mean")["loss"]
    with torch.no_grad():
        alone, plain = (function(problem, "mse", 1.0, "mean") for function in (fused_loss, plain_loss))
    return alone, linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=0.0), plain, exact


@crossed(5, regime=list(REGIMES), dtypes=DTYPES)
def test_errors_are_not_above_those_of_pytorch(regime, dtypes):
    for i, (d, k) in enumerate(SHAPES):
        for n in (30, 1000) if d <= 8 and k <= 4 else (max(7, 60_000 // (d * k)),):  # 30 rows are a small step
            check(problem_of(n, d, k, dtypes, **REGIMES[regime]), ("mse", "huber", "smooth_l1")[i % 3])


@pytest.mark.products
@crossed(5, regime=list(REGIMES), dtypes=DTYPES)
def test_losses_of_many_targets(regime, dtypes):
    for d, k in SHAPES:
        if k >= MANY_TARGETS:
            problems = (problem_of(60_000 // (d * k), d, k, dtypes, **REGIMES[regime]) for _ in range(SEEDS))
            alone, of_a_step, plain, exact = zip(*map(losses, problems), strict=True)
            for name, ours in (("loss", alone), ("loss of a step", of_a_step)):
                assert_as_accurate_over_seeds(name, ours, plain, exact)


@pytest.mark.parametrize("regime", cases(core=["means far above spreads"], extended=["residuals near 0"]))
def test_ten_million_rows(regime):
    """Compared with float64, in which sums of this many numbers are exact enough."""
    problem = problem_of(10_000_000, 1, 1, DTYPES["float32"], **REGIMES[regime])
    x, w, y, b = (t.double() for t in (problem.input, problem.linear_weight, problem.target, problem.linear_bias))
    r = torch.addmm(b, x, w.T).sub_(y)
    exact = {"loss": r.square().mean(), "linear_weight": 2 * r.T @ x / len(r), "linear_bias": 2 * r.mean(0)}
    plain = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, "mean"), problem, of="linear_")
    ours = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), problem, of="linear_")
    for name, value in ours.items():
        assert_no_worse(name, value, plain[name], Exact(exact[name].numpy(), exact[name].numpy()), 1)


@pytest.mark.parametrize("weight", [None, "rows", "elements"])
def test_many_equal_rows(weight):
    """Equal rounding errors accumulate in a chain of additions, to hundreds of units in the last place."""
    for n, d, k in [
        (1021, 1, 1),
        (289, 1, 5),
        (5000, 2, 1),
        (5000, 33, 1),
        (2000, 12, 5),
        (3000, 20, 20),
        (200_000, 1, 1),
    ]:
        for seed in range(3):
            torch.manual_seed(seed)
            row = Problem.random(1, d, k, DTYPES["float64"], weight=weight)
            x, w, y, b, v = vars(row).values()
            check(
                Problem(x.repeat(n, 1), w, y.repeat(n, 1), b, None if v is None else v.repeat(n, *[1] * (v.dim() - 1))),
                LOSSES[seed],
            )
