# SPDX-License-Identifier: BSD-3-Clause
"""A rewritten module is the module that was written, but for the pass; and what cannot be rewritten is said."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.overrides import TorchFunctionMode

import linreg_ext
from linreg_ext import fuse


class Network(nn.Module):
    """A network that computes its loss; subclasses say how."""

    def __init__(self, loss=None, k=2, bias=True):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.25))
        self.head, self.loss = nn.Linear(4, k, bias=bias), loss
        self.unused = nn.Linear(1, 1)
        self.register_buffer("center", torch.tensor(0.5))

    def forward(self, x, y):
        return self.loss(self.head(self.body(x)), y - self.center)


class Swapped(Network):
    def forward(self, x, y):
        return F.huber_loss(y, self.head(self.body(x)), delta=0.5)


class Weighted(Network):
    def forward(self, x, y):
        return F.mse_loss(input=self.head(input=self.body(x)), target=y, weight=x.detach()[:, :2].abs()) * 3


class Masked(Network):
    """By `and_`, which changes nothing in place, though its name ends as if it did."""

    def forward(self, x, y):
        prediction = self.head(self.body(x))
        return F.mse_loss(prediction, y, weight=((y > -1) & (y < 1)).to(y.dtype) + 1)


class OneOutput(Network):
    def forward(self, x, y):
        return F.l1_loss(self.head(self.body(x)).squeeze(-1), y[:, 0], reduction="sum")


class Penalised(Network):
    """By functions and parameters, with more than the loss in the result."""

    def forward(self, x, y):
        prediction = F.linear(self.body(x), self.head.weight, bias=self.head.bias)
        return F.smooth_l1_loss(prediction, y, beta=0.5) + 0.1 * self.head.weight.square().sum(), x.mean()


class Inner(Network):
    """The head and the loss are in a module of their own."""

    def __init__(self):
        super().__init__()
        self.inner, self.head, self.loss = Network(nn.MSELoss()), None, None

    def forward(self, x, y):
        return self.inner(self.body(x)[:, :3], y)


class TwoLosses(Network):
    def forward(self, x, y):
        h = self.body(x)
        return F.mse_loss(self.head(h), y) + F.l1_loss(self.head(h.detach()), y)


MODULES = {  # and how many pairs they have
    "MSELoss": (lambda: Network(nn.MSELoss()), 1),
    "L1Loss, sum": (lambda: Network(nn.L1Loss(reduction="sum")), 1),
    "HuberLoss, none": (lambda: Network(nn.HuberLoss("none", delta=0.3)), 1),
    "SmoothL1Loss": (lambda: Network(nn.SmoothL1Loss(beta=0.2), bias=False), 1),
    "swapped": (Swapped, 1),
    "weighted": (Weighted, 1),
    "masked": (Masked, 1),
    "one output": (lambda: OneOutput(k=1), 1),
    "penalised": (Penalised, 1),
    "in a submodule": (Inner, 1),
    "two losses": (TwoLosses, 2),
}


def fused_calls(module):
    return [n for n in module.graph.nodes if n.op == "call_function" and n.target.__module__ == "linreg_ext.functional"]


def total(result):
    return sum(part.sum() for part in (result if isinstance(result, tuple) else (result,)))


def assert_same_module(ours, theirs, training=True):
    """The same state, losses and gradients, of parameters and of the batch."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    results = []
    for module in (ours, theirs):
        module.train(training)
        module.zero_grad()
        torch.manual_seed(1)
        x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2, requires_grad=True)
        value = module(x, y)
        total(value).backward()
        results.append([value, x.grad, y.grad, [p.grad for p in module.parameters()]])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_are_fused(module):
    """Fails where the loss, the layer, its operands or the options of one of them are taken for another's."""
    make, pairs = MODULES[module]
    original = make()
    twin = copy.deepcopy(original)
    fused = fuse(original)
    assert len(fused_calls(fused)) == pairs
    for training in (True, False):
        assert_same_module(fused, twin, training)
    for ours, theirs in zip(fused.parameters(), original.parameters(), strict=True):
        assert ours is theirs
    assert "mse_loss(" not in fused.code.replace("linear_mse_loss(", "")


def test_a_fused_module_trains_as_the_module_does():
    """Fails where a loss or a gradient is another, or does not reach the parameters; Adam would overlook a factor."""
    original, twin = Network(nn.MSELoss()), Network(nn.MSELoss())
    twin.load_state_dict(original.state_dict())
    fused = fuse(original)
    losses = []
    for module in (fused, twin):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        torch.manual_seed(1)
        for _ in range(5):
            losses.append(module(torch.randn(6, 3), torch.randn(6, 2)))
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(losses[:5], losses[5:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dict(fused.state_dict()), dict(twin.state_dict()), rtol=1e-4, atol=1e-5)
    assert original.head.weight is fused.head.weight


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_fused_and_complete(copied):
    fused = fuse(Network(nn.MSELoss())).eval()
    other = copied(fused)
    assert not other.training
    assert len(fused_calls(other)) == 1
    assert_same_module(other, fused)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in fused.parameters()}
    fused.load_state_dict({name: t + 1 for name, t in other.state_dict().items()}, assign=True)
    assert not torch.equal(fused.head.weight, other.head.weight)
    assert_same_module(copied(fused), fused)


class Branches(Network):
    def forward(self, x, y):
        return F.mse_loss(self.head(self.body(x)), y) if x.sum() > 0 else y.sum()


class ByMode(Network):
    def forward(self, x, y):
        return F.mse_loss(self.head(self.body(x)) if self.training else self.body(x), y)


class InPlace(Network):
    def forward(self, x, y):
        x += 1
        return F.mse_loss(self.head(self.body(x)), y)


class Counts(Network):
    calls = 0

    def forward(self, x, y):
        self.calls += 1
        return F.mse_loss(self.head(self.body(x)), y)


class Remembers(Network):
    def __init__(self):
        super().__init__()
        self.log, self.last = [], {}

    def forward(self, x, y):
        self.log.append(self.body(x))
        self.last["x"] = x
        return F.mse_loss(self.head(self.log[-1]), y)


class Teacher(Network):
    def forward(self, x, y):
        with torch.no_grad():
            aim = self.body(y)
        return F.mse_loss(self.head(self.body(x)), aim)


class FrozenBody(Network):
    @torch.no_grad()
    def features(self, x):
        return self.body(x)

    def forward(self, x, y):
        return F.mse_loss(self.head(self.features(x)), y)


class FrozenInEvaluation(Network):
    def forward(self, x, y):
        with torch.set_grad_enabled(self.training):
            return F.mse_loss(self.head(self.body(x)), y)


class Autocast(Network):
    def forward(self, x, y):
        with torch.autocast("cpu", torch.bfloat16):
            prediction = self.head(self.body(x))
        return F.mse_loss(prediction, y)


class Random(Network):
    def forward(self, x, y):
        return F.mse_loss(self.head(self.body(x * torch.rand(()).item())), y)


class Constant(Network):
    def forward(self, x, y):
        return F.mse_loss(self.head(self.body(x * torch.ones(()))), y)


class Both(Network):
    def forward(self, x, y):
        prediction = self.head(self.body(x))
        return F.mse_loss(prediction, y), prediction


class Activated(Network):
    def forward(self, x, y):
        return F.mse_loss(torch.relu(self.head(self.body(x))), y)


class ChangesFeatures(Network):
    """Adds to what went into the head, which has read it by then, before the loss."""

    change = staticmethod(lambda h: h.add_(1))

    def forward(self, x, y):
        h = self.body(x)
        prediction = self.head(h)
        return self.change(h).mean() + F.mse_loss(prediction, y)


class ChangesByFunction(ChangesFeatures):
    change = staticmethod(lambda h: F.relu(h, True))


class ChangesByModule(ChangesFeatures):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU(inplace=True)

    def change(self, h):
        return self.act(h)


class ChangesOut(ChangesFeatures):
    change = staticmethod(lambda h: torch.neg(h, out=h))


class DropsOneOfTwo(Network):
    def forward(self, x, y):
        return F.mse_loss(self.head(self.body(x))[..., 0], y[:, 0])


class Legacy(Network):
    def forward(self, x, y):
        return F.mse_loss(self.head(self.body(x)), y, size_average=False)


class CrossEntropy(Network):
    def forward(self, x, y):
        return F.cross_entropy(self.head(self.body(x)), y)


def hooked(where):
    def make():
        module = Network(nn.MSELoss())
        where(module).register_forward_hook(lambda m, args, output: output)
        return module

    return make


def parametrized():
    module = Network(nn.MSELoss())
    nn.utils.parametrizations.weight_norm(module.head)
    return module


REFUSED = {
    "a branch": (Branches, "torch.fx cannot trace Branches .*control flow"),
    "by training mode": (ByMode, "ByMode computes something else in evaluation mode"),
    "in place": (InPlace, "InPlace works in place"),
    "counting": (Counts, "Counts changes its `calls`"),
    "remembering": (Remembers, "Remembers changes its `l(og|ast)`"),
    "a target without gradient": (Teacher, "Teacher enters a grad mode"),
    "features without gradient": (FrozenBody, "FrozenBody enters a grad mode"),
    "gradients by training mode": (FrozenInEvaluation, "FrozenInEvaluation enters a grad mode"),
    "autocast of its own": (Autocast, "Autocast enters a grad mode, inference_mode or autocast"),
    "random": (Random, "Random draws random numbers"),
    "a constant": (Constant, "Constant uses a tensor that is neither a parameter nor a buffer"),
    "prediction returned": (Both, "the output of `head` is used by more than the loss"),
    "an activation between": (Activated, "no operand of the loss is the output of an nn.Linear"),
    "features changed": (ChangesFeatures, "`add_` may change what went into `head` before the loss"),
    "features changed by a function": (ChangesByFunction, "`relu` may change what went into `head`"),
    "features changed by a module": (ChangesByModule, "`act` may change what went into `head`"),
    "features overwritten": (ChangesOut, "`neg` may change what went into `head`"),
    "one of two outputs": (DropsOneOfTwo, "`head` has not one output"),
    "legacy options": (Legacy, "F.mse_loss is given a size_average"),
    "another loss": (CrossEntropy, "there is no regression loss in its forward"),
    "no loss": (lambda: nn.Sequential(nn.Linear(3, 2)), "module is a Sequential"),
    "hooks of the module": (hooked(lambda m: m), "Network has hooks on its Network"),
    "hooks of the layer": (hooked(lambda m: m.head), "`head` is a Linear with hooks"),
    "hooks of the loss": (hooked(lambda m: m.loss), "`loss` has hooks"),
    "parametrized": (parametrized, "`head` is a ParametrizedLinear with hooks or more"),
    "fused already": (lambda: linreg_ext.LinearMSELoss(3, 1), "there is no regression loss"),
}


@pytest.mark.parametrize("module", REFUSED)
def test_what_is_refused_is_named_and_left_alone(module):
    """Fails where something that the graph would not show is rewritten all the same."""
    make, words = REFUSED[module]
    original = make()
    before = {name: dict(vars(m)) for name, m in original.named_modules()}
    state = torch.get_rng_state()
    with pytest.raises(NotImplementedError, match=f"fuse: .*{words}"):
        fuse(original)
    assert torch.equal(state, torch.get_rng_state())
    for name, m in original.named_modules():
        assert vars(m).keys() == before[name].keys()
        assert all(vars(m)[key] is value for key, value in before[name].items())


def test_what_a_forward_would_keep_is_taken_out_again():
    original = Remembers()
    original.log.append("earlier")
    with pytest.raises(NotImplementedError, match="Remembers changes its"):
        fuse(original)
    assert original.log == ["earlier"]
    assert original.last == {}


def test_a_module_is_needed():
    with pytest.raises(TypeError, match=r"fuse: module must be an nn.Module, got function"):
        fuse(lambda x, y: F.mse_loss(x, y))


def test_the_losses_are_functions_of_torch_to_tracers_and_modes():
    """A network with a fused head can be traced, and a TorchFunctionMode sees the loss."""

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
    expected = F.huber_loss(model.head.linear(model.body(x)), y, delta=0.5)
    torch.testing.assert_close(fx.symbolic_trace(model)(x, y), expected)
    with Sees() as mode:
        torch.testing.assert_close(model(x, y), expected)
    assert linreg_ext.linear_huber_loss in mode.seen
