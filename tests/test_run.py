# SPDX-License-Identifier: BSD-3-Clause
"""sgd_run_ equals sgd_step_ on every batch, on the CPU bit for bit; and the ways in which a run ends early."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import reference_twins
import torch
from accuracy import DTYPES, LOSSES, Exact, Problem, assert_as_accurate, option, oracle

import linreg_ext
from linreg_ext import functional, reference
from linreg_ext._extension import _C, REFERENCE

# n, d, k, batch: small steps, steps at the limit of small, and beyond it; one row; a batch larger than the data
SHAPES = [
    (80, 1, 1, 16), (80, 1, 1, 80), (7, 2, 1, 3), (50, 3, 2, 7), (40, 8, 3, 33), (9, 8, 8, 4), (1024, 1, 1, 1016),
    (1100, 1, 1, 1025), (2200, 1, 1, 1100), (30, 9, 1, 8), (130, 5, 9, 64), (300, 20, 3, 100), (1, 1, 1, 1),
    (10, 4, 2, 64), (200, 70, 1, 200),
]  # fmt: skip
OPTIONS = {
    "plain": {},
    "momentum, weight decay, nesterov": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "momentum, dampening, maximize": {"momentum": 0.9, "dampening": 0.5, "maximize": True},
}
ON_CPU = "LINREG_EXT_SIMT" not in os.environ  # what is on the CPU is computed by the CPU's kernels
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def bits(flags):
    return flags[0] | flags[1] << 1


def part_of_a_run(x, w, y, b=None, v=None, *, steps, sizes, rule, loss="mse", delta=1.0, lr=None, reduction="mean",
                  buffers=(), order=None, validation=(None, None, None), first_step=(False, False), frozen=(False, False), stop=False):  # fmt: skip
    """The operator's results for each chunk of a run."""
    parts, parameters = [], [w] if b is None else [w, b]
    state = (bits(first_step), bits(frozen), stop)
    step = (x, y, parameters, list(buffers), rule, loss, delta, v, lr, reduction, *state)
    op = reference.sgd_run_ if REFERENCE else _C.sgd_run_
    parts.append(op(*step, order, *validation, *sizes, steps.start, steps.stop))
    return parts


def batches(order, batch_size, drop_last=False):
    """The batches of one epoch."""
    return [batch for batch in order.split(batch_size) if not drop_last or len(batch) == batch_size]


def both(problem, orders, batch_size, *, lr=0.01, drop_last=False, in_place=False, **options):
    """(losses, weight, bias, buffers) of the run and of its steps; `in_place` takes all rows in sequence."""
    x, w, y, b, v = vars(problem).values()
    results = []

    def taken(t, batch):
        """Rows in place or gathered, as in the run, since bits may depend on gaps."""
        if in_place:
            return t[batch[0] : batch[-1] + 1]
        expanded = t.dim() == 2 and t.stride(1) == 0
        return t[batch, :1].contiguous().expand(-1, t.shape[1]) if expanded else t[batch].contiguous()

    for run in (True, False):
        tensors, buffers = [w.clone(), None if b is None else b.clone()], [None, None]
        common = {"linear_bias": tensors[1], "momentum_buffers": buffers, **options}
        if run:
            losses = linreg_ext.sgd_run_(
                x, tensors[0], y, weight=v, order=None if in_place else orders, epochs=len(orders), lr=lr,
                batch_size=batch_size, drop_last=drop_last, **common,
            )  # fmt: skip
        else:
            losses = []
            for order in orders:
                for batch in batches(order, batch_size, drop_last):
                    losses.append(linreg_ext.sgd_step_(
                        taken(x, batch), tensors[0], taken(y, batch), weight=None if v is None else taken(v, batch),
                        lr=lr[len(losses)].item() if isinstance(lr, torch.Tensor) else lr, **common,
                    ))  # fmt: skip
            losses = torch.stack(losses) if losses else w.new_empty(0, dtype=torch.promote_types(w.dtype, y.dtype))
        results.append([losses, *(t for t in (*tensors, *buffers) if t is not None)])
    return results


def assert_same(results):
    """The same bits; on a GPU, where runs add in another order than steps, the same numbers."""
    for run, steps in zip(*results, strict=True):
        assert run.dtype == steps.dtype
        assert run.shape == steps.shape
        if ON_CPU and run.device.type == "cpu":
            assert torch.equal(run.nan_to_num(1e30), steps.nan_to_num(1e30))
        else:
            assert torch.equal(run.isfinite(), steps.isfinite())
            error = (run.double() - steps.double()).nan_to_num(0, 0, 0).norm()
            assert error <= TOLERANCE[run.dtype] * (steps.double().nan_to_num(0, 0, 0).norm() + 1e-3)


def shuffled(n, epochs):
    return torch.stack([torch.randperm(n) for _ in range(epochs)])


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_step_is_a_single_step(options, dtypes, device):
    for (n, d, k, batch), loss, in_place in itertools.product(SHAPES, LOSSES, (False, True)):
        problem = Problem.random(n, d, k, dtypes, bias=d != 2, weight="rows" if n == 300 else None, device=device)
        orders = torch.arange(n).repeat(3, 1) if in_place else shuffled(n, 3)
        assert_same(both(problem, orders, batch, in_place=in_place, loss=loss, **option(loss, 0.5), **options))


@pytest.mark.products
def test_towards_many_targets_too(device):
    """Batches use matrix products, and the short last one loops, as single steps on them do."""
    for k in (15, 16, 40):
        problem = Problem.random(300, 64, k, DTYPES["float32"], device=device)
        assert_same(both(problem, shuffled(300, 2), 140, momentum=0.9))
        assert_same(both(problem, torch.arange(300).repeat(2, 1), 140, in_place=True))


@pytest.mark.products
def test_batches_that_begin_anywhere_in_a_cache_line(device):
    """Unlike the first, such batches are packed for matrix products, which needs memory that the first does not."""
    for dtypes, (n, d, k, batch) in itertools.product(DTYPES.values(), [(1000, 33, 40, 111), (300, 1001, 70, 9)]):
        problem = Problem.random(n, d, k, dtypes, device=device)
        assert_same(both(problem, torch.arange(n).repeat(2, 1), batch, in_place=True, lr=1e-3))


@pytest.mark.parametrize("weight", ["elements", "rows", "row columns"])
def test_weights_are_gathered_with_their_rows(weight, device):
    for n, d, k in ((60, 3, 2), (60, 12, 1)):
        problem = Problem.random(n, d, k, DTYPES["float32"], weight=weight, device=device)
        assert_same(both(problem, shuffled(n, 2), 16))


@pytest.mark.parametrize("drop_last", [False, True])
def test_rows_may_come_several_times_or_not_at_all(drop_last, device):
    problem = Problem.random(40, 3, 1, DTYPES["float32"], device=device)
    assert_same(both(problem, torch.randint(40, (3, 25)), 8, drop_last=drop_last))
    assert_same(both(problem, torch.randint(40, (2, 500)), 100, drop_last=drop_last))
    assert_same(both(problem, torch.randint(40, (2, 5)), 8, drop_last=drop_last))


def test_one_order_serves_every_epoch(device):
    problem = Problem.random(40, 3, 1, DTYPES["float32"], device=device)
    order = torch.randperm(40)
    x, w, y, *_ = vars(problem).values()
    once, repeated = (w.clone() for _ in range(2))
    linreg_ext.sgd_run_(x, once, y, order=order, epochs=3, batch_size=16, lr=0.1)
    linreg_ext.sgd_run_(x, repeated, y, order=order.repeat(3, 1), batch_size=16, lr=0.1)
    assert torch.equal(once, repeated)


@pytest.mark.parametrize("rates", [torch.float32, torch.float64])
def test_a_learning_rate_for_every_step(rates, device):
    for d in (2, 30, 300):
        problem = Problem.random(40, d, 1, DTYPES["float32"], device=device)
        lr = torch.rand(9, dtype=rates) / (10 + d)
        for where in {"cpu", device}:
            assert_same(both(problem, shuffled(40, 3), 16, lr=lr.to(where)))


def test_operands_that_lie_otherwise(device):
    wide = torch.randn(50, 12, device=device)
    for x, y in (
        (wide[:, :3], wide[:, 3:5]),
        (wide[::2, :3], wide[::2, 3:5]),
        (wide.t().contiguous().t()[:, :3], wide[:, 5:7]),
        (wide[:1, :3].expand(50, 3), torch.randn(2, 50, device=device).t()),
    ):
        for d in (3, 1):
            w = torch.randn(2, d, device=device)
            problem = Problem(x[:, :d], w, y, torch.randn(4, device=device)[::2])
            assert_same(both(problem, shuffled(len(x), 2), 16))
            assert_same(both(problem, torch.arange(len(x)).repeat(2, 1), 16, in_place=True))


def test_columns_of_several_targets_are_gathered_to_rows(device):
    """Rows with gaps, which a step reads differently and with more workspace than columns."""
    for n, d, k in ((300, 20, 4), (90, 200, 9), (160, 15, 7)):
        problem = Problem.random(n, d, k, DTYPES["float32"], device=device)
        problem.target = problem.target.t().contiguous().t()
        assert_same(both(problem, shuffled(n, 2), n // 2))


def test_parameters_whose_columns_are_apart_are_updated(device):
    x, y, order = torch.randn(50, 3, device=device), torch.randn(50, 2, device=device), shuffled(50, 2)
    w, columns = torch.zeros(2, 3, device=device), torch.zeros(3, 2, device=device)
    linreg_ext.sgd_run_(x, w, y, order=order, batch_size=16, lr=0.1)
    linreg_ext.sgd_run_(x, columns.t(), y, order=order, batch_size=16, lr=0.1)
    assert torch.equal(w, columns.t())
    vector = torch.zeros(3, device=device)
    one = torch.zeros(1, 3, device=device)
    linreg_ext.sgd_run_(x, vector, y[:, 0], order=order, batch_size=16, lr=0.1)
    linreg_ext.sgd_run_(x, one, y[:, :1], order=order, batch_size=16, lr=0.1)
    assert torch.equal(vector, one[0])


@pytest.mark.parametrize("d", [2, 30, 300])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_stops_with_the_last_finite_parameters(dtype, d, momentum, device):
    problem = Problem.random(64, d, 1, DTYPES[dtype], device=device)
    x, w, y, *_ = vars(problem).values()
    y[37] = torch.inf  # in the third batch of the second epoch
    orders = torch.arange(64).repeat(2, 1)
    orders[0, 37], orders[1, 37] = 0, 37
    kept, twin, buffers, twin_buffers = w.clone(), w.clone(), [None, None], [None, None]
    options = {"batch_size": 16, "lr": 0.1 / (10 + d), "momentum": momentum}
    losses = linreg_ext.sgd_run_(x, kept, y, order=orders, stop_nonfinite=True, momentum_buffers=buffers, **options)
    assert len(losses) == 7
    assert losses[:-1].isfinite().all()
    assert losses[-1].isinf()
    first = linreg_ext.sgd_run_(x, twin, y, order=orders[0], momentum_buffers=twin_buffers, **options)
    second = linreg_ext.sgd_run_(x, twin, y, order=orders[1, :32], momentum_buffers=twin_buffers, **options)
    assert torch.equal(losses[:-1], torch.cat([first, second]))
    assert torch.equal(kept, twin)
    assert not momentum or torch.equal(buffers[0], twin_buffers[0])
    # Steps that are not reached have no loss.
    parts = part_of_a_run(x, w.clone(), y, steps=range(8), sizes=(16, False, 2), rule=[options["lr"], 0, 0, 0, 0, 0],
                          order=orders, stop=True)  # fmt: skip
    assert [len(parts), int(parts[0][2]), len(parts[0][0])] == [1, 6, 8]
    assert parts[0][0].isnan().tolist() == [False] * 7 + [True]
    # A first step that is not taken changes nothing; without stop_nonfinite it is taken.
    kept, buffers = w.clone(), [None, None]
    losses = linreg_ext.sgd_run_(x * torch.inf, kept, y, stop_nonfinite=True, momentum_buffers=buffers, **options)
    assert len(losses) == 1
    assert torch.equal(kept, w)
    assert buffers == [None, None]
    assert len(linreg_ext.sgd_run_(x * torch.inf, kept, y, momentum_buffers=buffers, **options)) == 4
    assert kept.isnan().all()


@pytest.mark.parametrize("weight", [None, "rows", "elements"])
@pytest.mark.parametrize("shape", [(60, 2, 1), (60, 20, 2), (3000, 1, 1)], ids=str)
def test_validation_after_every_epoch(shape, weight, device):
    problem, rows = (Problem.random(*shape, DTYPES["float32"], weight=v, device=device) for v in (None, weight))
    x, w, y, b, _ = vars(problem).values()
    twin, twin_bias = w.clone(), b.clone()
    epoch = -(-len(x) // 16)
    rates = torch.linspace(0.01, 0.001, 3 * epoch)
    steps = range(2, 3 * epoch)  # begins inside an epoch and ends with one
    parts = part_of_a_run(x, w, y, b, steps=steps, sizes=(16, False, 3), rule=[0.0] * 6, lr=rates,
                          validation=[rows.input, rows.target, rows.weight])  # fmt: skip
    validation = torch.cat([part[1] for part in parts])
    expected = []
    for step in steps:
        batch = slice(step % epoch * 16, step % epoch * 16 + 16)
        linreg_ext.sgd_step_(x[batch], twin, y[batch], linear_bias=twin_bias, lr=rates[step].item())
        if (step + 1) % epoch == 0:
            options = {"linear_bias": twin_bias, "weight": rows.weight}
            expected.append(linreg_ext.linear_mse_loss(rows.input, twin, rows.target, **options))
    assert_same([[validation], [torch.stack(expected)]])


def test_frozen_parameters_stay(device):
    for d in (2, 30):
        for frozen in ((True, False), (False, True)):
            x, w, y, b, _ = vars(Problem.random(40, d, 1, DTYPES["float32"], device=device)).values()
            before = w.clone(), b.clone()
            rule = [0.01, 0, 0, 0, 0, 0]
            part_of_a_run(x, w, y, b, steps=range(3), sizes=(16, False, 1), rule=rule, frozen=frozen)
            assert [torch.equal(*pair) for pair in zip((w, b), before, strict=True)] == list(frozen)


@pytest.mark.parametrize("d", [3, 30])
def test_the_reference_is_the_same_run(d, device):
    problem = Problem.random(50, d, 2, DTYPES["float64"], weight="elements", device=device)
    orders = shuffled(50, 3)
    for options in (
        {"order": orders, "batch_size": 16},
        {"order": orders, "batch_size": 16, "drop_last": True, "momentum": 0.9, "momentum_buffers": None},
        {"epochs": 4},
        {"epochs": 2, "batch_size": 20, "lr": torch.rand(6) / 10, "loss": "huber", "delta": 0.3},
        {"epochs": 0},
        {"order": orders[:, :0]},
    ):
        results = []
        for module in (linreg_ext, reference_twins):
            x, w, y, b, v = (t.clone() for t in vars(problem).values())
            if "momentum_buffers" in options:
                options["momentum_buffers"] = [None, None]
            losses = module.sgd_run_(x, w, y, linear_bias=b, weight=v, **{"lr": 0.01, **options})
            results.append((losses, w, b, *(options.get("momentum_buffers") or ())))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_no_rows_are_no_steps(device):
    for module in (linreg_ext, reference_twins):
        w = torch.ones(1, 2, device=device)
        x, y = torch.empty(0, 2, device=device), torch.empty(0, 1, device=device)
        assert module.sgd_run_(x, w, y, epochs=5, lr=0.1).shape == (0,)
        assert (w == 1).all()


# On a GPU: many narrow rows, one row per warp, rows across lanes, several targets, and rows beyond one block's memory.
@pytest.mark.parametrize("shape", [(700, 1, 1), (33, 8, 1), (40, 100, 2), (70, 17, 3), (50, 300, 1)], ids=str)
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_a_run_in_chunks_has_the_same_bits(shape, dtypes, device):
    problem = Problem.random(*shape, dtypes, weight="rows", device=device)
    x, w, y, b, v = vars(problem).values()
    orders = shuffled(len(x), 3)
    rule = [0.1 / (10 + shape[1]), 0.9, 0.0, 0.1, True, False]
    results = []
    for cuts in ([12], [1, 2, 7, 12], [4, 8, 12]):
        tensors = [t.clone() for t in (w, b, w, b)]
        first_step, parts = [True, True], []
        for steps in itertools.starmap(range, itertools.pairwise([0, *cuts])):
            parts += part_of_a_run(
                x, tensors[0], y, tensors[1], v, steps=steps, sizes=(-(-len(x) // 4), False, 3), rule=rule, loss="huber",
                delta=0.5, buffers=tensors[2:], order=orders, first_step=first_step, stop=True,
            )  # fmt: skip
            first_step = [False, False]
        results.append([torch.cat([part[0] for part in parts]), *tensors])
    assert results[0][0].isfinite().all()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# More than a block's shared memory: 96 KB in tests/simt, up to 227 KB on a GPU.
@pytest.mark.parametrize("shape", [(14_000, 1, 1), (3000, 16, 1), (1501, 31, 1), (40_000, 2, 1)], ids=str)
def test_a_full_batch_that_no_block_holds(shape, device):
    """In chunks it has the same bits and stops."""
    problem = Problem.random(*shape, DTYPES["float32"], weight="rows", device=device)
    x, w, y, b, v = vars(problem).values()
    options = {"weight": v, "epochs": 5, "lr": 0.1 / (10 + shape[1]), "momentum": 0.9, "loss": "huber"}
    results = []
    for cuts in ([5], [1, 3, 5]):
        tensors, buffers, losses = [w.clone(), b.clone()], [None, None], []
        for epochs in (end - begin for begin, end in itertools.pairwise([0, *cuts])):
            now = options | {"epochs": epochs, "momentum_buffers": buffers}
            losses.append(linreg_ext.sgd_run_(x, tensors[0], y, linear_bias=tensors[1], **now))
        results.append([torch.cat(losses), *tensors, *buffers])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    orders = torch.arange(len(x)).repeat(5, 1)
    assert_same(both(problem, orders, len(x), in_place=True, **{k: options[k] for k in ("lr", "momentum", "loss")}))
    x[-1] = torch.inf
    kept = w.clone()
    losses = linreg_ext.sgd_run_(x, kept, y, stop_nonfinite=True, **options | {"momentum_buffers": [None, None]})
    assert len(losses) == 1
    assert torch.equal(kept, w)


# Rows beyond a block's shared memory, whose steps are launched one by one.
LARGE = [
    (32_001, 3, 700, "float32"), (60_000, 1, 16, "float32"), (2400, 101, 130, "float32"), (1100, 256, 64, "float32"),
    (700, 61, 32, "float64"), (520, 64, 200, "float64"), (4500, 30, 40, "bfloat16"), (8001, 16, 300, "float16"),
    (1000, 130, 70, "bfloat16 data"),
]  # fmt: skip


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("n", "d", "batch", "dtypes"), LARGE)
def test_batches_of_rows_that_no_block_holds(n, d, batch, dtypes, in_place, device):
    """From inside an epoch through its short last batch into the next one: equal to the steps, with the same bits in
    chunks."""
    problem = Problem.random(n, d, 1, DTYPES[dtypes], weight=None if in_place else "rows", device=device)
    x, w, y, b, v = vars(problem).values()
    rows = n if in_place else 7 * batch // 2
    orders = torch.arange(n).repeat(2, 1) if in_place else torch.randint(n, (2, rows))
    orders[:, -1] = n - 1  # it has no neighbour
    epoch = -(-rows // batch)
    begin = epoch - 2
    every = [part for order in orders for part in batches(order, batch)][begin : begin + 5]
    lr = torch.rand(2 * epoch, dtype=torch.float64) / (10 + d)
    rule = [0.0, 0.9, 0.0, 0.1, True, False]
    results = []
    for cuts in ([0, 5], [0, 1, 3, 5]):
        tensors, first_step, parts = [t.clone() for t in (w, b, w, b)], [True, True], []
        for steps in itertools.starmap(range, itertools.pairwise(begin + cut for cut in cuts)):
            parts += part_of_a_run(
                x, tensors[0], y, tensors[1], v, steps=steps, sizes=(batch, False, 2), rule=rule, lr=lr, loss="huber",
                delta=0.5, buffers=tensors[2:], order=None if in_place else orders, first_step=first_step, stop=True,
            )  # fmt: skip
            first_step = [False, False]
        results.append([torch.cat([part[0] for part in parts]), *tensors])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    tensors, buffers = [w.clone(), b.clone()], [None, None]
    losses = [
        linreg_ext.sgd_step_(
            x[part], tensors[0], y[part], linear_bias=tensors[1], weight=None if v is None else v[part], loss="huber",
            delta=0.5, lr=lr[step].item(), momentum=0.9, weight_decay=0.1, nesterov=True, momentum_buffers=buffers,
        )
        for step, part in enumerate(every, begin)
    ]  # fmt: skip
    assert_same([results[0], [torch.stack(losses), *tensors, *buffers]])


def test_large_runs_with_every_loss_and_rule(device):
    """Every loss and rule, without a bias, frozen, with elementwise weights, and ended by a loss that is not finite."""
    n, d, batch = 1500, 50, 90
    orders = torch.randint(n, (2, 200))
    for loss, options in itertools.product(LOSSES, OPTIONS.values()):
        problem = Problem.random(n, d, 1, DTYPES["float32"], bias=loss != "l1", device=device)
        assert_same(both(problem, orders, batch, loss=loss, **option(loss, 0.5), drop_last=loss == "huber", **options))
    problem = Problem.random(n, d, 1, DTYPES["float32"], device=device)
    x, w, y, b, _ = vars(problem).values()
    for frozen in ((True, False), (False, True)):
        kept = w.clone(), b.clone()
        part_of_a_run(x, kept[0], y, kept[1], steps=range(5), sizes=(batch, False, 2), rule=[1e-4, 0, 0, 0, 0, 0],
                      reduction="sum", order=orders, frozen=frozen)  # fmt: skip
        assert [torch.equal(*pair) for pair in zip((w, b), kept, strict=True)] == list(frozen)
    orders = orders % (n - 1)
    orders[1, batch] = n - 1  # in the second batch of the second epoch
    y[-1] = torch.inf
    (kept, kept_bias), (twin, twin_bias) = ((w.clone(), b.clone()) for _ in range(2))
    options = {"lr": 0.01, "batch_size": batch}
    losses = linreg_ext.sgd_run_(x, kept, y, linear_bias=kept_bias, order=orders, stop_nonfinite=True, **options)
    taken = [orders[0], orders[1, :batch]]
    first = [linreg_ext.sgd_run_(x, twin, y, linear_bias=twin_bias, order=order, **options) for order in taken]
    assert len(losses) == 5
    assert losses[-1].isinf()
    assert torch.equal(losses[:-1], torch.cat(first))
    assert torch.equal(kept, twin)
    assert torch.equal(kept_bias, twin_bias)


@pytest.mark.parametrize("noise", [1.0, 1e-4])
@pytest.mark.parametrize("shape", [(3000, 1, 1), (1500, 8, 1), (300, 60, 1), (60, 200, 2), (250, 240, 1)], ids=str)
def test_a_step_of_a_run_is_as_accurate_as_pytorch(shape, noise, device):
    """Also near convergence, with a learning rate that makes the update as large as the weight."""
    problem = Problem.random(*shape, DTYPES["float32"], noise=noise, device=device)
    x, w, y, b, _ = vars(problem).values()
    ours, lr = [w.clone(), b.clone()], len(x) ** 0.5 / noise
    loss = linreg_ext.sgd_run_(x, ours[0], y, linear_bias=ours[1], lr=lr)
    found = {"loss": loss[0], "weight": ours[0], "bias": ours[1]}
    others = []
    for dtype in (torch.float32, torch.float64):
        parameters = [t.to(dtype).requires_grad_() for t in (w, b)]
        value = torch.nn.functional.mse_loss(x.to(dtype) @ parameters[0].T + parameters[1], y.to(dtype))
        grads = torch.autograd.grad(value, parameters)
        moved = [(p - lr * g).detach() for p, g in zip(parameters, grads, strict=True)]
        others.append({"loss": value.detach(), "weight": moved[0], "bias": moved[1]})
    terms = {name: e.terms for name, e in oracle(problem, "mse", 1.0, "mean").items()}
    for name, p in (("weight", w), ("bias", b)):
        terms[name] = abs(p.detach().cpu().numpy()) + lr * terms[f"linear_{name}"]
    for name, value in found.items():
        exact = others[1][name].cpu().numpy()
        assert_as_accurate(name, value, others[0][name], Exact(exact, terms[name]))


@pytest.mark.skipif(ON_CPU, reason="the interpreter of tests/simt counts launches")
def test_steps_through_shared_memory_are_one_launch():
    launches = ctypes.CDLL(os.environ["LINREG_EXT_SIMT"]).simt_launches
    for (n, d, k), options, expected in (
        ((80, 1, 1), {"epochs": 50}, 1),
        ((80, 1, 1), {"epochs": 3, "batch_size": 16, "order": torch.randperm(80)}, 1),
        ((30, 100, 4), {"epochs": 20}, 1),
        ((3000, 16, 1), {"epochs": 20}, 20),  # more than one block holds
        ((1500, 50, 1), {"epochs": 2, "batch_size": 128, "order": torch.randperm(1500)}, 24),  # in an order, one by one
        ((9000, 50, 1), {"epochs": 1, "batch_size": 8999}, 2),
        ((30, 300, 1), {"epochs": 20}, 20),  # wider than a warp holds
        ((30, 300, 1), {"epochs": 20, "order": torch.randperm(30)}, 20),  # and in an order
    ):
        x, w, y, *_ = vars(Problem.random(n, d, k, DTYPES["float32"])).values()
        before = launches()
        linreg_ext.sgd_run_(x, w, y, lr=0.01, **options)
        assert launches() - before == expected + 1  # the number of steps taken


def test_same_bits_for_any_number_of_threads_and_stretch(monkeypatch):
    problem = Problem.random(100_000, 7, 1, DTYPES["float32"])
    order, rates = shuffled(100_000, 2), torch.linspace(0.1, 0.03, 8)
    results = []
    for threads, stretch in ((1, 10.0), (2, 1e-9), (3, 0.03)):
        torch.set_num_threads(threads)
        monkeypatch.setattr(functional, "_CHUNK_SECONDS", stretch)
        monkeypatch.setattr(functional, "_FIRST_CHUNK_SECONDS", stretch)
        w = problem.linear_weight.clone()
        buffers = [None, None]
        losses = linreg_ext.sgd_run_(
            problem.input, w, problem.target, order=order, batch_size=30_000, lr=rates, momentum=0.9,
            momentum_buffers=buffers,
        )  # fmt: skip
        results.append((losses, w, buffers[0]))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_ctrl_c_ends_a_run_between_two_steps():
    """Every step moves weight and bias by exactly `lr`, so that they count the steps."""
    x, y = torch.ones(512, 1, dtype=torch.float64), torch.full((512, 1), 1e9, dtype=torch.float64)
    w, b, buffers, lr = torch.zeros(1, 1).double(), torch.zeros(1).double(), [None, None], 2.0**-20
    pressed = []

    def press():
        time.sleep(0.3)
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        linreg_ext.sgd_run_(
            x, w, y, linear_bias=b, loss="l1", lr=lr, batch_size=16, epochs=10**8, momentum=0.5, dampening=0.5,
            momentum_buffers=buffers,
        )  # fmt: skip
    waited = time.perf_counter() - pressed[0]
    thread.join()
    assert waited < 0.1
    steps = (w / lr).item()
    assert steps == round(steps) > 1000
    assert w.item() == b.item()
    assert [buffer.item() for buffer in buffers] == [-1, -1]


@pytest.mark.extended
def test_nothing_is_allocated_for_the_steps():
    """A million rows in batches of 256: memory grows by the losses and one batch."""
    script = """
import resource, torch, linreg_ext
x, y = torch.randn(2**20, 32), torch.randn(2**20, 1)
w, order = torch.zeros(1, 32), torch.randperm(2**20)
linreg_ext.sgd_run_(x[:4096], w, y[:4096], order=order[:4096] % 4096, batch_size=256, lr=0.01)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
linreg_ext.sgd_run_(x, w, y, order=order, batch_size=256, lr=0.01)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / x.nbytes)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.01
