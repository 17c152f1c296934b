# SPDX-License-Identifier: BSD-3-Clause
"""Which level a step takes, why, and that no level is anything but the plain loop."""

import copy
import functools
import types
import warnings

import plain_loop
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from linreg_ext import linear_mse_loss, make_train_step


class TwoNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.a + self.b * x


class Forwards(nn.Module):
    def __init__(self, d=1, k=1):
        super().__init__()
        self.linear = nn.Linear(d, k)

    def forward(self, x):
        return self.linear(x)


class Product(nn.Module):
    """x @ w.t() + b, as the tutorials write it."""

    def __init__(self, d, k):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(k, d)), nn.Parameter(torch.randn(k))

    def forward(self, x):
        return x @ self.w.t() + self.b


class Columns(Product):
    def __init__(self, d, k):
        super().__init__(d, k)
        self.w = nn.Parameter(torch.randn(d, k))

    def forward(self, x):
        return torch.addmm(self.b, x, self.w)


class Vector(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.w = nn.Parameter(torch.randn(d))

    def forward(self, x):
        return torch.mv(x, self.w)


class Flat(Forwards):
    def forward(self, x):
        return self.linear(x).squeeze(-1)


def flattened_mse(prediction, target):
    return F.mse_loss(prediction.reshape(target.shape), target)


def by_hand(t1, t2):
    diff = t1 - t2
    return torch.sum(diff * diff) / diff.numel()


FUSED_MODELS = {  # model, features, shape of a target of 6 rows
    "nn.Linear": (lambda: nn.Linear(3, 2), 3, (6, 2)),
    "nn.Linear without bias": (lambda: nn.Linear(3, 1, bias=False), 3, (6, 1)),
    "Sequential": (lambda: nn.Sequential(nn.Linear(3, 1)), 3, (6, 1)),
    "nested Sequential with Identity": (lambda: nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(3, 1))), 3, (6, 1)),
    "a module that forwards": (lambda: Forwards(3, 2), 3, (6, 2)),
    "a + b x": (TwoNumbers, 1, (6, 1)),
    "x @ w.t() + b": (lambda: Product(3, 2), 3, (6, 2)),
    "addmm with [D, K]": (lambda: Columns(3, 2), 3, (6, 2)),
    "F.linear with w.t()": (lambda: LinearTransposed(3, 3), 3, (6, 3)),
    "one of two": (lambda: Choice(1), 1, (6, 1)),
    "torch.mv": (lambda: Vector(3), 3, (6,)),
    "squeezed": (lambda: Flat(3), 3, (6,)),
}  # fmt: skip

FUSED_LOSSES = {
    "MSELoss": nn.MSELoss(),
    "MSELoss, sum": nn.MSELoss(reduction="sum"),
    "L1Loss": nn.L1Loss(),
    "HuberLoss": nn.HuberLoss(delta=0.5),
    "SmoothL1Loss": nn.SmoothL1Loss(beta=0.25),
    "SmoothL1Loss, beta 0": nn.SmoothL1Loss(beta=0.0),
    "F.mse_loss": F.mse_loss,
    "F.l1_loss": F.l1_loss,
    "partial": functools.partial(F.huber_loss, delta=2.0, reduction="sum"),
    "swapped": lambda prediction, target: F.mse_loss(target, prediction),
    "with options": lambda prediction, target: F.smooth_l1_loss(prediction, target, beta=0.5, reduction="sum"),
    "flattened": flattened_mse,
    "view_as": lambda prediction, target: F.l1_loss(prediction.view_as(target), target),
    "mean of squares": lambda prediction, target: ((target - prediction) ** 2).mean(),
    "sum of squares": lambda prediction, target: torch.sum((prediction - target).pow(2)),
    "mean of absolutes": lambda prediction, target: torch.mean(torch.abs(prediction - target)),
    "by hand": by_hand,
}


def assert_same_training(model, loss_fn, make_optimizer, x, y, level, steps=5, rtol=1e-5):
    """Steps of make_train_step beside the plain loop: losses, parameters, gradients and optimizer state."""
    twin, twin_loss = copy.deepcopy(model), copy.deepcopy(loss_fn)
    optimizer, twin_optimizer = make_optimizer(model), make_optimizer(twin)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if level == "fused" else "ignore")
        step = make_train_step(model, loss_fn, optimizer)
        plain = plain_loop.make_train_step(twin, twin_loss, twin_optimizer)
        for _ in range(steps):
            loss, expected = step(x, y), plain(x, y)
            assert loss.shape == ()
            assert not loss.requires_grad
            torch.testing.assert_close(loss, expected, rtol=rtol, atol=rtol)
    assert step.explain().split(":")[0] == level, step.explain()
    assert model.training
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=rtol, atol=rtol, msg=name)
        assert (ours.grad is None) == (theirs.grad is None)
    ours, theirs = optimizer.state_dict(), twin_optimizer.state_dict()
    assert ours["state"].keys() == theirs["state"].keys()
    return step


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9, **options})


@pytest.mark.parametrize("model", FUSED_MODELS)
def test_models_that_are_fused(model):
    make, d, shape = FUSED_MODELS[model]
    assert_same_training(make(), nn.MSELoss(), sgd, torch.randn(6, d), torch.randn(shape), "fused")


@pytest.mark.parametrize("loss", FUSED_LOSSES)
def test_losses_that_are_fused(loss):
    optimizer = functools.partial(sgd, lr=0.01)
    assert_same_training(nn.Linear(3, 2), FUSED_LOSSES[loss], optimizer, torch.randn(6, 3), torch.randn(6, 2), "fused")


def test_a_prediction_reshaped_to_the_target():
    x, y = torch.randn(6, 3), torch.randn(6)
    assert_same_training(nn.Linear(3, 1, bias=False), flattened_mse, sgd, x, y, "fused")


class Branches(Forwards):
    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


class Attribute(Forwards):
    scale = 2.0

    def forward(self, x):
        return self.linear(x) * self.scale


class Twice(Forwards):
    def forward(self, x):
        return self.linear(x) + self.linear(x)


class Decorated(Forwards):
    @torch.no_grad()
    def inner(self, x):
        return x * 2

    def forward(self, x):
        return self.linear(self.inner(x))


class SharedParameter(TwoNumbers):
    def forward(self, x):
        return self.a + self.a * x


class LinearTransposed(Columns):
    def forward(self, x):
        return F.linear(x, self.w.t(), self.b)


class InPlace(Product):
    def forward(self, x):
        p = x @ self.w.t()
        q = p
        p += self.b
        return q


class InPlaceCall(Product):
    def forward(self, x):
        p = x @ self.w.t()
        p.add_(self.b)
        return p


class ByMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x):
        return (self.a, self.b)[self.training](x)


class Choice(ByMode):
    def __init__(self, chosen):
        super().__init__()
        self.layers = nn.ModuleList([self.a, self.b])
        self.chosen = chosen

    def forward(self, x):
        return self.layers[self.chosen](x)


class ChoiceInList(Choice):
    def forward(self, x):
        return self.layers[self.chosen[0]](x)


class Helper(Forwards):
    def helper(self, x):
        return self.linear(x) if self.training else x

    def forward(self, x):
        return self.helper(x)


class Mean(Forwards):
    def mean(self, x):
        return x * 2

    def forward(self, x):
        return self.linear(self.mean(x))


class Counts(Forwards):
    count = 0

    def forward(self, x):
        self.count += 1
        return self.linear(x)


class Logs(Forwards):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        self.log.append(1)
        return self.linear(x)


class Remembers(Forwards):
    def forward(self, x):
        self.last = x
        return self.linear(x)


class Noise(Forwards):
    def forward(self, x):
        return self.linear(x) + 0.0 * torch.rand(1)


class FirstRow(Forwards):
    def forward(self, x):
        return self.linear(x).squeeze(-1)[..., 0]


def hooked():
    model = nn.Linear(1, 1)
    model.register_forward_hook(lambda module, args, output: output * 2)
    return model


def patched():
    model = nn.Linear(1, 1)
    model.forward = types.MethodType(lambda self, x: F.linear(x, self.weight * 2, self.bias), model)
    return model


def parametrized():
    model = nn.Linear(1, 1)
    nn.utils.parametrizations.weight_norm(model)
    return model


EAGER_MODELS = {
    "a buffer added": lambda: nn.Sequential(Forwards(), nn.BatchNorm1d(1)),
    "in place under another name": lambda: InPlace(1, 1),
    "in place, result unused": lambda: InPlaceCall(1, 1),
    "by training mode": ByMode,
    "chosen in a list": lambda: ChoiceInList([0]),
    "a helper with a branch": Helper,
    "a method named like an operation": Mean,
    "counting": Counts,
    "logging": Logs,
    "remembering": Remembers,
    "random": Noise,
    "two layers": lambda: nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1)),
    "two layers, both linear": lambda: nn.Sequential(nn.Linear(1, 3), nn.Linear(3, 1)),
    "dropout": lambda: nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.0)),
    "control flow": Branches,
    "a scale": Attribute,
    "used twice": Twice,
    "more than it seems": Decorated,
    "one parameter for both": SharedParameter,
    "a forward hook": hooked,
    "a forward of its own": patched,
    "parametrized": parametrized,
}


@pytest.mark.parametrize("model", EAGER_MODELS)
def test_models_that_are_not_fused_train_as_they_are(model):
    model = EAGER_MODELS[model]()
    optimizer = functools.partial(sgd, lr=0.001)
    assert_same_training(model, nn.MSELoss(), optimizer, torch.rand(6, 1), torch.rand(6, 1), "eager", rtol=1e-6)


def test_a_bias_that_is_broadcast_over_targets_is_not_fused():
    model, optimizer = Product(3, 2), functools.partial(sgd, lr=0.001)
    model.b = nn.Parameter(torch.randn(1))
    assert_same_training(model, nn.MSELoss(), optimizer, torch.rand(6, 3), torch.rand(6, 2), "eager", rtol=1e-6)


def test_a_parameter_with_the_negative_bit_trains_as_it_is():
    x, y = torch.rand(6, 1), torch.rand(6, 1)
    model, twin = nn.Linear(1, 1), nn.Linear(1, 1)
    model.weight = nn.Parameter(torch._neg_view(-twin.weight.detach()))  # a copy of the model would have no such bit
    model.bias.data.copy_(twin.bias.detach())
    with pytest.warns(UserWarning, match="^linreg_ext: eager: a parameter has the negative bit$"):
        step = make_train_step(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    fused = make_train_step(twin, nn.MSELoss(), torch.optim.SGD(twin.parameters(), lr=0.1))
    for _ in range(2):
        step(x, y)
        fused(x, y)
    assert model.weight.is_neg()
    torch.testing.assert_close(model.weight, twin.weight)
    torch.testing.assert_close(model.bias, twin.bias)


def raised_to_the_fourth():
    loss = nn.MSELoss()
    loss.forward = lambda prediction, target: ((prediction - target) ** 4).mean()
    return loss


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        lambda prediction, target: F.mse_loss(prediction, target) * 3,
        lambda prediction, target: F.mse_loss(prediction, target, weight=torch.ones(6, 2) * 2),
        lambda prediction, target: F.mse_loss(prediction, target, weight=target),
        lambda prediction, target: (prediction - target).mean(),
        lambda prediction, target: ((prediction - target) * (target - prediction)).mean(),
        lambda prediction, target: torch.div(((prediction - target) ** 2).sum(), target.numel(), rounding_mode="floor"),
        lambda prediction, target: F.mse_loss(prediction.view(target.numel()), target.view(target.numel())),
        raised_to_the_fourth(),
        lambda prediction, target: F.mse_loss(prediction, prediction * 0 + target),
        lambda prediction, target: F.mse_loss(prediction, target) if prediction.sum() > 0 else F.l1_loss(prediction, target),
    ],
)  # fmt: skip
def test_losses_that_are_not_fused_train_as_they_are(loss):
    optimizer = functools.partial(sgd, lr=0.001)
    assert_same_training(nn.Linear(3, 2), loss, optimizer, torch.rand(6, 3), torch.rand(6, 2), "eager", rtol=1e-6)


def test_a_loss_that_reads_from_outside_is_not_fused():
    power = 2

    def loss(prediction, target):
        return ((prediction - target) ** power).mean()

    with pytest.warns(UserWarning, match="eager: the loss uses `power` from outside"):
        make_train_step(nn.Linear(1, 1), loss, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad"])
def test_another_optimizer_gets_its_gradients_from_one_pass(name):
    def make(model):
        return getattr(torch.optim, name)(model.parameters(), lr=0.01)

    for model, shape in ((nn.Linear(3, 2), (6, 2)), (Columns(3, 2), (6, 2)), (Flat(3), (6,))):
        step = assert_same_training(model, nn.MSELoss(), make, torch.randn(6, 3), torch.randn(shape), "gradients")
        assert name in step.explain()


def test_what_makes_sgd_step_for_itself():
    """Hooks, settings of its own for the bias, an optimizer that is differentiable, a subclass, a replaced step."""
    x, y = torch.randn(6, 3), torch.randn(6, 2)

    class Mine(torch.optim.SGD):
        pass

    def groups(model):
        return torch.optim.SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}], lr=0.1)

    def with_hook(model):
        optimizer = sgd(model)
        optimizer.register_step_post_hook(lambda *_: None)
        return optimizer

    def replaced(model):
        optimizer = sgd(model)
        original = optimizer.step
        optimizer.step = lambda: original()
        return optimizer

    for make, words in (
        (groups, "different settings"), (with_hook, "hooks"), (replaced, "replaced"),
        (lambda model: Mine(model.parameters(), lr=0.1), "Mine"),
    ):  # fmt: skip
        step = assert_same_training(nn.Linear(3, 2), nn.MSELoss(), make, x, y, "gradients")
        assert words in step.explain()
    two_equal_groups = lambda m: torch.optim.SGD([{"params": [m.weight]}, {"params": [m.bias]}], lr=0.1)  # noqa: E731
    assert_same_training(nn.Linear(3, 2), nn.MSELoss(), two_equal_groups, x, y, "fused")


def test_frozen_parameters_stay_frozen():
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    for frozen in ("weight", "bias"):
        model = nn.Linear(3, 2)
        getattr(model, frozen).requires_grad_(False)
        before = getattr(model, frozen).clone()
        assert_same_training(model, nn.MSELoss(), lambda m: sgd(m, weight_decay=0.1), x, y, "fused")
        assert torch.equal(before, getattr(model, frozen))


def test_a_parameter_that_the_optimizer_does_not_have_collects_its_gradient():
    def make(model):
        return torch.optim.SGD([model.weight], lr=0.1)

    model = nn.Linear(3, 2)
    assert_same_training(model, nn.MSELoss(), make, torch.randn(6, 3), torch.randn(6, 2), "gradients")
    assert model.bias.grad is not None


def test_a_pending_gradient_is_added_as_in_the_plain_loop():
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    model = nn.Linear(3, 2)
    model.weight.grad = torch.ones(2, 3)
    twin = copy.deepcopy(model)
    twin.weight.grad = torch.ones(2, 3)
    optimizer, twin_optimizer = sgd(model), sgd(twin)
    with pytest.warns(UserWarning, match="gradients: a parameter already has a gradient"):
        step = make_train_step(model, nn.MSELoss(), optimizer)
    plain = plain_loop.make_train_step(twin, nn.MSELoss(), twin_optimizer)
    for _ in range(3):
        torch.testing.assert_close(step(x, y), plain(x, y))
    torch.testing.assert_close(model.weight.detach(), twin.weight.detach())
    assert step.explain().startswith("fused")  # from the second step on


def test_what_changes_between_steps_is_seen():
    x, y = torch.randn(6, 1), torch.randn(6, 1)
    model, loss = Forwards(), nn.MSELoss()
    optimizer = sgd(model)
    step = make_train_step(model, loss, optimizer)
    step(x, y)
    assert step.explain().startswith("fused")

    hook = model.linear.register_forward_hook(lambda module, args, output: output * 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match="eager: the model has hooks"):
        value = step(x, y)
    twice = 2 * F.linear(x, before["linear.weight"], before["linear.bias"])
    torch.testing.assert_close(value, F.mse_loss(twice, y))
    hook.remove()

    model.linear.bias = None
    before = copy.deepcopy(model)
    torch.testing.assert_close(step(x, y), F.mse_loss(before(x), y).detach())
    assert step.explain().startswith("fused")

    loss.reduction = "sum"
    before = copy.deepcopy(model)
    torch.testing.assert_close(step(x, y), F.mse_loss(before(x), y, reduction="sum").detach())

    model.linear = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
    optimizer.add_param_group({"params": list(model.linear.parameters())})
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="eager: the model holds a ReLU"):
        torch.testing.assert_close(step(x, y), F.mse_loss(before(x), y, reduction="sum").detach())


def test_a_number_that_forward_reads_is_seen_to_change():
    model, x, y = Choice(0), torch.randn(6, 1), torch.randn(6, 1)
    step = make_train_step(model, nn.MSELoss(), sgd(model, momentum=0.0))
    step(x, y)
    model.chosen = 1
    before = copy.deepcopy(model)
    torch.testing.assert_close(step(x, y), F.mse_loss(before.b(x), y).detach())
    assert step.explain().startswith("fused")
    assert torch.equal(model.a.weight, before.a.weight)


def test_names_of_globals_do_not_matter_to_attributes():
    """A script's own variables may have the names of a model's parameters."""
    assert "w" in test_names_of_globals_do_not_matter_to_attributes.__globals__
    assert_same_training(Product(3, 2), nn.MSELoss(), sgd, torch.randn(6, 3), torch.randn(6, 2), "fused")


w = "the global of that name"


def test_training_mode_is_set_as_the_plain_loop_sets_it():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[0].eval()
    assert_same_training(model, nn.MSELoss(), sgd, torch.randn(6, 3), torch.randn(6, 1), "eager")
    assert model[0].training
    inner = nn.Sequential(nn.Linear(3, 1))
    inner[0].eval()
    assert_same_training(inner, nn.MSELoss(), sgd, torch.randn(6, 3), torch.randn(6, 1), "fused")
    assert inner[0].training


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate:UserWarning")
def test_optimizers_that_do_more_than_they_seem_to():
    x, y = torch.randn(6, 3), torch.randn(6, 2)

    def twice(model):
        return torch.optim.SGD([model.weight, model.weight, model.bias], lr=0.05)

    def wrapped(model):
        optimizer = sgd(model)
        torch.optim.lr_scheduler.StepLR(optimizer, 100)
        original = optimizer.step
        optimizer.step = functools.wraps(original)(lambda: original())
        return optimizer

    def replaced(model):
        optimizer = sgd(model)
        original = optimizer.zero_grad
        optimizer.zero_grad = lambda: original()
        return optimizer

    for make, words in ((twice, "twice"), (wrapped, "replaced"), (replaced, "zero_grad")):
        step = assert_same_training(nn.Linear(3, 2), nn.MSELoss(), make, x, y, "gradients")
        assert words in step.explain()


def test_data_that_the_kernels_do_not_take_is_left_to_pytorch():
    x = torch.randn(6, 3)
    for batch in ((x, torch.randint(5, (6, 2))), (x, torch.randn(6, 2).double()), (x.to_sparse(), torch.randn(6, 2))):
        # Of l1: mse_loss of torch 2.11 has no derivative where the target is of another dtype.
        assert_same_training(nn.Linear(3, 2), nn.L1Loss(), sgd, *batch, "eager")
    batch = torch.randn(6, 3, dtype=torch.complex64), torch.randn(6, 2, dtype=torch.complex64)
    assert_same_training(nn.Linear(3, 2, dtype=torch.complex64), nn.L1Loss(), sgd, *batch, "eager")
    model = Flat(3)
    step = make_train_step(model, nn.MSELoss(), sgd(model))
    with pytest.raises(RuntimeError, match=r"target must have shape \[6\], got \[6, 1\]"):
        step(x, torch.randn(6, 1))


def test_data_that_asks_for_more_is_not_fused():
    model = nn.Linear(3, 2)
    step = make_train_step(model, nn.MSELoss(), sgd(model))
    x, y = torch.randn(6, 3, requires_grad=True), torch.randn(6, 2)
    with pytest.warns(UserWarning, match="eager: a batch requires grad"):
        step(x, y)
    assert x.grad is not None
    with pytest.warns(UserWarning, match="eager: autocast is on"), torch.autocast("cpu", dtype=torch.bfloat16):
        step(x.detach(), y)
    with pytest.warns(UserWarning, match="eager: grad mode is off"), torch.no_grad(), pytest.raises(RuntimeError):
        step(x.detach(), y)
    step(x.detach(), y)
    assert step.explain().startswith("fused")


def test_a_device_without_kernels_is_left_to_pytorch():
    model = nn.Linear(3, 2, device="meta")
    with pytest.warns(UserWarning, match="eager: this build has no kernels for meta"):
        step = make_train_step(model, nn.MSELoss(), sgd(model))
    assert step(torch.randn(6, 3, device="meta"), torch.randn(6, 2, device="meta")).device.type == "meta"
    arguments = (torch.randn(6, 3, device="meta"), torch.randn(2, 3, device="meta"), torch.randn(6, 2, device="meta"))
    assert linear_mse_loss(*arguments).device.type == "meta"  # the fake kernel's


@pytest.mark.filterwarnings("ignore:linreg_ext")
def test_reasons_are_sentences():
    for cls, words in ((nn.ReLU, "a ReLU"), (nn.LSTM, "an LSTM"), (nn.Unfold, "an Unfold"), (nn.ELU, "an ELU")):
        model = nn.Sequential(nn.Linear(3, 1), cls(1, 1) if cls in (nn.LSTM, nn.Unfold) else cls())
        assert make_train_step(model, nn.MSELoss(), sgd(model)).explain() == f"eager: the model holds {words}"
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    step = make_train_step(model, nn.MSELoss(), sgd(model))
    step(torch.ones(3), torch.ones(1))
    assert step.explain().startswith("eager: the input is 1-dimensional")


def test_the_warning_comes_once():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.warns(UserWarning, match="gradients") as caught:  # noqa: PT031 - all of it must warn once
        step = make_train_step(model, nn.MSELoss(), optimizer)
        for _ in range(5):
            step(torch.randn(6, 3), torch.randn(6, 2))
    assert [str(w.message) for w in caught] == [f"linreg_ext: {step.explain()}"]
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_schedulers_see_the_steps_and_do_not_warn(make, before):
    """Warnings are errors here; a scheduler may be made before or after the step."""
    x, y = torch.randn(6, 3), torch.randn(6, 2)
    model = nn.Linear(3, 2)
    twin = copy.deepcopy(model)
    optimizer, twin_optimizer = sgd(model), sgd(twin)
    scheduler = make(optimizer) if before else None
    step = make_train_step(model, nn.MSELoss(), optimizer)
    scheduler = scheduler or make(optimizer)
    twin_scheduler = make(twin_optimizer)
    plain = plain_loop.make_train_step(twin, nn.MSELoss(), twin_optimizer)
    for _ in range(8):
        torch.testing.assert_close(step(x, y), plain(x, y))
        scheduler.step()
        twin_scheduler.step()
    assert step.explain().startswith("fused")
    assert scheduler.state_dict().get("_last_lr") == twin_scheduler.state_dict().get("_last_lr")
    torch.testing.assert_close(model.weight.detach(), twin.weight.detach())
