# SPDX-License-Identifier: BSD-3-Clause
"""Whatever happens to a model and its optimizer between steps, and however the steps are taken, the state equals plain
PyTorch's. Hypothesis chooses the sequence, and a plain twin is compared after every rule."""

import copy
import io

import pytest
import torch
from test_train_step import Columns, Forwards, Product, Vector
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from linreg_ext import fit, linear_mse_loss, make_train_step

pytest.importorskip("hypothesis")
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

# All other warnings are errors, such as that of a scheduler that sees no step of the optimizer.
pytestmark = pytest.mark.filterwarnings("ignore:linreg_ext")

FEATURES = 3
MODELS = {
    "linear": lambda: nn.Linear(FEATURES, 2),
    "without bias": lambda: nn.Linear(FEATURES, 1, bias=False),
    "sequential": lambda: nn.Sequential(nn.Linear(FEATURES, 1)),
    "forwards": lambda: Forwards(FEATURES, 2),
    "product": lambda: Product(FEATURES, 2),
    "columns": lambda: Columns(FEATURES, 2),
    "vector": lambda: Vector(FEATURES),
    "wide": lambda: nn.Linear(FEATURES, 20),
}
LOSSES = {
    "mse": nn.MSELoss, "sum": lambda: nn.MSELoss(reduction="sum"), "l1": nn.L1Loss,
    "huber": lambda: nn.HuberLoss(delta=0.3), "smooth l1": lambda: nn.SmoothL1Loss(beta=0.5),
}  # fmt: skip
SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
}
RATES = st.floats(0, 0.02)


class Trainee:
    """A model with its loss and optimizer."""

    def __init__(self, model, loss, optimizer, scheduler=None):
        self.model, self.loss, self.optimizer, self.scheduler = model, loss, optimizer, scheduler

    def plain_step(self, x, y):
        self.model.train()
        loss = self.loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def parameters(self):
        return list(self.model.parameters())


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Switching(RuleBasedStateMachine):
    @initialize(
        model=st.sampled_from(list(MODELS)), loss=st.sampled_from(list(LOSSES)), lr=RATES,
        momentum=st.sampled_from([0.0, 0.9]), weight_decay=st.sampled_from([0.0, 0.1]), seed=st.integers(0, 2**32 - 1),
    )  # fmt: skip
    def begin(self, model, loss, lr, momentum, weight_decay, seed):
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.name, self.coarsest = model, torch.float64
        self.has_jumps = loss == "l1"  # of its derivative, where a residual's rounding error matters
        model = MODELS[model]().double()
        self.flat = isinstance(model, Vector)
        outputs = () if self.flat else tuple(model(torch.zeros(1, FEATURES, dtype=torch.float64)).shape[1:])
        self.x = torch.randn(12, FEATURES, dtype=torch.float64)
        self.y = torch.randn(12, *outputs, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.ours = Trainee(model, LOSSES[loss](), optimizer)
        self.twin = copy.deepcopy(self.ours)
        self.step = make_train_step(self.ours.model, self.ours.loss, self.ours.optimizer)
        self.kept = None

    def both(self, change):
        for trainee in (self.ours, self.twin):
            change(trainee)

    def batch(self, size):
        return self.x[:size], self.y[:size]

    def close(self, ours, theirs, name="loss"):
        """The tolerance for the rounding errors of about 200 steps."""
        assert ours.dtype == theirs.dtype, name
        error = (ours.double() - theirs.double()).norm()
        assert error <= 2000 * torch.finfo(self.coarsest).eps * (1 + theirs.double().norm()), (
            f"{name}: {ours}, {theirs}"
        )

    def trains(self):
        return any(p.requires_grad for p in self.ours.parameters())

    # Steps.

    @precondition(trains)
    @rule(count=st.integers(1, 4), size=st.integers(1, 12))
    def steps_of_a_train_step(self, count, size):
        for _ in range(count):
            waiting = any(p.grad is not None for p in self.ours.parameters())
            self.close(self.step(*self.batch(size)), self.twin.plain_step(*self.batch(size)))
            assert self.step.explain().startswith(
                "gradients: a parameter already has a gradient" if waiting else "fused"
            )

    @precondition(trains)
    @rule(count=st.integers(1, 3), size=st.integers(1, 12))
    def steps_of_a_plain_loop(self, count, size):
        for _ in range(count):
            self.close(self.ours.plain_step(*self.batch(size)), self.twin.plain_step(*self.batch(size)))

    @precondition(trains)
    @rule(epochs=st.integers(1, 2), batch_size=st.integers(3, 12), shuffle=st.booleans(), seed=st.integers(0, 99))
    def epochs_of_fit(self, epochs, batch_size, shuffle, seed):
        losses = []
        for trainee in (self.ours, self.twin):
            torch.manual_seed(seed)
            loader = DataLoader(TensorDataset(self.x, self.y), batch_size, shuffle=shuffle)
            if trainee is self.ours:
                history = fit(
                    epochs, trainee.model, trainee.loss, trainee.optimizer, loader, scheduler=trainee.scheduler,
                    progress=False,
                )  # fmt: skip
                losses.append(history.step_loss.to(self.x.dtype))
            else:
                steps = []
                for _ in range(epochs):
                    steps += [trainee.plain_step(x, y) for x, y in loader]
                    if trainee.scheduler is not None:
                        trainee.scheduler.step()
                losses.append(torch.stack(steps))
        self.close(*losses)

    @precondition(lambda self: self.name in ("linear", "sequential", "wide") and type(self.ours.loss) is nn.MSELoss)
    @precondition(trains)
    @rule(size=st.integers(1, 12))
    def a_step_of_a_fused_head(self, size):
        x, y = self.batch(size)
        trainee = self.ours
        trainee.model.train()
        weight, bias = trainee.parameters()
        loss = linear_mse_loss(x, weight, y, linear_bias=bias, reduction=trainee.loss.reduction)
        loss.backward()
        trainee.optimizer.step()
        trainee.optimizer.zero_grad()
        self.close(loss.detach(), self.twin.plain_step(x, y))

    # Settings.

    @rule(lr=RATES, tensor=st.sampled_from([None, torch.float32, torch.float64]))
    @precondition(lambda self: self.ours.scheduler is None)
    def change_lr(self, lr, tensor):
        self.both(lambda t: t.group.update(lr=lr if tensor is None else torch.tensor(lr, dtype=tensor)))

    @rule(momentum=st.sampled_from([0.0, 0.5, 0.9]), dampening=st.sampled_from([0.0, 0.5]), nesterov=st.booleans())
    def change_momentum(self, momentum, dampening, nesterov):
        nesterov = nesterov and momentum > 0 and dampening == 0
        self.both(lambda t: t.group.update(momentum=momentum, dampening=dampening, nesterov=nesterov))

    @rule(weight_decay=st.sampled_from([0.0, 0.3]), maximize=st.booleans())
    def change_weight_decay(self, weight_decay, maximize):
        self.both(lambda t: t.group.update(weight_decay=weight_decay, maximize=maximize))

    @rule(name=st.sampled_from(list(SCHEDULERS)))
    @precondition(lambda self: self.ours.scheduler is None and not isinstance(self.ours.group["lr"], torch.Tensor))
    def add_scheduler(self, name):
        self.both(lambda t: setattr(t, "scheduler", SCHEDULERS[name](t.optimizer)))

    # The state of the model and the optimizer.

    @rule(which=st.integers(0, 1), trains=st.booleans())
    def freeze_or_unfreeze(self, which, trains):
        self.both(lambda t: t.parameters()[which % len(t.parameters())].requires_grad_(trains))

    @rule()
    def forget_momenta(self):
        self.both(lambda t: t.optimizer.state.clear())

    @rule(size=st.integers(1, 12))
    @precondition(trains)
    def leave_a_gradient(self, size):
        x, y = self.batch(size)
        self.both(lambda t: t.loss(t.model(x), y).backward())

    @rule(to_none=st.booleans())
    def zero_grad(self, to_none):
        self.both(lambda t: t.optimizer.zero_grad(set_to_none=to_none))

    @rule(factor=st.sampled_from([0.5, -1.0]))
    def replace_the_data(self, factor):
        def change(trainee):
            for p in trainee.parameters():
                p.data = p.data * factor

        self.both(change)

    @rule(training=st.booleans())
    def change_mode(self, training):
        self.both(lambda t: t.model.train(training))

    @precondition(lambda self: not self.has_jumps)
    @rule(dtype=st.sampled_from([torch.float32, torch.float64]))
    def move_dtype(self, dtype):
        """The optimizer's state follows when it is reloaded."""

        def change(trainee):
            trainee.model.to(dtype)
            trainee.optimizer.load_state_dict(trainee.optimizer.state_dict())

        self.both(change)
        self.x, self.y = self.x.to(dtype), self.y.to(dtype)
        if dtype == torch.float32:
            self.coarsest = dtype  # what is rounded stays rounded

    # Copies, and saved state.

    @rule(keep_the_step=st.booleans())
    def save_and_load(self, keep_the_step):
        """Into new or existing objects."""

        def change(trainee):
            weights, state = through_a_file([trainee.model.state_dict(), trainee.optimizer.state_dict()])
            if not keep_the_step:
                trains = [p.requires_grad for p in trainee.parameters()]
                trainee.model = MODELS[self.name]().to(trainee.parameters()[0].dtype)
                for p, requires_grad in zip(trainee.parameters(), trains, strict=True):
                    p.requires_grad_(requires_grad)
                trainee.optimizer = torch.optim.SGD(trainee.parameters(), lr=99.0)
                trainee.scheduler = None
            trainee.model.load_state_dict(weights)
            trainee.optimizer.load_state_dict(state)

        self.both(change)
        if not keep_the_step:
            self.step = make_train_step(self.ours.model, self.ours.loss, self.ours.optimizer)

    @rule()
    def load_the_state_of_the_twin(self):
        self.ours.model.load_state_dict(self.twin.model.state_dict())
        self.ours.optimizer.load_state_dict(through_a_file(self.twin.optimizer.state_dict()))

    @rule()
    def keep(self):
        both = (self.ours, self.twin)
        self.kept = [through_a_file([t.model.state_dict(), t.optimizer.state_dict()]) for t in both]

    @precondition(lambda self: self.kept is not None)
    @rule()
    def go_back(self):
        for trainee, (weights, state) in zip((self.ours, self.twin), self.kept, strict=True):
            trainee.model.load_state_dict(weights)
            trainee.optimizer.load_state_dict(copy.deepcopy(state))  # it holds the tensors, which steps modify

    @precondition(lambda self: self.ours.scheduler is None)  # a copied one warns, of a plain loop as well
    @rule()
    def copy_all(self):
        self.step, self.ours = copy.deepcopy((self.step, self.ours))
        self.twin = copy.deepcopy(self.twin)

    @precondition(lambda self: self.ours.scheduler is None)
    @rule(name=st.sampled_from(["Adam", "RMSprop"]), size=st.integers(1, 12))
    def a_step_of_another_optimizer(self, name, size):
        """It moves the parameters and leaves SGD's state alone. Both divide by the size of a gradient, or by eps if it
        is 0 up to rounding errors, which PyTorch's eps of 1e-8 would amplify a million times."""
        if not self.trains():
            return
        optimizers = [getattr(torch.optim, name)(t.parameters(), lr=0.01, eps=0.1) for t in (self.ours, self.twin)]
        step = make_train_step(self.ours.model, self.ours.loss, optimizers[0])
        waiting = Trainee(self.twin.model, self.twin.loss, optimizers[1])
        self.close(step(*self.batch(size)), waiting.plain_step(*self.batch(size)))

    @rule()
    @precondition(lambda self: self.ours.scheduler is not None)
    def step_the_scheduler(self):
        # A scheduler step before the optimizer's first warns, on both sides.
        if getattr(self.twin.optimizer, "_opt_called", False):
            self.both(lambda t: t.scheduler.step())

    # Checked after every rule.

    @invariant()
    def parameters_and_gradients(self):
        for ours, theirs in zip(self.ours.parameters(), self.twin.parameters(), strict=True):
            self.close(ours.detach(), theirs.detach(), "parameter")
            assert ours.requires_grad == theirs.requires_grad
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                self.close(ours.grad, theirs.grad, "gradient")
        assert self.ours.model.training == self.twin.model.training

    @invariant()
    def state_of_the_optimizer(self):
        ours, theirs = self.ours.optimizer.state_dict(), self.twin.optimizer.state_dict()
        assert ours["param_groups"] == theirs["param_groups"]
        assert ours["state"].keys() == theirs["state"].keys()
        for key, values in theirs["state"].items():
            assert ours["state"][key].keys() == values.keys()
            for name, value in values.items():
                if value is None:
                    assert ours["state"][key][name] is None
                else:
                    self.close(ours["state"][key][name], value, name)

    @invariant()
    def state_of_the_scheduler(self):
        if self.ours.scheduler is not None:
            assert self.ours.scheduler.state_dict() == self.twin.scheduler.state_dict()


TestSwitching = Switching.TestCase
