# SPDX-License-Identifier: BSD-3-Clause
"""Numbers worked by hand, for the reference and the kernels."""

import math
from fractions import Fraction

import pytest
import reference_twins
import torch

import linreg_ext

MODULES = pytest.mark.parametrize("module", [reference_twins, linreg_ext], ids=["reference", "kernels"])

# X = [[1, 2], [3, 4], [5, 6]], W = [[1, -1]], b = [1/2], so P = [-1/2, -1/2, -1/2]; Y = [0, 1, -5/2], R = P - Y:
RESIDUALS = [Fraction(-1, 2), Fraction(-3, 2), Fraction(2)]
ROWS = [(1, 2), (3, 4), (5, 6)]


def problem(dtype=torch.float64):
    x = torch.tensor(ROWS, dtype=dtype)
    w = torch.tensor([[1.0, -1.0]], dtype=dtype, requires_grad=True)
    b = torch.tensor([0.5], dtype=dtype, requires_grad=True)
    y = torch.tensor([[0.0], [1.0], [-2.5]], dtype=dtype)
    return x, w, b, y


VALUES = {  # loss: values and derivatives at the three residuals, from the definitions
    "mse": ([r * r for r in RESIDUALS], [2 * r for r in RESIDUALS], {}),
    "l1": ([abs(r) for r in RESIDUALS], [-1, -1, 1], {}),
    # delta = 3/2: |-3/2| is at the edge, 2 beyond it: 3/2 (2 - 3/4) = 15/8
    "huber": ([Fraction(1, 8), Fraction(9, 8), Fraction(15, 8)], [Fraction(-1, 2), Fraction(-3, 2), Fraction(3, 2)], {"delta": 1.5}),
    # beta = 3/2: (1/4) / 3 = 1/12; at the edge 3/2 - 3/4; beyond it 2 - 3/4
    "smooth_l1": ([Fraction(1, 12), Fraction(3, 4), Fraction(5, 4)], [Fraction(-1, 3), -1, 1], {"beta": 1.5}),
    # q = 1/4: 1/4 of |-1/2| and of |-3/2|, 3/4 of 2
    "quantile": ([Fraction(1, 8), Fraction(3, 8), Fraction(3, 2)], [Fraction(-1, 4), Fraction(-1, 4), Fraction(3, 4)], {"quantile": 0.25}),
}  # fmt: skip


@MODULES
@pytest.mark.parametrize("loss", VALUES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_and_gradients_by_hand(module, loss, reduction):
    values, slopes, options = VALUES[loss]
    x, w, b, y = problem()
    function = getattr(module, f"linear_{loss}_loss")
    result = function(x, w, y, linear_bias=b, reduction=reduction, **options)
    result.backward()
    count = 3 if reduction == "mean" else 1
    expect = [sum(g * row[j] for g, row in zip(slopes, ROWS, strict=True)) / Fraction(count) for j in (0, 1)]
    assert result.item() == pytest.approx(float(sum(values) / Fraction(count)), rel=1e-15)
    assert w.grad.tolist() == [pytest.approx([float(e) for e in expect], rel=1e-15)]
    assert b.grad.item() == pytest.approx(float(sum(slopes) / Fraction(count)), rel=1e-15, abs=1e-15)


@MODULES
def test_mse_gradient_has_the_factor_two_over_nk(module):
    x = torch.eye(2, dtype=torch.float64)
    w = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    module.linear_mse_loss(x, w, y).backward()
    assert torch.equal(w.grad, -2 / 4 * y.T)  # (2 / NK) Rᵀ X with R = -Y, X = 1


@MODULES
def test_weighted_mean_divides_by_the_sum_of_weights(module):
    x, w, b, y = problem()
    v = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    weighted = [v_i * r * r for v_i, r in zip((1, 2, 5), RESIDUALS, strict=True)]
    for weight in (v, v[:, None]):
        result = module.linear_mse_loss(x, w, y, linear_bias=b, weight=weight)
        assert result.item() == pytest.approx(float(sum(weighted) / 8), rel=1e-15)
    none = module.linear_mse_loss(x, w, y, linear_bias=b, weight=v, reduction="none")
    assert none.flatten().tolist() == [float(value) for value in weighted]


@MODULES
def test_one_weight_a_row_is_shared_by_its_targets(module):
    x, w, y = torch.eye(2), torch.zeros(3, 2), torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
    result = module.linear_mse_loss(x, w, y, weight=torch.tensor([2.0, 1.0]))
    assert result.item() == pytest.approx((2 * 14 + 3) / (3 * 2 + 3 * 1))


@MODULES
@pytest.mark.parametrize(
    ("options", "first", "second"),
    [  # p = 1, gradient g = 2 p at every step (loss = p^2), lr = 1/8
        ({}, 1 - 2 / 8, 0.75 - 1.5 / 8),
        ({"maximize": True}, 1 + 2 / 8, 1.25 + 2.5 / 8),
        ({"weight_decay": 0.5}, 1 - 2.5 / 8, 0.6875 - 2.5 * 0.6875 / 8),
        # maximize negates the gradient before the decay is added: g = -2 + 1/2
        ({"weight_decay": 0.5, "maximize": True}, 1 + 1.5 / 8, 1.1875 + 1.5 * 1.1875 / 8),
        # the first buffer is g itself, whatever the dampening; the second 1/2 * 2 + (1 - 1/4) * 1.5
        ({"momentum": 0.5, "dampening": 0.25}, 0.75, 0.75 - (1 + 1.125) / 8),
        # nesterov steps along g + momentum * buf: 2 + 1, then buf = 1 + 2 * 0.625 and 1.25 + buf / 2
        ({"momentum": 0.5, "nesterov": True}, 1 - 3 / 8, 0.625 - (1.25 + 2.25 / 2) / 8),
    ],
)
def test_sgd_rule_by_hand(module, options, first, second):
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    w = torch.ones(1, 1, dtype=torch.float64)
    buffers = [None, None]
    for expected, before in ((first, 1.0), (second, first)):
        loss = module.sgd_step_(x, w, y, lr=1 / 8, momentum_buffers=buffers, **options)
        assert loss.item() == before**2
        assert w.item() == expected
    assert (buffers[0] is None) == ("momentum" not in options)


@MODULES
def test_derivatives_at_zero_and_at_nan_are_pytorchs(module):
    x = torch.ones(2, 1)
    y = torch.tensor([[1.0], [math.nan]])
    for loss, at_nan, options in (
        ("l1", 0.0, {}), ("mse", math.nan, {}), ("huber", math.nan, {}), ("smooth_l1", math.nan, {}),
        ("smooth_l1", 0.0, {"beta": 0.0}), ("quantile", 0.0, {}),
    ):  # fmt: skip
        w = torch.ones(1, 1, requires_grad=True)
        target = y.clone().requires_grad_()
        getattr(module, f"linear_{loss}_loss")(x, w, target, reduction="sum", **options).backward()
        torch.testing.assert_close(target.grad.flatten(), torch.tensor([0.0, at_nan]), equal_nan=True)


@MODULES
def test_smooth_l1_with_beta_zero_is_l1(module):
    x, w, b, y = problem()
    smooth = module.linear_smooth_l1_loss(x, w, y, linear_bias=b, beta=0.0)
    assert torch.equal(smooth, module.linear_l1_loss(x, w, y, linear_bias=b))
    assert torch.autograd.grad(smooth, w)[0].isfinite().all()
