# SPDX-License-Identifier: BSD-3-Clause
"""torch.compile, torch.export and AOTInductor: results compared with plain PyTorch, and the number of compilations."""

import functools
import io
import itertools
import os
import warnings

import pytest
import reference_twins
import torch
import torch.nn.functional as F
from accuracy import DTYPES, LOSSES, Problem, loss_and_grads, option, plain_loss
from conftest import crossed
from torch import nn

import linreg_ext

RUNS = "LINREG_EXT_SIMT" not in os.environ  # there is no CUDA kernel for runs yet


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()


def fused_loss(problem, loss, reduction):
    p = problem  # by its attributes: Dynamo of torch 2.11 cannot trace vars(problem).values()
    options = option(loss, 0.5)
    function = getattr(linreg_ext, f"linear_{loss}_loss")
    return function(
        p.input, p.linear_weight, p.target, linear_bias=p.linear_bias, weight=p.weight, reduction=reduction, **options
    )


def assert_is_plain(function, problem, loss, reduction):
    """The compiled loss, alone and with its gradients; fails if either is missing, scaled or of another loss."""
    ours = loss_and_grads(function, problem, 2.0)
    theirs = loss_and_grads(lambda p: plain_loss(p, loss, 0.5, reduction), problem, 2.0)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(function(problem), theirs["loss"])


def assert_same_and_plain(eager, traced, plain):
    """Compiled or not, the bits are the same, and the numbers are plain PyTorch's."""
    for one, other in zip(eager, traced, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(eager, plain)


# Every reduction, with and without weights and bias.
CASES = [
    ("mean", None, True), ("mean", "rows", False), ("sum", "elements", True), ("none", None, False), ("none", "rows", True),
]  # fmt: skip


@crossed(5, case=CASES, loss=LOSSES)
def test_losses_in_one_graph(case, loss, device):
    """Fails if the compiled loss or gradient differs from plain PyTorch's."""
    reduction, weight, bias = case
    problem = Problem.random(9, 5, 2, DTYPES["float32"], bias=bias, weight=weight, device=device)
    compiled = torch.compile(lambda p: fused_loss(p, loss, reduction), fullgraph=True, backend="aot_eager")
    assert_is_plain(compiled, problem, loss, reduction)


def test_what_is_compiled_are_the_kernels(device):
    """The graph must call the operator; plain PyTorch would give the same numbers."""
    p = Problem.random(9, 5, 2, DTYPES["float32"], device=device)
    compiled = torch.compile(linreg_ext.linear_mse_loss, fullgraph=True, backend="aot_eager")
    for requires_grad, op in ((False, "linreg_ext::linear_loss"), (True, "linreg_ext::linear_loss_grads")):
        w = p.linear_weight.clone().requires_grad_(requires_grad)
        for _ in range(2):  # the second one is compiled already
            with torch.profiler.profile(acc_events=True) as profile:
                compiled(p.input, w, p.target)
        names = {event.key for event in profile.key_averages()}
        assert op in names
        assert not names & {"aten::linear", "aten::addmm", "aten::mm", "aten::mse_loss"}


@pytest.mark.extended
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_network_with_our_head_by_inductor(mode, device):
    """Forward and backward through a body and a fused head, repeatedly with other data. Fails if the loss or the
    gradient of any parameter, including those below the head, differs from plain PyTorch's."""
    ours = nn.Sequential(nn.Linear(5, 7), nn.Tanh()).to(device), linreg_ext.LinearHuberLoss(7, 2).to(device)
    compiled = torch.compile(lambda x, y: ours[1](ours[0](x), y), fullgraph=True, mode=mode)
    parameters = [*ours[0].parameters(), *ours[1].parameters()]
    for _ in range(3):
        x, y = torch.randn(9, 5, device=device), torch.randn(9, 2, device=device)
        torch.compiler.cudagraph_mark_step_begin()
        value = compiled(x, y)
        grads = [g.clone() for g in torch.autograd.grad(value, parameters)]
        expected = F.huber_loss(ours[1].predict(ours[0](x)), y)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(grads, list(torch.autograd.grad(expected, parameters)))


def sizes(problem):
    """Batches of a problem: one size, a second, then many."""
    for n in (33, 9, 17, 32, 3):
        yield problem.input[:n].clone(), problem.target[:n].clone()


@pytest.mark.extended
def test_a_shorter_last_batch_is_not_compiled_anew(device):
    """Sizes become dynamic at the second one, or at once with dynamic=True: losses, gradients and steps, each compared
    with plain PyTorch's."""
    problem = Problem.random(33, 5, 2, DTYPES["float32"], device=device)
    w, b = problem.linear_weight, problem.linear_bias

    def loss(x, y, w, b, library=linreg_ext):
        return library.linear_mse_loss(x, w, y, linear_bias=b)

    def step(x, y, w, b, library=linreg_ext):
        return library.sgd_step_(x, w, y, linear_bias=b, lr=0.1)

    def run(x, y, w, b, library=linreg_ext):
        return library.sgd_run_(x, w, y, linear_bias=b, batch_size=2, lr=0.1)

    for function, dynamic in itertools.product(
        (loss, step, run) if RUNS and device == "cpu" else (loss, step), (True, None)
    ):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        for i, (x, y) in enumerate(sizes(problem)):
            results = []
            with torch.compiler.set_stance("fail_on_recompile" if i > (dynamic is None) else "default"):
                for f in (compiled, functools.partial(function, library=reference_twins)):
                    leaves = [w.clone().requires_grad_(function is loss), b.clone().requires_grad_(function is loss)]
                    value = f(x, y, *leaves)
                    rest = torch.autograd.grad(value, leaves) if function is loss else leaves
                    results.append([value.detach(), *(t.detach() for t in rest)])
            torch.testing.assert_close(*results)


def test_steps_on_views_of_one_buffer_by_inductor(device):
    """Parameters and momentum are views of one tensor, and the learning rate is a tensor; torch.optim.SGD takes the
    same steps. Fails if an update is lost, or applied to a copy."""
    problem = Problem.random(33, 5, 2, DTYPES["float32"], device=device)
    parameters = [problem.linear_weight.clone().requires_grad_(), problem.linear_bias.clone().requires_grad_()]
    flat = torch.cat([p.detach().flatten() for p in parameters] + [torch.zeros(12, device=device)])
    lr = torch.tensor(0.1, device=device)

    def step(flat, x, y, lr):
        return linreg_ext.sgd_step_(
            x, flat[:10].view(2, 5), y, linear_bias=flat[10:12], lr=lr, momentum=0.9, dampening=0.0,
            momentum_buffers=[flat[12:22].view(2, 5), flat[22:]],
        )  # fmt: skip

    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for i, (x, y) in enumerate(sizes(problem)):
        lr.fill_(0.1 / (i + 1))
        optimizer.param_groups[0]["lr"] = 0.1 / (i + 1)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            value = compiled(flat, x, y, lr)
        expected = F.mse_loss(F.linear(x, *parameters), y)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        torch.testing.assert_close(value, expected.detach())
        buffers = [optimizer.state[p]["momentum_buffer"] for p in parameters]
        torch.testing.assert_close(flat, torch.cat([t.detach().flatten() for t in (*parameters, *buffers)]))


def test_the_first_step_compiled_hands_over_its_momentum(device):
    """It has the bits of an eager step, and both are plain PyTorch's. Fails if the buffer is lost."""
    problem = Problem.random(9, 5, 2, DTYPES["float32"], device=device)

    def step(w, buffers, library=linreg_ext):
        return library.sgd_step_(problem.input, w, problem.target, lr=0.1, momentum=0.9, momentum_buffers=buffers)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for f in (step, compiled, functools.partial(step, library=reference_twins)):
        w, buffers = problem.linear_weight.clone(), [None, None]
        losses = [f(w, buffers) for _ in range(3)]
        results.append([*losses, w, buffers[0]])
        assert buffers[1] is None
    assert_same_and_plain(*results)


def test_a_learning_rate_is_not_frozen_in_what_is_compiled(device):
    """Every float recompiles, as in PyTorch's optimizers; a tensor is read at every step. Fails if a step uses the
    first learning rate."""
    problem = Problem.random(9, 5, 2, DTYPES["float32"], device=device)

    def step(w, lr, library=linreg_ext):
        return library.sgd_step_(problem.input, w, problem.target, lr=lr)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for rates in ((0.1, 0.2, 0.05), [torch.tensor(lr, device=device) for lr in (0.1, 0.2, 0.05)]):
        ours, twin = problem.linear_weight.clone(), problem.linear_weight.clone()
        for i, lr in enumerate(rates):
            tensors = isinstance(lr, torch.Tensor)
            with torch.compiler.set_stance("fail_on_recompile" if tensors and i else "default"):
                torch.testing.assert_close(compiled(ours, lr), step(twin, lr, reference_twins))
            torch.testing.assert_close(ours, twin)


@pytest.mark.skipif(not RUNS, reason="there is no CUDA kernel for runs yet")
def test_runs_in_one_graph():
    """The bits of eager runs, whose numbers are plain PyTorch's. Fails if an update is lost."""
    problem = Problem.random(9, 5, 2, DTYPES["float32"])
    orders = torch.stack([torch.randperm(9), torch.randperm(9)])
    compiled = torch.compile(linreg_ext.sgd_run_, fullgraph=True, backend="aot_eager")
    results = []
    for run in (linreg_ext.sgd_run_, compiled, reference_twins.sgd_run_):
        w, b = problem.linear_weight.clone(), problem.linear_bias.clone()
        options = {"linear_bias": b, "momentum": 0.9, "momentum_buffers": (buffers := [None, None])}
        losses = run(problem.input, w, problem.target, order=orders, batch_size=4, lr=0.1, **options)
        results.append([losses, w, b, *buffers])
    assert_same_and_plain(*results)


def test_many_runs_in_one_graph():
    problem = Problem(torch.randn(4, 9, 5), torch.randn(4, 2, 5), torch.randn(4, 9, 2), torch.randn(4, 2))
    compiled = torch.compile(linreg_ext.sgd_run_many_, fullgraph=True, backend="aot_eager")
    results = []
    for run in (linreg_ext.sgd_run_many_, compiled, reference_twins.sgd_run_many_):
        w, b = problem.linear_weight.clone(), problem.linear_bias.clone()
        options = {"linear_bias": b, "momentum": 0.9, "momentum_buffers": (buffers := [None, None])}
        rates = {"lr": torch.tensor([0.1, 0.2, 0.05, 0.01]), "weight_decay": 0.1}
        losses = run(problem.input, w, problem.target, batch_size=4, epochs=2, **rates, **options)
        results.append([losses, w, b, *buffers])
    assert_same_and_plain(*results)


class Network(nn.Module):
    """A layer under a fused head."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x, y):
        return self.layers[1](torch.tanh(self.layers[0](x)), y)


class Trainer(nn.Module):
    """A model that takes its own steps and returns the loss before and the mean absolute error after."""

    def __init__(self, device):
        super().__init__()
        self.register_buffer("w", torch.zeros(2, 5, device=device))

    def forward(self, x, y):
        value = linreg_ext.sgd_step_(x, self.w, y, lr=0.1)
        return value, linreg_ext.linear_l1_loss(x, self.w, y)


def exported(device):
    """The trainer, exported for batches of any size, saved and loaded."""
    rows = torch.export.Dim("rows", min=2)
    sample = torch.randn(9, 5, device=device), torch.randn(9, 2, device=device)
    return saved_and_loaded(
        torch.export.export(Trainer(device), sample, dynamic_shapes={"x": {0: rows}, "y": {0: rows}})
    )


def saved_and_loaded(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    with warnings.catch_warnings():  # of torch 2.11, about itself
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.export.load(file)


def assert_trains(function, device):
    trainer, w = Trainer(device), torch.zeros(2, 5, device=device, requires_grad=True)
    for n in (9, 4, 17):
        x, y = torch.randn(n, 5, device=device), torch.randn(n, 2, device=device)
        before, after = function(x, y)
        loss = F.mse_loss(F.linear(x, w), y)
        (g,) = torch.autograd.grad(loss, w)
        w = (w - 0.1 * g).detach().requires_grad_()
        torch.testing.assert_close(before, loss.detach())
        torch.testing.assert_close(after, F.l1_loss(F.linear(x, w), y).detach())
        assert torch.equal(torch.stack(trainer(x, y)), torch.stack((before, after)))


def test_export_is_saved_loaded_and_run(device):
    """A step that is not plain PyTorch's, or is taken on a copy of the buffer, would fail."""
    assert_trains(exported(device).module(), device)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_loss_is_trained_like_the_plain_one(strict, device):
    """Without a derivative, the operator would leave the loaded program's parameters alone, or raise in backward."""
    model = nn.ModuleList([nn.Linear(5, 7), linreg_ext.LinearHuberLoss(7, 2, delta=0.5)]).to(device)
    network = Network(model)
    rows = torch.export.Dim("rows", min=2)
    sample = torch.randn(9, 5, device=device), torch.randn(9, 2, device=device)
    program = torch.export.export(network, sample, dynamic_shapes={"x": {0: rows}, "y": {0: rows}}, strict=strict)
    loaded = saved_and_loaded(program).module()
    assert [node.target for node in program.graph.nodes if "linreg_ext" in str(node.target)] == [
        torch.ops.linreg_ext.linear_loss.default
    ]
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    plain = torch.optim.SGD(network.parameters(), lr=0.1)
    for n in (9, 4):
        x, y = torch.randn(n, 5, device=device), torch.randn(n, 2, device=device)
        losses = loaded(x, y), F.huber_loss(model[1].predict(torch.tanh(model[0](x))), y, delta=0.5)
        for loss, stepped in zip(losses, (optimizer, plain), strict=True):
            stepped.zero_grad()
            loss.backward()
            stepped.step()
        torch.testing.assert_close(*losses)
    torch.testing.assert_close(list(loaded.parameters()), list(network.parameters()))


@pytest.mark.extended
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PyTorch, about itself
def test_aot_inductor_is_packaged_loaded_and_run(tmp_path):
    """A step that is not plain PyTorch's, or is taken on a copy of the buffer, would fail."""
    # Precompiling a header for later packages would take ten times as long as compiling this one.
    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):
        path = torch._inductor.aoti_compile_and_package(exported("cpu"), package_path=str(tmp_path / "trainer.pt2"))
    assert_trains(torch._inductor.aoti_load_package(path), "cpu")
