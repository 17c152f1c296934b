# SPDX-License-Identifier: BSD-3-Clause
"""Mixed precision: losses under autocast compared with `F.linear` and its loss, in-place steps, and GradScaler."""

import itertools

import plain_loop
import pytest
import reference_twins
import torch
import torch.nn.functional as F
from accuracy import LOSSES, PLAIN, Problem, assert_as_accurate, loss_and_grads, option, oracle
from torch import nn

import linreg_ext

LOWER = [torch.bfloat16, torch.float16]


def fused(problem, loss, reduction="mean", library=linreg_ext):
    x, w, y, b, v = vars(problem).values()
    function = getattr(library, f"linear_{loss}_loss")
    return function(x, w, y, linear_bias=b, weight=v, reduction=reduction, **option(loss, 0.5))


def plain(problem, loss, reduction="mean"):
    x, w, y, b, v = vars(problem).values()
    function, options = PLAIN[loss], option(loss, 0.5)
    if v is None:
        return function(F.linear(x, w, b), y, reduction=reduction, **options)
    value = function(F.linear(x, w, b), y, reduction="none", **options) * v
    return {"none": value, "sum": value.sum(), "mean": value.sum() / v.sum()}[reduction]


def under(dtype, device, function, *arguments):
    with torch.autocast(device, dtype=dtype):
        return function(*arguments)


def rounded(problem, dtype):
    """The problem after autocast: the operands of the linear layer in the lower precision, the rest as it is."""
    x, w, y, b, v = vars(problem).values()
    return Problem(x.to(dtype), w.to(dtype), y, None if b is None else b.to(dtype), v)


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("data", [torch.float32, "lower", "other"], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_plain_pytorch_under_autocast(loss, data, dtype, device):
    """Dtypes, and values against an oracle on rounded operands, for features and targets of any dtype. Fails if the
    loss is 16-bit or a prediction is rounded twice."""
    data = {"lower": dtype, "other": LOWER[1 - LOWER.index(dtype)]}.get(data, data)
    cases = itertools.product(("mean", "sum", "none"), (None, "elements"), ("float32 target", "target"))
    for i, (reduction, weight, target) in enumerate(cases):
        shape = ((45, 6, 1), (90, 21, 3))[i % 2]
        problem = Problem.random(*shape, (torch.float32,) * 2, bias=i % 5 != 0, weight=weight, device=device)
        problem.input = problem.input.to(data)
        problem.target = problem.target.to(data) if target == "target" else problem.target
        ours, theirs = (
            loss_and_grads(lambda p, f=f: under(dtype, device, f, p, loss, reduction), problem, 0.3)  # noqa: B023
            for f in (fused, plain)
        )
        exact = oracle(rounded(problem, dtype), loss, 0.5, reduction, 0.3)
        for name, value in theirs.items():
            # Also a float32 gradient has passed through the lower precision, and been rounded there twice.
            allowing = torch.finfo(dtype).eps * abs(exact[name].value)
            assert_as_accurate(name, ours[name], value, exact[name], allowing=allowing)


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_rounded_and_what_is_not(loss, dtype, device):
    """Features, weights and bias that round to 1 predict exactly 17, and the target differs by what only float32 can
    hold: the bits of plain PyTorch. Fails if features are not rounded, or targets are."""
    almost = 1 + torch.finfo(dtype).eps / 4
    x, w, b = (torch.full(shape, almost, device=device) for shape in ((8, 16), (1, 16), (1,)))
    y = torch.full((8, 1), 17 + 2.0**-19, device=device)
    problem = Problem(x, w, y, b)
    ours, theirs = (under(dtype, device, f, problem, loss) for f in (fused, plain))
    assert theirs > 0
    assert torch.equal(ours, theirs)
    assert torch.equal(under(dtype, device, fused, problem, loss, "mean", reference_twins), theirs)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_reference_and_the_modules_under_autocast(reduction, device):
    """Fails if the loss of a module or of the reference differs from plain PyTorch's in dtype or operands."""
    x, y = torch.randn(32, 8, device=device), torch.randn(32, 3, device=device)
    for loss, module in linreg_ext.modules.MODULES.items():
        model = module(8, 3, reduction=reduction, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            ours, theirs = model(x, y), PLAIN[loss](model.predict(x), y, reduction=reduction, **option(loss, 1.0))
            options = {"linear_bias": model.linear.bias, "reduction": reduction}
            twin = getattr(reference_twins, f"linear_{loss}_loss")(x, model.linear.weight, y, **options)
        assert ours.dtype == theirs.dtype == twin.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
        torch.testing.assert_close(ours, twin)


def test_float64_and_regions_without_autocast_are_left_alone(device):
    """Fails if a loss is rounded although autocast does not apply to it."""
    for dtype in (torch.float64, torch.float32):
        problem = Problem.random(40, 6, 2, (dtype, dtype), device=device)
        expected = fused(problem, "mse")
        torch.testing.assert_close(expected, plain(problem, "mse"))
        with torch.autocast(device, dtype=torch.bfloat16):
            if dtype == torch.float64:
                assert torch.equal(fused(problem, "mse"), expected)
            with torch.autocast(device, enabled=False):
                assert torch.equal(fused(problem, "mse"), expected)
        assert torch.equal(fused(problem, "mse"), expected)


def test_second_derivatives_of_a_loss_under_autocast(device):
    """A gradient penalty differentiates through the casts of autocast."""
    problem = Problem.random(40, 6, 2, (torch.float32, torch.float32), device=device)
    results = []
    for function in (fused, plain):
        w = problem.linear_weight.clone().requires_grad_()
        value = under(
            torch.bfloat16, device, function, Problem(problem.input, w, problem.target, problem.linear_bias), "mse"
        )
        (grad,) = torch.autograd.grad(value, w, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), w)[0])
    torch.testing.assert_close(*results, rtol=2.0**-5, atol=2.0**-5)


@pytest.mark.extended
def test_autocast_in_and_around_what_is_compiled_and_transformed(device):
    """Fails if a trace misses autocast, or keeps it after it ends."""
    problem = Problem.random(40, 6, 2, (torch.float32, torch.float32), device=device)
    x, w, y, b, _ = vars(problem).values()

    def outside(w):
        return linreg_ext.linear_mse_loss(x, w, y, linear_bias=b)

    def inside(w):
        with torch.autocast(device, dtype=torch.bfloat16):
            return outside(w)

    expected, full = inside(w), outside(w)
    assert expected != full
    torch._dynamo.reset()
    for function in (inside, outside):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for leaf in (w, w.clone().requires_grad_()):
            torch.testing.assert_close(under(torch.bfloat16, device, compiled, leaf).detach(), expected)
    torch.testing.assert_close(compiled(w), full)
    grads = [torch.func.grad(inside)(w), torch.autograd.grad(inside(leaf), leaf)[0]]
    torch.testing.assert_close(*grads, rtol=2.0**-7, atol=2.0**-7)
    assert grads[0].dtype == torch.float32


def test_steps_in_place_are_left_alone(device):
    """Like optimizers: parameters and momentum have the bits of a step outside autocast, which is plain PyTorch's."""
    problem = Problem.random(40, 6, 2, (torch.float32, torch.float32), device=device)
    results = []
    for library, enabled in itertools.product((linreg_ext, reference_twins), (False, True)):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
            w, b, buffers = problem.linear_weight.clone(), problem.linear_bias.clone(), [None, None]
            options = {"linear_bias": b, "lr": 0.1, "momentum": 0.9, "momentum_buffers": buffers}
            losses = [library.sgd_step_(problem.input, w, problem.target, **options) for _ in range(2)]
            if device == "cpu":
                losses.append(library.sgd_run_(problem.input, w, problem.target, batch_size=16, **options))
        results.append([*losses, w, b, *buffers])
    for outside, inside in (results[:2], results[2:]):
        assert all(torch.equal(*both) for both in zip(outside, inside, strict=True))
    torch.testing.assert_close(results[0], results[2])


class Plain(nn.Module):
    """LinearMSELoss in plain PyTorch."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x, y):
        return F.mse_loss(self.linear(x), y)


def batches(device):
    torch.manual_seed(1)
    found = [(torch.randn(64, 8, device=device), torch.randn(64, 1, device=device)) for _ in range(8)]
    found[3][1][5] = float("inf")
    found[6][0][0, 0] = float("nan")
    return found


@pytest.mark.parametrize("dtype", LOWER, ids=str)
def test_training_with_a_grad_scaler(dtype, device):
    """A network with a fused head and a plain one: scaled, unscaled and clipped. Gradients that are not finite change
    neither parameters nor momentum, and halve the scale."""
    torch.manual_seed(0)
    ours = nn.ModuleList([nn.Linear(8, 16), linreg_ext.LinearMSELoss(16, 1)]).to(device)
    stock = nn.ModuleList([nn.Linear(8, 16), Plain(nn.Linear(16, 1))]).to(device)
    stock.load_state_dict(ours.state_dict())
    steps = []
    for model in (ours, stock):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**14)
        for i, (x, y) in enumerate(batches(device)):
            before = [t.clone() for t in values(model, optimizer)]
            with torch.autocast(device, dtype=dtype):
                loss = model[1](model[0](x).relu(), y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            same = [torch.equal(a, b) for a, b in zip(values(model, optimizer), before, strict=False)]
            assert all(same) if i in (3, 6) else not any(same)
            assert scaler.get_scale() == 2.0**14 / (1 if i < 3 else 2 if i < 6 else 4)
            steps.append(torch.stack((loss.detach(), norm)))
    ours_steps, stock_steps = torch.stack(steps).chunk(2)
    torch.testing.assert_close(ours_steps, stock_steps, rtol=0.02, atol=0, equal_nan=True)
    for a, e in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(a, e, rtol=0.05, atol=5e-3)


def values(model, optimizer):
    """The parameters and the existing momentum buffers."""
    return [*model.parameters(), *(s["momentum_buffer"] for s in optimizer.state.values())]


def test_a_train_step_under_autocast_is_eager_and_says_so(device):
    """It has the bits of the plain loop."""
    models = [nn.Linear(8, 1, device=device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in models]
    step = linreg_ext.make_train_step(models[0], nn.MSELoss(), optimizers[0])
    plain_step = plain_loop.make_train_step(models[1], nn.MSELoss(), optimizers[1])
    for x, y in batches(device)[:3]:
        with torch.autocast(device, dtype=torch.bfloat16):
            if step.explain() != "eager: autocast is on":
                with pytest.warns(UserWarning, match="^linreg_ext: eager: autocast is on$"):
                    loss = step(x, y)
            else:
                loss = step(x, y)
            assert torch.equal(loss, plain_step(x, y))
        assert step.explain() == "eager: autocast is on"
    for a, e in zip(values(models[0], optimizers[0]), values(models[1], optimizers[1]), strict=True):
        assert torch.equal(a, e)


class Scaled:
    """An optimizer whose steps a GradScaler takes."""

    def __init__(self, scaler, optimizer):
        self.scaler, self.optimizer = scaler, optimizer
        self.param_groups, self.state, self.zero_grad = optimizer.param_groups, optimizer.state, optimizer.zero_grad

    def step(self):
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_a_train_step_with_a_grad_scaler_is_eager_and_says_so(device):
    """A fused step would ignore the scaler and step on inf."""
    model = nn.Linear(8, 1, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**14)

    def loss_fn(prediction, target):
        return scaler.scale(F.mse_loss(prediction, target))

    with pytest.warns(UserWarning, match="^linreg_ext: eager: "):
        step = linreg_ext.make_train_step(model, loss_fn, Scaled(scaler, optimizer))
    twin = nn.Linear(8, 1, device=device)
    twin.load_state_dict(model.state_dict())
    twin_step = plain_loop.make_train_step(
        twin, nn.MSELoss(), twin_optimizer := torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    )
    for i, (x, y) in enumerate(batches(device)):
        before = [t.clone() for t in values(model, optimizer)]
        step(x, y)
        if i in (3, 6):
            assert all(torch.equal(a, b) for a, b in zip(values(model, optimizer), before, strict=True))
        else:
            twin_step(x, y)
    assert step.explain().startswith("eager: ")
    for a, e in zip(values(model, optimizer), values(twin, twin_optimizer), strict=True):
        torch.testing.assert_close(a, e)
