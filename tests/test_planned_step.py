# SPDX-License-Identifier: BSD-3-Clause
"""A step by plan is the step that Python would decide on, to the bit; and whatever changes, the plan stands aside."""

import contextlib
import copy
import functools
import gc
import pickle
import threading
import types
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from accuracy import DTYPES
from test_train_step import FUSED_LOSSES, FUSED_MODELS, Choice, Flat, Forwards, sgd
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from linreg_ext import make_train_step
from linreg_ext.training import TrainStep, train_step


class Planned:
    """Counts the steps that were taken by plan, or lets none be."""

    def __init__(self, monkeypatch, allowed=True):
        self.taken, self.allowed, self.original = [], allowed, train_step._by_plan
        original_step = TrainStep.step

        def step(*arguments, **options):
            self.taken.append(False)  # until it is
            return original_step(*arguments, **options)

        monkeypatch.setattr(TrainStep, "step", step)
        monkeypatch.setattr(train_step, "_by_plan", self)

    def __call__(self, *arguments):
        value = self.original(*arguments) if self.allowed else NotImplemented
        self.taken[-1] = value is not NotImplemented
        return value


class Run:
    """A model in training, one step after another."""

    def __init__(self, model, loss_fn, optimizer, x, y):
        self.model, self.loss_fn, self.optimizer, self.x, self.y = model, loss_fn, optimizer, x, y
        self.step = make_train_step(model, loss_fn, optimizer)
        self.context = contextlib.nullcontext

    def __iter__(self):
        """What each step leaves behind."""
        while True:
            with self.context():
                loss = self.step(self.x, self.y)
            parameters = [p.detach().clone() for p in self.model.parameters()]
            buffers = [values.get("momentum_buffer") for values in self.optimizer.state.values()]
            state = [buffer.clone() for buffer in buffers if buffer is not None]
            grads = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
            yield self.step.explain(), [loss, *parameters, *state, *grads]


def assert_same_bits(ours, theirs):
    (words, values), (expected_words, expected) = ours, theirs
    assert words == expected_words
    for a, e in zip(values, expected, strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            assert a.dtype == e.dtype
            assert torch.equal(a.nan_to_num(7.0), e.nan_to_num(7.0))


def compare(make_run, monkeypatch, change=None, steps=4):
    """Train by plan and by Python's decision, `change` between the steps; which steps were by plan."""
    planned, recorded = Planned(monkeypatch), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for planned.allowed in (True, False):
            torch.manual_seed(0)
            planned.taken = []
            run, left = make_run(), []
            steps_of_run = iter(run)
            planned.taken = taken = []
            left += [next(steps_of_run) for _ in range(steps)]
            undo = change(run) if change else None
            left += [next(steps_of_run) for _ in range(steps)]
            if callable(undo):
                undo()
                left += [next(steps_of_run) for _ in range(steps)]
            recorded.append((left, taken))
    (ours, taken), (theirs, none) = recorded
    assert not any(none)
    for a, e in zip(ours, theirs, strict=True):
        assert_same_bits(a, e)
    for (before, _), (now, _), by_plan in zip(ours, ours[1:], taken[1:], strict=False):
        assert by_plan <= (before.startswith("fused") and now.startswith("fused"))
    assert taken[-1] == ours[-1][0].startswith("fused")
    return taken


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("model", FUSED_MODELS)
def test_models(model, momentum, monkeypatch):
    make, d, shape = FUSED_MODELS[model]

    def run():
        m = make()
        return Run(m, nn.MSELoss(), sgd(m, momentum=momentum), torch.randn(6, d), torch.randn(shape))

    assert compare(run, monkeypatch) == [False] + 7 * [True]


@pytest.mark.parametrize("loss", FUSED_LOSSES)
def test_losses(loss, monkeypatch):
    def run():
        m = nn.Linear(3, 2)
        return Run(m, copy.deepcopy(FUSED_LOSSES[loss]), sgd(m, lr=0.01), torch.randn(6, 3), torch.randn(6, 2))

    assert compare(run, monkeypatch) == [False] + 7 * [True]


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_dtypes(dtypes, monkeypatch):
    data, parameter = dtypes
    for target in {data, torch.float32} if data.itemsize == 2 else {data}:

        def run(target=target):
            m = nn.Linear(3, 2, dtype=parameter)
            return Run(m, nn.MSELoss(), sgd(m), torch.randn(6, 3).to(data), torch.randn(6, 2).to(target))

        with monkeypatch.context() as patch:
            assert compare(run, patch) == [False] + 7 * [True]


@pytest.mark.parametrize("options", [
    {"weight_decay": 0.1}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}, {"maximize": True},
    {"lr": torch.tensor(0.05)}, {"lr": 1}, {"lr": 0.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_settings(options, frozen, monkeypatch):
    def run():
        m = nn.Linear(3, 2)
        if frozen:
            getattr(m, frozen).requires_grad_(False)
        return Run(m, nn.MSELoss(), sgd(m, **options), torch.randn(6, 3), torch.randn(6, 2))

    assert compare(run, monkeypatch) == [False] + 7 * [True]


def set_group(**values):
    return lambda run: run.optimizer.param_groups[0].update(values)


def reload(run):
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def another_parameter(run):
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1.0})


def another_batch(run):
    run.x, run.y = torch.randn(9, 3)[::2], torch.randn(5, 1)


def updated(run):
    with torch.no_grad():
        run.model.linear.weight.mul_(0.5)


def to_double(run):
    run.model.double()
    run.x, run.y = run.x.double(), run.y.double()
    for values in run.optimizer.state.values():
        values["momentum_buffer"] = values["momentum_buffer"].double()


GOES_ON = {  # what a plan reads at every step
    "lr": set_group(lr=0.2),
    "lr tensor": set_group(lr=torch.tensor(0.2, dtype=torch.float64)),
    "settings": set_group(momentum=0.3, weight_decay=0.2, nesterov=True, maximize=True),
    "no momentum": set_group(momentum=0.0),
    "load_state_dict": reload,
    "add_param_group": another_parameter,
    "another batch": another_batch,
    "parameter updated": updated,
    "another dtype under the same names": to_double,
}


def make_forwards():
    model = Forwards(3, 1)
    return Run(model, nn.SmoothL1Loss(beta=0.5), sgd(model), torch.randn(6, 3), torch.randn(6, 1))


@pytest.mark.parametrize("change", GOES_ON)
def test_what_is_read_at_every_step(change, monkeypatch):
    assert compare(make_forwards, monkeypatch, GOES_ON[change]) == [False] + 7 * [True]


def hooked(where, register, hook):
    def change(run):
        owner = {"layer": run.model.linear, "model": run.model, "loss": run.loss_fn, "optimizer": run.optimizer,
                 "weight": run.model.linear.weight}[where]  # fmt: skip
        return getattr(owner, register)(hook).remove

    return change


def globally(register, hook):
    return lambda run: register(hook).remove


def set_attribute(path, value):
    """Set an attribute that is in an instance's __dict__, or is taken from there again."""

    def change(run):
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, run)
        new = value(run)
        was_there = name in vars(owner) or name not in ("forward", "step", "zero_grad")
        kept = getattr(owner, name)
        setattr(owner, name, new)
        return lambda: setattr(owner, name, kept) if was_there else delattr(owner, name)

    return change


def replaced_forward_of_the_class(run):
    original = Forwards.forward
    Forwards.forward = lambda self, x: self.linear(x) * 2.0
    return lambda: setattr(Forwards, "forward", original)


def other_class(run):
    run.model.__class__ = type("Other", (Forwards,), {"forward": lambda self, x: -self.linear(x)})
    return lambda: setattr(run.model, "__class__", Forwards)


def replaced_parameter(run):
    run.model.linear.weight = nn.Parameter(torch.ones(1, 3))
    run.optimizer.param_groups[0]["params"][0] = run.model.linear.weight


def forgotten_parameter(run):
    parameter = run.optimizer.param_groups[0]["params"].pop()
    return lambda: run.optimizer.param_groups[0]["params"].append(parameter) or setattr(parameter, "grad", None)


def parameter_twice(run):
    run.optimizer.param_groups[0]["params"].append(run.model.linear.weight)
    return run.optimizer.param_groups[0]["params"].pop


def moved_to_a_group_of_its_own(run):
    bias = run.optimizer.param_groups[0]["params"].pop()
    run.optimizer.add_param_group({"params": [bias], "lr": 0.5, "momentum": 0.9})


def pending_grad(run):
    run.model.linear.bias.grad = torch.ones(1)


def pending_grad_elsewhere(run):
    other = nn.Parameter(torch.ones(2))
    run.optimizer.add_param_group({"params": [other]})
    other.grad = torch.ones(2)


def no_buffers(run):
    run.optimizer.state.clear()


def a_buffer_of_another_dtype(run):
    values = run.optimizer.state[run.model.linear.weight]
    values["momentum_buffer"] = values["momentum_buffer"].double()
    return lambda: values.update(momentum_buffer=values["momentum_buffer"].float())


def added_parameter(run):
    run.model.register_parameter("more", nn.Parameter(torch.ones(1)))
    return lambda: delattr(run.model, "more")


def inside(context):
    def change(run):
        run.context = context
        return lambda: setattr(run, "context", contextlib.nullcontext)

    return change


def data(x=lambda x: x, y=lambda y: y):
    def change(run):
        kept = run.x, run.y
        run.x, run.y = x(run.x), y(run.y)

        def undo():
            run.x, run.y = kept

        return undo

    return change


def frozen(run):
    run.model.linear.weight.requires_grad_(False)
    return lambda: run.model.linear.weight.requires_grad_(True)


class Mine(torch.Tensor):
    pass


@contextlib.contextmanager
def without_grad():
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", lambda self: None)  # which would raise
        yield


STANDS_ASIDE = {
    "forward hook": hooked("layer", "register_forward_hook", lambda m, a, out: out * 2),
    "forward pre-hook": hooked("model", "register_forward_pre_hook", lambda m, args: (args[0] * 2,)),
    "backward hook": hooked("layer", "register_full_backward_hook", lambda m, gi, go: None),
    "backward pre-hook": hooked("layer", "register_full_backward_pre_hook", lambda m, go: (go[0] * 2,)),
    "hook of the loss": hooked("loss", "register_forward_hook", lambda m, a, out: out * 2),
    "global forward hook": globally(module_hooks.register_module_forward_hook, lambda m, a, out: out * 2),
    "global forward pre-hook": globally(module_hooks.register_module_forward_pre_hook, lambda m, args: None),
    "global backward hook": globally(module_hooks.register_module_full_backward_hook, lambda m, gi, go: None),
    "optimizer pre-hook": hooked("optimizer", "register_step_pre_hook", lambda *_: None),
    "optimizer post-hook": hooked("optimizer", "register_step_post_hook", lambda *_: None),
    "global optimizer pre-hook": globally(optimizer_hooks.register_optimizer_step_pre_hook, lambda *_: None),
    "global optimizer post-hook": globally(optimizer_hooks.register_optimizer_step_post_hook, lambda *_: None),
    "parameter's hook": hooked("weight", "register_hook", lambda g: g * 2),
    "parameter's hook after accumulation": hooked("weight", "register_post_accumulate_grad_hook", lambda p: None),
    "forward of the model": set_attribute("model.forward", lambda run: lambda x: run.model.linear(x) * 2),
    "forward of the layer": set_attribute(
        "model.linear.forward",
        lambda run: types.MethodType(lambda self, x: F.linear(x, self.weight * 2), run.model.linear),
    ),
    "forward of the class": replaced_forward_of_the_class,
    "class": other_class,
    "forward of the loss": set_attribute("loss_fn.forward", lambda run: lambda p, t: ((p - t) ** 4).mean()),
    "reduction": set_attribute("loss_fn.reduction", lambda run: "sum"),
    "beta": set_attribute("loss_fn.beta", lambda run: 2.0),
    "optimizer's step": set_attribute("optimizer.step", lambda run: lambda: None),
    "optimizer's zero_grad": set_attribute("optimizer.zero_grad", lambda run: lambda: None),
    "class of the optimizer": set_attribute("optimizer.__class__", lambda run: type("Mine", (torch.optim.SGD,), {})),
    "another optimizer": set_attribute("step.optimizer", lambda run: torch.optim.SGD(run.model.parameters(), lr=1.0)),
    "another loss": set_attribute("step.loss_fn", lambda run: nn.L1Loss()),
    "another model": set_attribute("step.model", lambda run: nn.Sequential(nn.Linear(3, 1), nn.ReLU())),
    "child": set_attribute("model.linear", lambda run: nn.Linear(3, 1)),
    "parameter": replaced_parameter,
    "bias taken away": lambda run: setattr(run.model.linear, "bias", None),
    "one more parameter": added_parameter,
    "one more child": lambda run: run.model.add_module("more", nn.Identity()),
    "evaluation mode": lambda run: run.model.linear.eval() and None,
    "requires_grad": frozen,
    "pending grad": pending_grad,
    "pending grad of another": pending_grad_elsewhere,
    "parameter not in the optimizer": forgotten_parameter,
    "parameter twice in the optimizer": parameter_twice,
    "a group for the bias": moved_to_a_group_of_its_own,
    "first step": no_buffers,
    "a buffer of another dtype": a_buffer_of_another_dtype,
    "momentum out of range": set_group(momentum=-0.5),
    "nesterov with dampening": set_group(nesterov=True, dampening=0.5),
    "momentum tensor": set_group(momentum=torch.tensor(0.5)),
    "lr tensor of 16 bits": set_group(lr=torch.tensor(0.1, dtype=torch.float16)),
    "differentiable": set_group(differentiable=True),
    "autocast": inside(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    "no_grad": inside(without_grad),
    "anomaly detection": inside(lambda: torch.autograd.set_detect_anomaly(True)),
    "x requires grad": data(x=lambda x: x.clone().requires_grad_()),
    "x is a parameter": data(x=lambda x: nn.Parameter(x, requires_grad=False)),
    "y is of a subclass": data(y=lambda y: y.as_subclass(Mine)),
    "x is sparse": data(x=lambda x: x.to_sparse()),
    "y is of another dtype": data(y=lambda y: y.double()),
}


@pytest.mark.parametrize("change", STANDS_ASIDE)
def test_what_makes_the_plan_stand_aside(change, monkeypatch):
    taken = compare(make_forwards, monkeypatch, STANDS_ASIDE[change])
    assert taken[:5] == [False, True, True, True, False]


def test_a_number_that_forward_reads(monkeypatch):
    def run():
        m = Choice(0)
        return Run(m, nn.MSELoss(), sgd(m, momentum=0.0), torch.randn(6, 1), torch.randn(6, 1))

    taken = compare(run, monkeypatch, lambda run: setattr(run.model, "chosen", 1))
    assert taken == 2 * [False, True, True, True]


@pytest.mark.parametrize("before", [True, False])
def test_a_scheduler(before, monkeypatch):
    """Its mark on the optimizer is set by a planned step; one that comes later is seen."""

    def run():
        run = make_forwards()
        if before:
            attach(run)
        return run

    def attach(run):
        scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run.step(run.x, run.y)
            run.optimizer._opt_called = False
            run.step(run.x, run.y)
            assert run.optimizer._opt_called
            scheduler.step()

    taken = compare(run, monkeypatch, None if before else attach)
    assert taken[-4:] == 4 * [True]


def test_a_loss_that_is_not_finite_changes_nothing_if_so_asked(monkeypatch):
    planned = Planned(monkeypatch)
    run = make_forwards()
    for _ in range(2):
        run.step(run.x, run.y)
    kept = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()["state"]))
    loss = run.step.step(run.x, torch.full((6, 1), float("nan")), skip_nonfinite=True)
    assert loss.isnan()
    assert planned.taken == [False, True, True]
    for a, e in zip(run.model.state_dict().values(), kept[0].values(), strict=True):
        assert torch.equal(a, e)
    run.step.step(run.x, torch.full((6, 1), float("nan")))
    assert run.model.linear.weight.isnan().all()


def test_targets_that_do_not_fit_raise_as_python_says():
    x = torch.randn(6, 3)
    for model, y, wrong, words in (
        (nn.Linear(3, 1), torch.randn(6, 1), torch.randn(6), r"sgd_step_: target must have shape \[6, 1\], got \[6\]"),
        (Flat(3), torch.randn(6), torch.randn(6, 1), r"step: target must have shape \[6\], got \[6, 1\]"),
    ):
        step = make_train_step(model, nn.MSELoss(), sgd(model))
        step(x, y)
        step(x, y)
        with pytest.raises(RuntimeError, match=words):
            step(x, wrong)
        step(x, y)
        assert step.explain().startswith("fused")


def test_version_counters_are_bumped(monkeypatch):
    for make, d, shape in FUSED_MODELS.values():
        model = make()
        optimizer = sgd(model)
        step = make_train_step(model, nn.MSELoss(), optimizer)
        x, y = torch.randn(6, d), torch.randn(shape)
        step(x, y)
        written = [p for p in model.parameters() if p in optimizer.state]
        written += [optimizer.state[p]["momentum_buffer"] for p in written]
        before = [t._version for t in written]
        planned = Planned(monkeypatch)
        step(x, y)
        assert planned.taken == [True]
        assert [t._version for t in written] == [v + 1 for v in before]


def test_copies_and_pickles_go_on_by_themselves():
    run = make_forwards()
    next(iter(run))
    for twin in (copy.deepcopy(run.step), pickle.loads(pickle.dumps(run.step))):
        assert twin._plan is None
        before = [p.detach().clone() for p in run.model.parameters()]
        for _ in range(3):
            twin(run.x, run.y)
        assert twin._plan is not None
        assert twin.model is not run.model
        for a, e in zip(run.model.parameters(), before, strict=True):
            assert torch.equal(a.detach(), e)
    next(iter(run))


def test_a_subclass_may_have_a_step_of_its_own():
    class Counting(TrainStep):
        count = 0

        def step(self, x, y, *, skip_nonfinite=False):
            self.count += 1
            return super().step(x, y, skip_nonfinite=skip_nonfinite)

    run = make_forwards()
    step = Counting(run.model, run.loss_fn, run.optimizer)
    for _ in range(3):
        step(run.x, run.y)
    assert step.count == 3


def test_a_model_that_holds_its_own_step_is_collected():
    run = make_forwards()
    run.model.step_of_its_own = run.step
    for _ in range(3):
        run.step(run.x, run.y)
    model = weakref.ref(run.model)
    del run
    gc.collect()
    assert model() is None


def test_threads(monkeypatch):
    """Steps long enough to let other threads run, which take away what a step in progress works on."""
    results, x, y = {}, torch.randn(4096, 64), torch.randn(4096, 1)

    def train(name):
        torch.manual_seed(0)
        model = nn.Linear(64, 1)
        with torch.no_grad():
            model.weight.fill_(0.01)
            model.bias.zero_()
        optimizer = sgd(model)
        step = make_train_step(model, nn.MSELoss(), optimizer)
        for _ in range(20):
            step(x, y)
            for values in optimizer.state.values():
                values["momentum_buffer"] = values["momentum_buffer"].clone()
        results[name] = model.weight.detach().clone()

    threads = [threading.Thread(target=train, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result, results[0]) for result in results.values())
