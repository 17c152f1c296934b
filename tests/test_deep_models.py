# SPDX-License-Identifier: BSD-3-Clause
"""A fused head trains a network as `nn.Linear` and its loss do, in every kind of training loop."""

import copy
import functools

import plain_loop
import pytest
import torch
import torch.nn.functional as F
from accuracy import PLAIN, option
from torch import nn
from torch.utils.checkpoint import checkpoint

import linreg_ext

FUSED = {
    loss: (linreg_ext.modules.MODULES[loss], option(loss, 0.5), functools.partial(plain, **option(loss, 0.5)))
    for loss, plain in PLAIN.items()
}


class Network(nn.Module):
    """Layers under a fused head, or under the same head in plain PyTorch."""

    def __init__(self, loss="mse", plain=False, body=None, k=2):
        super().__init__()
        head, options, self.function = FUSED[loss]
        self.body = body() if body else nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5), nn.GELU())
        self.head, self.plain, self.rematerialise = head(5, k, **options), plain, None

    def whole(self, x, y):
        h = self.body(x)
        return self.function(self.head.linear(h), y) if self.plain else self.head(h, y)

    def forward(self, x, y):
        if self.rematerialise is None:
            return self.whole(x, y)
        return checkpoint(self.whole, x, y, use_reentrant=self.rematerialise)


def pair(**options):
    torch.manual_seed(0)
    model = Network(**options)
    twin = copy.deepcopy(model)
    twin.plain = True
    return model, twin


def batches(count=4, rows=6, k=2):
    torch.manual_seed(1)
    return [(torch.randn(rows, 3), torch.randn(rows, k)) for _ in range(count)]


def assert_same(ours, theirs, rtol=1e-4):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6)


def assert_trained_alike(train, **options):
    """`train(model)` has the same parameters, gradients and results, fused and plain."""
    results = []
    for model in pair(**options):
        before = [p.detach().clone() for p in model.parameters()]
        value = train(model)
        results.append([value, [p.detach() for p in model.parameters()], [p.grad for p in model.parameters()]])
        assert any(not torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    assert_same(*results)


def loop(make_optimizer):
    def train(model):
        optimizer = make_optimizer(model)
        losses, grads = [], []
        for x, y in batches():
            loss = model(x, y)
            loss.backward()
            losses.append(loss.detach())
            grads += [p.grad for p in model.parameters()]
            optimizer.step()
            optimizer.zero_grad()
        return losses, grads

    return train


def groups(model):
    return torch.optim.AdamW([
        {"params": model.body.parameters(), "lr": 1e-2, "weight_decay": 0.1},
        {"params": [model.head.linear.weight], "lr": 3e-2, "betas": (0.5, 0.9)},
        {"params": [model.head.linear.bias], "weight_decay": 0.0, "amsgrad": True},
    ])  # fmt: skip


OPTIMIZERS = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
    "Adam, foreach": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, foreach=True),
    "Adam, fused": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, fused=True),
    "AdamW, groups": groups,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", FUSED)
def test_optimizers(loss, optimizer):
    """Fails if the gradients of the head or of the layers below it are wrong at any step. Parameters alone would not
    show it: Adam takes the same step for any multiple of a gradient."""
    assert_trained_alike(loop(OPTIMIZERS[optimizer]), loss=loss)


def test_lbfgs_calls_the_loss_as_often_and_gets_the_same():
    """Fails if a gradient is not that of the loss, since the line search would then fail. In float64, since a line search
    magnifies rounding errors."""

    def train(model):
        model.double()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
        x, y = (t.double() for t in batches()[0])
        calls = []

        def closure():
            optimizer.zero_grad()
            loss = model(x, y)
            loss.backward()
            calls.append(loss.item())
            return loss

        losses = [optimizer.step(closure).detach() for _ in range(3)]
        return losses, torch.tensor(len(calls))

    assert_trained_alike(train)


@pytest.mark.parametrize("loss", FUSED)
def test_gradients_of_the_input_and_of_what_lies_between(loss):
    """Fails if the head's gradient with respect to its input or target is wrong, or hidden from hooks in between."""
    results = []
    for model in pair(loss=loss):
        x, y = batches()[0]
        x.requires_grad_()
        y.requires_grad_()
        kept = []
        model.body.register_forward_hook(
            lambda module, args, output, kept=kept: (output.retain_grad(), kept.append(output))[0]
        )
        model.body[0].register_full_backward_hook(lambda module, given, out, kept=kept: kept.append(out[0]))
        model(x, y).backward()
        results.append([x.grad, y.grad, kept[0].grad, kept[1]])
    assert_same(*results)


def test_micro_batches_add_up():
    """Fails if a second backward overwrites .grad instead of adding to it."""

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, (x, y) in enumerate(batches(6)):
            (model(x, y) / 3).backward()
            if i % 3 == 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=i == 2)

    assert_trained_alike(train)
    model, _ = pair()
    x, y = batches(1, rows=12)[0]
    whole = torch.autograd.grad(model(x, y), list(model.parameters()))
    for xs, ys in zip(x.split(4), y.split(4), strict=True):
        (model(xs, ys) / 3).backward()
    assert_same([p.grad for p in model.parameters()], list(whole))


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipped_gradients(clip):
    """Fails if the gradient before clipping differs from plain PyTorch's, even if the clipped one does not."""

    def train(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        seen = []
        for x, y in batches():
            model(x, 10 * y).backward()
            seen.append([p.grad.clone() for p in model.parameters()])
            if clip == "norm":
                assert nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5
            else:
                nn.utils.clip_grad_value_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        return seen

    assert_trained_alike(train)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_activations(use_reentrant):
    """Fails if the recomputed forward saves different tensors or gives different gradients."""

    def body():
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.5))

    results = []
    for model in (*pair(body=body), pair(body=body)[0]):
        model.rematerialise = use_reentrant if len(results) < 2 else None
        model.body.train()
        torch.manual_seed(2)
        x, y = batches()[0]
        x.requires_grad_()  # use_reentrant=True gives no gradients otherwise
        loss = model(x, y)
        loss.backward()
        results.append([loss.detach(), x.grad, [p.grad for p in model.parameters()]])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_tied_weights():
    """The head shares its weight with a layer below. Fails if the weight gets only one of its two gradients."""
    results = []
    for model in pair(k=5):
        model.body[2].weight = model.head.linear.weight
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, y in batches(k=5):
            model(x, y).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert len(list(model.parameters())) == 5
        results.append([p.detach() for p in model.parameters()])
    assert_same(*results)


@pytest.mark.parametrize("frozen", ["head", "head.linear.weight", "head.linear.bias", "body"])
def test_frozen_parts(frozen):
    """Fails if a frozen parameter changes or gets a gradient, or another parameter's differs from plain PyTorch's."""

    def freeze(model):
        part = functools.reduce(getattr, frozen.split("."), model)
        part.requires_grad_(False)

    results = []
    for model in pair():
        freeze(model)
        kept = [p for p in model.parameters() if not p.requires_grad]
        before = [p.clone() for p in kept]
        loop(OPTIMIZERS["SGD"])(model)
        assert all(torch.equal(p, b) for p, b in zip(kept, before, strict=True))
        results.append([p.detach() for p in model.parameters()])
        x, y = batches()[0]
        model(x, y).backward()
        results[-1] += [p.grad for p in model.parameters()]
        assert [p.grad is None for p in model.parameters()] == [not p.requires_grad for p in model.parameters()]
    assert_same(*results)


def test_two_heads_on_one_body():
    """Fails if one head overwrites, instead of adding to, the other's gradient of the shared body."""
    results = []
    for plain in (False, True):
        torch.manual_seed(0)
        body, first, second = nn.Linear(3, 5), linreg_ext.LinearMSELoss(5, 1), linreg_ext.LinearL1Loss(5, 2)
        x, y = batches(k=3)[0]
        h = torch.relu(body(x))
        if plain:
            loss = F.mse_loss(first.linear(h), y[:, :1]) + 2 * F.l1_loss(second.linear(h), y[:, 1:])
        else:
            loss = first(h, y[:, :1]) + 2 * second(h, y[:, 1:])
        loss.backward()
        results.append([loss.detach(), *[p.grad for m in (body, first, second) for p in m.parameters()]])
    assert_same(*results)


def test_a_parameter_that_changes_before_backward_is_refused_as_by_pytorch():
    for model in pair():
        x, y = batches()[0]
        loss = model(x, y)
        with torch.no_grad():
            model.head.linear.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_train_step_of_a_network_is_the_plain_loop(name):
    """Fails if the last layer is stepped without the layers below it."""
    results = []
    for make in (linreg_ext.make_train_step, plain_loop.make_train_step):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05)
        if make is linreg_ext.make_train_step:
            with pytest.warns(UserWarning, match="eager: the model holds a ReLU"):
                step = make(model, nn.MSELoss(), optimizer)
        else:
            step = make(model, nn.MSELoss(), optimizer)
        results.append([[step(x, y) for x, y in batches()], [p.detach() for p in model.parameters()]])
    assert_same(*results)
