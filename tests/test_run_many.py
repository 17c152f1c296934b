# SPDX-License-Identifier: BSD-3-Clause
"""sgd_run_many_ equals sgd_run_ on every problem, on the CPU bit for bit."""

import ctypes
import itertools
import os
import signal
import threading
import time

import pytest
import reference_twins
import torch
from accuracy import DTYPES, LOSSES, Problem, option
from conftest import crossed

import linreg_ext
from linreg_ext import functional

ON_CPU = "LINREG_EXT_SIMT" not in os.environ  # what is on the CPU is computed by the CPU's kernels
OPTIONS = {
    "plain": {},
    "momentum, weight decay, nesterov": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    "momentum, dampening, maximize": {"momentum": 0.9, "dampening": 0.5, "maximize": True},
}
# problems, n, d, k, batch_size: problems in lanes, with full and incomplete vectors, and problems one by one
SHAPES = [
    (37, 100, 4, 1, None), (16, 19, 1, 1, 7), (20, 64, 8, 1, 16), (18, 33, 3, 3, None), (5, 9, 2, 1, None),
    (17, 300, 7, 1, 100), (3, 2000, 2, 1, None), (4, 90, 20, 2, 40), (2, 300, 64, 16, None), (9, 1, 1, 1, None),
    (3, 111, 33, 40, None),
    (3, 0, 2, 1, None),
]  # fmt: skip


def stacked(problems, n, d, k, dtypes, *, bias=True, weight=None):
    """Dense problems as one Problem of stacked operands."""
    each = [Problem.random(n, d, k, dtypes, bias=bias, weight=weight) for _ in range(problems)]
    operands = zip(*(vars(problem).values() for problem in each), strict=True)
    return Problem(*(None if of_each[0] is None else torch.stack(of_each) for of_each in operands))


def of_problem(number, problems):
    """A hyper-parameter of one problem."""
    return [number[p].item() for p in range(problems)] if isinstance(number, torch.Tensor) else [number] * problems


def epoch_losses(losses, epochs, sizes):
    """The mean loss of each epoch from those of its batches, which have these sums of weights."""
    if not losses.numel():
        return losses.new_full((epochs,), torch.nan)
    steps = losses.view(epochs, -1)
    if steps.shape[1] == 1:
        return steps[:, 0]
    total, rows = 0, 0
    for loss, size in zip(steps.double().unbind(1), sizes, strict=True):
        total, rows = total + loss * size, rows + size
    return (total / rows).to(losses.dtype)


def both(problem, rows_of, *, epochs=3, order=None, batch_size=None, drop_last=False, offsets=None, **options):
    """(losses, weight, bias, buffers) of one call and of a loop of sgd_run_; `rows_of(p)` is x, y, v and order of a
    problem alone."""
    x, w, y, b, v = vars(problem).values()
    common = {"epochs": epochs, "batch_size": batch_size, "drop_last": drop_last, "lr": 0.01, **options}
    many, alone = ([w.clone(), None if b is None else b.clone(), None, None] for _ in range(2))
    buffers = [None, None]
    losses = linreg_ext.sgd_run_many_(
        x, many[0], y, linear_bias=many[1], weight=v, offsets=offsets, order=order, momentum_buffers=buffers, **common
    )
    many[2:] = buffers
    found = []
    for p in range(len(w)):
        x, y, v, order = rows_of(p)
        one = {name: common[name] for name in common.keys() - {"lr", "momentum", "weight_decay"}}
        for name in ("lr", "momentum", "weight_decay"):
            one[name] = of_problem(common.get(name, 0.0), len(w))[p]
        buffers = [None, None]
        one |= {"linear_bias": None if b is None else alone[1][p], "weight": v, "order": order}
        steps = linreg_ext.sgd_run_(x, alone[0][p], y, momentum_buffers=buffers, **one)
        weight = torch.ones(len(x)) if v is None else v.double().view(len(x), -1 if len(x) else 1).mean(1)
        orders = torch.arange(len(x)) if order is None else order
        orders = (orders if orders.dim() == 2 else orders.expand(epochs, -1))[:epochs]
        batches = [weight[o].split(batch_size or max(1, len(o))) for o in orders]
        sizes = torch.stack([torch.stack([part.double().sum() for part in parts]) for parts in batches])
        sizes = sizes[:, : len(steps) // epochs].unbind(1)
        found.append(epoch_losses(steps, epochs, sizes))
        for i in range(2):
            if many[2 + i] is not None:
                alone[2 + i] = torch.zeros_like(many[2 + i]) if alone[2 + i] is None else alone[2 + i]
                if buffers[i] is not None:
                    alone[2 + i][p] = buffers[i]
    return [losses, *many], [torch.stack(found), *alone], common


def assert_same(results, exact_losses=True):
    (losses, *many), (expected, *alone), _ = results
    assert losses.shape == expected.shape
    assert losses.dtype == expected.dtype
    if exact_losses:
        assert torch.equal(losses.nan_to_num(1e30), expected.nan_to_num(1e30))
    else:
        eps = torch.finfo(losses.dtype).eps
        torch.testing.assert_close(losses, expected, rtol=2 * eps, atol=0, equal_nan=True)
    for ours, theirs in zip(many, alone, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours.nan_to_num(1e30), theirs.nan_to_num(1e30))


def dense(problem, order=None):
    x, _, y, _, v = vars(problem).values()
    return lambda p: (x[p], y[p], None if v is None else v[p], order)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_problem_is_a_run_alone(options, dtypes):
    for (problems, n, d, k, batch), loss in zip(SHAPES, itertools.cycle(LOSSES), strict=False):
        problem = stacked(problems, n, d, k, dtypes, bias=d != 2)
        assert_same(both(problem, dense(problem), batch_size=batch, loss=loss, **option(loss, 0.5), **options))


@crossed(3, loss=LOSSES, dtypes=DTYPES)
def test_every_loss_in_lanes(loss, dtypes):
    for n, d, k, batch in ((61, 3, 1, None), (40, 8, 1, 16), (23, 2, 2, 9)):
        problem = stacked(33, n, d, k, dtypes)
        assert_same(both(problem, dense(problem), batch_size=batch, loss=loss, **option(loss, 0.5), momentum=0.9))


@pytest.mark.parametrize("weight", ["elements", "rows", "row columns"])
def test_weights(weight):
    for n, d, k, batch in ((30, 3, 2, 8), (30, 3, 1, None), (70, 12, 2, 16)):
        problem = stacked(7, n, d, k, DTYPES["float32"], weight=weight)
        orders = torch.stack([torch.randperm(n) for _ in range(3)])
        assert_same(both(problem, dense(problem), batch_size=batch), exact_losses=False)
        assert_same(both(problem, dense(problem, orders), order=orders, batch_size=batch), exact_losses=False)


@pytest.mark.parametrize("drop_last", [False, True])
def test_orders(drop_last):
    for n, d in ((30, 3), (70, 12)):
        problem = stacked(19, n, d, 1, DTYPES["float32"])
        for order in (torch.randperm(n), torch.randint(n, (3, 50)), torch.randint(n, (3, 5))):
            sizes = {"order": order, "batch_size": 16, "drop_last": drop_last}
            assert_same(both(problem, dense(problem, order), **sizes, momentum=0.9))


@pytest.mark.parametrize("per_problem", ["target", "hyper-parameters"])
@pytest.mark.parametrize("shape", [(100, 4, 1, None), (100, 4, 1, 33), (300, 16, 1, None), (200, 40, 2, 64)], ids=str)
def test_shared_rows(per_problem, shape):
    n, d, k, batch = shape
    problem = stacked(40, n, d, k, DTYPES["float32"])
    problem.input = problem.input[0]
    x, w, y, *_ = vars(problem).values()
    options, targets = {}, list(y)
    if per_problem == "hyper-parameters":
        problem.target, targets = y[0], [y[0]] * len(w)
        momentum, weight_decay = torch.linspace(0, 0.9, 40), torch.linspace(0, 0.1, 40)
        momentum[16:32] = 0.5  # in two sets of lanes, only one of them differs
        weight_decay[:16] = 0.05
        options = {
            "lr": torch.logspace(-6, -2, 40, dtype=torch.float64), "momentum": momentum, "weight_decay": weight_decay,
        }  # fmt: skip
    order = torch.randperm(n) if batch else None
    results = both(problem, lambda p: (x, targets[p], None, order), order=order, batch_size=batch, **options)
    if per_problem == "hyper-parameters":
        results[0][3][0], results[1][3][0] = 0, 0  # of momentum 0: there is none
        results[0][4][0], results[1][4][0] = 0, 0
    assert_same(results)


@crossed(
    3,
    shape=[
        (5000, 16, 1, None),
        (3000, 7, 1, None),
        (700, 29, 1, None),
        (900, 33, 1, 256),
        (300, 20, 3, 128),
        (40, 300, 2, None),
    ],
    dtypes={name: DTYPES[name] for name in ("float32", "float64", "bfloat16 data")},
    weight=[None, "rows", "elements"],
)
def test_problems_that_share_a_reading(shape, dtypes, weight):
    """Fails if a problem's sums depend on those beside it: in place, packed or by columns, with small last batches."""
    n, d, k, batch = shape
    problem = stacked(11, n, d, k, dtypes, weight=weight)
    problem.input = x = problem.input[0]
    loss = LOSSES[(n + d) % len(LOSSES)]
    order = torch.stack([torch.randperm(n) for _ in range(3)]) if batch else None
    for threads in (1, 2, 16):
        torch.set_num_threads(threads)
        results = both(
            problem,
            lambda p: (x, problem.target[p], None if weight is None else problem.weight[p], order),
            order=order, batch_size=batch, loss=loss, **option(loss, 0.5), momentum=0.5,
        )  # fmt: skip
        assert_same(results, exact_losses=weight is None)


@pytest.mark.parametrize("weight", [None, "rows"])
@pytest.mark.parametrize("batch_size", [None, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_ragged_groups(ordered, batch_size, weight):
    """Also of 0 and 1 rows, and of sizes that take other kernels."""
    for d in (3, 12):
        sizes = torch.tensor([5, 0, 1, 40, 40, 2, 700, 0, 17])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        rows = Problem.random(int(offsets[-1]), d, 1, DTYPES["float32"], weight=weight)
        problem = stacked(len(sizes), 1, d, 1, DTYPES["float32"])
        problem.input, problem.target, problem.weight = rows.input, rows.target, rows.weight
        x, y, v = rows.input, rows.target, rows.weight
        order = torch.stack([torch.randperm(len(x)) for _ in range(3)]) if ordered else None

        def alone(p, x=x, y=y, v=v, offsets=offsets, order=order):
            part = slice(offsets[p], offsets[p + 1])
            if order is not None:
                return x, y, v, order[:, part].contiguous()
            return x[part], y[part], None if v is None else v[part], None

        results = both(problem, alone, offsets=offsets, order=order, batch_size=batch_size, momentum=0.5)
        if ON_CPU:
            assert_same(results, exact_losses=weight is None)
        else:  # by the layout of the largest
            torch.testing.assert_close(*results[:2], equal_nan=True)
        assert torch.equal(results[0][0].isnan().all(1), sizes == 0)


@pytest.mark.skipif(ON_CPU, reason="the interpreter of tests/simt counts launches")
def test_problems_that_blocks_hold_are_one_launch():
    launches = ctypes.CDLL(os.environ["LINREG_EXT_SIMT"]).simt_launches
    for (problems, n, d, k), expected in (((9, 80, 1, 1), 1), ((5, 30, 100, 2), 1), ((3, 3000, 16, 1), 63)):
        problem = stacked(problems, n, d, k, DTYPES["float32"])
        before = launches()
        linreg_ext.sgd_run_many_(problem.input, problem.linear_weight, problem.target, lr=0.01, epochs=20)
        assert launches() - before == expected


def test_groups_of_few_sizes():
    """Neighbours of one size are taken together, and those beside them are not."""
    sizes = torch.tensor([9] * 40 + [8] * 3 + [9] * 20 + [10] * 35)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    rows = Problem.random(int(offsets[-1]), 2, 1, DTYPES["float32"])
    problem = stacked(len(sizes), 1, 2, 1, DTYPES["float32"])
    x, y = problem.input, problem.target = rows.input, rows.target
    parts = [slice(*bounds) for bounds in itertools.pairwise(offsets.tolist())]
    assert_same(both(problem, lambda p: (x[parts[p]], y[parts[p]], None, None), offsets=offsets, batch_size=4))


def test_learning_rates_in_lanes():
    problem = stacked(37, 50, 3, 1, DTYPES["float64"])
    assert_same(both(problem, dense(problem), lr=torch.logspace(-5, -2, 37), momentum=0.9, batch_size=20))


def test_a_vector_for_each_problem():
    problem = stacked(5, 20, 3, 1, DTYPES["float32"])
    x, w, y, b, _ = vars(problem).values()
    vectors, bias = w[:, 0].clone(), b[:, 0].clone()
    losses = linreg_ext.sgd_run_many_(x, vectors, y[:, :, 0], linear_bias=bias, lr=0.1)
    assert torch.equal(losses, linreg_ext.sgd_run_many_(x, w, y, linear_bias=b, lr=0.1))
    assert torch.equal(vectors, w[:, 0])
    assert torch.equal(bias, b[:, 0])


def test_operands_that_lie_otherwise():
    problem = stacked(6, 20, 3, 2, DTYPES["float32"])
    plain = both(problem, dense(problem))[0]
    x, w, y, b, _ = vars(problem).values()
    for apart in (
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], 1)[:, 0],
        lambda t: t.mT.contiguous().mT if t.dim() == 3 else t,
    ):
        parameters, buffers = [apart(w).clone(memory_format=torch.preserve_format), apart(b)], [None, None]
        losses = linreg_ext.sgd_run_many_(
            apart(x), parameters[0], apart(y), linear_bias=parameters[1].clone(), epochs=3, lr=0.01,
            momentum_buffers=buffers,
        )  # fmt: skip
        assert torch.equal(losses, plain[0])
        assert torch.equal(parameters[0], plain[1])
    shared = y[:1].expand(6, -1, -1)
    expected = w.clone()
    linreg_ext.sgd_run_many_(x, expected, shared.contiguous(), lr=0.01)
    linreg_ext.sgd_run_many_(x, w, shared, lr=0.01)
    assert torch.equal(w, expected)


def test_state_is_kept_from_call_to_call():
    problem = stacked(20, 40, 3, 1, DTYPES["float32"])
    x, w, y, *_ = vars(problem).values()
    once, twice, buffers, kept = w.clone(), w.clone(), [None, None], [None, None]
    options = {"lr": 0.01, "momentum": 0.9, "batch_size": 16}
    losses = linreg_ext.sgd_run_many_(x, once, y, epochs=4, momentum_buffers=buffers, **options)
    parts = [linreg_ext.sgd_run_many_(x, twice, y, epochs=2, momentum_buffers=kept, **options) for _ in range(2)]
    assert torch.equal(losses, torch.cat(parts, 1))
    assert torch.equal(once, twice)
    assert torch.equal(buffers[0], kept[0])


def test_a_problem_that_diverges_is_alone_with_it():
    problem = stacked(20, 40, 3, 1, DTYPES["float32"])
    x, w, y, *_ = vars(problem).values()
    x[7, 3] = torch.inf
    losses = linreg_ext.sgd_run_many_(x, w, y, epochs=3, lr=0.01)
    others = torch.arange(20) != 7
    assert not w[7].isfinite().any()
    assert w[others].isfinite().all()
    assert losses[others].isfinite().all()


def test_the_sizes_of_nothing():
    for problems, epochs in ((0, 3), (4, 0)):
        problem = stacked(4, 5, 2, 1, DTYPES["float32"])
        x, w, y, b, _ = (None if t is None else t[:problems] for t in vars(problem).values())
        before = w.clone()
        losses = linreg_ext.sgd_run_many_(x, w, y, linear_bias=b, epochs=epochs, lr=0.1)
        assert losses.shape == (problems, epochs)
        assert torch.equal(w, before)
    w, offsets = torch.ones(2, 1, 3), torch.zeros(3, dtype=torch.int64)
    losses = linreg_ext.sgd_run_many_(torch.empty(0, 3), w, torch.empty(0, 1), offsets=offsets, epochs=2, lr=0.1)
    assert losses.isnan().all()
    assert (w == 1).all()


@pytest.mark.parametrize("shape", [(50, 30, 3, 1), (3, 20_000, 7, 1), (40, 300, 20, 2)], ids=str)
def test_same_bits_for_any_number_of_threads_and_chunk(shape, monkeypatch):
    problem = stacked(*shape, DTYPES["float32"])
    x, w, y, b, _ = vars(problem).values()
    results = []
    for threads, seconds, numbers in (
        (1, 10.0, 1 << 15),
        (2, 1e-9, 1 << 15),
        (5, 1e-4, 20),
        (16, 10.0, 1),
        (2, 10.0, 30),
    ):
        torch.set_num_threads(threads)
        monkeypatch.setattr(functional, "_LOSSES", numbers)
        monkeypatch.setattr(functional, "_CHUNK_SECONDS", seconds)
        monkeypatch.setattr(functional, "_FIRST_CHUNK_SECONDS", seconds)
        tensors, buffers = [w.clone(), b.clone()], [None, None]
        losses = linreg_ext.sgd_run_many_(
            x, tensors[0], y, linear_bias=tensors[1], batch_size=len(x[0]) // 3, epochs=3, lr=0.01, momentum=0.9,
            momentum_buffers=buffers,
        )  # fmt: skip
        results.append([losses, *tensors, *buffers])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_reference_is_the_same_call():
    dense = stacked(5, 30, 3, 2, DTYPES["float64"], weight="elements")
    ragged = Problem(dense.input[0], dense.linear_weight, dense.target[0], dense.linear_bias, dense.weight[0])
    for problem, options in (
        (dense, {"order": torch.stack([torch.randperm(30) for _ in range(3)]), "batch_size": 8, "epochs": 3}),
        (dense, {"batch_size": 8, "drop_last": True, "momentum": 0.9, "momentum_buffers": None}),
        (dense, {"epochs": 3, "lr": torch.rand(5) / 10, "weight_decay": torch.rand(5) / 10, "loss": "huber"}),
        (ragged, {"epochs": 3, "lr": torch.rand(5) / 10}),
        (ragged, {"epochs": 3, "batch_size": 4, "offsets": torch.tensor([0, 3, 3, 13, 29, 30])}),
        (ragged, {"epochs": 2, "order": torch.randperm(30), "offsets": torch.tensor([0, 3, 3, 13, 29, 30])}),
        (dense, {"epochs": 0}),
    ):
        results = []
        for module in (linreg_ext, reference_twins):
            x, w, y, b, v = (t.clone() for t in vars(problem).values())
            if "momentum_buffers" in options:
                options["momentum_buffers"] = [None, None]
            losses = module.sgd_run_many_(x, w, y, linear_bias=b, weight=v, **{"lr": 0.01, **options})
            results.append((losses, w, b, *(options.get("momentum_buffers") or ())))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_ctrl_c_ends_a_call_between_two_problems():
    """Every step moves a weight by exactly `lr`."""
    problems, lr = 10**6, 2.0**-20
    x, y = torch.ones(1, 16, 1, dtype=torch.float64), torch.full((1, 16, 1), 1e9, dtype=torch.float64)
    w = torch.zeros(problems, 1, 1, dtype=torch.float64)
    pressed = []

    def press():
        time.sleep(0.3)
        pressed.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        linreg_ext.sgd_run_many_(
            x.expand(problems, -1, -1), w, y.expand(problems, -1, -1), loss="l1", lr=lr, epochs=1000
        )
    waited = time.perf_counter() - pressed[0]
    thread.join()
    assert waited < 0.2
    steps = w.flatten() / lr
    done = int((steps > 0).sum())
    assert 0 < done < problems
    assert torch.equal(steps, torch.where(torch.arange(problems) < done, 1000.0, 0.0).double())
