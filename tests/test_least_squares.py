# SPDX-License-Identifier: BSD-3-Clause
"""Exact least squares: certified values, LAPACK's accuracy, merging, weights, ranks, groups, errors."""

import itertools
import math
import os

import nist
import numpy as np
import pytest
import torch
from conftest import cases, crossed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import linreg_ext
from linreg_ext import LeastSquares, least_squares, lstsq, lstsq_batches, reference
from linreg_ext._extension import REFERENCE

METHODS = ("gram", "qr")
FIELDS = sorted(set(linreg_ext.LeastSquaresSolution.__dataclass_fields__) - {"method"})


def table(n, d, k=1, *, condition=1.0, shift=0.0, dtype=torch.float64, seed=0):
    """Columns of a given condition number around `shift`, and targets with noise."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    u, v = torch.linalg.qr(normal(n, d)).Q, torch.linalg.qr(normal(d, d)).Q
    x = u * torch.logspace(0, -math.log10(condition), d, dtype=torch.float64) @ v.T * n**0.5 + shift
    y = x @ normal(d, k) + normal(n, k) + 3
    return x.to(dtype), y.to(dtype)


def by_numpy(x, y, weight=None, l2=0.0, bias=True):
    """[K, D] and [K] by LAPACK, on centred columns."""
    x, y = x.double().numpy(), y.double().numpy().reshape(len(y), -1)
    v = np.ones(len(x)) if weight is None else weight.double().numpy()
    mean_x, mean_y = (np.average(t, axis=0, weights=v) if bias else np.zeros(t.shape[1]) for t in (x, y))
    root = np.sqrt(v)[:, None]
    left = np.vstack([(x - mean_x) * root, math.sqrt(l2) * np.eye(x.shape[1])])
    right = np.vstack([(y - mean_y) * root, np.zeros((x.shape[1], y.shape[1]))])
    w = np.linalg.lstsq(left, right, rcond=None)[0].T
    return torch.from_numpy(w), torch.from_numpy(mean_y - w @ mean_x)


def fitted(x, y, method, weight=None, pieces=1, **options):
    moments = LeastSquares(x.shape[1], y.shape[1], method=method, **options)
    for part in torch.arange(len(x)).tensor_split(pieces):
        moments.update(x[part], y[part], None if weight is None else weight[part])
    return moments


# ---- Right answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", nist.PROBLEMS)
def test_certified_values(name):
    """Digits of the coefficients, and of the standard errors: an exact fit's are within 1e-9 of the coefficient."""
    x, y, certified, errors, bias = nist.problem(name)
    solution = lstsq(x, y, bias=bias)
    found, found_errors = (
        torch.cat([b, w[0]]) if bias else w[0]
        for b, w in ((solution.bias, solution.weight), (solution.bias_stderr, solution.weight_stderr))
    )
    digits = {"Filip": 6, "Wampler4": 6, "Wampler5": 5}.get(name, 9)
    torch.testing.assert_close(found, certified, rtol=10.0**-digits, atol=0)
    if errors.any():
        torch.testing.assert_close(found_errors, errors, rtol=1e-5, atol=0)
    else:
        assert (found_errors <= 1e-9 * certified).all()
    assert solution.method == ("qr" if name == "Filip" else "gram")


@pytest.mark.parametrize("condition", [1, 1e2, 1e4, 1e5, 1e6, 1e7])
def test_as_accurate_as_lapack(condition):
    """Root mean square error at most three times LAPACK's, over 64 problems; exact: refined in extended precision."""
    errors = []
    for seed in range(64):
        x, y = table(200, 6, condition=condition, seed=seed)
        exact = np.linalg.lstsq(np.c_[x, np.ones(200)], y.numpy(), rcond=None)[0].astype(np.longdouble)
        wide = np.c_[x, np.ones(200)].astype(np.longdouble)
        factor = np.linalg.qr(np.c_[x, np.ones(200)])[1]
        for _ in range(20):
            gradient = wide.T @ (y.numpy().astype(np.longdouble) - wide @ exact)
            exact = exact + np.linalg.solve(factor, np.linalg.solve(factor.T, gradient.astype(float)))
        lapack = np.linalg.lstsq(np.c_[x, np.ones(200)], y.numpy(), rcond=None)[0]
        ours = lstsq(x, y).weight.T.numpy()
        errors.append([np.square(w[:6] - exact[:6]).mean() for w in (ours, lapack)])
    ours, lapack = np.sqrt(np.mean(errors, axis=0))
    assert ours <= 3 * lapack, (ours, lapack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(40, 1, 1), (100, 3, 2), (9000, 8, 1), (500, 17, 3), (300, 33, 1), (20000, 5, 2)]
)
def test_every_shape_and_dtype(n, d, k, dtype):
    x, y = table(n, d, k, shift=2.0, dtype=dtype)
    weight = torch.rand(n).to(dtype)
    for v in (None, weight):
        for bias in (True, False):
            w, b = by_numpy(x, y, v, bias=bias)
            for method in ("auto", *METHODS):
                solution = lstsq(x, y, weight=v, bias=bias, method=method)
                torch.testing.assert_close(solution.weight, w, rtol=1e-9, atol=1e-10)
                torch.testing.assert_close(solution.bias, b, rtol=1e-9, atol=1e-10)
                assert solution.weight.dtype == torch.float64
    strided = torch.empty(n, 2 * d, dtype=dtype)[:, ::2].copy_(x)
    torch.testing.assert_close(lstsq(strided, y).weight, lstsq(x, y).weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_statistics(method):
    """Against the formulas on the rows."""
    x, y = table(60, 4, 2, shift=5)
    weight = torch.rand(60, dtype=torch.float64) + 0.1
    weight[:3] = 0
    x[0, 0] = math.nan  # without weight, it is ignored
    solution = fitted(x, y, method, weight).solve()
    used = weight > 0
    x, y, weight = x[used], y[used], weight[used]
    r = y - solution.predict(x)
    rss = (weight[:, None] * r**2).sum(0)
    design = torch.cat([x, torch.ones(57, 1)], 1).double()
    covariance = torch.linalg.inv(design.T @ (weight[:, None] * design))
    errors = (rss[:, None] / (57 - 5) * covariance.diagonal()).sqrt()
    mean = (weight[:, None] * y).sum(0) / weight.sum()
    assert (solution.rank, solution.degrees_of_freedom) == (4, 52)
    torch.testing.assert_close(solution.residual_sum_of_squares, rss)
    torch.testing.assert_close(solution.r2, 1 - rss / (weight[:, None] * (y - mean) ** 2).sum(0))
    torch.testing.assert_close(torch.cat([solution.weight_stderr, solution.bias_stderr[:, None]], 1), errors)
    scaled = fitted(x, y, method, 7 * weight).solve()
    torch.testing.assert_close(scaled.weight_stderr, solution.weight_stderr)


def test_duplicated_rows_make_smaller_errors_and_weights_do_not():
    x, y = table(50, 3)
    one, two = lstsq(x, y), lstsq(torch.cat([x, x]), torch.cat([y, y]))
    torch.testing.assert_close(two.weight_stderr, one.weight_stderr * math.sqrt(46 / 96))


@pytest.mark.parametrize("method", METHODS)
def test_ridge(method):
    """l2 adds l2 ‖w‖² to the sum of squares and leaves the bias alone."""
    x, y = table(80, 5, 2, shift=3)
    moments = fitted(x, y, method)
    path = moments.solve([0.0, 0.5, 100.0])
    for l2, solution in zip([0.0, 0.5, 100.0], path, strict=True):
        w, b = by_numpy(x, y, l2=l2)
        torch.testing.assert_close(solution.weight, w)
        torch.testing.assert_close(solution.bias, b)
        torch.testing.assert_close(lstsq(x, y, l2=l2, method="auto").weight, w)
        assert solution.weight_stderr.isnan().all() == (l2 > 0)


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e8])
@pytest.mark.parametrize("groups", [None, 3])
def test_a_ridge_path_is_its_solutions(spread, groups):
    x, y = table(300, 4, 2, shift=3)
    moments = LeastSquares(4, 2, groups=groups)
    group = None if groups is None else torch.arange(300) % 3
    moments.update(x * torch.tensor([1, spread, 1 / spread, 2.0]), y, group=group)
    penalties = [0.0, 1e-3, 0.5, 1e4]
    for l2, solution in zip(penalties, moments.solve(penalties), strict=True):
        alone = moments.solve(l2)
        for name in ("weight", "bias", "condition", "residual_sum_of_squares"):
            found, expected = (torch.as_tensor(getattr(each, name)) for each in (solution, alone))
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("offset", [300.0, 2000.0, 4000.0, 1e4, 1e5])
def test_moments_that_float32_cannot_hold(offset):
    """`auto` begins with products in float32, about the mean of the first rows, which here have hardly any weight."""
    x, noise, weight = torch.randn(2000, 40), 0.1 * torch.randn(2000, 1), torch.ones(2000)
    x[64:] += offset
    weight[:64] = 1e-12
    y = (x.double() @ torch.linspace(1, 2, 40, dtype=torch.float64)[:, None] + noise).float()
    expected = lstsq(x, y, weight=weight, method="qr")
    torch.testing.assert_close(lstsq(x, y, weight=weight).weight, expected.weight, rtol=1e-9, atol=0)
    large = lstsq(x * 2.0**80, y, weight=weight)  # whose squares are infinite in float32
    torch.testing.assert_close(large.weight * 2.0**80, expected.weight, rtol=1e-9, atol=0)


# ---- Difficult columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_rank_deficient_problems_get_the_smallest_coefficients(method):
    """In the columns' own units, as LAPACK and scikit-learn compute them; a constant column gets 0."""
    x, y = table(100, 4, 2)
    scales = torch.tensor([1.0, 100.0, 1e-2, 1.0, 1.0, 1.0], dtype=torch.float64)
    x = torch.cat([x, x[:, :1] - x[:, 1:2], torch.full((100, 1), 0.1)], 1) * scales
    solution = lstsq(x, y, method=method)
    w, b = by_numpy(x, y)
    assert (solution.rank, solution.condition, solution.degrees_of_freedom) == (4, math.inf, 95)
    torch.testing.assert_close(solution.weight, w, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.bias, b, rtol=1e-7, atol=1e-9)
    assert (solution.weight[:, -1] == 0).all()
    assert solution.weight_stderr.isnan().all()


@pytest.mark.parametrize("method", ["auto", *METHODS])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_fewer_rows_than_columns(method, n):
    x, y = table(6, 6, 2)
    x, y = x[:n], y[:n]
    solution = lstsq(x, y, method=method)
    w, b = by_numpy(x, y)
    torch.testing.assert_close(solution.weight, w, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(solution.bias, b, rtol=1e-6, atol=1e-7)
    assert (solution.rank, solution.degrees_of_freedom) == (min(n - 1, 6), 0)


@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_columns_far_apart_in_scale_and_far_from_zero(method):
    x, y = table(300, 3)
    scales = torch.tensor([1e-8, 1.0, 1e8], dtype=torch.float64)
    solution = lstsq(x * scales, y, method=method)
    assert solution.rank == 3
    torch.testing.assert_close(solution.weight * scales, by_numpy(x, y)[0], rtol=1e-9, atol=1e-10)
    far = (x * 2**20).round() / 2**20 + 2**20  # exactly representable
    expected = by_numpy(far - 2**20, y)[0]
    torch.testing.assert_close(lstsq(far, y, method=method).weight, expected, rtol=1e-8, atol=1e-9)


def test_no_features_and_exact_fits():
    y = torch.tensor([[1.0], [2.0], [6.0]])
    solution = lstsq(torch.empty(3, 0), y)
    assert (solution.weight.shape, solution.bias.tolist(), solution.rank) == ((1, 0), [3.0], 0)
    assert solution.residual_sum_of_squares.item() == 14
    x = torch.tensor([[0.0], [1.0], [2.0]])
    solution = lstsq(x, 2 * x + 1)
    torch.testing.assert_close(solution.weight.item(), 2.0)
    assert solution.r2.item() == 1


# ---- Pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_any_pieces_in_any_order(method):
    """Within 100 κ² eps from moments; QR as LAPACK."""
    x, y = table(1000, 5, 2, condition=100, shift=1e3)
    weight = torch.rand(1000, dtype=torch.float64)
    whole = fitted(x, y, method, weight).solve()
    parts = [fitted(x[p], y[p], method, weight[p], pieces=3) for p in torch.randperm(1000).tensor_split(7)]
    merged = LeastSquares(5, 2, method=method)  # an empty one is neutral
    for part in parts:
        merged.merge(part)
    for other in (merged.solve(), fitted(x, y, method, weight, pieces=50).solve()):
        tolerance = 100 * 100**2 * 2.2e-16 * whole.weight.norm().item()
        torch.testing.assert_close(other.weight, whole.weight, rtol=0, atol=tolerance)
        torch.testing.assert_close(other.bias, whole.bias, rtol=0, atol=1e3 * tolerance)
        assert other.degrees_of_freedom == whole.degrees_of_freedom


@pytest.mark.parametrize("method", METHODS)
def test_the_state_goes_through_a_file(method, tmp_path):
    x, y = table(100, 3, 2)
    first = fitted(x[:60], y[:60], method)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = LeastSquares(3, 2, method=method)
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    first.update(x[60:], y[60:])
    second.update(x[60:], y[60:])
    assert torch.equal(first.solve().weight, second.solve().weight)


def test_batches_are_as_good_as_the_whole():
    x, y = table(500, 4, condition=1e5, dtype=torch.float32)
    weight = torch.rand(500)
    loader = DataLoader(TensorDataset(x, y, weight), batch_size=64, shuffle=True)
    solution, whole = lstsq_batches(loader), lstsq(x, y, weight=weight)
    torch.testing.assert_close(solution.weight, whole.weight, rtol=1e-8, atol=1e-8)
    with pytest.raises(TypeError, match="lstsq_batches: batches must be iterable several times, got an iterator"):
        lstsq_batches(iter([(x, y)]))
    with pytest.raises(ValueError, match="lstsq_batches: expected batches, got none"):
        lstsq_batches([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_any_thread_count(dtype):
    x, y = table(30000, 9, 2, dtype=dtype)
    group = torch.randint(0, 50, (30000,))
    ends = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            grouped = LeastSquares(9, 2, groups=50).update(x, y, group=group).solve()
            ends.append([lstsq(x, y).weight, LeastSquares(9, 2).update(x, y).solve().weight, grouped.weight])
    finally:
        torch.set_num_threads(threads)
    for other in ends[1:]:
        assert all(map(torch.equal, ends[0], other))


@pytest.mark.skipif(REFERENCE, reason="compares with the reference")
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 36])
def test_moments_of_few_and_many_columns(d):
    """On a CPU, few columns are transposed in blocks of 64 rows. Rows without weight may hold anything."""
    layouts = [
        (torch.float32, lambda x: x), (torch.float64, lambda x: x), (torch.float64, lambda x: x.T.contiguous().T),
        (torch.bfloat16, lambda x: x), (torch.float32, lambda x: torch.cat([x[:, :1], x], 1)[:, 1:]),
    ]  # fmt: skip
    for n, (dtype, layout) in itertools.product((3, 131), layouts):
        x, y = (torch.randn(n, width).add(3).to(dtype) for width in (d, 2))
        weight, group = torch.rand(n), torch.randint(0, 3, (n,))
        weight[::5] = 0
        bad = x.index_fill(0, torch.arange(0, n, 5), math.nan)
        for v, g in itertools.product((None, weight), (None, group, group.sort().values)):
            shapes = [(1 if g is None else 3, *shape) for shape in ((2,), (d + 2,), (d + 2, d + 2))]
            found, expected = ([torch.zeros(shape, dtype=torch.float64) for shape in shapes] for _ in range(2))
            torch.ops.linreg_ext.moments_(layout(x if v is None else bad), y, v, g, *found, False)
            reference.moments_(x if v is None else bad, y, v, g, *expected, False)
            for ours, plain in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12 * n)


# ---- Groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(REFERENCE or "LINREG_EXT_SIMT" in os.environ, reason="is about the pass on the CPU")
@pytest.mark.parametrize("size", cases([(20_000, 50_000)], [(60_000, 4_300_000)]), ids=str)
def test_groups_beyond_the_cache_are_added_in_the_order_of_the_rows(size):
    """The bits of rows that come sorted, for any number of threads, but for rows that are sorted in two parts."""
    groups, rows = size
    x, y, group = torch.randn(rows, 2), torch.randn(rows, 1), torch.randint(groups, (rows,))
    order = group.argsort(stable=True)
    expected = LeastSquares(2, groups=groups).update(x[order], y[order], group=group[order])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found = LeastSquares(2, groups=groups).update(x, y, group=group)
        for name in ("_counts", "_mean", "_moments"):
            tolerance = 0 if rows <= 1 << 22 else 1e-11
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(REFERENCE or "LINREG_EXT_SIMT" in os.environ, reason="is about the threads of the CPU")
def test_a_long_group_has_the_same_bits_for_any_thread_count():
    """Millions of rows of one group, in the part of the second thread."""
    group = torch.arange(5_600_000) >= 1_000_000
    x = torch.randn(len(group), 1)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        moments = LeastSquares(1, groups=2).update(x, x, group=group.long())
        found.append(torch.cat([moments._counts, moments._mean, moments._moments.flatten(1)], 1))
    assert torch.equal(*found)


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("value", [0.1, 3e306])
@pytest.mark.parametrize("d", [1, 3, 40])
def test_a_constant_column_has_no_variance(d, value, groups):
    """Whatever the weights; the mean of equal numbers rounds to another number, and their sum overflows."""
    x = torch.arange(50.0, dtype=torch.float64)[:, None].repeat(1, d)
    y = torch.full((50, 1), value, dtype=torch.float64)
    group = None if groups is None else torch.arange(50) // 25
    for seed in range(20):
        weight = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moments = LeastSquares(d, groups=groups).update(x, y, weight, group)
        assert not moments.variance[..., -1].any()
        assert torch.as_tensor(moments.solve().r2).isnan().all()


@pytest.mark.parametrize("method", METHODS)
def test_some_features(method):
    """In any order, as if the others had never been there; a batch without weight adds nothing."""
    x, y = table(200, 5, 2, shift=3)
    moments = fitted(x, y, method).update(x[:3], y[:3], torch.zeros(3))
    found, expected = moments.select([4, 0, 2]).solve(), fitted(x[:, [4, 0, 2]], y, method).solve()
    for name in ("weight", "bias", "residual_sum_of_squares", "weight_stderr", "bias_stderr"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=name)
    assert found.degrees_of_freedom == 196


def test_each_group_is_a_regression_of_its_own():
    x, y = table(400, 3, 2)
    weight, group = torch.rand(400, dtype=torch.float64), torch.randint(0, 5, (400,))
    group[group == 3] = 4
    moments = LeastSquares(3, 2, groups=6)
    for part in torch.arange(400).tensor_split(3):
        moments.update(x[part], y[part], weight[part], group[part])
    with pytest.warns(
        UserWarning, match=r"linreg_ext: LeastSquares.solve: 2 of 6 groups have no rows \(the first is 3\)"
    ):
        found = moments.solve()
    for g in (0, 1, 2, 4):
        alone = LeastSquares(3, 2).update(x[group == g], y[group == g], weight[group == g]).solve()
        for name in ("weight", "bias", "residual_sum_of_squares", "r2", "weight_stderr", "bias_stderr"):
            torch.testing.assert_close(getattr(found, name)[g], getattr(alone, name), msg=name)
        assert (found.rank[g], found.degrees_of_freedom[g]) == (alone.rank, alone.degrees_of_freedom)
    assert found.weight[3].isnan().all()
    torch.testing.assert_close(found.predict(x).shape, torch.Size([6, 400, 2]))


def test_many_groups_are_solved_like_few(monkeypatch):
    """In blocks of a few groups each, the last smaller."""
    moments = LeastSquares(3, 2, groups=11).update(*table(400, 3, 2), group=torch.arange(400) % 11)
    expected = moments.solve([0.0, 2.0])
    monkeypatch.setattr(least_squares, "_GROUPS", 4)
    for found, whole in zip(moments.solve([0.0, 2.0]), expected, strict=True):
        assert found.method == "gram"
        for name in FIELDS:
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), equal_nan=True, msg=name)
    moments.update(torch.full((1, 3), math.inf), torch.ones(1, 2), group=torch.tensor([9]))
    with pytest.raises(ValueError, match="the rows must be finite"):
        moments.solve()


# ---- Without the rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_loss_of(method):
    x, y = table(200, 4, 3, shift=2)
    w, b = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    weight = torch.rand(200, dtype=torch.float64)
    moments = fitted(x, y, method, weight)
    expected = linreg_ext.linear_mse_loss(x, w, y, linear_bias=b, weight=weight)
    torch.testing.assert_close(moments.loss_of(w, b), expected)
    torch.testing.assert_close(moments.loss_of(w.float(), b.float()), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.2},
        {"weight_decay": 0.1}, {"lr": torch.linspace(0.1, 0.01, 20, dtype=torch.float64)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_full_batch_descent_without_the_rows(options, bias):
    x, y = table(300, 4, 2, shift=0.5)
    options = {"lr": 0.05, **options}
    moments = fitted(x, y, "gram")
    ends = []
    for by_rows in (True, False):
        w = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
        parameters = [w, torch.ones(2, dtype=torch.float64, requires_grad=True)][: 1 + bias]
        if by_rows:
            others = {**options, "linear_bias": parameters[1] if bias else None}
            if options.get("momentum"):
                others["momentum_buffers"] = [None, None]
            losses = linreg_ext.sgd_run_(x, w, y, epochs=20, **others)
        else:
            losses = moments.sgd_run_(*parameters, steps=20, **options)
        ends.append([losses, *(p.detach() for p in parameters)])
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-10)


def test_a_sweep_and_groups_without_the_rows():
    x, y = table(300, 3, shift=0.5)
    rates = torch.tensor([0.01, 0.05, 0.1], dtype=torch.float64)
    moments = fitted(x, y, "gram")
    w, b = torch.zeros(3, 1, 3, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    losses = moments.sgd_run_(w, b, steps=7, lr=rates)
    assert losses.shape == (3, 7)
    group = torch.arange(300) % 2
    grouped = LeastSquares(3, groups=2).update(x, y, group=group)
    of_groups = torch.zeros(2, 1, 3, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    grouped.sgd_run_(*of_groups, steps=7, lr=0.05)
    for i in range(3):
        own = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        alone = moments.sgd_run_(*own, steps=7, lr=rates[i].item())
        torch.testing.assert_close([losses[i], w[i], b[i]], [alone, *own])
    for g in range(2):
        own = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        fitted(x[group == g], y[group == g], "gram").sgd_run_(*own, steps=7, lr=0.05)
        torch.testing.assert_close([t[g] for t in of_groups], [*own])


def test_the_solution_goes_into_a_layer():
    x, y = table(50, 3, 2)
    solution = lstsq(x, y)
    layer = solution.copy_to_(nn.Linear(3, 2))
    torch.testing.assert_close(layer(x.float()), solution.predict(x).float())
    with pytest.raises(ValueError, match=r"linear.weight must have shape \[2, 3\], got \[2, 4\]"):
        solution.copy_to_(nn.Linear(4, 2))
    with pytest.raises(ValueError, match="linear must have a bias, got none; solve with bias=False"):
        solution.copy_to_(nn.Linear(3, 2, bias=False))


# ---- Operators and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_operators_are_their_reference(groups, weighted):
    x, y = table(300, 5, 2, shift=3)
    weight, group = torch.rand(300) if weighted else None, torch.randint(0, 4, (300,)) if groups else None
    count = groups or 1
    state = [[torch.zeros(count, *shape, dtype=torch.float64) for shape in ((2,), (7,), (7, 7))] for _ in range(2)]
    for part in torch.arange(300).tensor_split(2):
        rows = [None if t is None else t[part] for t in (x, y, weight, group)]
        torch.ops.linreg_ext.moments_(*rows, *state[0], False)
        reference.moments_(*rows, *state[1], False)
    torch.testing.assert_close(*state)
    operands = (x, y, weight, torch.randn(2, 5).double(), torch.randn(2).double(), torch.randn(7).double())
    torch.testing.assert_close(torch.ops.linreg_ext.residual_moments(*operands), reference.residual_moments(*operands))
    torch.library.opcheck(torch.ops.linreg_ext.residual_moments.default, operands)
    torch.library.opcheck(torch.ops.linreg_ext.moments_.default, (x, y, weight, group, *state[0], False))


@pytest.mark.skipif("LINREG_EXT_SIMT" in os.environ, reason="the CUDA kernel's shift is the first row with a weight")
def test_a_group_that_begins_with_a_light_row_far_away():
    x, weight = torch.tensor([[1e9], [0.1], [0.2], [0.4]]).double(), torch.tensor([1e-18, 1, 1, 1]).double()
    moments = LeastSquares(1, groups=1).update(x, x, weight, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(moments.variance[0, 0], LeastSquares(1).update(x[1:], x[1:]).variance[0] + 1 / 3)


def test_bad_arguments_of_a_descent():
    moments = LeastSquares(2, 1, groups=3).update(torch.randn(9, 2), torch.randn(9), group=torch.arange(9) // 3)
    w, b = torch.zeros(3, 1, 2), torch.zeros(3, 1)
    with pytest.raises(RuntimeError, match=r"linear_bias must have shape \[3, 1\], got \[1, 3\]"):
        moments.sgd_run_(w, b.T, steps=4, lr=0.1)
    with pytest.raises(RuntimeError, match=r"lr must be a float or have shape \[4\], got \[3\]"):
        moments.sgd_run_(w, b, steps=4, lr=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="nesterov must have a momentum > 0 and no dampening"):
        moments.sgd_run_(w, b, steps=4, lr=0.1, nesterov=True)
    assert not w.any()
    assert moments.solve([]) == []


def test_more_groups_than_rows():
    x, y = table(40, 3, 1)
    group = torch.randint(0, 100, (40,))
    state = [[torch.zeros(100, *shape, dtype=torch.float64) for shape in ((2,), (4,), (4, 4))] for _ in range(2)]
    for part in torch.arange(40).tensor_split(2):
        torch.ops.linreg_ext.moments_(x[part], y[part], None, group[part], *state[0], False)
        reference.moments_(x[part], y[part], None, group[part], *state[1], False)
    torch.testing.assert_close(*state)


@pytest.mark.skipif(REFERENCE or "LINREG_EXT_SIMT" in os.environ, reason="is about the descent on the CPU")
@crossed(
    2,
    shape=[(1, 1, 1), (3, 0, 2), (8, 4, 1), (9, 3, 2), (17, 9, 1), (20, 20, 3)],
    shared=[False, True],
    options=[
        {},
        {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ],
)
def test_descent_is_its_reference(shape, shared, options):
    problems, d, k = shape
    moments = LeastSquares(d, k, groups=None if shared else problems)
    x, y = table(problems * 30, d, k, shift=3)
    moments.update(x, y, group=None if shared else torch.arange(problems).repeat(30))
    state = moments._counts, moments._mean, moments._moments
    lr = torch.rand(problems, 6, dtype=torch.float64) / 100
    others = (
        *(options.get(name, 0.0) for name in ("momentum", "dampening", "weight_decay")),
        *(options.get(name, False) for name in ("nesterov", "maximize")),
    )
    for rates, bias in ((lr, True), (lr[:1, :1].expand(problems, 6), False)):
        w, b = torch.randn(problems, k, d).double(), torch.randn(problems, k).double() if bias else None
        ours, plain = ([t if t is None else t.clone() for t in (w, b)] for _ in range(2))
        losses = torch.ops.linreg_ext.descend_(*state, *ours, rates, *others)
        torch.testing.assert_close(losses, reference.descend_(*state, *plain, rates, *others), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    torch.library.opcheck(torch.ops.linreg_ext.descend_.default, (*state, w, b, rates, *others))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"input": torch.zeros(10, 2)}, RuntimeError, r"input must have shape \[rows, 3\], got \[10, 2\]"),
        ({"target": torch.zeros(9, 1)}, RuntimeError, r"target must have shape \[10, 1\], got \[9, 1\]"),
        ({"weight": torch.zeros(10, 2)}, RuntimeError, r"weight must have shape \[10\], one number per row, got \[10, 2\]"),
        ({"weight": -torch.ones(10)}, ValueError, "weight must be >= 0, got a negative number"),
        ({"input": torch.zeros(10, 3, dtype=torch.int64)}, RuntimeError, "input must have a floating-point dtype, got torch.int64"),
        ({"group": torch.zeros(10, dtype=torch.int64)}, ValueError, "group must be None with groups=None, got a tensor"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", METHODS)
def test_errors_change_nothing(method, change, error, words):
    moments = fitted(*table(20, 3), method)
    before = moments.state_dict()
    with pytest.raises(error, match=words):
        moments.update(**{"input": torch.zeros(10, 3), "target": torch.zeros(10, 1), **change})
    after = moments.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if isinstance(value, torch.Tensor))


def test_other_errors():
    with pytest.raises(IndexError, match="group must hold indices from 0 to 1, got 2 in row 4"):
        LeastSquares(3, groups=2).update(torch.zeros(5, 3), torch.zeros(5), group=torch.tensor([0, 1, 0, 1, 2]))
    with pytest.raises(ValueError, match=r"LeastSquares.solve: expected rows with weight > 0, got none"):
        LeastSquares(3).solve()
    x, y = table(20, 3)
    x[3, 1] = math.inf
    for method in ("auto", *METHODS):
        with pytest.raises(ValueError, match="the rows must be finite, got nan or inf in at least one"):
            lstsq(x, y, method=method)
    with pytest.raises(ValueError, match=r"LeastSquares\.merge: in_features must be 3, got 4"):
        LeastSquares(3).merge(LeastSquares(4))
    with pytest.raises(ValueError, match="LeastSquares: groups must be None with method='qr'"):
        LeastSquares(3, method="qr", groups=2)
    with pytest.raises(ValueError, match="lstsq: method must be 'auto', 'gram' or 'qr', got 'svd'"):
        lstsq(*table(20, 3), method="svd")
    with pytest.raises(ValueError, match=r"LeastSquares\.solve: l2 must be >= 0, got -1"):
        fitted(*table(20, 3), "gram").solve(-1)
    with pytest.raises(RuntimeError, match=r"lstsq: input must have shape \[rows, in_features\], got \[20\]"):
        lstsq(x[:, 0], y)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"in_features": -1}, "in_features must be >= 0, got -1"),
        ({"in_features": 3, "out_features": 0}, "out_features must be >= 1, got 0"),
        ({"in_features": 3, "groups": -1}, "groups must be >= 0, got -1"),
        ({"in_features": 3, "method": "svd"}, "method must be 'gram' or 'qr', got 'svd'"),
    ],
)
def test_bad_arguments_of_least_squares(arguments, words):
    with pytest.raises(ValueError, match=words):
        LeastSquares(**arguments)


def test_bad_groups_states_and_parameters():
    x, y, group = torch.zeros(6, 3), torch.zeros(6), torch.arange(6) % 2
    moments = LeastSquares(3, groups=2)
    for bad, words in (
        (group[:5], r"group must be integers \[6\], got torch.int64 \[5\]"),
        (group.float(), r"group must be integers \[6\], got torch.float32 \[6\]"),
        (group.to("meta"), "group must be on cpu, got meta"),
    ):
        with pytest.raises(RuntimeError, match=words):
            moments.update(x, y, group=bad)
    with pytest.raises(RuntimeError, match="input must be on cpu, got meta"):
        moments.update(x.to("meta"), y, group=group)
    with pytest.raises(ValueError, match="groups must be None, got 2"):
        LeastSquares(3).load_state_dict(moments.state_dict())
    with pytest.raises(ValueError, match=r"mean must have shape \[2, 4\], got \[2, 5\]"):
        moments.load_state_dict(LeastSquares(4, groups=2).state_dict())
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        moments.loss_of(torch.zeros(2, 1, 3), reduction="sum")
    with pytest.raises(RuntimeError, match=r"linear_weight must have shape \[2, 1, 3\], got \[1, 3\]"):
        moments.sgd_run_(torch.zeros(1, 3), steps=2, lr=0.1)
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        moments.sgd_run_(torch.zeros(2, 1, 3), steps=-1, lr=0.1)


def test_the_default_device_changes_nothing():
    x, y = table(20, 3)
    with torch.device("meta"):
        for method in ("auto", "qr"):
            solution = lstsq(x, y, method=method)
            assert solution.weight.device.type == solution.bias_stderr.device.type == "cpu"
        moments = LeastSquares(3).update(x, y)
        w = torch.zeros(1, 3, device="cpu")
        assert moments.sgd_run_(w, steps=2, lr=0.1).device.type == moments.loss_of(w).device.type == "cpu"
