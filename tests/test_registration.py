# SPDX-License-Identifier: BSD-3-Clause
"""opcheck on every operator, and the same guarantees for the direct entries."""

import itertools

import pytest
import torch
from accuracy import DTYPES, LOSSES, Problem
from conftest import cases
from torch import nn
from torch.overrides import TorchFunctionMode

import linreg_ext

OPS = torch.ops.linreg_ext


# (bias, weight), each with a loss.
KINDS = dict(zip(itertools.product((True, False), (None, "elements", "rows")), itertools.cycle(LOSSES), strict=False))
PAIRS = list(itertools.product(KINDS, ("float32", "bfloat16 data")))
CORE = [PAIRS[i] for i in (0, 5, 8)]  # an opcheck takes a second; bias, weight and dtype have each value once
EVERY_KIND = pytest.mark.parametrize("sampled", cases(CORE, [p for p in PAIRS if p not in CORE]), ids=str)


def sample(kind, name, device, requires_grad):
    """The loss and the operands of a problem."""
    (bias, weight), dtypes = kind, DTYPES[name]
    p = Problem.random(9, 5, 2, dtypes, bias=bias, weight=weight, device=device)
    if weight == "rows" and dtypes[0].itemsize == 2:
        p.target = p.target.float()
    if requires_grad:
        for operand in p.operands().values():
            operand.requires_grad_()
    return KINDS[kind], (p.input, p.linear_weight, p.target, p.linear_bias, p.weight)


@pytest.mark.parametrize("requires_grad", cases([True], [False]))
@pytest.mark.parametrize("reduction", cases(["mean"], ["none"]))
@EVERY_KIND
def test_opcheck_of_the_losses(sampled, device, reduction, requires_grad):
    loss, operands = sample(*sampled, device, requires_grad)
    torch.library.opcheck(OPS.linear_loss.default, (*operands, loss, 0.5, reduction))
    wanted = [True, True, operands[3] is not None, True]
    torch.library.opcheck(OPS.linear_loss_grads.default, (*operands, loss, 0.5, "sum", wanted))


@EVERY_KIND
def test_opcheck_of_the_step(sampled, device):
    for momentum, lr_tensor in ((0.0, None), (0.9, torch.tensor(0.01, device=device))):
        loss, operands = sample(*sampled, device, requires_grad=momentum != 0)
        x, w, y, b, v = operands
        parameters = [w] if b is None else [w, b]
        buffers = [torch.zeros_like(p) for p in parameters] if momentum else []
        torch.library.opcheck(
            OPS.sgd_step_.default,
            (x, y, parameters, buffers, [0.1, momentum, 0.0, 0.1, 0.0, 0.0], loss, 0.5, v, lr_tensor, "mean",
             0, 0, False),
        )  # fmt: skip


def test_arguments_of_the_step_may_be_left_out(device):
    p = Problem.random(9, 5, 2, DTYPES["float32"], device=device)
    steps, rule = [], [0.1, 0.0, 0.0, 0.0, 0.0, 0.0]
    for more in ((), ("mse", 1.0, None, None, "mean", 0, 0, False)):
        w, b = p.linear_weight.clone(), p.linear_bias.clone()
        steps.append([OPS.sgd_step_(p.input, p.target, [w, b], [], rule, *more), w, b])
    assert all(torch.equal(*both) for both in zip(*steps, strict=True))
    torch.library.opcheck(OPS.sgd_step_.default, (p.input, p.target, [p.linear_weight], [], rule))


@EVERY_KIND
def test_opcheck_of_the_run(sampled):
    order = torch.stack([torch.randperm(9), torch.randperm(9)])
    for momentum, lr_tensor in ((0.0, None), (0.9, torch.rand(6) / 10)):
        loss, operands = sample(*sampled, "cpu", requires_grad=momentum != 0)
        x, w, y, b, v = operands
        parameters = [w] if b is None else [w, b]
        buffers = [torch.zeros_like(p) for p in parameters] if momentum else []
        more = (
            (order, x[:4].detach().clone(), y[:4].detach().clone(), None if v is None else v[:4].clone())
            if momentum
            else (None,) * 4
        )
        torch.library.opcheck(
            OPS.sgd_run_.default,
            (x, y, parameters, buffers, [0.1, momentum, 0.0, 0.1, 0.0, 0.0], loss, 0.5, v, lr_tensor, "mean",
             0, 0, True, *more, 4, False, 2, 1, 6),
        )  # fmt: skip


@EVERY_KIND
def test_opcheck_of_many_runs(sampled):
    for momentum, numbers in ((0.0, None), (0.9, torch.rand(3) / 10)):
        loss, operands = sample(*sampled, "cpu", requires_grad=False)
        x, w, y, b, v = (None if t is None else torch.stack([t] * 3) for t in operands)
        parameters = [t.requires_grad_(momentum != 0) for t in (w, b) if t is not None]
        buffers = [torch.zeros_like(p) for p in parameters] if momentum else []
        order = torch.stack([torch.randperm(9), torch.randperm(9)]) if momentum else None
        torch.library.opcheck(
            OPS.sgd_run_many_.default,
            (x, y, parameters, buffers, [0.1, momentum, 0.0, 0.1, 0.0, 0.0], loss, 0.5, v, numbers, numbers, numbers,
             0b11, None, order, 4, False, 2, 1, 3),
        )  # fmt: skip
    rows = torch.randn(9, 5), torch.randn(9, 2)
    offsets = torch.tensor([0, 4, 5, 9])
    torch.library.opcheck(
        OPS.sgd_run_many_.default,
        (
            *rows,
            [torch.zeros(3, 2, 5)],
            [],
            [0.1],
            "mse",
            1.0,
            None,
            None,
            None,
            None,
            0,
            offsets,
            None,
            4,
            False,
            2,
            0,
            3,
        ),
    )


def test_fake_tensors_have_the_metadata_of_the_results(device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for kind, name in itertools.product(KINDS, DTYPES):
        _, (x, w, y, b, v) = sample(kind, name, device, False)
        wanted = [True, True, b is not None, True]
        arguments = (x.t().contiguous().t(), w, y, b, v, "mse", 1.0, "mean", wanted)
        real = OPS.linear_loss_grads(*arguments)
        with FakeTensorMode() as mode:
            to_fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
            fake = OPS.linear_loss_grads(*to_fake)
        for a, f in zip([real[0], *real[1]], [fake[0], *fake[1]], strict=True):
            assert (a.shape, a.dtype, a.device, a.stride()) == (f.shape, f.dtype, f.device, f.stride())


def test_the_direct_entry_sees_transforms_and_subclasses():
    """All but plain tensors must go through the dispatcher, so that fake tensors stay fake."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        loss = linreg_ext.sgd_step_(torch.empty(4, 3), torch.empty(1, 3), torch.empty(4, 1), lr=0.1)
    assert isinstance(loss, FakeTensor)


def test_what_is_not_dispatched_is_profiled_all_the_same():
    """Only calls through the dispatcher record the shapes of operands."""
    x, w, y, *_ = vars(Problem.random(9, 5, 2, DTYPES["float32"])).values()
    layer = torch.nn.Linear(5, 2)
    step = linreg_ext.make_train_step(layer, torch.nn.MSELoss(), torch.optim.SGD(layer.parameters(), lr=0.1))
    step(x, y)  # plans the next ones
    ways = {
        "sgd_step_": lambda: (linreg_ext.sgd_step_(x, w, y, lr=0.1), step(x, y)),
        "sgd_run_": lambda: linreg_ext.sgd_run_(x, w, y, lr=0.1, epochs=2),
        "linear_loss": lambda: linreg_ext.linear_mse_loss(x, w, y),
        "linear_loss_grads": lambda: linreg_ext.linear_mse_loss(x, layer.weight, y),
    }
    with torch.profiler.profile(record_shapes=True, acc_events=True) as profile:
        for way in ways.values():
            way()
        OPS.linear_loss(x, w, y, None, None, "mse", 1.0, "mean")
    shapes = {name: [e.input_shapes for e in profile.events() if e.name == f"linreg_ext::{name}"] for name in ways}
    dispatched = [[9, 5], [2, 5], [9, 2], [], [], [], [], []]
    assert shapes == {
        "sgd_step_": [[], []],
        "sgd_run_": [[]],
        "linear_loss": [[], dispatched],
        "linear_loss_grads": [[]],
    }


def test_version_counters_are_bumped_by_op_and_direct_entry(device):
    for by in ("op", "direct"):
        p = Problem.random(9, 5, 2, DTYPES["float32"], device=device)
        buffers = [torch.zeros_like(p.linear_weight), torch.zeros_like(p.linear_bias)]
        mutated = [p.linear_weight, p.linear_bias, *buffers]
        before = [t._version for t in mutated]
        if by == "direct":
            linreg_ext.sgd_step_(
                p.input,
                p.linear_weight,
                p.target,
                linear_bias=p.linear_bias,
                lr=0.1,
                momentum=0.9,
                momentum_buffers=buffers,
            )
        else:
            OPS.sgd_step_(p.input, p.target, [p.linear_weight, p.linear_bias], buffers, [0.1, 0.9, 0.0, 0.0, 0.0, 0.0])
        assert [t._version for t in mutated] == [version + 1 for version in before]
        assert p.input._version == p.target._version == 0 or by


def test_parameters_that_require_grad_are_updated_in_any_grad_mode(device):
    p = Problem.random(9, 5, 2, DTYPES["float32"], device=device)
    expected = p.linear_weight.clone()
    linreg_ext.sgd_step_(p.input, expected, p.target, lr=0.1)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        parameter = torch.nn.Parameter(p.linear_weight.clone())
        with mode():
            loss = linreg_ext.sgd_step_(p.input, parameter, p.target, lr=0.1)
        assert torch.equal(parameter.detach(), expected)
        assert parameter.grad is None
        assert not loss.requires_grad


def test_the_losses_are_functions_of_torch_to_tracers_and_modes():
    """fx can trace a network with a fused head, and a TorchFunctionMode sees the loss."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), linreg_ext.LinearHuberLoss(4, 1, delta=0.5)

        def forward(self, x, y):
            return self.head(self.body(x), y)

    class Sees(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.seen.append(function)
            return function(*args, **(kwargs or {}))

    model, x, y = Head(), torch.randn(5, 3), torch.randn(5, 1)
    expected = torch.nn.functional.huber_loss(model.head.linear(model.body(x)), y, delta=0.5)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x, y), expected)
    with Sees() as mode:
        torch.testing.assert_close(model(x, y), expected)
    assert linreg_ext.linear_huber_loss in mode.seen
