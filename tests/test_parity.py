# SPDX-License-Identifier: BSD-3-Clause
"""Kernels against the oracle, by the accuracy rule: shapes, dtypes, losses, reductions, weights and layouts."""

import itertools
import math

import pytest
import reference_twins
import torch
from accuracy import (
    DTYPES,
    LOSSES,
    Exact,
    Problem,
    assert_as_accurate,
    assert_same_wherever,
    loss_and_grads,
    option,
    oracle,
    plain_loss,
)  # fmt: skip
from conftest import cases, crossed

import linreg_ext

ROWS = (1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257)
FEATURES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 32, 64, 101, 128, 1024, 1025)
SHAPES = [(n, 5, 1) for n in ROWS] + [(n, 17, 3) for n in ROWS] + [(67, d, 1) for d in FEATURES]
SHAPES += [(35, d, k) for d in (1, 4, 9, 130) for k in (2, 3, 4, 5, 8, 33)] + [(1000, 3, 2), (3, 40000, 2), (9, 6, 700)]
SHAPES += [(41, 300, 1), (19, 1026, 2), (6, 5000, 1), (3, 70001, 1), (2, 131072, 1), (37, 520, 7), (21, 4096, 2)]
SHAPES += [(n, d, k) for n, d in ((7, 9), (8, 16), (129, 33), (400, 131)) for k in (4, 6, 9, 15)]
# No features; groups of several blocks; rows too many for the caches, narrower than a page and wider.
SHAPES += [(300, 0, 1), (257, 16, 1), (26003, 41, 1), (5003, 250, 1), (1031, 1030, 1)]
# Enough targets and work for PyTorch's matrix products: one row block, several, and several chunks.
SHAPES += [(1, 1100, 33), (77, 130, 16), (64, 64, 64), (300, 65, 257), (513, 33, 40), (5003, 9, 34), (70, 1025, 100)]

WEIGHTS = (None, "elements", "rows", "row columns")
NOISES = (1e-2, 1e-4, 0.0)


def fused_loss(problem, loss, delta, reduction):
    x, w, y, b, v = vars(problem).values()
    function = getattr(linreg_ext, f"linear_{loss}_loss")
    return function(x, w, y, linear_bias=b, weight=v, reduction=reduction, **option(loss, delta))


def check(problem, loss="mse", delta=1.0, reduction="mean", grad_loss=1.0):
    """Check the loss and gradients, all of them and then only those of a training step, against same-dtype PyTorch."""
    plain = loss_and_grads(lambda p: plain_loss(p, loss, delta, reduction), problem, grad_loss)
    exact = oracle(problem, loss, delta, reduction, grad_loss)
    for of in ("", "linear_"):
        ours = loss_and_grads(lambda p: fused_loss(p, loss, delta, reduction), problem, grad_loss, of)
        for name, value in ours.items():
            assert_as_accurate(name, value, plain[name], exact[name])
    assert_as_accurate("loss alone", fused_loss(problem, loss, delta, reduction), plain["loss"], exact["loss"])


@crossed(6, shape=SHAPES, dtypes=DTYPES)
def test_shapes(shape, dtypes, device):
    check(Problem.random(*shape, dtypes, device=device))


@crossed(6, bias=(True, False), weight=WEIGHTS, reduction=("mean", "sum", "none"), loss=LOSSES, dtypes=DTYPES)
def test_losses_reductions_weights(loss, reduction, weight, bias, dtypes, device):
    for shape in ((45, 6, 1), (130, 21, 3), (90, 11, 36)):
        problem = Problem.random(*shape, dtypes, bias=bias, weight=weight, device=device)
        check(problem, loss, 0.75, reduction, grad_loss=0.5)


@pytest.mark.parametrize("shape", [(3001, 3, 1), (3001, 1, 2), (20000, 8, 1)], ids=str)
def test_every_element_of_many_rows(shape, device):
    """Narrow rows use another layout if something is written for each row."""
    check(Problem.random(*shape, DTYPES["float32"], device=device), reduction="none")


@crossed(3, weight=WEIGHTS[:3], name=[name for name in DTYPES if "16" in name])
def test_float32_targets_beside_16_bit_rows(name, weight, device):
    """Targets and weights that 16 bits cannot hold; the loss is then float32, as PyTorch promotes it."""
    for shape in ((45, 6, 1), (3001, 3, 1), (130, 21, 3), (300, 64, 1), (70, 1025, 1), (90, 11, 36), (21, 4096, 2)):
        problem = Problem.random(*shape, DTYPES[name], weight=weight, device=device)
        problem.target = problem.target + torch.rand(shape[0], shape[2], device=device)
        problem.weight = problem.weight if weight is None else problem.weight + torch.rand_like(problem.weight.float())
        for loss, reduction in itertools.product(("mse", "huber"), ("mean", "none")):
            check(problem, loss, 0.75, reduction)
            assert fused_loss(problem, loss, 0.75, reduction).dtype == torch.float32
        exact = oracle(problem, "mse", 1.0, "mean")
        plain = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, "mean"), problem)
        w, b = problem.linear_weight.clone(), problem.linear_bias.clone()
        options = {"linear_bias": b, "weight": problem.weight, "lr": 1.0}
        value = linreg_ext.sgd_step_(problem.input, w, problem.target, **options)
        assert_as_accurate("loss of a step", value, plain["loss"], exact["loss"])
        for part, ours in (("linear_weight", w), ("linear_bias", b)):
            before, grad = getattr(problem, part), exact[part]
            start = before.double().cpu().numpy()
            stepped = Exact(start - grad.value, abs(start) + grad.terms)
            assert_as_accurate(f"{part} after a step", ours, (before - plain[part]).to(ours.dtype), stepped)


@crossed(3, shape=[(300, 4, 1), (300, 16, 1), (300, 128, 2), (4000, 31, 3), (4000, 31, 9)], noise=NOISES, dtypes=DTYPES)
def test_near_convergence(shape, noise, dtypes, device):
    """The residual is the small difference of large numbers, so nothing may be rounded before the subtraction."""
    check(Problem.random(*shape, dtypes, noise=noise, device=device))


@pytest.mark.parametrize("dtypes", [DTYPES[name] for name in DTYPES if "16" in name], ids=lambda d: f"{d[0]} {d[1]}")
@pytest.mark.parametrize("shape", [(300, 4, 1), (90, 31, 9), (60, 130, 2), (90, 64, 40)], ids=str)
def test_a_residual_of_16_bit_rows_keeps_its_digits(shape, dtypes, device):
    """Targets differ from predictions only by their own rounding, so that rounding the prediction as well would cancel
    the residual. The accuracy rule permits that, since PyTorch does it; here the loss, and the gradients from autograd
    and in new momentum buffers of a step and a run, must be right to a hundredth."""
    problem = Problem.random(*shape, dtypes, noise=0.0, device=device)
    for tensor in (problem.linear_weight, problem.linear_bias, problem.target):
        tensor.mul_(16)  # exact, and keeps results from being subnormal
    exact = oracle(problem, "mse", 1.0, "mean")
    found = [("autograd", loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), problem))]
    for take in (linreg_ext.sgd_step_, linreg_ext.sgd_run_):
        w, b, buffers = problem.linear_weight.clone(), problem.linear_bias.clone(), [None, None]
        options = {"linear_bias": b, "lr": 0.0, "momentum": 0.9, "momentum_buffers": buffers}
        loss = take(problem.input, w, problem.target, **options).reshape(())
        found.append((take.__name__, {"loss": loss, "linear_weight": buffers[0], "linear_bias": buffers[1]}))
    for way, results in found:
        for name, ours in results.items():
            value = torch.from_numpy(exact[name].value.astype("float64"))
            error = (ours.double().cpu() - value).norm() / value.norm()
            assert error < 0.01, f"{way} {name}: {error}"


@pytest.mark.parametrize("dtype", cases(extended=["bfloat16", "float32"]))
def test_a_million_rows(dtype, device):
    check(Problem.random(1_000_003, 3, 1, DTYPES[dtype], device=device))


@pytest.mark.products
@pytest.mark.parametrize("shape", cases([(1030, 5100, 33)], [(2100, 6007, 17)]), ids=str)
def test_several_blocks_of_rows_by_products(shape, device):
    """A CPU takes blocks of both; a GPU of the second, as many rows as its second-level cache holds twice."""
    problem = Problem.random(*shape, DTYPES["float32"], device=device)
    in_double = Problem(*(None if t is None else t.double() for t in vars(problem).values()))
    ours = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), problem)
    plain = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, "mean"), problem)
    exact = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, "mean"), in_double)
    for name, value in exact.items():  # in double, since this many numbers take too long in long double
        rms, rms_of_plain = ((results[name] - value).square().mean().sqrt() for results in (ours, plain))
        count = min(len(problem.input), value.numel())
        assert rms <= (1.1 + 4 / count**0.5) * rms_of_plain, name


def test_many_rows_far_from_zero(device):
    """Means of 10⁴ and standard deviations of 1, which sums in float32 alone would lose."""
    problem = Problem.random(200_000, 4, 1, DTYPES["float32"], device=device)
    problem.input += 1e4
    problem.target += 1e4
    check(problem)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_large_row_hides_few_others_from_a_sum(k, device):
    """float32, in which only blocks of up to 128 rows are summed, loses a 1, and the sum of a block of 1s, next to 2³⁰."""
    large = 2.0**30
    x, y = torch.ones(30_000, 9, device=device), -torch.ones(30_000, k, device=device)
    y[0] = -large
    w = torch.zeros(k, 9, device=device, requires_grad=True)
    linreg_ext.linear_mse_loss(x, w, y, reduction="sum").backward()
    exact = torch.full((k, 9), 2 * (large + 29_999), dtype=torch.float64)
    torch.testing.assert_close(w.grad.double().cpu(), exact, rtol=(128 + 64) / large, atol=0)  # and half a unit


@pytest.mark.parametrize("k", [1, 5, pytest.param(16, marks=pytest.mark.products)])
def test_sums_that_only_a_mean_has_in_range(k):
    """Rows and residuals of 1e18, whose sums over hundreds of rows overflow before they are divided."""
    x, y, w, b = torch.full((2048, 64), 1e18), torch.full((2048, k), 1e18), torch.zeros(k, 64), torch.zeros(k)
    problem = Problem(x, w, y, b)
    ours = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), problem)
    plain = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, "mean"), problem)
    assert ours.pop("loss").isfinite()
    for name, value in ours.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_thresholds(loss, device):
    for delta in (1e-30, 1e-3, 10.0, 1e30):
        check(Problem.random(100, 7, 2, DTYPES["float32"], device=device), loss, delta)


def rows_with_gaps(t):
    wide = torch.full((t.shape[0], t.shape[1] + 3), math.nan, dtype=t.dtype, device=t.device)
    wide[:, 1:-2] = t
    return wide[:, 1:-2]


def every_other_column(t):
    wide = torch.full((t.shape[0], 2 * t.shape[1]), math.nan, dtype=t.dtype, device=t.device)
    wide[:, ::2] = t
    return wide[:, ::2]


LAYOUTS = {
    "row stride": rows_with_gaps,
    "column stride": every_other_column,
    "transposed": lambda t: t.t().contiguous().t(),
    "one row expanded": lambda t: t[:1].expand_as(t),
    "one number expanded": lambda t: t[:1, :1].expand_as(t),
    "reversed twice": lambda t: t.flip(0),
}


@crossed(
    5,
    shape=[(70, 6, 2), (70, 5, 1), (70, 40, 1), (70, 40, 3), (300, 40, 37), (3000, 1, 16)],
    layout=list(LAYOUTS),
    dtypes=DTYPES,
)
def test_layouts_give_the_bits_of_contiguous_operands(layout, shape, dtypes, device):
    """For our kernels and, since their operands are packed, for PyTorch's matrix products."""
    problem = Problem.random(*shape, dtypes, weight="elements", device=device)
    strided = Problem(
        LAYOUTS[layout](problem.input), rows_with_gaps(problem.linear_weight), LAYOUTS[layout](problem.target),
        torch.stack([problem.linear_bias] * 2, 1)[:, 0], LAYOUTS[layout](problem.weight),
    )  # fmt: skip
    plain = Problem(*(t.contiguous() for t in vars(strided).values()))
    copies = [t.clone() for t in vars(strided).values()]
    with torch.no_grad():
        for reduction in ("mean", "none"):
            ours = fused_loss(strided, "mse", 1.0, reduction)
            assert_same_wherever(ours, fused_loss(plain, "mse", 1.0, reduction))
    wanted = [True] * 4
    arguments = (None, "mse", 1.0, "mean", wanted)
    strided_grads, plain_grads = (
        torch.ops.linreg_ext.linear_loss_grads(p.input, p.linear_weight, p.target, p.linear_bias, *arguments)
        for p in (strided, plain)
    )
    for ours, twin in zip(strided_grads[1], plain_grads[1], strict=True):
        assert_same_wherever(ours, twin)
    for before, after in zip(copies, vars(strided).values(), strict=True):
        assert torch.equal(before, after), "an input was modified"


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(70, 40, 1), (70, 40, 5), (260, 6007, 17)], ids=str)  # the last in blocks of rows
def test_rows_with_gaps_give_the_same_bits_where_only_sums_are_wanted(shape, dtypes, device):
    noise = shape[1] ** 0.5  # residuals as large as predictions; cancellation would magnify their rounding on a GPU
    x, w, y, b, _ = vars(Problem.random(*shape, dtypes, device=device, noise=noise)).values()
    arguments = (w, y, b, None, "mse", 1.0, "mean", [False, True, True, False])
    gaps = (w, rows_with_gaps(y) if shape[2] > 1 else y, *arguments[2:])
    _, expected = torch.ops.linreg_ext.linear_loss_grads(x, *arguments)
    _, ours = torch.ops.linreg_ext.linear_loss_grads(rows_with_gaps(x), *gaps)
    for grad, twin in zip(ours, expected, strict=True):
        assert_same_wherever(grad, twin)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(9, 3, 2), (9, 20, 2), (70, 20, 35)], ids=str)
def test_any_storage_offset_and_nothing_written_outside(shape, dtypes, device):
    """The bits do not depend on where operands begin, even with PyTorch's matrix products."""
    momentum = 0.9
    problem = Problem.random(*shape, dtypes, device=device)
    expected = [problem.linear_weight.clone(), problem.linear_bias.clone()]
    linreg_ext.sgd_step_(
        problem.input, expected[0], problem.target, linear_bias=expected[1], lr=0.1, momentum=momentum,
        momentum_buffers=[None, None],
    )  # fmt: skip
    for offset in range(41):

        def placed(t, offset=offset):
            buffer = torch.full((t.numel() + offset + 41,), 77.0, dtype=t.dtype, device=t.device)
            view = buffer[offset : offset + t.numel()].view(t.shape)
            view.copy_(t)
            return buffer, view

        (_, x), (wb, w), (_, y), (bb, b) = (placed(t) for t in list(vars(problem).values())[:4])
        (mb, m), (nb, b2) = placed(torch.zeros_like(w)), placed(torch.zeros_like(b))
        linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=0.1, momentum=momentum, momentum_buffers=[m, b2], dampening=0.0)
        assert_same_wherever(w, expected[0])
        assert_same_wherever(b, expected[1])
        for buffer, view in ((wb, w), (bb, b), (mb, m), (nb, b2)):
            outside = torch.cat([buffer[:offset], buffer[offset + view.numel() :]])
            assert (outside == 77.0).all(), "written outside of the view"


def test_parameters_with_strides_are_updated_in_place(device):
    problem = Problem.random(50, 6, 3, DTYPES["float32"], device=device)
    expected = problem.linear_weight.clone(), problem.linear_bias.clone()
    linreg_ext.sgd_step_(problem.input, expected[0], problem.target, linear_bias=expected[1], lr=0.1)
    flat = torch.full((3, 7), math.nan, device=device)  # weight and bias side by side, as columns of one matrix
    w, b = flat[:, :6], flat[:, 6]
    transposed = problem.linear_weight.t().contiguous().t()
    for weight, bias in ((w, b), (transposed, problem.linear_bias.clone())):
        weight.copy_(problem.linear_weight)
        bias.copy_(problem.linear_bias)
        linreg_ext.sgd_step_(problem.input, weight, problem.target, linear_bias=bias, lr=0.1)
        assert torch.equal(weight, expected[0])
        assert torch.equal(bias, expected[1])


def test_leading_dimensions_and_a_weight_of_one_dimension(device):
    x, y = torch.randn(4, 5, 6, device=device), torch.randn(4, 5, 2, device=device)
    w, b, v = torch.randn(2, 6, device=device), torch.randn(2, device=device), torch.rand(4, 5, device=device)
    flat = linreg_ext.linear_mse_loss(x.flatten(0, 1), w, y.flatten(0, 1), linear_bias=b, weight=v.flatten())
    assert torch.equal(linreg_ext.linear_mse_loss(x, w, y, linear_bias=b, weight=v), flat)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)  # the leading dimensions do not collapse
    assert torch.equal(linreg_ext.linear_mse_loss(turned, w, y, linear_bias=b, weight=v), flat)
    one = linreg_ext.linear_mse_loss(x, w[:1], y[..., :1], linear_bias=b[:1])
    for bias in (b[0], b[:1]):
        assert torch.equal(linreg_ext.linear_mse_loss(x, w[0], y[..., 0], linear_bias=bias), one)
    single = linreg_ext.linear_mse_loss(x[0, 0], w, y[0, 0], linear_bias=b)
    assert torch.equal(single, linreg_ext.linear_mse_loss(x[:1, 0], w, y[:1, 0], linear_bias=b))


def test_weight_k_is_k_copies_of_a_row(device):
    problem = Problem.random(40, 6, 2, DTYPES["float64"], device=device)
    copies = torch.arange(40, device=device) % 4
    problem.weight = copies.double()
    weighted = loss_and_grads(lambda p: fused_loss(p, "huber", 1.0, "mean"), problem)
    repeated = Problem(
        problem.input.repeat_interleave(copies, 0), problem.linear_weight,
        problem.target.repeat_interleave(copies, 0), problem.linear_bias,
    )  # fmt: skip
    rows = loss_and_grads(lambda p: fused_loss(p, "huber", 1.0, "mean"), repeated)
    for name in ("loss", "linear_weight", "linear_bias"):
        torch.testing.assert_close(weighted[name], rows[name], rtol=1e-13, atol=1e-15)


def test_permuted_and_duplicated_rows(device):
    problem = Problem.random(1000, 20, 2, DTYPES["float64"], device=device)
    once = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), problem)
    order = torch.randperm(1000, device=device)
    for rows in (order, torch.cat([order, order])):
        changed = Problem(problem.input[rows], problem.linear_weight, problem.target[rows], problem.linear_bias)
        again = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), changed)
        for name in ("loss", "linear_weight", "linear_bias"):
            torch.testing.assert_close(again[name], once[name], rtol=1e-12, atol=1e-14)


def test_a_power_of_two_scales_exactly(device):
    problem = Problem.random(77, 9, 1, DTYPES["float32"], bias=False, device=device)
    scaled = Problem(problem.input * 4, problem.linear_weight / 4 * 8, problem.target * 8, None)
    once, again = (loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, "mean"), p) for p in (problem, scaled))
    assert torch.equal(again["loss"], once["loss"] * 64)
    assert torch.equal(again["linear_weight"], once["linear_weight"] * 32)


@crossed(
    5,
    shape=[(37, 5, 2), (100, 9, 40)],
    where=["input", "target", "linear_weight", "linear_bias", "weight"],
    loss=LOSSES,
    value=[math.nan, math.inf, -math.inf, 1e-42, -0.0],
)
def test_special_values_travel_as_in_pytorch(value, loss, where, shape, device):
    problem = Problem.random(*shape, DTYPES["float32"], weight="elements", device=device)
    getattr(problem, where).flatten()[3 % getattr(problem, where).numel()] = value
    ours = loss_and_grads(lambda p: fused_loss(p, loss, 1.0, "sum"), problem)
    plain = loss_and_grads(lambda p: plain_loss(p, loss, 1.0, "sum"), problem)
    for name in ours:
        assert torch.equal(ours[name].isnan(), plain[name].isnan()), name
        assert torch.equal(ours[name].isinf(), plain[name].isinf()), name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_where_only_sums_are_wanted(value, device):
    operands = ("input", "target", "linear_weight", "linear_bias")
    for shape, loss, where in itertools.product([(37, 5, 1), (37, 20, 1), (37, 20, 5)], LOSSES, operands):
        problem = Problem.random(*shape, DTYPES["float32"], device=device)
        getattr(problem, where).flatten()[3 % getattr(problem, where).numel()] = value
        ours = loss_and_grads(lambda p, loss=loss: fused_loss(p, loss, 1.0, "sum"), problem, of="linear_")
        plain = loss_and_grads(lambda p, loss=loss: plain_loss(p, loss, 1.0, "sum"), problem, of="linear_")
        for name in ours:
            assert torch.equal(ours[name].isnan(), plain[name].isnan()), (name, shape, loss, where)
            assert torch.equal(ours[name].isinf(), plain[name].isinf()), (name, shape, loss, where)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (500, 40)])
def test_a_weight_of_zero_does_not_hide_a_nan(d, k, device):
    x, w, y = torch.ones(2, d, device=device), torch.ones(k, d, device=device), torch.zeros(2, k, device=device)
    y[1] = math.nan
    assert linreg_ext.linear_mse_loss(x, w, y, weight=torch.tensor([1.0, 0.0], device=device)).isnan()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["input", "target"])
@pytest.mark.parametrize("shape", [(9, 3, 1), (9, 20, 2), (40, 9, 34)], ids=str)
def test_a_row_of_weight_zero_is_not_left_out_of_the_gradients(value, where, shape, device):
    """0 · nan and 0 · inf are nan, as in PyTorch; a kernel that skipped rows of weight 0 would hide bad data."""
    for loss in LOSSES:
        problem = Problem.random(*shape, DTYPES["float32"], weight="row columns", device=device)
        getattr(problem, where)[4] = value
        problem.weight[4] = 0.0
        ours = loss_and_grads(lambda p: fused_loss(p, loss, 1.0, "sum"), problem)  # noqa: B023
        plain = loss_and_grads(lambda p: plain_loss(p, loss, 1.0, "sum"), problem)  # noqa: B023
        for name in ours:
            assert torch.equal(ours[name].isnan(), plain[name].isnan()), f"{loss}: {name}"


@pytest.mark.parametrize(
    "shape", [(0, 3, 2), (4, 0, 2), (4, 3, 0), (0, 0, 1), (1, 1, 1), (0, 20, 1), (0, 3, 40), (4, 0, 40)], ids=str
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty_and_odd(shape, reduction, device):
    problem = Problem.random(*shape, DTYPES["float32"], device=device)
    ours = loss_and_grads(lambda p: fused_loss(p, "mse", 1.0, reduction), problem)
    plain = loss_and_grads(lambda p: plain_loss(p, "mse", 1.0, reduction), problem)
    for name in ours:
        torch.testing.assert_close(ours[name], plain[name], equal_nan=True)


def test_an_empty_weight_may_have_any_strides(device):
    """An expanded parameter would be rejected if anything were written to it."""
    x, y = torch.empty(4, 0, device=device), torch.ones(4, 2, device=device)
    for step in (linreg_ext.sgd_step_, reference_twins.sgd_step_):
        b = torch.zeros(2, device=device)
        assert step(x, torch.empty(1, 0, device=device).expand(2, 0), y, linear_bias=b, lr=0.5) == 1
        assert (b == 0.5).all()


def test_a_step_without_rows_does_what_pytorchs_does(device):
    layer = torch.nn.Linear(3, 2, device=device)
    twin = [p.detach().clone() for p in layer.parameters()]
    x, y = torch.empty(0, 3, device=device), torch.empty(0, 2, device=device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)
    torch.nn.functional.mse_loss(layer(x), y).backward()
    optimizer.step()
    assert linreg_ext.sgd_step_(x, twin[0], y, linear_bias=twin[1], lr=0.1, weight_decay=0.5).isnan()
    for ours, theirs in zip(twin, layer.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 9])
def test_every_16_bit_number_is_read_and_written_as_it_is(dtype, d, device):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).to(device)[:, None]
    zero = torch.zeros(len(numbers), 1, device=device)
    x = torch.nn.functional.pad(numbers, (0, d - 1))
    read = linreg_ext.linear_l1_loss(x, torch.ones(1, d, device=device), zero.to(dtype), reduction="none")
    torch.testing.assert_close(read, numbers.float().abs(), rtol=0, atol=0, equal_nan=True)
    written = linreg_ext.linear_l1_loss(x, torch.ones(1, d, device=device).to(dtype), zero.to(dtype), reduction="none")
    torch.testing.assert_close(written, numbers.abs(), rtol=0, atol=0, equal_nan=True)


def test_a_result_is_rounded_to_16_bits_once(device):
    """1 + 2⁻¹¹ is a tie in float16, 1 + 2⁻⁸ in bfloat16. What breaks the tie is lost in 16 bits, and that of a mean,
    which is a sum in float64, in float32."""
    for dtype, half in ((torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)):
        x = torch.tensor([[1.0, half, 2.0**-10]], device=device).to(dtype)
        w = torch.tensor([[1.0, 1.0, 2.0**-10]], device=device).to(dtype)
        y = torch.zeros(1, 1, device=device).to(dtype)
        assert linreg_ext.linear_l1_loss(x, w, y).item() == 1 + 2 * half
        assert linreg_ext.linear_l1_loss(x[:, :2], w[:, :2].contiguous(), y).item() == 1.0
        rows = torch.tensor([[2.0, 2 * half, 0.0], [0.0, 2.0**-24, 0.0]], device=device).to(dtype)
        assert linreg_ext.linear_l1_loss(rows, w, y.expand(2, 1)).item() == 1 + 2 * half
        w[0, 1] = 3  # from an odd number up
        assert linreg_ext.linear_l1_loss(x[:, :2], w[:, :2].contiguous(), y).item() == 1 + 4 * half
