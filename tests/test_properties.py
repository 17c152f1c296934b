# SPDX-License-Identifier: BSD-3-Clause
"""Properties for any operands: hypothesis chooses sizes, layouts, dtypes, settings and special values, and the accuracy
rule judges the results."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import (
    DTYPES,
    JUMPS,
    LOSSES,
    UNITS,
    Exact,
    Problem,
    assert_as_accurate,
    assert_same_wherever,
    extended,
    losses_and_slopes,
    option,
    oracle,
    plain_loss,
    residuals,
    summed,
)  # fmt: skip
from conftest import HAS_CUDA
from test_parity import LAYOUTS, fused_loss
from test_run import assert_same, both
from test_training import exact_step, long
from torch import Tensor

import linreg_ext

pytest.importorskip("hypothesis")
from hypothesis import assume, given
from hypothesis import strategies as st

DEVICES = ["cpu", "cuda"] if HAS_CUDA else ["cpu"]
MOST_WORK = 1_000_000  # multiplications, for the oracle's sake
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-45, -1e-40, 1e-38, 6e-8, 65504.0, 3e38, -3.4e38, 1e19, 1e-23)
SPECIAL_IN_DOUBLE = (5e-324, 1e-308, -1e-160, 1e154, -1.7e308)

SEEDS = st.integers(0, 2**32 - 1)
FEATURES = st.integers(0, 40) | st.integers(0, 300) | st.sampled_from([8, 9, 16, 17, 64, 65, 128, 1025, 5000])
TARGETS = st.just(1) | st.integers(0, 9) | st.integers(1, 40)
ROWS = st.integers(0, 40) | st.integers(0, 400) | st.sampled_from([63, 64, 65, 127, 128, 129, 511, 513, 1000, 5000])
THRESHOLDS = st.sampled_from([1.0, 0.75, 1e-3]) | st.floats(1e-6, 1e6)
LOSSES_AND_THRESHOLDS = st.tuples(st.sampled_from(LOSSES), THRESHOLDS) | st.just(("smooth_l1", 0.0))
WEIGHTS = (None, "elements", "rows", "row columns")


@st.composite
def sizes(draw) -> tuple[int, int, int]:
    k, d, n = draw(TARGETS), draw(FEATURES), draw(ROWS)
    return min(n, MOST_WORK // max(1, d * k)), d, k


@st.composite
def problems(draw, shapes=None, scaled: bool = True) -> Problem:
    """Operands of any layout for a linear layer, near convergence or not."""
    n, d, k = draw(sizes() if shapes is None else shapes)
    dtypes = DTYPES[draw(st.sampled_from(list(DTYPES)))]
    torch.manual_seed(draw(SEEDS))
    problem = Problem.random(
        n, d, k, dtypes, bias=draw(st.booleans()), weight=draw(st.sampled_from(WEIGHTS)),
        noise=draw(st.sampled_from([1.0, 1e-2, 1e-4, 0.0])), device=draw(st.sampled_from(DEVICES)),
    )  # fmt: skip
    if scaled:
        problem.input = problem.input * 2.0 ** draw(st.just(0) | st.integers(-6, 6))
    if dtypes[0].itemsize == 2 and draw(st.booleans()):  # float32 targets beside 16-bit rows
        problem.target = problem.target.float()
        problem.weight = None if problem.weight is None else problem.weight.float()
    return problem


def shifted(t: Tensor, offset: int) -> Tensor:
    """The same numbers at a storage offset."""
    return torch.cat([t.new_full((offset,), math.nan), t.reshape(-1)])[offset:].view(t.shape)


@st.composite
def layouts(draw, problem: Problem) -> Problem:
    """The problem with each operand in another layout; expanded ones have other values."""

    def placed(t: Tensor | None) -> Tensor | None:
        if t is None:
            return None
        layout = draw(st.sampled_from(["contiguous", *LAYOUTS]))
        if layout == "contiguous":
            return shifted(t, draw(st.integers(0, 9)))
        if t.dim() == 2:
            return LAYOUTS[layout](t)
        return t[:1].expand_as(t) if "expanded" in layout else torch.stack([t, t], 1)[:, 0]

    return Problem(*(placed(t) for t in vars(problem).values()))


def contiguous(problem: Problem) -> Problem:
    return Problem(*(None if t is None else t.contiguous() for t in vars(problem).values()))


def bits(t: Tensor) -> Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8)


def bits_of_numbers(t: Tensor) -> Tensor:
    """With a single nan pattern: which of two a 16-bit product has in PyTorch depends on how threads share it."""
    return bits(t.masked_fill(t.isnan(), math.nan))


@dataclass
class Form:
    """The shapes in which operands are passed: their leading dimensions, and whether W is a vector."""

    leading: tuple[int, ...]
    vector: bool

    def __call__(self, problem: Problem) -> Problem:
        x, w, y, b, v = vars(problem).values()
        x, y = x.unflatten(0, self.leading), y.unflatten(0, self.leading)
        v = None if v is None else v.unflatten(0, self.leading)
        if self.vector:
            w, y = w[0], y[..., 0]
            v = v[..., 0] if v is not None and v.shape[:-1] == y.shape else v
        return Problem(x, w, y, b, v)


@st.composite
def forms(draw, problem: Problem) -> Form:
    n, k = problem.target.shape
    first = draw(st.sampled_from([i for i in range(1, n + 1) if n % i == 0])) if n else 0
    leading = draw(st.sampled_from([(n,), (first, n // first) if n else (3, 0)]))
    return Form(leading, k == 1 and draw(st.booleans()))


@dataclass
class Settings:
    loss: str
    delta: float
    reduction: str
    grad_loss: float

    def of(self, function):
        return functools.partial(function, loss=self.loss, delta=self.delta, reduction=self.reduction)


LOSS_SETTINGS = st.builds(
    lambda loss, *others: Settings(*loss, *others), LOSSES_AND_THRESHOLDS, st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([1.0, 0.5, -2.0]),
)  # fmt: skip


def results(function, problem: Problem, form: Form, settings: Settings, wanted: list[bool]) -> dict[str, Tensor]:
    """The loss and the wanted gradients."""
    shape = problem.target.shape if settings.reduction == "none" else ()
    leaves = {name: t.detach() for name, t in problem.operands().items()}
    chosen = [name for name, asked in zip(leaves, wanted, strict=False) if asked]
    for name in chosen:
        leaves[name].requires_grad_()
    value = settings.of(function)(form(Problem(**{**vars(problem), **leaves}))).reshape(shape)
    grad_loss = torch.full_like(value, settings.grad_loss)
    grads = torch.autograd.grad(value, [leaves[name] for name in chosen], grad_loss) if chosen else ()
    return {"loss": value.detach(), **dict(zip(chosen, grads, strict=True))}


def as_it_is(problem: Problem) -> Problem:
    return problem


def arithmetic(problem: Problem) -> torch.finfo:
    """float64 problems are computed in float64, others in float32."""
    return torch.finfo(torch.promote_types(problem.input.dtype, torch.float32))


def predictions_overflow(problem: Problem) -> bool:
    """Whether finite numbers sum to predictions that overflow: the result next to an inf then depends on the order of
    additions, in PyTorch as well."""
    x, w, y, b, _ = (None if t is None else np.nan_to_num(abs(long(t)), posinf=0) for t in vars(problem).values())
    sizes = x @ w.T + y + (0 if b is None else b)
    return bool((sizes > arithmetic(problem).max).any())


def of_either_sign(problem: Problem) -> np.ndarray:
    """Which residuals are no larger than their rounding errors, or than a product that underflows."""
    r, terms = residuals(problem)
    info = arithmetic(problem)
    errors = UNITS * info.eps * (terms + np.where(terms > 0, info.smallest_normal, 0))
    return np.isfinite(terms) & (abs(r) < errors)


def in_doubt(problem: Problem, settings: Settings) -> dict[str, np.ndarray]:
    """The errors that are permitted beyond the rule. If the derivative jumps at 0, as l1's does, residuals within their
    rounding errors may have either sign. Those of many equal rows are equal and accumulate in a float32 product, which
    is PyTorch's own except for its shape."""
    jumps = settings.loss in JUMPS or (settings.loss == "smooth_l1" and settings.delta == 0)
    turned = 2.0 * (jumps & of_either_sign(problem))
    doubt = summed(problem, 0 * turned, turned, settings.reduction, settings.grad_loss, sizes=True)
    by_products = problem.input.dtype != torch.float64 and len(problem.linear_weight) >= 16
    if by_products and len(problem.input) > 1 and (problem.input == problem.input[:1]).all():
        _, slopes = losses_and_slopes(problem, settings.loss, settings.delta)
        added = summed(problem, 0 * turned, abs(slopes.value), settings.reduction, settings.grad_loss, sizes=True)
        more = arithmetic(problem).eps * len(problem.input) / 4 * added["linear_weight"]
        doubt["linear_weight"] = doubt["linear_weight"] + more
    return doubt


def kinds(values: np.ndarray, largest: float = np.inf) -> np.ndarray:
    """For each number, 2 if it is nan, 1 or -1 if its magnitude is at least `largest`, else 0."""
    return np.where(np.isnan(values), 2, np.sign(values) * (abs(values) >= largest))


def assert_as_accurate_where_finite(
    name: str, ours: Tensor, plain: Tensor, exact: Exact, *, added: np.ndarray | float = 0.0,
    doubt: np.ndarray | float = 0.0,
) -> None:  # fmt: skip
    """The accuracy rule for hard numbers. A result may be nan or inf only if the exact one is, overflows the dtype, or
    is in PyTorch; such results are excluded from the rule.

    Args:
        added: the size of the finite numbers in the last sum, which may overflow on the way, in either direction.
        doubt: the errors that are permitted beyond the rule.
    """
    assert ours.shape == plain.shape, f"{name}: shape {list(ours.shape)}, expected {list(plain.shape)}"
    info = torch.finfo(ours.dtype)
    # float16 gradients are float32 until they are scaled, bfloat16 ones are not.
    range_of_sums = torch.finfo(torch.float32 if ours.dtype == torch.float16 else ours.dtype).max
    value, terms = exact.value, np.where(np.isfinite(exact.terms), exact.terms, exact.value)
    found, too_large = kinds(long(ours)), kinds(value, info.max * (1 + UNITS * info.eps))
    within = kinds(value, info.max * (1 - UNITS * info.eps))
    right = (found == too_large) | (found == within) | (found == kinds(long(plain)))
    right |= ~np.isnan(value) & np.logical_not(added <= range_of_sums)  # or nan: a derivative that overflows, times 0
    if not right.all():
        where = tuple(np.argwhere(~right)[0])
        raise AssertionError(f"{name}: got {ours[where]}, expected {value[where]} (plain PyTorch {plain[where]})")
    judged = np.asarray((found == 0) & (within == 0))
    value, terms, doubt = (np.where(judged, array, 0) for array in (value, terms, doubt))
    plain = torch.where(plain.isfinite(), plain, torch.from_numpy(value.astype(float)).to(plain))
    ours, plain = (t.where(torch.from_numpy(judged).to(t.device), t.new_zeros(())) for t in (ours, plain))
    assert_as_accurate(name, ours, plain, Exact(value, terms), allowing=doubt)


@np.errstate(all="ignore")
def judge(problem: Problem, form: Form, settings: Settings, wanted: list[bool], *, cancels: bool = False) -> None:
    """Loss and gradients follow the accuracy rule and leave the operands alone. The bits are the same with other
    threads and, unless only sums are wanted, whose order of additions differs for rows with gaps, in other layouts."""
    plain_problem = contiguous(problem)
    assume(not predictions_overflow(plain_problem))
    # Times an infinite weight, a residual of unknown sign or zero derivative may be an inf of either sign or a nan.
    tiny = of_either_sign(plain_problem) | (abs(residuals(plain_problem)[0]) < 1e-150)
    assume(not (tiny & np.isinf(extended(plain_problem)[-1])).any())
    before = [None if t is None else bits(t) for t in vars(problem).values()]
    torch.set_num_threads(2)
    ours = results(fused_loss, problem, form, settings, wanted)
    torch.set_num_threads(1)
    for name, value in results(fused_loss, problem, form, settings, wanted).items():
        same = torch.equal(bits_of_numbers(value), bits_of_numbers(ours[name]))
        assert same, f"{name}: different bits with other threads"
    twins = results(fused_loss, plain_problem, as_it_is, settings, wanted)
    plain = results(plain_loss, plain_problem, as_it_is, settings, wanted)
    of = (settings.loss, settings.delta)
    exact = oracle(plain_problem, *of, settings.reduction, settings.grad_loss)
    finite = Problem(
        *(None if t is None else t.where(t.isfinite(), t.new_zeros(())) for t in vars(plain_problem).values())
    )
    losses, slopes = (np.nan_to_num(abs(e.value), posinf=0) for e in losses_and_slopes(plain_problem, *of))
    if settings.reduction == "none":  # weights are multiplied by grad_outputs first, then by derivatives
        weights = abs(settings.grad_loss * extended(finite)[-1])
        slopes = np.where(weights > torch.finfo(plain["loss"].dtype).max, np.inf, np.maximum(slopes, 1))
    for sizes in (losses, slopes):  # a mean's are also weighted in double before they are scaled
        sizes[abs(extended(finite)[-1]) * sizes > torch.finfo(torch.float64).max] = np.inf
    # Other gradients are computed for a grad_output of 1, and then scaled.
    added = summed(finite, losses, slopes, settings.reduction, max(1, abs(settings.grad_loss)), sizes=True)
    if settings.reduction == "mean" and problem.weight is not None:  # sums over rows are divided when all are added
        sums = summed(finite, losses, slopes, "sum", max(1, abs(settings.grad_loss)), sizes=True)
        added |= {name: sums[name] for name in ("loss", "linear_weight", "linear_bias") if name in sums}
    doubt = in_doubt(plain_problem, settings)
    if cancels:  # weighted losses and derivatives may be rounded to subnormals before they are multiplied by an operand
        smallest = UNITS * torch.finfo(problem.input.dtype).smallest_normal * torch.finfo(problem.input.dtype).eps
        v = abs(extended(finite)[-1])
        rounded = of_slopes = np.where(v > 0, np.maximum(v, 1) / v, 0) * smallest
        if settings.reduction == "none":  # or the weights, times grad_outputs, before they meet a derivative
            largest = np.maximum(v, np.where(np.isfinite(slopes), slopes, 0))
            of_slopes = np.where(v > 0, largest / v, 0) * smallest
        off = summed(finite, rounded, of_slopes, settings.reduction, max(1, abs(settings.grad_loss)), sizes=True)
        doubt = {name: d + smallest + np.nan_to_num(off[name]) for name, d in doubt.items()}
    only_sums = ours.keys() > {"loss"} and not {"input", "target"} & ours.keys() and problem.weight is None
    for name, value in ours.items():
        for result in (value, twins[name]):
            assert_as_accurate_where_finite(
                name, result, plain[name], exact[name], added=added[name], doubt=doubt[name]
            )
        if not only_sums:
            assert_same_wherever(value.nan_to_num(0.5), twins[name].nan_to_num(0.5))
    for old, t in zip(before, vars(problem).values(), strict=True):
        assert t is None or torch.equal(old, bits(t)), "an input was modified"


@given(st.data(), LOSS_SETTINGS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_loss_and_gradients(data, settings, wanted):
    problem = data.draw(layouts(data.draw(problems())))
    judge(problem, data.draw(forms(problem)), settings, wanted)


def numbers(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Rounded to float64, as before rounding to `dtype`."""
    width = {torch.float16: 16, torch.float64: 64}.get(dtype, 32)
    return st.sampled_from(SPECIAL + SPECIAL_IN_DOUBLE if width == 64 else SPECIAL) | st.floats(width=width)


def weights(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """float64 problems have float32's range: with no wider type, 1e-300 times a loss, divided by a sum of weights,
    depends on the order of the two operations."""
    return numbers(torch.float32 if dtype == torch.float64 else dtype)


@given(st.data(), LOSS_SETTINGS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_special_values_among_others(data, settings, wanted):
    problem = data.draw(problems())
    for name, t in vars(problem).items():
        if t is not None and t.numel() and data.draw(st.booleans()):
            chosen = weights(t.dtype) if name == "weight" else numbers(t.dtype)
            for _ in range(data.draw(st.integers(1, 3))):
                value = torch.tensor(data.draw(chosen), dtype=torch.float64)
                t.view(-1)[data.draw(st.integers(0, t.numel() - 1))] = value
    problem = data.draw(layouts(problem))
    judge(problem, data.draw(forms(problem)), settings, wanted, cancels=True)


@given(LOSS_SETTINGS)
def test_weighted_losses_that_overflow_before_they_are_divided(settings):
    """Gradients of a mean are right, though the weights' sum overflows too, and PyTorch's are 0."""
    x, w, y = torch.tensor([[1.5]]), torch.tensor([[-0.25], [-2.0]]), torch.tensor([[0.125, -4.5]])
    judge(Problem(x, w, y, None, torch.tensor([3e38])), as_it_is, settings, [True] * 4, cancels=True)


@st.composite
def tensors(draw, shape: tuple[int, ...], dtype: torch.dtype, of=numbers) -> Tensor:
    count = math.prod(shape)
    values = draw(st.lists(of(dtype), min_size=count, max_size=count))
    return torch.tensor(values, dtype=torch.float64).to(dtype).view(shape)


@given(st.data(), LOSS_SETTINGS, st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_numbers(data, settings, wanted):
    n, d, k = (data.draw(st.integers(1, most)) for most in (4, 3, 2))
    x, w = DTYPES[data.draw(st.sampled_from(list(DTYPES)))]
    problem = Problem(
        data.draw(tensors((n, d), x)), data.draw(tensors((k, d), w)), data.draw(tensors((n, k), x)),
        data.draw(st.none() | tensors((k,), w)),
        data.draw(st.none() | tensors((n, k), x, weights) | tensors((n,), x, weights)),
    )  # fmt: skip
    judge(problem, data.draw(forms(problem)), settings, wanted, cancels=True)


@st.composite
def rules(draw) -> dict[str, Any]:
    """Hyper-parameters of torch.optim.SGD."""
    lr = draw(st.just(0.05) | st.floats(0, 1))
    rule = {"lr": draw(st.sampled_from([lr, torch.tensor(lr), torch.tensor([lr], dtype=torch.float64)]))}
    rule["weight_decay"] = draw(st.just(0.0) | st.floats(0, 1))
    rule["maximize"] = draw(st.booleans())
    rule["momentum"] = draw(st.just(0.0) | st.floats(0, 1))
    if rule["momentum"] > 0 and draw(st.booleans()):
        return rule | {"nesterov": True}
    return rule | {"dampening": draw(st.sampled_from([0.0, 0.5, 1.0]))}


def in_a_frame(t: Tensor, layout: str, offset: int) -> tuple[Tensor, Tensor]:
    """A copy of `t`, and the memory around it, filled with 77."""
    rows, columns = t.shape if t.dim() == 2 else (len(t), 1)
    if layout == "columns":
        frame = t.new_full((columns * rows + 2 * offset + 1,), 77.0)
        view = frame[offset:].as_strided(t.shape, (1, rows)[: t.dim()])
    else:
        gap = 3 if layout == "gaps" else 0
        frame = t.new_full((rows * (columns + gap) + 2 * offset + 1,), 77.0)
        view = frame[offset:].as_strided(t.shape, (columns + gap, 1)[: t.dim()])
    view.copy_(t)
    return frame, view


PARAMETERS = ("linear_weight", "linear_bias")


@np.errstate(all="ignore")
def a_step(
    problem: Problem, loss: str, delta: float, rule: dict[str, Any], buffers: list[Tensor | None]
) -> tuple[dict[str, Tensor], dict[str, tuple[Exact, np.ndarray]]]:
    """PyTorch's loss, parameters and buffers, the exact results, and their permitted errors. Nothing is modified."""
    parameters = {name: torch.nn.Parameter(p.clone()) for name, p in problem.operands().items() if name in PARAMETERS}
    optimizer = torch.optim.SGD(parameters.values(), **rule)
    problem = contiguous(Problem(**{**vars(problem), **parameters}))
    grads = oracle(problem, loss, delta, "mean")
    doubt = in_doubt(problem, Settings(loss, delta, "mean", 1.0))
    exact = {"loss": (grads["loss"], doubt["loss"])}
    for (name, p), buffer in zip(parameters.items(), buffers, strict=False):
        if buffer is not None:
            optimizer.state[p]["momentum_buffer"] = buffer.clone()
        value, moved = exact_step(long(p), None if buffer is None else long(buffer), grads[name].value, **rule)
        terms = grads[name].terms + rule["weight_decay"] * abs(long(p)) + (0 if buffer is None else abs(long(buffer)))
        # A buffer that cancels the gradient leaves its rounding errors, which PyTorch's rounding may happen to undo.
        off = doubt[name] + UNITS * torch.finfo(torch.promote_types(p.dtype, torch.float32)).eps * abs(
            grads[name].value
        )
        exact[name] = Exact(value, abs(long(p)) + 2 * float(rule["lr"]) * terms), 2 * float(rule["lr"]) * off
        exact[f"buffer of {name}"] = Exact(moved, terms), off
    value = plain_loss(problem, loss, delta, "mean")
    value.backward()
    optimizer.step()
    plain = {"loss": value.detach(), **{name: p.detach() for name, p in parameters.items()}}
    state = {f"buffer of {name}": optimizer.state[p].get("momentum_buffer") for name, p in parameters.items()}
    return plain | state, exact


@given(st.data(), rules(), LOSSES_AND_THRESHOLDS, st.integers(0, 9))
def test_two_steps(data, rule, loss_and_threshold, offset):
    """Each step, from our state, against PyTorch's and the exact one; the memory around a parameter is unchanged."""
    loss, delta = loss_and_threshold
    problem = data.draw(layouts(data.draw(problems())))
    form = Form(data.draw(forms(problem)).leading, vector=False)
    frames, buffers = [], [None, None]
    has_buffers = rule["momentum"] != 0 and data.draw(st.booleans())
    for i, name in enumerate(PARAMETERS):
        if getattr(problem, name) is not None:
            placed = [
                in_a_frame(getattr(problem, name), data.draw(st.sampled_from(["whole", "gaps", "columns"])), offset)
                for _ in range(1 + has_buffers)
            ]
            setattr(problem, name, placed[0][1])
            buffers[i] = placed[1][1] if has_buffers else None
            frames += placed
    for _ in range(2):
        plain, exact = a_step(problem, loss, delta, rule, buffers)
        x, w, y, b, v = vars(form(problem)).values()
        value = linreg_ext.sgd_step_(
            x, w, y, linear_bias=b, weight=v, loss=loss, **option(loss, delta), momentum_buffers=buffers, **rule
        )
        ours = {"loss": value, "linear_weight": w, "linear_bias": b}
        ours |= {f"buffer of {name}": buffer for name, buffer in zip(PARAMETERS, buffers, strict=True)}
        for name, value in ours.items():
            if value is not None:
                exactly, doubt = exact[name]
                assert_as_accurate_where_finite(name, value, plain[name], exactly, doubt=doubt)
    for frame, view in frames:
        view.fill_(77.0)
        assert (frame == 77.0).all(), "written outside of a parameter or buffer"


@given(st.data(), rules(), LOSSES_AND_THRESHOLDS)
def test_a_run_is_its_steps(data, rule, loss_and_threshold):
    """Rows in any order, repeated or missing, in batches of any size, with one learning rate or one for each step."""
    small = st.tuples(st.integers(1, 60), st.integers(0, 12), st.integers(1, 5))
    many = st.tuples(st.integers(1, 300), st.integers(0, 70), st.integers(1, 40))
    problem = data.draw(layouts(data.draw(problems(small | many, scaled=False))))
    n = len(problem.input)
    in_place, drop_last = data.draw(st.booleans()), data.draw(st.booleans())
    rows = n if in_place else data.draw(st.integers(1, 2 * n))
    epochs, batch_size = data.draw(st.integers(0, 3)), data.draw(st.integers(max(1, rows // 6), n + 2))
    torch.set_num_threads(1)
    torch.manual_seed(data.draw(SEEDS))
    orders = torch.arange(n).repeat(epochs, 1) if in_place else torch.randint(n, (epochs, rows))
    steps = epochs * (rows // batch_size if drop_last else -(-rows // batch_size))
    if data.draw(st.booleans()):
        rule["lr"] = torch.rand(steps, dtype=data.draw(st.sampled_from([torch.float32, torch.float64])))
    else:
        rule["lr"] = float(rule["lr"])
    loss, delta = loss_and_threshold
    options = {"loss": loss, **option(loss, delta), "drop_last": drop_last, "in_place": in_place, **rule}
    assert_same(both(problem, orders, batch_size, **options))
