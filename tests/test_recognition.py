# SPDX-License-Identifier: BSD-3-Clause
"""A fused step equals the plain loop's step or is not taken, whatever is replaced, hooked, patched or switched on."""

import contextlib
import copy
import functools
import random
import warnings

import plain_loop
import pytest
import torch
import torch.nn.functional as F
from conftest import cases
from test_train_step import Forwards, Product, TwoNumbers, Vector, by_hand, flattened_mse, sgd
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from linreg_ext import make_train_step


class Regression(Forwards):
    """The model for all changes below."""


class Trained:
    """A model in training, with the objects that a change may affect."""

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.loss = Regression(3, 1), nn.SmoothL1Loss(beta=0.5)
        self.optimizer = sgd(self.model)
        self.x, self.y = torch.randn(6, 3), torch.randn(6, 1)
        self.context = contextlib.nullcontext
        self.seen = []  # what a hook or a mode has seen

    def train(self, make, steps=3):
        """The step after `steps`, and its results."""
        step = make(self.model, self.loss, self.optimizer)
        for _ in range(steps):
            step(self.x, self.y)
        return step

    def left(self, step):
        with self.context():
            loss = step(self.x, self.y)
        parameters = list(self.model.parameters())
        buffers = [self.optimizer.state[p].get("momentum_buffer") for p in parameters if p in self.optimizer.state]
        return loss, [p.detach() for p in parameters], buffers, [p.grad for p in parameters]


def assert_steps_are_the_plain_loops(change, level, *, watched=True):
    """Compare one more step after a change in three runs: by the step made before, if the change is `watched`, by a
    step made after it, and by the plain loop."""
    results = []
    for make, anew in ((make_train_step, False), (make_train_step, True), (plain_loop.make_train_step, None)):
        if anew is False and not watched:
            continue
        run = Trained()
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            step = run.train(make)
            change(run, patch)
            if anew:
                step = make_train_step(run.model, run.loss, run.optimizer)
            results.append((run.left(step), run.seen))
            if anew is not None:
                assert step.explain().startswith(level), step.explain()
    *ours, (expected, shown) = results
    for result, seen in ours:
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        assert seen == shown


def accumulator(parameter):
    return parameter.view_as(parameter).grad_fn.next_functions[0][0]


def in_context(make):
    def change(run, patch):
        run.context = functools.partial(make, run)

    return change


class Doubling(TorchFunctionMode):
    """Makes F.linear compute something else."""

    def __init__(self, run):
        super().__init__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        return value * 2 if function is F.linear else value


class Halving(TorchDispatchMode):
    """Makes matrix products compute something else."""

    def __init__(self, run):
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        return value / 2 if function is torch.ops.aten.addmm.default else value


def rounding(run):
    """Saved tensors lose digits before backward."""
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.float())


def kept_accumulator(register, hook):
    def change(run, patch):
        run.kept = accumulator(run.model.linear.weight)
        getattr(run.kept, register)(functools.partial(hook, run))

    return change


def frozen_with_a_gradient(run, patch):
    run.model.linear.weight.requires_grad_(False)
    run.model.linear.weight.grad = torch.ones(1, 3)


def rescaled(self, *args, **options):
    for group in self.param_groups:
        for p in group["params"]:
            if p.grad is not None:
                p.data.sub_(p.grad, alpha=0.5)


def result_of_an_operation(run, patch):
    """A frozen weight that an in-place operation makes depend on another tensor."""
    run.scale = torch.full((), 2.0, requires_grad=True)
    run.model.linear.weight.requires_grad_(False)
    run.model.linear.weight.mul_(run.scale)


def gradient_scale(run, patch):
    """As set by a GradScaler for an optimizer that unscales gradients itself."""
    run.optimizer.param_groups[0]["fused"] = True
    run.optimizer.grad_scale, run.optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)


def one_memory(run, patch):
    """The last weight is the bias."""
    whole = torch.randn(3)
    run.model.linear.weight.data, run.model.linear.bias.data = whole[None], whole[2:]


PATCHED = {  # these changes need a new step
    "class of the loss": lambda run, patch: setattr(run.loss, "__class__", type("Mine", (nn.SmoothL1Loss,), {})),
    "forward of the loss's class": lambda run, patch: patch.setattr(
        nn.SmoothL1Loss, "forward", lambda self, p, t: ((p - t) ** 4).mean()
    ),
    "forward of nn.Linear": lambda run, patch: patch.setattr(nn.Linear, "forward", lambda self, x: x @ self.weight.t()),
    "call of nn.Module": lambda run, patch: patch.setattr(
        nn.Module, "__call__", lambda self, *args: self.forward(*args) * 2
    ),
    "F.linear": lambda run, patch: patch.setattr(F, "linear", lambda x, w, b=None: x @ w.t()),
    "F.smooth_l1_loss": lambda run, patch: patch.setattr(F, "smooth_l1_loss", lambda p, t, **_: ((p - t) ** 4).mean()),
    "a property in place of a child": lambda run, patch: patch.setattr(
        Regression, "linear", property(lambda self: lambda x: self._modules["linear"](x) * 2), raising=False
    ),
    "an attribute in place of a child": lambda run, patch: patch.setitem(
        vars(run.model), "linear", lambda x: x.sum(-1, keepdim=True).requires_grad_()
    ),
    "an attribute in place of a parameter": lambda run, patch: patch.setitem(
        vars(run.model.linear), "bias", torch.ones(1)
    ),
    "forward of another loss": lambda run, patch: patch.setattr(
        nn.SmoothL1Loss, "forward", nn.L1Loss.forward
    ),
    "train of the model": lambda run, patch: setattr(run.model, "train", lambda mode=True: run.seen.append(mode)),
    "code of forward": lambda run, patch: patch.setattr(
        Regression, "forward", lambda self, x: self.linear(x * 3.0), raising=False
    ),
    "compiled by Module.compile": lambda run, patch: run.model.compile(backend=lambda graph, inputs: graph.forward),
}  # fmt: skip
PATCHED_OPTIMIZERS = {
    "step of SGD": lambda run, patch: patch.setattr(torch.optim.SGD, "step", rescaled),
    "zero_grad of the optimizers": lambda run, patch: patch.setattr(
        torch.optim.Optimizer, "zero_grad", lambda self: [p.grad.zero_() for p in self.param_groups[0]["params"]]
    ),
}  # fmt: skip
EAGER = {
    "a global hook": lambda run, patch: patch.setitem(
        torch.nn.modules.module._global_forward_hooks, -1, lambda module, args, output: output * 2
    ),
    "TorchFunctionMode": in_context(Doubling),
    "TorchDispatchMode": in_context(Halving),
    "hooks on saved tensors": in_context(rounding),
    "anomaly mode": in_context(lambda run: torch.autograd.set_detect_anomaly(True)),
    "forward-mode AD": in_context(lambda run: torch.autograd.forward_ad.dual_level()),
    "a frozen weight that was computed": result_of_an_operation,
}  # fmt: skip
GRADIENTS = {
    "hook of the accumulator": kept_accumulator("register_hook", lambda run, *_: run.seen.append("accumulated")),
    "pre-hook of the accumulator": kept_accumulator("register_prehook", lambda run, grads: (grads[0] * 2,)),
    "hook after accumulation": lambda run, patch: run.model.linear.weight.register_post_accumulate_grad_hook(
        lambda p: run.seen.append("accumulated")
    ),
    "hook on several gradients": lambda run, patch: torch.autograd.graph.register_multi_grad_hook(
        tuple(run.model.parameters()), lambda grads: run.seen.append(len(grads))
    ),
    "hook of the optimizer": lambda run, patch: run.optimizer.register_step_post_hook(
        lambda *_: run.seen.append("stepped")
    ),
    "a frozen weight with a gradient": frozen_with_a_gradient,
    "a gradient of zeros": lambda run, patch: run.optimizer.zero_grad(set_to_none=False)
    or setattr(run.model.linear.weight, "grad", torch.zeros(1, 3)),
    "a gradient scale": gradient_scale,
    "settings that are tensors": lambda run, patch: run.optimizer.param_groups[0].update(
        foreach=False, weight_decay=torch.tensor(0.1)
    ),
    "weight and bias in one memory": one_memory,
    "a batch in the memory of the weight": lambda run, patch: setattr(
        run, "x", run.model.linear.weight.detach().expand(6, 3)
    ),
}  # fmt: skip
FUSED = {
    "foreach": lambda run, patch: run.optimizer.param_groups[0].update(foreach=True),
    "fused": lambda run, patch: run.optimizer.param_groups[0].update(fused=True),
    "retain_grad": lambda run, patch: run.model.linear.weight.retain_grad(),
    "a default device": in_context(lambda run: torch.device("cpu")),
    "a hook that has been removed": lambda run, patch: run.model.register_forward_hook(lambda *_: None).remove(),
    "a parameter's hook that has been removed": lambda run, patch: run.model.linear.weight.register_hook(
        lambda *_: None
    ).remove(),
}


@pytest.mark.parametrize("change", EAGER)
def test_the_plain_loop_is_run_as_written(change):
    """Fails if a step, bound before or after, is fused although the plain loop would do something else."""
    assert_steps_are_the_plain_loops(EAGER[change], "eager")


@pytest.mark.parametrize("change", PATCHED)
def test_what_is_patched_before_a_step_is_made(change):
    """Fails if recognition relies on names and types alone."""
    assert_steps_are_the_plain_loops(PATCHED[change], "eager", watched=False)


@pytest.mark.parametrize("change", PATCHED_OPTIMIZERS)
def test_an_optimizer_that_is_patched_before_a_step_is_made(change):
    """Fails if the update is fused although the optimizer would do something else."""
    assert_steps_are_the_plain_loops(PATCHED_OPTIMIZERS[change], "gradients", watched=False)


@pytest.mark.parametrize("change", GRADIENTS)
def test_the_optimizer_steps_for_itself(change):
    """Fails if a fused update bypasses hooks, replaced methods or gradients that SGD would have used."""
    assert_steps_are_the_plain_loops(GRADIENTS[change], "gradients")


UNUSABLE = {  # by torch.optim.SGD, too
    "no maximize": lambda run: run.optimizer.param_groups[0].pop("maximize"),
    "no foreach": lambda run: run.optimizer.param_groups[0].pop("foreach"),
    "no lr": lambda run: run.optimizer.param_groups[0].pop("lr"),
    "a state that makes no entries": lambda run: setattr(run.optimizer, "state", {}),
    "an expanded momentum": lambda run: run.optimizer.state[run.model.linear.weight].update(
        momentum_buffer=torch.ones(1, 1).expand(1, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", UNUSABLE)
def test_what_sgd_cannot_use_raises_as_in_the_plain_loop(change):
    """And with the same results: a fused step would continue, or fail after it has changed the parameters."""
    results = []
    for make in (make_train_step, plain_loop.make_train_step):
        run = Trained()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = run.train(make)
            UNUSABLE[change](run)
            with pytest.raises((KeyError, RuntimeError)) as error:
                step(run.x, run.y)
        if make is make_train_step:
            assert step.explain().startswith("gradients: ")
        results.append(((type(error.value), str(error.value)), [(p.detach(), p.grad) for p in run.model.parameters()]))
    (ours, left), (theirs, expected) = results
    assert ours == theirs
    torch.testing.assert_close(left, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", FUSED)
def test_what_changes_nothing_stays_fused(change):
    """And equals the plain loop's step. Fails if it differs, or is not fused without need."""
    assert_steps_are_the_plain_loops(FUSED[change], "fused")


class Halved(nn.Module):
    """A wrapper, which names what it wraps as DistributedDataParallel does."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(3, 1)

    def forward(self, x):
        return self.module(x) / 2


def test_a_wrapper_is_not_the_module_that_it_wraps():
    results = []
    for make in (make_train_step, plain_loop.make_train_step):
        torch.manual_seed(0)
        model, x, y = Halved(), torch.randn(20, 3), torch.randn(20, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = make(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
        results.append((step(x, y), *(p.detach() for p in model.parameters())))
    torch.testing.assert_close(*results)


def test_inside_of_inference_mode_the_plain_loops_error_is_raised():
    """Fails if a fused step is taken, which needs no derivative."""
    run = Trained()
    step = run.train(make_train_step)
    with pytest.warns(UserWarning, match="grad mode is off"), torch.inference_mode(), pytest.raises(RuntimeError):
        step(run.x, run.y)
    with torch.inference_mode():
        x = torch.randn(6, 3)
    with pytest.warns(UserWarning, match="inference mode"), pytest.raises(RuntimeError, match=r"[Ii]nference"):
        step(x, run.y)


PROGRAMS = {  # of the tutorials: model, features, shape of a target of 6 rows, loss
    "A2": (lambda: nn.Linear(3, 1, bias=False), 3, (6,), flattened_mse),
    "B6": (TwoNumbers, 1, (6, 1), nn.MSELoss()),
    "B7, D2": (Forwards, 1, (6, 1), nn.MSELoss()),
    "B8, B15": (lambda: nn.Sequential(nn.Linear(1, 1)), 1, (6, 1), nn.MSELoss()),
    "B5": (lambda: nn.Linear(1, 1), 1, (6, 1), lambda prediction, target: F.mse_loss(target, prediction)),
    "A1": (lambda: Vector(3), 3, (6,), nn.MSELoss()),
    "C1": (lambda: Product(3, 2), 3, (6, 2), by_hand),
    "C2": (lambda: nn.Linear(3, 2), 3, (6, 2), F.mse_loss),
    "E": (lambda: nn.Linear(1, 1), 1, (6, 1), nn.L1Loss()),
    "nn.Flatten": (lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0, 1)), 3, (6,), nn.MSELoss(reduction="sum")),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_tutorials_models_are_fused(program):
    """Fails if one is not recognised, or its steps differ from the plain loop's."""
    make, d, shape, loss = PROGRAMS[program]
    model = make()
    twin = copy.deepcopy(model)
    step, plain = (
        f(m, loss, sgd(m, lr=0.01)) for f, m in ((make_train_step, model), (plain_loop.make_train_step, twin))
    )
    x, y = torch.randn(6, d), torch.randn(shape)
    for _ in range(4):
        torch.testing.assert_close(step(x, y), plain(x, y))
    assert step.explain().startswith("fused"), step.explain()


class Generated(nn.Module):
    """A model with a random forward."""

    def __init__(self, choose):
        super().__init__()
        self.first = choose(
            [nn.Linear(3, 2), nn.Linear(3, 2, bias=False), nn.Sequential(nn.Identity(), nn.Linear(3, 2))]
        )
        self.second = choose([*3 * [nn.Identity()], nn.Dropout(0.0), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Hardtanh()])
        self.w, self.b = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(2))
        self.scale = choose([1, 2.0, "x"])
        self.register_buffer("shift", torch.randn(2))


FORWARDS = """
self.first(x)|self.second(self.first(x))|self.first(x) + self.b|self.first(x) + self.shift|x @ self.w.t()
x @ self.w.t() + self.b|x @ self.w.T + self.shift|self.b + torch.matmul(x, self.w.t())|F.linear(x, self.w, self.b)
F.linear(x, self.w, bias=self.b)|F.linear(bias=self.b, weight=self.w, input=x)|F.linear(x, self.w) * 2
F.linear(x, self.w, self.shift)|(x @ self.w.t()).add(self.b)|(x @ self.w.t()).add_(self.b)|torch.addmm(self.b, x, self.w.t())
torch.addmm(self.b, x, self.w.t(), beta=2)|torch.add(x @ self.w.t(), self.b, alpha=2)|self.first(x * 1)|self.first(x).abs()
self.first(x) if self.training else x|self.first(x) + self.first(x)|F.linear(x, self.w + self.w)|F.linear(x, self.w.abs())
self.first(x).reshape(-1, 2)|self.first(x).view(x.shape[0], 2)|x.mm(self.w.t()) - self.b|self.first(input=x)
F.linear(x, self.w, self.w.sum(1))|torch.matmul(input=x, other=self.w.t())|self.first(x)[:]|self.first(x).flatten(1)|self.first(x.detach())|self.first(x).detach() + self.b
""".strip().replace("\n", "|").split("|")  # fmt: skip
LOSSES = """
F.mse_loss(p, t)|F.mse_loss(t, p)|F.mse_loss(p, t, reduction="sum")|((p - t) ** 2).mean()|((p - t) ** 3).mean()|(p - t).abs().sum()
((t - p) * (p - t)).sum()|F.huber_loss(p, t, delta=0.5)|F.smooth_l1_loss(p, t, "sum")|F.l1_loss(p, t) + 1|torch.mean((p - t) ** 2)
torch.mean((p - t) ** 2, dim=0).sum()|((p - t) ** 2).mean(0).sum()|(p - t).pow(2).sum() / t.numel()|(p - t).pow(2).sum() / t.shape[0]
F.mse_loss(p, t.detach())|F.mse_loss(p.detach(), t) + p.sum()|F.mse_loss(input=p, target=t)|F.smooth_l1_loss(p, t, beta=0.0)
torch.square(p - t).sum().div(p.numel())|F.mse_loss(p, p)|F.mse_loss(p.reshape(t.shape), t)|abs(p - t).mean()|F.mse_loss(p, t, None)
""".strip().replace("\n", "|").split("|")  # fmt: skip


def function(arguments, expression):
    scope = {"torch": torch, "F": F}
    exec(f"def forward({arguments}):\n    return {expression}\n", scope)
    return scope["forward"]


def disturb(model, optimizer, choose):
    """Something that a step must not ignore, or nothing."""
    p = next(model.parameters())
    choose([
        lambda: None,
        lambda: None,
        lambda: model.register_forward_hook(lambda m, a, out: out * 1.5),
        lambda: model.first.register_forward_pre_hook(lambda m, a: (a[0] + 1,)),
        lambda: p.register_hook(lambda g: g * 0.5),
        lambda: p.requires_grad_(False),
        lambda: setattr(p, "grad", torch.ones_like(p)),
        lambda: setattr(model, "w", nn.Parameter(torch.ones(2, 3))),
        lambda: setattr(model, "b", model.first.bias if isinstance(model.first, nn.Linear) and model.first.bias is not None else model.b),
        lambda: optimizer.param_groups[0].update(lr=0.02, weight_decay=0.1),
        lambda: optimizer.param_groups[0]["params"].pop(),
        lambda: setattr(model, "scale", 3),
        lambda: nn.utils.parametrizations.weight_norm(model, "w"),
        lambda: model.eval(),
    ])()  # fmt: skip


@pytest.mark.parametrize("seeds", cases([range(50)], [range(50, 150)]), ids=str)
def test_random_models_train_as_the_plain_loop_trains_them(seeds):
    """Fails if a combination of model, loss and disturbance is fused into something else. Most are not fused."""
    levels = []
    for seed in seeds:
        draw = random.Random(seed)
        expression = draw.choice(FORWARDS)
        loss_expression = draw.choice(LOSSES) if draw.random() < 0.5 else LOSSES[0]
        words = f"seed {seed}: {expression}; {loss_expression}"
        results = []
        for make in (make_train_step, plain_loop.make_train_step):
            torch.manual_seed(seed)
            choose = random.Random(seed + 2000).choice
            cls = type("Made", (Generated,), {"forward": function("self, x", expression)})
            model, x, y = cls(choose), torch.rand(6, 3), torch.rand(6, 2)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=choose([0.0, 0.5]))
            left = []
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    step = make(model, function("p, t", loss_expression), optimizer)
                    for i in range(4):
                        left.append(step(x, y))
                        if i == 1:
                            levels.append(step.explain().partition(":")[0] if make is make_train_step else "plain")
                            disturb(model, optimizer, choose)
                except Exception as error:  # the plain loop must raise, too
                    left.append(type(error))
            left += [p.detach() for p in model.parameters()] + [p.grad for p in model.parameters()]
            results.append(left)
        ours, theirs = results
        assert len(ours) == len(theirs), words
        for a, e in zip(ours, theirs, strict=True):
            if isinstance(e, torch.Tensor):
                torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5, msg=lambda m, words=words: f"{words}\n{m}")
            else:
                assert a == e, words
    assert levels.count("fused") > len(seeds) / 12
    assert levels.count("eager") > len(seeds) / 3
