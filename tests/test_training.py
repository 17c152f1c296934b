# SPDX-License-Identifier: BSD-3-Clause
"""Every SGD option against torch.optim.SGD, step by step, and state transferred in both directions."""

import copy
import functools

import numpy as np
import plain_loop
import pytest
import reference_twins
import torch
import torch.nn.functional as F
from accuracy import DTYPES, LOSSES, PLAIN, Exact, Problem, assert_as_accurate, option, oracle
from conftest import crossed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import linreg_ext

STEPS = 500
OPTIONS = {
    "plain": {},
    "lr as a tensor": {"lr": torch.tensor(0.001)},
    "lr as a float64 tensor": {"lr": torch.tensor([0.001], dtype=torch.float64)},
    "weight decay": {"weight_decay": 0.5},
    "momentum": {"momentum": 0.9},
    "momentum, dampening": {"momentum": 0.9, "dampening": 0.5},
    "momentum, weight decay": {"momentum": 0.9, "weight_decay": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov, weight decay": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.5},
    "maximize": {"maximize": True},
    "maximize, weight decay": {"maximize": True, "weight_decay": 0.5},
    "maximize, momentum, dampening, weight decay": {
        "maximize": True, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.5,
    },
    "maximize, nesterov": {"maximize": True, "momentum": 0.9, "nesterov": True},
}  # fmt: skip


def settings(options):
    # Maximizing makes the loss grow exponentially, here slowly enough to stay finite in float16.
    return {"lr": 2e-5 if options.get("maximize") else 0.01, **options}


def exact_step(p, buffer, g, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False):
    """The rule in extended precision; a buffer is None before its first step."""
    g = -g if maximize else g
    g = g + weight_decay * p
    if momentum != 0:
        buffer = g if buffer is None else momentum * buffer + (1 - dampening) * g
        g = g + momentum * buffer if nesterov else buffer
    return p - float(lr) * g, buffer


def long(t):
    return t.detach().cpu().double().numpy().astype(np.longdouble)


class Plain:
    """The step that a user would write, in the problem's dtype."""

    def __init__(self, problem, options):
        self.problem = problem
        self.parameters = [nn.Parameter(p.clone()) for p in (problem.linear_weight, problem.linear_bias)]
        self.optimizer = torch.optim.SGD(self.parameters, **options)

    def step(self):
        w, b = self.parameters
        x, y = self.problem.input.to(w.dtype), self.problem.target.to(w.dtype)
        loss = F.mse_loss(F.linear(x, w, b), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def buffers(self):
        return [self.optimizer.state[p].get("momentum_buffer") for p in self.parameters]


@crossed(6, options=OPTIONS, dtypes=DTYPES)
def test_every_step_of_every_option(options, dtypes):
    """Each step from our state: ours, PyTorch's and the exact one."""
    options = settings(options)
    problem = Problem.random(40, 5, 2, dtypes, noise=0.1)
    problem.linear_weight += 0.5
    plain = Plain(problem, options)
    w, b = problem.linear_weight, problem.linear_bias
    buffers = [None, None]
    for step in range(100):
        with torch.no_grad():
            for theirs, ours in zip(plain.parameters, (w, b), strict=True):
                theirs.copy_(ours)
            for theirs, ours in zip(plain.buffers(), buffers, strict=True):
                if theirs is not None:
                    theirs.copy_(ours)
        grads = oracle(problem, "mse", 1.0, "mean")
        exact = [
            exact_step(long(p), None if m is None else long(m), grads[name].value, **options)
            for name, p, m in (("linear_weight", w, buffers[0]), ("linear_bias", b, buffers[1]))
        ]
        start = long(w), long(b)
        theirs = plain.step()
        ours = linreg_ext.sgd_step_(
            problem.input, w, problem.target, linear_bias=b, momentum_buffers=buffers, **options
        )
        assert_as_accurate(f"loss at step {step}", ours, theirs, grads["loss"])
        for name, p, our, buffer, their, moved, (value, new) in zip(
            ("linear_weight", "linear_bias"),
            start,
            (w, b),
            buffers,
            plain.parameters,
            plain.buffers(),
            exact,
            strict=True,
        ):
            terms = grads[name].terms + 0.5 * abs(p) + (0 if new is None else abs(new))
            moved_by = Exact(value, abs(p) + 2 * float(options["lr"]) * terms)
            assert_as_accurate(f"{name} at step {step}", our, their.detach(), moved_by)
            if options.get("momentum"):
                assert_as_accurate(f"buffer of {name} at step {step}", buffer, moved, Exact(new, terms))


@crossed(6, options=OPTIONS, dtypes=DTYPES)
def test_the_trajectory_of_every_option(options, dtypes):
    """Over a whole run, ours deviates from the exact trajectory no further than PyTorch's. By part (a) of the accuracy
    rule, with the number of parameters for that of independent errors: those of successive steps accumulate."""
    options = settings(options)
    problem = Problem.random(40, 5, 2, dtypes, noise=0.1)
    problem.linear_weight += 0.5
    plain = Plain(problem, options)
    w, b = problem.linear_weight, problem.linear_bias
    x, y = long(problem.input), long(problem.target)
    exact, exact_buffers, buffers, squares = [long(w), long(b)], [None, None], [None, None], ([], [])
    for _ in range(STEPS):
        g = (x @ exact[0].T + exact[1] - y) * (2 / y.size)
        moved = [
            exact_step(p, m, grad, **options)
            for p, m, grad in zip(exact, exact_buffers, (g.T @ x, g.sum(0)), strict=True)
        ]
        exact, exact_buffers = [p for p, _ in moved], [m for _, m in moved]
        plain.step()
        linreg_ext.sgd_step_(problem.input, w, problem.target, linear_bias=b, momentum_buffers=buffers, **options)
        whole = np.concatenate([p.ravel() for p in exact])
        for parameters, squared in zip(((w, b), plain.parameters), squares, strict=True):
            squared.append(np.square(np.concatenate([long(p).ravel() for p in parameters]) - whole).sum())
    ours, theirs = (np.sqrt(np.sum(squared)) for squared in squares)
    assert ours <= (1.1 + 4 / whole.size**0.5) * theirs


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_follow_pytorch(loss):
    problem = Problem.random(40, 5, 2, DTYPES["float64"])
    layer = nn.Linear(5, 2, dtype=torch.float64)
    w, b = (p.detach().clone() for p in layer.parameters())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9)
    criterion = functools.partial(PLAIN[loss], **option(loss, 0.5))
    buffers = [None, None]
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = criterion(layer(problem.input), problem.target)
        value.backward()
        optimizer.step()
        ours = linreg_ext.sgd_step_(
            problem.input, w, problem.target, linear_bias=b, loss=loss, **option(loss, 0.5), lr=0.05, momentum=0.9,
            momentum_buffers=buffers,
        )  # fmt: skip
        torch.testing.assert_close(ours, value.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(w, layer.weight.detach(), rtol=1e-10, atol=1e-12)


def test_the_first_step_is_kept_for_each_parameter():
    """A bias that joins later starts its own buffer, without dampening, while the weight's continues."""
    problem = Problem.random(20, 3, 1, DTYPES["float64"])
    options = {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}
    w, b = problem.linear_weight.clone(), problem.linear_bias.clone()
    model = nn.Linear(3, 1, dtype=torch.float64)
    model.load_state_dict({"weight": w, "bias": b})
    optimizer = torch.optim.SGD(model.parameters(), **options)
    buffers = [None, None]
    for step in range(6):
        joined = step >= 3
        model.bias.requires_grad_(joined)
        optimizer.zero_grad()
        F.mse_loss(model(problem.input), problem.target).backward()
        optimizer.step()
        if joined:
            linreg_ext.sgd_step_(problem.input, w, problem.target, linear_bias=b, momentum_buffers=buffers, **options)
        else:
            target = problem.target - b
            linreg_ext.sgd_step_(problem.input, w, target, momentum_buffers=buffers, **options)
        torch.testing.assert_close(w, model.weight.detach(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(b, model.bias.detach(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("way", ["steps", "fit"])
def test_a_parameter_that_thaws_after_a_checkpoint_takes_its_first_step_then(way, tmp_path):
    """A frozen bias is saved without a buffer, not with zeros, to which dampening would apply."""
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    options, ends = {"lr": 0.05, "momentum": 0.9, "dampening": 0.5}, []
    for library in (linreg_ext, plain_loop):
        torch.manual_seed(0)
        model = nn.Linear(5, 2, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), **options)
        model.bias.requires_grad_(False)
        for thawed in (False, True):
            if way == "fit":
                library.fit(4, model, nn.MSELoss(), optimizer, DataLoader(TensorDataset(x, y), 40), progress=False)
            else:
                step = library.make_train_step(model, nn.MSELoss(), optimizer)
                for _ in range(4):
                    step(x, y)
            assert ("momentum_buffer" in optimizer.state.get(model.bias, {})) == thawed
            torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
            model = nn.Linear(5, 2, dtype=torch.float64)
            optimizer = torch.optim.SGD(model.parameters(), lr=99.0)
            weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
            model.load_state_dict(weights)
            optimizer.load_state_dict(state)
        ends.append([model.state_dict(), optimizer.state_dict()["state"]])
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-13)


def test_buffers_appear_where_there_were_none_and_only_then():
    problem = Problem.random(20, 3, 1, DTYPES["float32"])
    buffers = [None, None]
    arguments = (problem.input, problem.linear_weight, problem.target)
    linreg_ext.sgd_step_(*arguments, linear_bias=problem.linear_bias, lr=0.1, momentum_buffers=buffers)
    assert buffers == [None, None]  # no momentum, no state
    linreg_ext.sgd_step_(*arguments, linear_bias=problem.linear_bias, lr=0.1, momentum=0.9, momentum_buffers=buffers)
    first = list(buffers)
    assert [b.shape for b in buffers] == [problem.linear_weight.shape, problem.linear_bias.shape]
    linreg_ext.sgd_step_(*arguments, linear_bias=problem.linear_bias, lr=0.1, momentum=0.9, momentum_buffers=buffers)
    assert all(a is b for a, b in zip(first, buffers, strict=True))


@pytest.mark.parametrize(
    "options", [o for name, o in OPTIONS.items() if "tensor" not in name], ids=[n for n in OPTIONS if "tensor" not in n]
)
def test_switching_between_eager_and_fused_is_as_if_nothing_had_happened(options, tmp_path):
    """Eager, fused, saved, loaded into stock, eager again, fused again: the same as never switching."""
    options = settings(options)
    x, y = torch.randn(40, 5, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    stock = nn.Linear(5, 2, dtype=torch.float64)
    switched = copy.deepcopy(stock)
    stock_optimizer = torch.optim.SGD(stock.parameters(), **options)
    optimizer = torch.optim.SGD(switched.parameters(), **options)

    def eager(model, optimizer):
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def check():
        for ours, theirs in zip(switched.parameters(), stock.parameters(), strict=True):
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=1e-13)
        ours, theirs = optimizer.state_dict(), stock_optimizer.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for key, state in theirs["state"].items():
            assert ours["state"][key].keys() == state.keys()
            for name, value in state.items():
                torch.testing.assert_close(ours["state"][key][name], value, rtol=1e-12, atol=1e-13)

    for round_ in range(3):
        for _ in range(5):
            eager(switched, optimizer)
        step = linreg_ext.make_train_step(switched, nn.MSELoss(), optimizer)
        for _ in range(5):
            step(x, y)
        assert step.explain().startswith("fused")
        for _ in range(10):
            eager(stock, stock_optimizer)
        check()
        torch.save([switched.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        switched = nn.Linear(5, 2, dtype=torch.float64)
        optimizer = torch.optim.SGD(switched.parameters(), lr=99.0 + round_)
        weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
        switched.load_state_dict(weights)
        optimizer.load_state_dict(state)
        check()


def test_a_step_object_survives_load_state_dict_and_new_settings():
    """param_groups and state are read at every step, not remembered."""
    x, y = torch.randn(40, 5), torch.randn(40, 2)
    model = nn.Linear(5, 2)
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (model, twin))
    step = linreg_ext.make_train_step(model, nn.MSELoss(), optimizer)
    plain = plain_loop.make_train_step(twin, nn.MSELoss(), twin_optimizer)
    for change in (
        lambda o: None,
        lambda o: o.param_groups[0].update(lr=0.01, weight_decay=0.3),
        lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())),
        lambda o: o.param_groups[0].update(lr=torch.tensor(0.02), nesterov=True),
        lambda o: o.state.clear(),
        lambda o: o.param_groups[0].update(momentum=0.0, nesterov=False),
    ):
        change(optimizer)
        change(twin_optimizer)
        for _ in range(3):
            torch.testing.assert_close(step(x, y), plain(x, y))
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)
    assert step.explain().startswith("fused")


@pytest.mark.parametrize("shape", [(20, 600, 1), (70, 1030, 66)], ids=str)
def test_steps_of_many_parameters(shape, device):
    """Enough parameters to be updated in pieces, by several threads."""
    torch.set_num_threads(3)
    ours = Problem.random(*shape, (torch.float64, torch.float64), device=device)
    twin = Problem(*(None if t is None else t.clone() for t in vars(ours).values()))
    buffers = [None, None], [None, None]
    for _ in range(2):
        for p, step, buffer in zip(
            (ours, twin), (linreg_ext.sgd_step_, reference_twins.sgd_step_), buffers, strict=True
        ):
            options = {"linear_bias": p.linear_bias, "lr": 0.01, "momentum": 0.9, "momentum_buffers": buffer}
            step(p.input, p.linear_weight, p.target, **options)
    torch.testing.assert_close(ours.linear_weight, twin.linear_weight, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(buffers[0][0], buffers[1][0], rtol=1e-12, atol=1e-13)


@crossed(
    5,
    options=[
        {},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "nesterov": True},
        {"lr": torch.tensor(0.05)},
        {"loss": "huber", "weight": "rows"},
    ],
    dtypes=DTYPES,
)
def test_steps_towards_many_targets(options, dtypes, device):
    """With many targets, a device may use PyTorch's matrix products."""
    options = {"lr": 0.05, **options}
    for n in (70, 70_001) if dtypes[0] == dtypes[1] == torch.float32 else (70,):  # in one row block, and in two
        ours = Problem.random(n, 40, 37, dtypes, weight=options.get("weight"), device=device)
        twin = Problem(*(None if t is None else t.clone() for t in vars(ours).values()))
        buffers = [None, None], [None, None]
        for _ in range(3):
            losses = []
            for p, step, buffer in zip(
                (ours, twin), (linreg_ext.sgd_step_, reference_twins.sgd_step_), buffers, strict=True
            ):
                arguments = {**options, "weight": p.weight}
                if "momentum" in options:
                    arguments["momentum_buffers"] = buffer
                losses.append(step(p.input, p.linear_weight, p.target, linear_bias=p.linear_bias, **arguments))
            close = {"rtol": 40 * torch.finfo(dtypes[1]).eps, "atol": 40 * torch.finfo(dtypes[1]).eps}
            torch.testing.assert_close(losses[0], losses[1], **close)
            torch.testing.assert_close(ours.linear_weight, twin.linear_weight, **close)
            torch.testing.assert_close(ours.linear_bias, twin.linear_bias, **close)
