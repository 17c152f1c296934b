# SPDX-License-Identifier: BSD-3-Clause
"""The accuracy rule over seeds: ordinary numbers, and results that are small differences of large ones, such as
residuals near 0 and means far above standard deviations."""

import numpy as np
import pytest
import torch
from accuracy import (
    DTYPES,
    JUMPS,
    LOSSES,
    SEEDS,
    Exact,
    Problem,
    assert_as_accurate,
    assert_as_accurate_over_seeds,
    loss_and_grads,
    option,
    oracle,
    plain_loss,
)
from conftest import cases, crossed
from test_parity import fused_loss

import linreg_ext

# Conversions of float16 rows are the same with float32 parameters.
CONVERSIONS = {name: dtypes for name, dtypes in DTYPES.items() if name != "float16 data"}
REGIMES = {  # of rows (mean + random) · scale, and of noise · scale in their targets
    "residuals of 1": {"noise": 1.0},
    "residuals near 0": {"noise": 1e-4},
    "residuals of 0": {"noise": 0.0},
    "means far above spreads": {"mean": 1e4, "noise": 1e-2},
    "numbers of 1e4": {"scale": 1e4, "noise": 1e-3},
    "numbers of 1e-4": {"scale": 1e-4, "noise": 1e-3},
}
# Rows, features and targets: a small step; lanes along rows and a remainder; tiles of rows and of targets with theirs;
# features in a part of a register, several registers, and longer than a chain; PyTorch's matrix products.
SHAPES = [(30, 1, 1), (515, 1, 1), (131, 2, 1), (30, 3, 2), (200, 3, 1), (131, 5, 1), (131, 8, 1), (70, 4, 3)]
SHAPES += [(71, 16, 1), (65, 33, 1), (67, 128, 1), (11, 1025, 1), (5, 4100, 1)]
SHAPES += [(65, 9, 2), (33, 17, 3), (35, 16, 4), (13, 130, 7), (67, 5, 15), (9, 300, 9), (7, 1025, 3)]
MANY_TARGETS = [(130, 16, 16), (100, 3, 40), (40, 200, 17), (300, 12, 40)]  # the last in chunks of rows and of targets


def problem_of(n, d, k, dtypes, *, mean=0.0, scale=1.0, noise, jumps=False):
    """With `jumps`, no residual is near 0."""
    data, parameter = dtypes
    x = ((mean + torch.randn(n, d, dtype=torch.float64)) * scale).to(data)
    w = (torch.randn(k, d, dtype=torch.float64) / d).to(parameter)
    b = (torch.randn(k, dtype=torch.float64) * scale).to(parameter)
    off = torch.randn(n, k, dtype=torch.float64)
    off += torch.sign(off) if jumps else 0
    # In long double, since targets made by PyTorch's own float64 product would leave it no error.
    wider = np.longdouble if data == torch.float64 else np.float64
    x_long, w_long, b_long = (t.double().numpy().astype(wider) for t in (x, w, b))
    y = torch.from_numpy((x_long @ w_long.T + b_long + noise * scale * off.numpy()).astype("float64"))
    return Problem(x, w, y.to(data), b)


def rate_for(problem, loss):
    """A learning rate with which an update is as large as the weight."""
    size = np.linalg.norm(oracle(problem, loss, 0.75, "mean")["linear_weight"].value.ravel())
    return float(problem.linear_weight.double().norm() / size) if size > 0 else 1.0


def results(problem, loss, lr):
    """Losses, gradients and the parameters after a step: ours, PyTorch's and the exact ones, by name."""
    plain = loss_and_grads(lambda p: plain_loss(p, loss, 0.75, "mean"), problem)
    exact = oracle(problem, loss, 0.75, "mean")
    for name, value in loss_and_grads(lambda p: fused_loss(p, loss, 0.75, "mean"), problem).items():
        yield name, value, plain[name], exact[name]
    w, b = problem.linear_weight, problem.linear_bias
    ours = [w.clone(), b.clone()]
    value = linreg_ext.sgd_step_(
        problem.input, ours[0], problem.target, linear_bias=ours[1], weight=problem.weight, loss=loss,
        **option(loss, 0.75), lr=lr,
    )  # fmt: skip
    yield "loss of a step", value, plain["loss"], exact["loss"]
    for name, before, after in (("linear_weight", w, ours[0]), ("linear_bias", b, ours[1])):
        g, start = exact[name], before.double().numpy().astype(np.longdouble)
        moved = Exact(start - lr * g.value, abs(start) + lr * g.terms)
        yield f"{name} after a step", after, (before.double() - lr * plain[name].double()).to(before.dtype), moved


def check_over_seeds(shapes, regime, dtypes):
    torch.set_num_threads(1)
    numbers = dict(REGIMES[regime])
    if dtypes[0] == torch.float16:
        numbers["scale"] = min(numbers.get("scale", 1.0), 1e3)  # targets of several times 1e4 are infinite
    for i, (n, d, k) in enumerate(shapes):
        loss = LOSSES[i % len(LOSSES)]
        if loss in JUMPS and (regime == "residuals of 0" or (dtypes[0].itemsize == 2 and regime != "residuals of 1")):
            loss = "mse"  # targets rounded to 16 bits come near the kink
        found, lr = {}, None
        for seed in range(SEEDS):
            torch.default_generator.manual_seed(seed)  # torch's own looks at all devices, for a millisecond
            problem = problem_of(n, d, k, dtypes, **numbers, jumps=loss in JUMPS)
            lr = lr or rate_for(problem, loss)  # one for all, or the problem with the largest would decide
            for name, *values in results(problem, loss, lr):
                found.setdefault(name, []).append(values)
        for name, values in found.items():
            # Slopes of two values share their rounding errors, and rows that are nearly equal have gradients whose errors
            # are multiples of the bias's.
            shared = (loss in JUMPS and name in ("input", "target")) or regime == "means far above spreads"
            independent = k if shared else n * k
            assert_as_accurate_over_seeds(
                f"{(n, d, k)} {loss} {name}", *zip(*values, strict=True), independent=independent,
                in_16_bits=dtypes[1].itemsize == 2,
            )  # fmt: skip


@crossed(5, regime=list(REGIMES), dtypes=CONVERSIONS)
@pytest.mark.parametrize("first", cases([0], [1, 2, 3]))
def test_errors_are_those_of_pytorch(regime, dtypes, first):
    check_over_seeds(SHAPES[first::4], regime, dtypes)


@pytest.mark.products
@crossed(5, regime=list(REGIMES), dtypes=CONVERSIONS)
@pytest.mark.parametrize("first", cases([0], [1]))
def test_errors_are_those_of_pytorch_for_many_targets(regime, dtypes, first):
    check_over_seeds(MANY_TARGETS[first::2], regime, dtypes)


@pytest.mark.parametrize("regime", cases(extended=["means far above spreads", "residuals near 0"]))
def test_ten_million_rows(regime):
    """Compared with float64, in which sums of this many numbers are exact enough."""
    problem = problem_of(10_000_000, 1, 1, DTYPES["float32"], **REGIMES[regime])
    x, w, y, b = (t.double() for t in (problem.input, problem.linear_weight, problem.target, problem.linear_bias))
    r = torch.addmm(b, x, w.T).sub_(y)
    size = x.abs() * w.abs() + y.abs() + b.abs()
    exact, terms = (
        {"loss": e.square().mean(), "linear_weight": 2 * e.T @ a / len(e), "linear_bias": 2 * e.mean(0)}
        for e, a in ((r, x), (size, x.abs()))
    )
    plain = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, "mean"), problem, of="linear_")
    ours = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), problem, of="linear_")
    for name, value in ours.items():
        assert_as_accurate(name, value, plain[name], Exact(exact[name].numpy(), terms[name].numpy()))


@pytest.mark.parametrize("weight", cases(extended=[None, "rows", "elements"]))
def test_many_equal_rows(weight):
    """Equal rounding errors accumulate in a chain of additions, to hundreds of units in the last place. (In PyTorch's
    matrix products they do, so that 16 targets and more are not for this test.)"""
    shapes = [(1021, 1, 1), (289, 1, 5), (5000, 2, 1), (5000, 33, 1), (2000, 12, 5), (2_000_000, 1, 1)]
    for n, d, k in shapes:
        for seed in range(3):
            torch.manual_seed(seed)
            row = Problem.random(1, d, k, DTYPES["float64"], weight=weight)
            x, w, y, b, v = vars(row).values()
            v = None if v is None else v.repeat(n, *[1] * (v.dim() - 1))
            problem = Problem(x.repeat(n, 1), w, y.repeat(n, 1), b, v)
            for found in results(problem, LOSSES[seed], rate_for(problem, LOSSES[seed])):
                assert_as_accurate(*found)


def test_a_weighted_mean_over_many_equal_rows():
    """Of losses of 1. A plain sum of a million weights of 0.7 is off by hundreds of units in the last place."""
    x, y = torch.zeros(1_000_000, 1, dtype=torch.float64), torch.ones(1_000_000, 1, dtype=torch.float64)
    loss = linreg_ext.linear_mse_loss(x, x[:1], y, weight=torch.full_like(y, 0.7))
    assert abs(loss.item() - 1) <= 4 * torch.finfo(torch.float64).eps
