# SPDX-License-Identifier: BSD-3-Clause
"""Models, optimizers and steps that are copied, saved, loaded, moved or made without data behave like stock ones."""

import copy
import io
import pickle
import warnings

import plain_loop
import pytest
import torch
import torch.nn.functional as F
from test_train_step import Forwards, sgd
from torch import nn

from linreg_ext import LinearHuberLoss, LinearMSELoss, make_train_step


class Stock(nn.Module):
    """LinearMSELoss in plain PyTorch."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x, y):
        return F.mse_loss(self.linear(x), y)


def train(model, optimizer, batches):
    """The gradients of every step, since Adam takes the same step for any multiple of them."""
    grads = []
    for x, y in batches:
        model(x, y).backward()
        grads += [p.grad for p in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
    return grads


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state):
    safetensors = pytest.importorskip("safetensors.torch")
    return safetensors.load(safetensors.save(state))


WAYS = {
    "torch.save": lambda state: saved_and_loaded(state),
    "safetensors": through_safetensors,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("classes", [(LinearMSELoss, Stock), (Stock, LinearMSELoss)], ids=["to stock", "from stock"])
def test_training_goes_on_in_the_other_module(classes, assign, way):
    """Fails if the two differ in names, shapes, momentum or gradients."""
    first, second = classes
    batches = [(torch.randn(5, 3), torch.randn(5, 2)) for _ in range(6)]
    whole = Stock(3, 2)
    model = first(3, 2)
    model.load_state_dict(whole.state_dict())
    optimizer, plain = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (model, whole))
    expected = train(whole, plain, batches)
    grads = train(model, optimizer, batches[:3])
    other = second(3, 2)
    result = other.load_state_dict(WAYS[way](model.state_dict()), assign=assign)
    assert result.missing_keys == result.unexpected_keys == []
    next_optimizer = torch.optim.Adam(other.parameters(), lr=0.1)
    next_optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    grads += train(other, next_optimizer, batches[3:])
    assert_same(grads, expected)
    assert_same(list(other.state_dict().values()), list(whole.state_dict().values()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_module_are_its_equals_and_nothing_more(copied):
    """Fails if a copy loses its threshold or reduction, or shares parameters."""
    model = nn.Sequential(nn.Linear(2, 3), LinearHuberLoss(3, 1, delta=0.5, reduction="sum"))
    twin = copied(model)
    x, y = torch.randn(4, 2), torch.randn(4, 1)
    losses = [m[1](m[0](x), y) for m in (model, twin)]
    assert torch.equal(*losses)
    assert_same(losses[1], F.huber_loss(model[1].predict(model[0](x)), y, delta=0.5, reduction="sum"))
    losses[1].backward()
    assert all(p.grad is None for p in model.parameters())
    assert repr(model) == repr(twin)


def test_parameters_given_by_functional_call():
    """Fails if the module's own parameters are used, or the gradients do not reach the given ones."""
    model = LinearMSELoss(3, 2)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    given = {name: torch.randn_like(p).requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, given, (x, y)).backward()
    plain = [p.detach().clone().requires_grad_() for p in given.values()]
    F.mse_loss(F.linear(x, *plain), y).backward()
    assert_same([p.grad for p in given.values()], [p.grad for p in plain])
    assert model.linear.weight.grad is None


@pytest.mark.parametrize("how", ["meta and to_empty", "skip_init"])
def test_a_module_that_is_made_without_data(how):
    """Fails if the parameters filled in later are not trained, or not as in plain PyTorch."""
    if how == "skip_init":
        model = nn.utils.skip_init(LinearMSELoss, 3, 1, device="cpu")
    else:
        with torch.device("meta"):
            model = LinearMSELoss(3, 1)
        assert model.linear.weight.is_meta
        assert model(torch.randn(4, 3, device="meta"), torch.randn(4, 1, device="meta")).is_meta
        model = model.to_empty(device="cpu")
    torch.manual_seed(1)
    model.linear.reset_parameters()
    torch.manual_seed(1)
    stock = Stock(3, 1)
    batches = [(torch.randn(5, 3), torch.randn(5, 1)) for _ in range(3)]
    for m in (model, stock):
        train(m, torch.optim.SGD(m.parameters(), lr=0.1), batches)
    assert_same(list(model.parameters()), list(stock.parameters()))


class Run:
    def __init__(self, make):
        torch.manual_seed(0)
        self.model, self.loss = Forwards(3, 1), nn.MSELoss()
        self.optimizer = sgd(self.model)
        self.x, self.y = torch.randn(6, 3), torch.randn(6, 1)
        self.step = make(self.model, self.loss, self.optimizer)


def assigned(run):
    run.model.load_state_dict({name: p * 0.5 for name, p in run.model.state_dict().items()}, assign=True)


def assigned_with_its_optimizer(run):
    assigned(run)
    run.optimizer.param_groups[0]["params"] = list(run.model.parameters())


def to_double(run):
    run.model.double()
    run.x, run.y = run.x.double(), run.y.double()


def to_double_with_its_buffers(run):
    to_double(run)
    run.optimizer.load_state_dict(run.optimizer.state_dict())


def swapped_to_double(run):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        to_double_with_its_buffers(run)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def emptied(run):
    """To the meta device and back, with new parameters."""
    kept = copy.deepcopy(run.model.state_dict())
    run.model.to("meta").to_empty(device="cpu")
    run.model.load_state_dict(kept)


def emptied_with_a_new_optimizer(run):
    emptied(run)
    state = run.optimizer.state_dict()
    optimizer = sgd(run.model)
    optimizer.load_state_dict(state)
    run.optimizer.param_groups, run.optimizer.state = optimizer.param_groups, optimizer.state


def old_checkpoint(run):
    """From a version of PyTorch with fewer settings."""
    state = run.optimizer.state_dict()
    for name in ("nesterov", "maximize", "foreach", "differentiable", "fused"):
        state["param_groups"][0].pop(name)
    run.optimizer.load_state_dict(state)


def new_data_of_parameters(run):
    for p in run.model.parameters():
        p.data = p.data * 2


def shared(run):
    run.model.share_memory()


CHANGES = {  # and the level of the following steps
    "assign=True, optimizer left behind": (assigned, "gradients: a parameter of the model is not in the optimizer"),
    "assign=True": (assigned_with_its_optimizer, "fused"),
    "float64, momenta left behind": (to_double, "gradients: a momentum buffer differs from its parameter in dtype"),
    "float64": (to_double_with_its_buffers, "fused"),
    "float64, parameters swapped": (swapped_to_double, "fused"),
    "to_empty, optimizer left behind": (emptied, "gradients: a parameter of the model is not in the optimizer"),
    "to_empty": (emptied_with_a_new_optimizer, "fused"),
    "a checkpoint of an old PyTorch": (old_checkpoint, "fused"),
    "p.data": (new_data_of_parameters, "fused"),
    "share_memory": (shared, "fused"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_after_its_parameters_have_changed(change):
    """Fails if a bound step continues with parameters or momentum buffers that have been replaced."""
    change, level = CHANGES[change]
    results = []
    for make in (make_train_step, plain_loop.make_train_step):
        run = Run(make)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = [run.step(run.x, run.y) for _ in range(3)]
            change(run)
            losses += [run.step(run.x, run.y) for _ in range(3)]
        if make is make_train_step:
            assert run.step.explain().startswith(level), run.step.explain()
        parameters = list(run.model.parameters())
        state = [values["momentum_buffer"] for values in run.optimizer.state.values()]
        results.append([*losses, *[p.detach() for p in parameters], *state])
        results[-1] += [p.grad for p in parameters if p.grad is not None]
    assert_same(*results)


def test_a_lazy_layer_is_fused_when_it_has_become_one():
    """Fails if the first, eager step or the fused ones after it differ from the plain loop's."""
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    results = []
    for make in (make_train_step, plain_loop.make_train_step):
        torch.manual_seed(0)
        model = nn.Sequential(nn.LazyLinear(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step = make(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1))
            results.append([step(x, y) for _ in range(4)])
        if make is make_train_step:
            assert step.explain().startswith("fused")
    assert_same(*results)
