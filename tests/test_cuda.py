# SPDX-License-Identifier: BSD-3-Clause
"""What only a GPU has: streams, graphs, launches and synchronisation. The other files also run on it."""

import itertools
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES, Problem
from conftest import HAS_CUDA

import linreg_ext
from benchmarks import launches

pytestmark = pytest.mark.skipif(not HAS_CUDA, reason="needs a GPU and a build for it")

# Every layout of rows: several per load, part of a warp, a warp, a block, through memory; and several targets.
SHAPES = [
    (4099, 1, 1), (4099, 3, 1), (4099, 8, 1), (1021, 64, 1), (509, 101, 1), (257, 1024, 1), (67, 5000, 1), (19, 20000, 1),
    (7, 70001, 1), (1021, 16, 2), (257, 128, 4), (129, 256, 8), (67, 40, 30), (129, 65, 130),
]  # fmt: skip
ONE_KERNEL = [shape for shape in SHAPES if shape[2] <= 8]


def stable_lr(problem: Problem) -> float:
    """Small learning rates: a diverged run would end in nan, which does not equal itself."""
    return 0.1 / (1 + problem.input.shape[1])


class Step:
    """An sgd_step_ that reads and writes fixed addresses."""

    def __init__(self, problem: Problem, momentum: float = 0.9) -> None:
        self.problem, self.momentum = problem, momentum
        self.lr = torch.full((), stable_lr(problem), device="cuda")
        self.w, self.b = problem.linear_weight.clone(), problem.linear_bias.clone()
        self.buffers = [torch.zeros_like(self.w), torch.zeros_like(self.b)]
        self.loss = None

    def __call__(self) -> None:
        self.loss = linreg_ext.sgd_step_(
            self.problem.input, self.w, self.problem.target, linear_bias=self.b, lr=self.lr, momentum=self.momentum,
            momentum_buffers=self.buffers if self.momentum else None,
        )  # fmt: skip

    def results(self) -> list[torch.Tensor]:
        return [t.clone() for t in (self.loss, self.w, self.b, *self.buffers)]


def make(shape, dtypes=DTYPES["float32"]):
    return Problem.random(*shape, dtypes, device="cuda")


def copy(problem):
    return Problem(*(None if t is None else t.clone() for t in vars(problem).values()))


def assert_same_bits(ours, others):
    for a, b in zip(ours, others, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_bits_a_hundred_times_across_streams(shape):
    """Concurrent launches on four streams must give the same results as launches that run alone."""
    problem = make(shape)
    alone = Step(problem)
    alone()
    expected = alone.results()
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for _, stream in zip(range(100), itertools.cycle(streams), strict=False):
        with torch.cuda.stream(stream):
            step = Step(problem)
            step()
            found.append(step.results())
    torch.cuda.synchronize()
    for results in found:
        assert_same_bits(results, expected)


def test_different_problems_on_different_streams():
    steps = [Step(make(shape)) for shape in SHAPES for _ in range(2)]
    alone = [Step(copy(step.problem)) for step in steps]
    streams = [torch.cuda.Stream() for _ in steps]
    torch.cuda.synchronize()
    for _ in range(20):
        for step, stream in zip(steps, streams, strict=True):
            with torch.cuda.stream(stream):
                step()
    torch.cuda.synchronize()
    for step, other in zip(steps, alone, strict=True):
        for _ in range(20):
            other()
        assert_same_bits(step.results(), other.results())


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graph_replay_with_changed_data_and_learning_rate(shape, dtypes):
    """A step that read anything only during capture would not have the bits of uncaptured steps, which test_training.py
    compares with torch.optim.SGD's."""
    captured = Step(make(shape, dtypes))
    captured()  # a first call loads what cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            captured()
    plain = Step(copy(captured.problem))
    for tensor, source in zip(captured.results()[1:], (plain.w, plain.b, *plain.buffers), strict=True):
        source.copy_(tensor)
    for factor, scale in ((1.0, 1.0), (0.2, 0.5), (0.0, 2.0)):
        for step in (captured, plain):
            step.lr.fill_(factor * stable_lr(step.problem))
            step.problem.input.mul_(scale)
            step.problem.target.add_(scale)
        graph.replay()
        for _ in range(3):
            plain()
        assert_same_bits(captured.results(), plain.results())


def test_two_graphs_replayed_beside_each_other():
    steps = [Step(make(shape)) for shape in ((4099, 8, 1), (509, 101, 1))]
    alone = [Step(copy(step.problem)) for step in steps]
    graphs, streams = [], [torch.cuda.Stream() for _ in steps]
    for step, other in zip(steps, alone, strict=True):
        step()
        other()
        graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(graphs[-1]):
            step()
    torch.cuda.synchronize()
    for _ in range(50):
        for graph, stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for step, other in zip(steps, alone, strict=True):
        for _ in range(50):
            other()
        assert_same_bits(step.results(), other.results())


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
def test_graph_of_loss_and_backward(autocast):
    """Under autocast, the casts must be captured, too: a weight cast before the capture would not follow the weight."""
    problem = make((509, 101, 1))
    w, b = problem.linear_weight.requires_grad_(), problem.linear_bias.requires_grad_()

    def backward():
        w.grad = b.grad = None
        with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None, cache_enabled=False):
            loss = linreg_ext.linear_mse_loss(problem.input, w, problem.target, linear_bias=b)
        loss.backward()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = backward()
    problem.target.mul_(3)
    with torch.no_grad():
        w.mul_(2)
    captured = w.grad, b.grad  # replaying writes them, and backward() below replaces them
    graph.replay()
    found = [t.clone() for t in (loss, *captured)]
    assert_same_bits(found, [backward(), w.grad, b.grad])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_graphed_callables(reduction):
    """A head whose forward and backward are two graphs. Fails if the loss or a gradient on other data differs from
    plain PyTorch's."""
    model = linreg_ext.LinearHuberLoss(101, 3, reduction=reduction, device="cuda")
    w, b = (p.detach().clone().requires_grad_() for p in model.parameters())
    sample = torch.randn(509, 101, device="cuda", requires_grad=True), torch.randn(509, 3, device="cuda")
    graphed = torch.cuda.make_graphed_callables(model, sample)
    for scale in (1.0, -3.0):
        x, y = (scale * torch.randn_like(t) for t in sample)
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        model.zero_grad(set_to_none=True)
        loss, expected = graphed(ours, y), F.huber_loss(F.linear(theirs, w, b), y, reduction=reduction)
        loss.sum().backward()
        grads = torch.autograd.grad(expected.sum(), (theirs, w, b))
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close((ours.grad, *(p.grad for p in model.parameters())), grads)


def pieces(shape):
    """The functions that a training loop calls, by name."""
    problem = make(shape)
    model = torch.nn.Linear(shape[1], shape[2], device="cuda")
    lr = stable_lr(problem)
    sgd = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
    train = linreg_ext.make_train_step(model, torch.nn.MSELoss(), sgd)
    w, b = (t.clone().requires_grad_() for t in (problem.linear_weight, problem.linear_bias))
    fixed_lr = Step(problem, momentum=0.0)
    fixed_lr.lr = lr
    return {
        "sgd_step_": fixed_lr,
        "sgd_step_ with a learning rate on the device": Step(problem),
        "TrainStep": lambda: train(problem.input, problem.target),
        "loss": lambda: linreg_ext.linear_mse_loss(problem.input, w.detach(), problem.target),
        "backward": lambda: torch.autograd.grad(
            linreg_ext.linear_huber_loss(problem.input, w, problem.target, linear_bias=b), (w, b)
        ),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_synchronises(shape):
    for piece in pieces(shape).values():
        piece()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                piece()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", ONE_KERNEL, ids=str)
def test_a_step_is_one_kernel(shape):
    for name, piece in pieces(shape).items():
        if name == "backward":
            continue  # PyTorch's own kernels scale the gradients
        work = launches.device_work(piece, calls=10)
        assert launches.kernels(work) == 10, f"{name}: {dict(work)}"
        assert launches.copies_and_fills(work) == launches.waits(work) == 0, f"{name}: {dict(work)}"
        assert all("linreg" in kernel for kernel in work), f"{name}: {dict(work)}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_steps_ask_the_driver_for_no_memory(shape):
    for name, piece in pieces(shape).items():
        assert launches.driver_allocations(piece) == 0, name


@pytest.mark.skipif(HAS_CUDA and torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_another_device_than_the_current_one(shape):
    """Without a device guard, a launch goes to the current device, where kernels cannot access the tensors."""
    problem = Problem.random(*shape, DTYPES["float32"])
    results = []
    for device in ("cuda:0", "cuda:1"):
        x, w, y, b, _ = (None if t is None else t.to(device) for t in vars(problem).values())
        lr, buffers = torch.full((), stable_lr(problem), device=device), [None, None]
        options = {"linear_bias": b, "lr": lr, "momentum": 0.9, "momentum_buffers": buffers}
        losses = [linreg_ext.linear_mse_loss(x, w, y, linear_bias=b), linreg_ext.sgd_step_(x, w, y, **options)]
        losses.append(linreg_ext.sgd_run_(x, w, y, batch_size=len(x) // 2, **options))
        leaf = w.clone().requires_grad_()
        grads = torch.autograd.grad(linreg_ext.linear_huber_loss(x, leaf, y), leaf)
        results.append([*losses, w, b, *buffers, *grads])
        assert all(t.device == torch.device(device) for t in results[-1])
        assert torch.cuda.current_device() == 0
    torch.testing.assert_close(*([t.cpu() for t in found] for found in results))


# In one block, step by step, and by matrix products; with the number of kernels in ten epochs.
RUNS = {
    (700, 8, 1): 2,  # the steps, and the count of those that were taken
    (257, 20, 3): 2,
    (300, 240, 1): 11,
    (4099, 101, 1): 11,
    (129, 65, 130): None,
}


class Run(Step):
    """Ten epochs of sgd_run_, with every loss."""

    def __call__(self) -> None:
        self.loss = linreg_ext.sgd_run_(
            self.problem.input, self.w, self.problem.target, linear_bias=self.b, lr=self.lr, momentum=self.momentum,
            momentum_buffers=self.buffers, epochs=10,
        )  # fmt: skip


@pytest.mark.parametrize("shape", RUNS, ids=str)
def test_runs_beside_each_other_have_the_same_bits(shape):
    problem = make(shape)
    alone = Run(problem)
    alone()
    expected = alone.results()
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for _, stream in zip(range(40), itertools.cycle(streams), strict=False):
        with torch.cuda.stream(stream):
            run = Run(problem)
            run()
            found.append(run.results())
    torch.cuda.synchronize()
    for results in found:
        assert_same_bits(results, expected)


@pytest.mark.parametrize("shape", RUNS, ids=str)
def test_a_run_does_not_synchronise(shape):
    runs = [Run(make(shape))]
    x, w, y, *_ = vars(runs[0].problem).values()
    for where in ("cpu", "cuda"):
        order = torch.randperm(len(x)).to(where)
        options = {"order": order, "batch_size": len(x) // 5, "lr": stable_lr(runs[0].problem)}
        runs.append(lambda options=options: linreg_ext.sgd_run_(x, w.clone(), y, **options))
    for run in runs:
        run()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("shape", [shape for shape in RUNS if RUNS[shape]], ids=str)
def test_kernels_of_a_run(shape):
    work = launches.device_work(Run(make(shape)), calls=10)
    assert launches.kernels(work) == 10 * RUNS[shape], dict(work)
    assert launches.copies_and_fills(work) == launches.waits(work) == 0, dict(work)


@pytest.mark.parametrize("shape", RUNS, ids=str)
def test_graph_of_a_run(shape):
    captured = Run(make(shape))
    captured()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured()
    plain = Run(copy(captured.problem))
    for tensor, source in zip(captured.results()[1:], (plain.w, plain.b, *plain.buffers), strict=True):
        source.copy_(tensor)
    for _ in range(2):
        graph.replay()
        plain()
    assert_same_bits(captured.results(), plain.results())


def test_graph_of_a_run_that_otherwise_waits_for_the_device():
    """A run in chunks would read the results of the first, which ends the capture."""
    x, w, y, *_ = vars(make((50, 3, 1))).values()
    plain, captured = w.clone(), w.clone()
    losses = linreg_ext.sgd_run_(x, plain, y, epochs=5000, lr=0.001)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = linreg_ext.sgd_run_(x, captured, y, epochs=5000, lr=0.001)
    graph.replay()
    assert_same_bits([found, captured], [losses, plain])


def test_a_row_that_an_order_on_the_device_names_and_there_is_not():
    for n, d, k in ((50, 3, 1), (3000, 100, 1), (50, 300, 1), (50, 9, 40)):  # of one block, of many, by products
        x, w, y, *_ = vars(make((n, d, k))).values()
        for wrong in (n, -1, 2**40):
            order = torch.arange(50, device="cuda")
            order[20] = wrong
            losses = linreg_ext.sgd_run_(x, w.clone(), y, order=order, batch_size=10, lr=0.001)
            assert losses[:2].isfinite().all()
            assert losses[2:].isnan().all()


def test_a_run_that_a_loss_ends():
    for d in (3, 300):
        x, w, y, *_ = vars(make((50, d, 1))).values()
        x[25] = torch.inf
        kept, twin = w.clone(), w.clone()
        losses = linreg_ext.sgd_run_(x, kept, y, batch_size=10, epochs=3, lr=0.001, stop_nonfinite=True)
        first = linreg_ext.sgd_run_(x[:20], twin, y[:20], batch_size=10, lr=0.001)
        assert len(losses) == 3
        assert_same_bits([losses[:2], kept], [first, twin])


def test_an_order_in_pinned_memory_that_changes_after_the_call():
    """A lagging stream reaches the copy after the order has changed."""
    x, w, y, *_ = vars(make((257, 20, 1))).values()
    order = torch.randperm(len(x))
    expected, found = w.clone(), w.clone()
    linreg_ext.sgd_run_(x, expected, y, order=order, batch_size=16, lr=0.001)
    order = order.pin_memory()
    torch.cuda._sleep(100_000_000)  # clocks: some 50 ms
    linreg_ext.sgd_run_(x, found, y, order=order, batch_size=16, lr=0.001)
    order.zero_()
    assert_same_bits([found], [expected])


def test_threads_whose_runs_need_different_amounts_of_shared_memory():
    """Fails with an invalid argument if one thread lowers the shared-memory limit of a kernel that another launches."""
    runs = [Run(make((rows, 16, 1))) for rows in (1000, 3000)]

    def repeat(run):
        for _ in range(300):
            run()

    with ThreadPoolExecutor(len(runs)) as pool:
        list(pool.map(repeat, runs))
