# SPDX-License-Identifier: BSD-3-Clause
"""A bound step compared with the plain loop, while anything that the documented guards cover changes between steps."""

import contextlib
import copy
import functools
import gc
import pickle
import threading
import warnings
import weakref

import plain_loop
import pytest
import torch
from accuracy import DTYPES
from test_train_step import FUSED_LOSSES, FUSED_MODELS, Flat, Forwards, sgd
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

from linreg_ext import make_train_step
from linreg_ext.training import TrainStep


class Run:
    """A model in training, step by step."""

    def __init__(self, model, loss_fn, optimizer, x, y):
        self.model, self.loss_fn, self.optimizer, self.x, self.y = model, loss_fn, optimizer, x, y
        self.context = contextlib.nullcontext

    def start(self, make):
        self.step = make(self.model, self.loss_fn, self.optimizer)
        self.explain = getattr(self.step, "explain", lambda: "plain")
        if make is plain_loop.make_train_step:  # plain PyTorch takes no 16-bit data with float32 parameters
            self.x, self.y = (t.to(next(self.model.parameters()).dtype) for t in (self.x, self.y))
        return self

    def take(self, steps=1):
        """The state after each step."""
        left = []
        for _ in range(steps):
            with self.context():
                loss = self.step(self.x, self.y)
            groups = [p for group in self.optimizer.param_groups for p in group["params"]]
            parameters = list(dict.fromkeys([*self.model.parameters(), *groups]))
            buffers = [self.optimizer.state[p].get("momentum_buffer") for p in parameters if p in self.optimizer.state]
            numbers = [loss, *(p.detach().clone() for p in parameters), *(b.clone() for b in buffers if b is not None)]
            left.append((numbers, [None if p.grad is None else p.grad.clone() for p in parameters]))
        return left


def compare(make_run, change=None, level="fused", steps=3):
    """Compare with the plain loop: before a change, after it at the expected level, and after it is undone."""
    results = []
    for make in (make_train_step, plain_loop.make_train_step):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            run = make_run().start(make)
            left, levels = run.take(steps), [run.explain()]
            undo = change(run) if change else None
            left += run.take(steps)
            levels.append(run.explain())
            if callable(undo):
                undo()
                left += run.take(steps)
                levels.append(run.explain())
        results.append(left)
        if make is make_train_step:
            assert [words.partition(":")[0] for words in levels] == ["fused", level, "fused"][: len(levels)], levels
    dtype = results[1][0][0][1].dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("model", FUSED_MODELS)
def test_models(model, momentum):
    make, d, shape = FUSED_MODELS[model]

    def run():
        m = make()
        return Run(m, nn.MSELoss(), sgd(m, momentum=momentum), torch.randn(6, d), torch.randn(shape))

    compare(run)


@pytest.mark.parametrize("loss", FUSED_LOSSES)
def test_losses(loss):
    def run():
        m = nn.Linear(3, 2)
        return Run(m, copy.deepcopy(FUSED_LOSSES[loss]), sgd(m, lr=0.01), torch.randn(6, 3), torch.randn(6, 2))

    compare(run)


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_dtypes(dtypes):
    data, parameter = dtypes
    for target in {data, torch.float32} if data.itemsize == 2 else {data}:

        def run(target=target):
            m = nn.Linear(3, 2, dtype=parameter)
            return Run(m, nn.MSELoss(), sgd(m), torch.randn(6, 3).to(data), torch.randn(6, 2).to(target))

        compare(run)


@pytest.mark.parametrize("options", [
    {"weight_decay": 0.1}, {"momentum": 0.9, "dampening": 0.5}, {"momentum": 0.9, "nesterov": True}, {"maximize": True},
    {"lr": torch.tensor(0.05)}, {"lr": 1}, {"lr": 0.0},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_settings(options, frozen):
    def run():
        m = nn.Linear(3, 2)
        if frozen:
            getattr(m, frozen).requires_grad_(False)
        return Run(m, nn.MSELoss(), sgd(m, **options), torch.randn(6, 3), torch.randn(6, 2))

    compare(run)


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


GOES_ON = {  # the settings that every step reads
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
def test_what_is_read_at_every_step(change):
    compare(make_forwards, GOES_ON[change])


def hooked(where, register, hook):
    def change(run):
        owner = {"layer": run.model.linear, "model": run.model, "loss": run.loss_fn, "optimizer": run.optimizer,
                 "weight": run.model.linear.weight}[where]  # fmt: skip
        return getattr(owner, register)(hook).remove

    return change


def globally(register, hook):
    return lambda run: register(hook).remove


def set_attribute(path, value):
    """Set an attribute in an instance's __dict__, and remove it again."""

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


GUARDS = {  # and the level of the steps after the change
    "forward hook": ("eager", hooked("layer", "register_forward_hook", lambda m, a, out: out * 2)),
    "forward pre-hook": ("eager", hooked("model", "register_forward_pre_hook", lambda m, args: (args[0] * 2,))),
    "backward hook": ("eager", hooked("layer", "register_full_backward_hook", lambda m, gi, go: None)),
    "backward pre-hook": ("eager", hooked("layer", "register_full_backward_pre_hook", lambda m, go: (go[0] * 2,))),
    "hook of the loss": ("eager", hooked("loss", "register_forward_hook", lambda m, a, out: out * 2)),
    "global forward hook": ("eager", globally(module_hooks.register_module_forward_hook, lambda m, a, out: out * 2)),
    "global forward pre-hook": ("eager", globally(module_hooks.register_module_forward_pre_hook, lambda m, args: None)),
    "global backward hook": (
        "eager",
        globally(module_hooks.register_module_full_backward_hook, lambda m, gi, go: None),
    ),
    "optimizer pre-hook": ("gradients", hooked("optimizer", "register_step_pre_hook", lambda *_: None)),
    "optimizer post-hook": ("gradients", hooked("optimizer", "register_step_post_hook", lambda *_: None)),
    "global optimizer pre-hook": (
        "gradients",
        globally(optimizer_hooks.register_optimizer_step_pre_hook, lambda *_: None),
    ),
    "global optimizer post-hook": (
        "gradients",
        globally(optimizer_hooks.register_optimizer_step_post_hook, lambda *_: None),
    ),
    "parameter's hook": ("gradients", hooked("weight", "register_hook", lambda g: g * 2)),
    "parameter's hook after accumulation": (
        "gradients",
        hooked("weight", "register_post_accumulate_grad_hook", lambda p: None),
    ),
    "reduction": ("fused", set_attribute("loss_fn.reduction", lambda run: "sum")),
    "beta": ("fused", set_attribute("loss_fn.beta", lambda run: 2.0)),
    "optimizer's step": ("gradients", set_attribute("optimizer.step", lambda run: lambda: None)),
    "child": ("gradients", set_attribute("model.linear", lambda run: nn.Linear(3, 1))),
    "parameter": ("fused", replaced_parameter),
    "bias taken away": ("fused", lambda run: setattr(run.model.linear, "bias", None)),
    "one more parameter": ("fused", added_parameter),
    "one more child": ("fused", lambda run: run.model.add_module("more", nn.Identity())),
    "evaluation mode": ("fused", lambda run: run.model.linear.eval() and None),
    "requires_grad": ("fused", frozen),
    "pending grad": ("fused", pending_grad),
    "pending grad of another": ("fused", pending_grad_elsewhere),
    "parameter not in the optimizer": ("gradients", forgotten_parameter),
    "parameter twice in the optimizer": ("gradients", parameter_twice),
    "a group for the bias": ("gradients", moved_to_a_group_of_its_own),
    "first step": ("fused", no_buffers),
    "a buffer of another dtype": ("gradients", a_buffer_of_another_dtype),
    "momentum out of range": ("gradients", set_group(momentum=-0.5)),
    "nesterov with dampening": ("gradients", set_group(nesterov=True, dampening=0.5)),
    "momentum tensor": ("gradients", set_group(momentum=torch.tensor(0.5))),
    "lr tensor of 16 bits": ("gradients", set_group(lr=torch.tensor(0.1, dtype=torch.float16))),
    "differentiable": ("gradients", set_group(differentiable=True)),
    "autocast": ("eager", inside(lambda: torch.autocast("cpu", dtype=torch.bfloat16))),
    "no_grad": ("eager", inside(without_grad)),
    "anomaly detection": ("eager", inside(lambda: torch.autograd.set_detect_anomaly(True))),
    "x requires grad": ("eager", data(x=lambda x: x.clone().requires_grad_())),
    "x is a parameter": ("eager", data(x=lambda x: nn.Parameter(x, requires_grad=False))),
    "y is of a subclass": ("eager", data(y=lambda y: y.as_subclass(Mine))),
    "x is sparse": ("eager", data(x=lambda x: x.to_sparse())),
    "y is of another dtype": ("eager", data(y=lambda y: y.double())),
}


@pytest.mark.parametrize("change", GUARDS)
def test_what_is_watched(change):
    """Fails if a step continues as bound, or stays slow for longer than necessary."""
    level, function = GUARDS[change]
    compare(make_forwards, function, level)


@pytest.mark.parametrize("before", [True, False])
def test_a_scheduler(before):
    """A fused step sets the flag that a scheduler checks; a scheduler made later is detected."""

    def attach(run):
        scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, 1, 0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error" if isinstance(run.step, TrainStep) else "ignore")
            run.take()
            run.optimizer._opt_called = False
            run.take()
            assert run.optimizer._opt_called
            scheduler.step()

    def run():
        run = make_forwards()
        if before:
            attach(run.start(make_train_step))
        return run

    compare(run, None if before else attach)


def test_a_loss_that_is_not_finite_changes_nothing_if_so_asked():
    run = make_forwards().start(make_train_step)
    wrong = torch.full((6, 1), float("nan"))
    for steps in (0, 2):  # before there is a momentum, too
        run.take(steps)
        kept = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict()["state"]))
        assert run.step.step(run.x, wrong, skip_nonfinite=True).isnan()
        torch.testing.assert_close(
            (dict(run.model.state_dict()), run.optimizer.state_dict()["state"]),
            (dict(kept[0]), kept[1]),
            rtol=0,
            atol=0,
        )
    run.step.step(run.x, wrong)
    assert run.model.linear.weight.isnan().all()


def test_what_a_step_is_bound_to_cannot_be_replaced():
    run = make_forwards().start(make_train_step)
    for name in ("model", "loss_fn", "optimizer"):
        with pytest.raises(AttributeError):
            setattr(run.step, name, None)


def replaced_dictionary(run):
    """Replace a layer's dictionary of parameters, and the optimizer's parameters with it."""
    layer = run.model.linear
    layer.__dict__["_parameters"] = {name: nn.Parameter(p.detach() * 2) for name, p in layer._parameters.items()}
    run.optimizer.param_groups[0]["params"] = list(layer.parameters())
    run.optimizer.state.clear()


def test_a_module_whose_parameters_are_replaced_as_a_whole():
    compare(make_forwards, replaced_dictionary)


def test_none_for_a_batch_is_the_models_to_refuse():
    run = make_forwards().start(make_train_step)
    with pytest.warns(UserWarning, match="a batch contains NoneType"):  # noqa: PT031 - once for all of them
        for x, y in ((None, run.y), (None, None), (run.x, None)):
            with pytest.raises((TypeError, AttributeError)):
                run.step(x, y)


def test_a_model_without_a_parameter_to_train_raises_as_in_the_plain_loop():
    for make in (make_train_step, plain_loop.make_train_step):
        run = make_forwards().start(make)
        run.model.requires_grad_(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="does not require grad"):
                run.step(run.x, run.y)


def test_a_device_without_kernels_is_seen():
    run = make_forwards().start(make_train_step)
    run.take(2)
    run.model.to("meta")
    with pytest.warns(UserWarning, match="eager: this build has no kernels for meta"):
        assert run.step(run.x.to("meta"), run.y.to("meta")).device.type == "meta"


def test_targets_that_do_not_fit_raise_as_python_says():
    x = torch.randn(6, 3)
    for model, y, wrong, words in (
        (
            nn.Linear(3, 1),
            torch.randn(6, 1),
            torch.randn(6),
            r"step: target must have shape \[6, 1\], got \[6\]; pass target.unsqueeze",
        ),
        (Flat(3), torch.randn(6), torch.randn(6, 1), r"step: target must have shape \[6\], got \[6, 1\]"),
    ):
        step = make_train_step(model, nn.MSELoss(), sgd(model))
        step(x, y)
        step(x, y)
        with pytest.raises(RuntimeError, match=words):
            step(x, wrong)
        step(x, y)
        assert step.explain().startswith("fused")


def test_version_counters_are_bumped():
    for make, d, shape in FUSED_MODELS.values():
        model = make()
        optimizer = sgd(model)
        step = make_train_step(model, nn.MSELoss(), optimizer)
        x, y = torch.randn(6, d), torch.randn(shape)
        step(x, y)
        written = [p for p in model.parameters() if p in optimizer.state]
        written += [optimizer.state[p]["momentum_buffer"] for p in written]
        before = [t._version for t in written]
        step(x, y)
        assert [t._version for t in written] == [v + 1 for v in before]


def test_copies_and_pickles_go_on_by_themselves():
    run = make_forwards().start(make_train_step)
    run.take()
    for twin in (copy.deepcopy(run.step), pickle.loads(pickle.dumps(run.step))):
        before = [p.detach().clone() for p in run.model.parameters()]
        for _ in range(3):
            twin(run.x, run.y)
        assert twin.level == "fused"
        assert twin.model is not run.model
        assert twin.optimizer.param_groups[0]["params"][0] is next(twin.model.parameters())
        for a, e in zip(run.model.parameters(), before, strict=True):
            assert torch.equal(a.detach(), e)
    run.take()


def test_a_subclass_may_have_a_step_of_its_own():
    class Counting(TrainStep):
        count = 0

        def step(self, *batch, **options):
            self.count += 1
            return super().step(*batch, **options)

    run = make_forwards()
    step = Counting(run.model, run.loss_fn, run.optimizer)
    for _ in range(3):
        step(run.x, run.y)
    assert step.count == 3


def test_a_model_that_holds_its_own_step_is_collected():
    run = make_forwards().start(make_train_step)
    run.model.step_of_its_own = run.step
    run.take(3)
    model = weakref.ref(run.model)
    del run
    gc.collect()
    assert model() is None


def test_threads():
    """Steps long enough for other threads to run, which remove what a step in progress uses."""
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
