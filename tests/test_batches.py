# SPDX-License-Identifier: BSD-3-Clause
"""`fit` with whole epochs in one call agrees with the plain loop over the loader in batches, weights, histories, states
and the next random numbers of every generator, wherever the run ends."""

import copy
import functools
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass

import plain_loop
import pytest
import torch
from conftest import crossed
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from linreg_ext import functional
from linreg_ext.training import DivergenceError, batches, fit, make_train_step
from linreg_ext.training.batches import DeviceCache, order_of
from linreg_ext.training.fit import _FusedEpochs

X, Y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)


class Pairs(Dataset):
    def __init__(self, x, y):
        self.features, self.answers = x, y

    def __len__(self):
        return len(self.features)

    def __getitem__(self, i):
        return self.features[i], self.answers[i]


class Scaled(Pairs):
    def __getitem__(self, i):
        return self.features[i] * 2, self.answers[i]


class Backwards(Sampler):
    """Draws random numbers during iteration, as a user's sampler may."""

    def __iter__(self):
        for i in reversed(range(50)):
            if torch.rand(()) < 0.8:
                yield i


def rows(dtype):
    return TensorDataset(X.to(dtype), Y.to(dtype))


def weighted(replacement, **options):
    return WeightedRandomSampler(torch.arange(1.0, 51), 30, replacement, **options)


# name -> (data set, generator) -> loader; first those that allow whole epochs in one call, then the others
FOLLOWED = {
    "in order": lambda d, g: DataLoader(d, 16),
    "in order, last batch dropped": lambda d, g: DataLoader(d, 16, drop_last=True),
    "shuffled": lambda d, g: DataLoader(d, 16, shuffle=True),
    "shuffled, last batch dropped": lambda d, g: DataLoader(d, 16, shuffle=True, drop_last=True),
    "shuffled by the user's generator": lambda d, g: DataLoader(d, 16, shuffle=True, generator=g),
    "full batches by the user's generator": lambda d, g: DataLoader(d, 10, shuffle=True, generator=g),
    "sampler with a generator, loader without": lambda d, g: DataLoader(d, 16, sampler=RandomSampler(d, generator=g)),
    "loader with a generator, sampler without": lambda d, g: DataLoader(d, 16, sampler=RandomSampler(d), generator=g),
    "torch's own generator by name": lambda d, g: DataLoader(d, 16, shuffle=True, generator=torch.default_generator),
    "with replacement": lambda d, g: DataLoader(d, 16, sampler=RandomSampler(d, replacement=True)),
    "with replacement, many": lambda d, g: DataLoader(
        d, 16, sampler=RandomSampler(d, replacement=True, num_samples=128, generator=g)
    ),
    "some of a permutation": lambda d, g: DataLoader(d, 16, sampler=RandomSampler(d, num_samples=20, generator=g)),
    "several permutations": lambda d, g: DataLoader(d, 16, sampler=RandomSampler(d, num_samples=120)),
    "of fewer rows": lambda d, g: DataLoader(d, 7, sampler=RandomSampler(range(30))),
    "in order, of fewer rows": lambda d, g: DataLoader(d, 7, sampler=SequentialSampler(range(30))),
    "subset at random": lambda d, g: DataLoader(d, 8, sampler=SubsetRandomSampler(range(10, 30))),
    "subset at random, by generator": lambda d, g: DataLoader(
        d, 8, sampler=SubsetRandomSampler([3, 1, -1, 40], generator=g)
    ),
    "weighted": lambda d, g: DataLoader(d, 8, sampler=weighted(True)),
    "weighted, without replacement": lambda d, g: DataLoader(d, 8, sampler=weighted(False, generator=g)),
    "a batch sampler of torch's": lambda d, g: DataLoader(d, batch_sampler=BatchSampler(RandomSampler(d), 9, True)),
    "split": lambda d, g: DataLoader(random_split(d, [40, 10], generator=g)[0], 7, shuffle=True),
    "split, in order": lambda d, g: DataLoader(random_split(d, [40, 10], generator=g)[0], 7),
    "subset of subset": lambda d, g: DataLoader(Subset(Subset(d, range(5, 45)), range(0, 40, 2)), 6),
    "subset of subset, shuffled": lambda d, g: DataLoader(Subset(Subset(d, [4, -2, 7, 9]), torch.tensor([1, 3, 0])), 2, True),
    "a data set of the user's": lambda d, g: DataLoader(Pairs(*d.tensors), 16, shuffle=True),
    "batch larger than the data": lambda d, g: DataLoader(d, 64, shuffle=True),
    "one row": lambda d, g: DataLoader(Subset(d, [3]), 4, shuffle=True),
}  # fmt: skip
ITERATED = {
    "a sampler of the user's": lambda d, g: DataLoader(d, 8, sampler=Backwards()),
    "a list for a sampler": lambda d, g: DataLoader(d, 8, sampler=[3, 1, 4, 1, 5]),
    "a batch sampler of the user's": lambda d, g: DataLoader(d, batch_sampler=[[1, 2, 3], [4, 5], list(range(20))]),
    "items that are computed": lambda d, g: DataLoader(Scaled(*d.tensors), 16, shuffle=True),
    "a collate of the user's": lambda d, g: DataLoader(
        d, 16, shuffle=True, collate_fn=lambda b: (torch.stack([x for x, _ in b]) * 2, torch.stack([y for _, y in b]))
    ),
}
LOADERS = FOLLOWED | ITERATED


@dataclass
class End:
    """The results of a run."""

    history: object
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: object
    draws: tuple[torch.Tensor, torch.Tensor]  # the next draws, from torch's generator and the user's
    calls: list[range]  # of the operator


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def run(implementation, make_loader, monkeypatch, *, dtype=torch.float64, epochs=5, make_optimizer=sgd,
        make_val=None, make_scheduler=None, device="cpu", weighted=False, **options):  # fmt: skip
    torch.manual_seed(5)
    data, generator = rows(dtype), torch.Generator().manual_seed(3)
    if weighted:
        data = TensorDataset(*data.tensors, torch.rand(len(data), dtype=dtype))
    model = nn.Linear(3, 2, dtype=dtype).to(device)
    options |= {} if device == "cpu" else {"device": device}
    optimizer = make_optimizer(model)
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    loader = make_loader(data, generator)
    val_dl = make_val(data, generator) if make_val else None
    calls, run_in_chunks = [], functional.run_in_chunks

    def counted(*arguments):
        calls.append(range(arguments[2]))
        return run_in_chunks(*arguments)

    monkeypatch.setattr(functional, "run_in_chunks", counted)
    try:
        history = implementation(
            epochs,
            model,
            nn.MSELoss(),
            optimizer,
            loader,
            val_dl=val_dl,
            scheduler=scheduler,
            progress=False,
            **options,
        )
    finally:
        monkeypatch.setattr(functional, "run_in_chunks", run_in_chunks)
    draws = torch.rand(3), torch.rand(3, generator=generator)
    return End(history, model, optimizer, scheduler, draws, calls)


def assert_same(ours, theirs, dtype=torch.float64):
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    for name in ("step_loss", "epoch_loss", "val_loss", "lr"):
        a, b = getattr(ours.history, name), getattr(theirs.history, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **close)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), **close)
    states = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[0]["state"], states[1]["state"], **close)
    for a, b in zip(ours.draws, theirs.draws, strict=True):
        assert torch.equal(a, b), "a generator ends elsewhere"
    if ours.scheduler is not None:
        states = ours.scheduler.state_dict(), theirs.scheduler.state_dict()
        numbers = [{n: v for n, v in s.items() if n != "_schedule_phases" and not isinstance(v, str)} for s in states]
        torch.testing.assert_close(*numbers, **close)


@crossed(2, name=list(LOADERS), validate=[False, True], dtype=[torch.float32, torch.float64])
def test_every_loader(name, validate, dtype, device, monkeypatch):
    val = (lambda d, g: DataLoader(Subset(d, range(9)), 4, shuffle=True)) if validate else None
    options = {"make_val": val, "dtype": dtype, "device": device}
    ours, theirs = (run(f, LOADERS[name], monkeypatch, **options) for f in (fit, plain_loop.fit))
    assert_same(ours, theirs, dtype)
    assert len(ours.calls) == (1 if name in FOLLOWED else 0), "whole epochs in one call, or none"


def test_a_data_set_is_brought_to_the_device_once():
    """The cache copies it again after a change, and never if it is already on the device."""
    data = TensorDataset(X.clone(), Y.clone())
    loader, cache = DataLoader(data, 16, shuffle=True), DeviceCache("meta")
    first, second = (cache.order_of("train", loader) for _ in range(2))
    assert [t.device.type for t in first.tensors] == ["meta", "meta"]
    assert all(a is b for a, b in zip(first.tensors, second.tensors, strict=True))
    data.tensors[0].mul_(2)
    third = cache.order_of("train", loader)
    assert third.tensors[0] is not first.tensors[0]
    assert third.tensors[1] is first.tensors[1]
    assert DeviceCache("cpu").order_of("train", loader).tensors[0] is data.tensors[0]
    assert DeviceCache(None).order_of("train", loader).tensors[0] is data.tensors[0]


def test_a_loader_may_pin_what_goes_to_a_gpu():
    loader = DataLoader(rows(torch.float32), 16, pin_memory=True)
    assert order_of(loader) is None
    assert order_of(loader, torch.device("cuda")).length == 50


@crossed(3, name=list(LOADERS), train=["in order", "shuffled by the user's generator", "weighted"])
def test_every_loader_validates(name, train, monkeypatch):
    """Validation draws from the same generators, after its epoch."""
    ours, theirs = (run(f, LOADERS[train], monkeypatch, make_val=LOADERS[name]) for f in (fit, plain_loop.fit))
    assert_same(ours, theirs)
    assert len(ours.calls) in (1, 5)


SCHEDULERS = {
    "step": lambda s, o: s.StepLR(o, 2, 0.5),
    "multi-step": lambda s, o: s.MultiStepLR(o, [1, 3], 0.5),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "constant": lambda s, o: s.ConstantLR(o, 0.3, 2),
    "linear": lambda s, o: s.LinearLR(o, 0.3, total_iters=4),
    "polynomial": lambda s, o: s.PolynomialLR(o, 30, 2.0),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, 5),
    "restarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2),
    "lambda": lambda s, o: s.LambdaLR(o, lambda i: 1 / (1 + i)),
    "multiplicative": lambda s, o: s.MultiplicativeLR(o, lambda i: 0.9),
    "sequential": lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1), s.ExponentialLR(o, 0.9)], [3]),
    "chained": lambda s, o: s.ChainedScheduler([s.ExponentialLR(o, 0.9), s.StepLR(o, 2, 0.5)]),
    "SWA": lambda s, o: torch.optim.swa_utils.SWALR(o, 0.01, 3),
    "one cycle": lambda s, o: s.OneCycleLR(o, 0.1, 25, cycle_momentum=False),
    "cyclic": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    # The following must be stepped during training.
    "one cycle of rate and momentum": lambda s, o: s.OneCycleLR(o, 0.1, 25),
    "cyclic rate and momentum": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 3),
    "plateau": lambda s, o: s.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "of the user's": lambda s, o: type("Halved", (s.ExponentialLR,), {})(o, 0.5),
}
AHEAD = list(SCHEDULERS)[:-4]


def scheduler_of(name):
    return lambda optimizer: SCHEDULERS[name](torch.optim.lr_scheduler, optimizer)


@pytest.mark.filterwarnings("ignore:linreg_ext. fit. OneCycleLR expects")
@crossed(2, scheduler=list(SCHEDULERS), validate=[False, True], interval=["epoch", "step"])
def test_every_scheduler_steps_as_in_the_plain_loop(scheduler, validate, interval, monkeypatch):
    val = (lambda d, g: DataLoader(Subset(d, range(9)), 4)) if validate else None
    options = {"make_val": val, "make_scheduler": scheduler_of(scheduler), "scheduler_interval": interval}
    ours, theirs = (run(f, LOADERS["shuffled"], monkeypatch, **options) for f in (fit, plain_loop.fit))
    assert_same(ours, theirs)
    assert len(ours.calls) == (1 if scheduler in AHEAD else 5 if interval == "epoch" else 0)
    assert len(set(ours.history.lr.tolist())) > 1


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("scheduler", ["exponential", "plateau", "of the user's", "one cycle"])
@pytest.mark.parametrize("first", ["another parameter", "a frozen one", "none"])
def test_the_rate_is_that_of_the_parameters_group(first, scheduler, interval, monkeypatch):
    """The group need not be the optimizer's first."""

    def groups(model):
        if first == "a frozen one":
            model.bias.requires_grad_(False)
        others = {"another parameter": [nn.Parameter(torch.zeros(2))], "a frozen one": [model.bias], "none": []}[first]
        rest = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD([{"params": others, "lr": 1e-3}, {"params": rest, "lr": 0.1}], momentum=0.9)

    options = {"make_optimizer": groups, "make_scheduler": scheduler_of(scheduler), "scheduler_interval": interval}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(*(run(f, LOADERS["shuffled"], monkeypatch, **options) for f in (fit, plain_loop.fit)))


class WithLock:
    """A callable whose state cannot be copied."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, i):
        return 0.9**i


def warm_up(i, steps, floor=0.1):
    return max(floor, min(1.0, (i + 1) / steps)) * math.cos(i / 100)


def halved(i):
    return 1.0 if i == 0 else 0.9 * halved(i - 1)


@pytest.mark.parametrize(("make", "calls"), [
    (lambda model: halved, 1),
    (lambda model: functools.partial(warm_up, steps=3), 1),
    (lambda model: (lambda i, steps=3: warm_up(i, steps)), 1),
    (lambda model: (lambda i: 0.5 / (1 + round(model.weight.norm().item(), 3))), None),
    (lambda model: WithLock(), None),
], ids=["recursive", "partial", "default", "reads the model", "object"])  # fmt: skip
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_functions_of_a_scheduler(make, calls, interval, monkeypatch):
    """A function that reads only its arguments is called ahead; any other is called during training."""
    made = []

    def optimizer(model):
        made.append(model)
        return sgd(model)

    def scheduler(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, make(made[-1]))

    options = {"make_optimizer": optimizer, "make_scheduler": scheduler, "scheduler_interval": interval}
    ours, theirs = (run(f, LOADERS["shuffled"], monkeypatch, **options) for f in (fit, plain_loop.fit))
    ours.scheduler = theirs.scheduler = None  # their functions differ
    assert_same(ours, theirs)
    assert len(ours.calls) == (calls or (5 if interval == "epoch" else 0))


def test_a_scheduler_that_ends_before_the_run():
    """OneCycleLR raises at its end, after the same steps as in the plain loop."""
    ends = []
    for implementation in (fit, plain_loop.fit):
        torch.manual_seed(5)
        model = nn.Linear(3, 2, dtype=torch.float64)
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10, cycle_momentum=False)
        with pytest.raises(ValueError, match="Tried to step"):
            implementation(
                5, model, nn.MSELoss(), optimizer, LOADERS["shuffled"](rows(torch.float64), None), scheduler=scheduler,
                scheduler_interval="step", progress=False,
            )  # fmt: skip
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends)


def test_groups_whose_rates_part(monkeypatch):
    """The rates start equal, so the step is fused until a scheduler gives weight and bias different rates."""

    def groups(model):
        return torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.05)

    def parting(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda i: 0.9**i, lambda i: 0.9**i if i < 6 else 0.3])

    for interval in ("epoch", "step"):
        options = {"make_optimizer": groups, "make_scheduler": parting, "scheduler_interval": interval, "epochs": 9}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(*(run(f, LOADERS["shuffled"], monkeypatch, **options) for f in (fit, plain_loop.fit)))


OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.3},
    "nesterov, decay": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    "maximize": {"maximize": True, "weight_decay": 0.01},
    "a tensor for the rate": {"momentum": 0.9, "lr": torch.tensor(0.02)},
    "a double for the rate": {"lr": torch.tensor([0.02], dtype=torch.float64)},
}


@crossed(
    2,
    options=list(OPTIONS),
    loader=["in order", "shuffled", "weighted", "a list for a sampler"],
    interval=["epoch", "step"],
    weighted={"": False, "weighted": True},
)
def test_rates_that_change_under_every_option(options, loader, interval, weighted, monkeypatch):
    def optimizer(model):
        given = {"lr": 0.02} | OPTIONS[options]
        return torch.optim.SGD(model.parameters(), **given | {"lr": copy.deepcopy(given["lr"])})

    ours, theirs = (
        run(f, LOADERS[loader], monkeypatch, make_optimizer=optimizer, make_scheduler=scheduler_of("sequential"),
            scheduler_interval=interval, weighted=weighted) for f in (fit, plain_loop.fit)
    )  # fmt: skip
    assert_same(ours, theirs)
    assert len(ours.calls) == (loader in FOLLOWED)


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("scheduler", ["exponential", "sequential", "one cycle of rate and momentum", "plateau"])
@pytest.mark.parametrize("loader", ["shuffled", "with replacement, many", "items that are computed"])
def test_a_scheduler_stops_where_the_training_does(loader, scheduler, interval):
    """At a batch with a nan loss, scheduler, optimizer and random numbers agree with the plain loop's."""
    ends = []
    for implementation in (fit, plain_loop.fit):
        torch.manual_seed(5)
        generator = torch.Generator().manual_seed(3)
        data = TensorDataset(X, Y.clone())
        # With replacement rows are drawn as they are needed: in the first batch, so that most are not drawn.
        data.tensors[1][slice(None, None, 3) if loader == "with replacement, many" else 17] = math.nan
        model = nn.Linear(3, 2, dtype=torch.float64)
        optimizer = sgd(model)
        changed = scheduler_of(scheduler)(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="the loss is nan at step"):
                implementation(
                    6, model, nn.MSELoss(), optimizer, LOADERS[loader](data, generator), scheduler=changed,
                    scheduler_interval=interval, progress=False,
                )  # fmt: skip
        changed.best = round(getattr(changed, "best", 0), 9)  # a loss
        group = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        ends.append(
            (
                (changed.state_dict(), group, torch.rand(1).item(), torch.rand(1, generator=generator).item()),
                model.weight.detach(),
            )
        )
    (ours, weight), (theirs, twin_weight) = ends
    assert ours == theirs
    torch.testing.assert_close(weight, twin_weight)


def test_log_lines_end_a_call_where_epochs_are_slow(monkeypatch, capsys):
    ours = run(fit, LOADERS["shuffled"], monkeypatch, epochs=25, log_every=10)
    lines = capsys.readouterr().out
    theirs = run(plain_loop.fit, LOADERS["shuffled"], monkeypatch, epochs=25, log_every=10)
    assert lines == capsys.readouterr().out
    assert len(ours.calls) == 1
    assert_same(ours, theirs)
    monkeypatch.setattr(_FusedEpochs, "least_speed", lambda epochs: 0.0)
    slow = run(fit, LOADERS["shuffled"], monkeypatch, epochs=25, log_every=10)
    assert capsys.readouterr().out == lines
    assert len(slow.calls) > 1
    assert len(slow.calls[0]) * 25 == len(ours.history.step_loss)
    assert_same(slow, theirs)


def test_two_fits_in_a_row_are_one(monkeypatch):
    ends = []
    for parts in ((6,), (2, 4)):
        torch.manual_seed(5)
        loader, model = LOADERS["shuffled"](rows(torch.float64), None), nn.Linear(3, 2, dtype=torch.float64)
        optimizer = sgd(model)
        losses = [fit(epochs, model, nn.MSELoss(), optimizer, loader, progress=False).step_loss for epochs in parts]
        ends.append((torch.cat(losses), model.weight.detach(), torch.rand(1)))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def diverging(implementation, name, lr, validate):
    """(error, model, next random numbers) of a run whose losses grow to inf."""
    torch.manual_seed(5)
    data, generator = rows(torch.float64), torch.Generator().manual_seed(3)
    model = nn.Linear(3, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.1)
    loader = LOADERS[name](data, generator)
    val_dl = DataLoader(Subset(data, range(9)), 4, shuffle=True) if validate else None
    with pytest.raises(RuntimeError, match=r"fit: the loss is (nan|inf) at step") as raised:
        implementation(1000, model, nn.MSELoss(), optimizer, loader, val_dl=val_dl, progress=False)
    return raised.value, model, (torch.rand(3), torch.rand(3, generator=generator))


@pytest.mark.parametrize("name", ["in order", "shuffled", "shuffled by the user's generator", "weighted", "split"])
@pytest.mark.parametrize("validate", [False, True])
def test_divergence_at_step_3_of_epoch_7(name, validate):
    """The generators end up as in the plain loop: that epoch has begun, and later ones have drawn nothing."""
    steps = len(LOADERS[name](rows(torch.float64), torch.Generator()))
    wanted = 6 * steps + 3
    low, high = 1.0, 1e16  # a larger learning rate diverges earlier
    for _ in range(100):
        lr = math.sqrt(low * high)
        error, model, draws = diverging(fit, name, lr, validate)
        if error.step == wanted:
            break
        low, high = (lr, high) if error.step > wanted else (low, lr)
    assert error.step == wanted
    twin_error, twin, twin_draws = diverging(plain_loop.fit, name, lr, validate)
    assert f"at step {wanted}" in str(twin_error)
    assert all(torch.equal(a, b) for a, b in zip(draws, twin_draws, strict=True))
    assert isinstance(error, DivergenceError)
    assert len(error.history.step_loss) == len(error.history.lr) == wanted
    assert len(error.history.epoch_loss) == 6
    assert error.history.val_loss is None if not validate else len(error.history.val_loss) == 6
    assert error.history.step_loss[:-1].isfinite().all()
    torch.testing.assert_close(model.weight, twin.weight, rtol=1e-9, atol=0)


def test_divergence_can_be_let_go_on(monkeypatch):
    make = lambda m: torch.optim.SGD(m.parameters(), lr=1e30)  # noqa: E731
    ours, theirs = (
        run(f, LOADERS["shuffled"], monkeypatch, make_optimizer=make, on_divergence="continue")
        for f in (fit, plain_loop.fit)
    )
    assert ours.model.weight.isnan().all()
    assert all(torch.equal(a, b) for a, b in zip(ours.draws, theirs.draws, strict=True))
    assert torch.equal(ours.history.step_loss.isfinite(), theirs.history.step_loss.isfinite())


@pytest.mark.extended
def test_ctrl_c_leaves_generators_where_the_steps_left_them():
    """Repeating the completed epochs one by one, plus some batches of the next, gives the same results."""
    data = TensorDataset(torch.randn(100_000, 2), torch.randn(100_000, 1))

    def prepared():
        torch.manual_seed(1)
        model = nn.Linear(2, 1)
        return model, torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9), DataLoader(data, 1000, shuffle=True)

    model, optimizer, loader = prepared()
    thread = threading.Thread(target=lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGINT)))
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fit(10**6, model, nn.MSELoss(), optimizer, loader, progress=False)
    thread.join()
    state, weight = torch.get_rng_state(), model.weight.detach().clone()
    assert optimizer.state[model.weight]["momentum_buffer"].isfinite().all()

    model, optimizer, loader = prepared()
    step = make_train_step(model, nn.MSELoss(), optimizer)
    for _ in range(10_000):
        if torch.equal(torch.get_rng_state(), state):
            break
        before = torch.get_rng_state()
        next(iter(loader))
        begun = torch.equal(torch.get_rng_state(), state)
        torch.set_rng_state(before)
        if begun:
            break
        fit(1, model, nn.MSELoss(), optimizer, loader, progress=False)
    places = [model.weight.detach().clone()]
    for x, y in loader:
        step(x, y)
        places.append(model.weight.detach().clone())
    assert any(torch.equal(place, weight) for place in places)


@pytest.mark.parametrize(
    "change",
    [
        {"num_workers": 1}, {"pin_memory": True}, {"collate_fn": lambda batch: batch}, {"batch_size": None},
        {"timeout": 1, "num_workers": 1},
    ],
    ids=" and ".join,
)  # fmt: skip
def test_loaders_that_are_not_followed(change):
    assert order_of(DataLoader(rows(torch.float32), **{"batch_size": 4})) is not None
    assert order_of(DataLoader(rows(torch.float32), **{"batch_size": 4, **change})) is None


def test_data_sets_that_are_not_followed():
    class Loader(DataLoader):
        pass

    class Tensors(TensorDataset):
        pass

    class Swapped(Pairs):
        def __getitem__(self, i):
            return self.answers[i], self.features[i]

    class Same(Pairs):
        def __getitem__(self, i):
            return self.features[i], self.features[i]

    class Later(Pairs):
        def __getitem__(self, i):
            return self.features[i + 1], self.answers[i]

    class Property(Pairs):
        @property
        def shown(self):
            return self.features * 2

        def __getitem__(self, i):
            return self.shown[i], self.answers[i]

    class Batches(Pairs):
        def __getitem__(self, i):
            return self.features[i], self.answers[i]

        def __getitems__(self, indices):
            return [(self.features[i] * 2, self.answers[i]) for i in indices]

    data = rows(torch.float32)
    x, y = data.tensors
    order = order_of(DataLoader(Swapped(x, y), 4))
    assert order.tensors[0] is y
    assert order.tensors[1] is x
    for loader in (
        Loader(data, 4), DataLoader(Tensors(x, y), 4), DataLoader(Same(x, y), 4), DataLoader(Later(x, y), 4),
        DataLoader(Property(x, y), 4), DataLoader(Batches(x, y), 4), DataLoader(Scaled(x, y), 4),
        DataLoader(TensorDataset(x), 4), DataLoader(TensorDataset(x, y, y, y), 4), DataLoader(Pairs(x.tolist(), y), 4),
        DataLoader(data, 4, sampler=SubsetRandomSampler([0, 50])), DataLoader(Subset(data, [0, -51]), 4),
        DataLoader(data, 4, sampler=SequentialSampler(range(51))), DataLoader(Subset(data, [True, False]), 4),
        [(x, y)], None,
    ):  # fmt: skip
        assert order_of(loader) is None


def test_an_order_beyond_the_rows_fails_as_the_loader_does(monkeypatch):
    loader = lambda d, g: DataLoader(d, 8, sampler=SubsetRandomSampler([0, 50]))  # noqa: E731
    for implementation in (fit, plain_loop.fit):
        with pytest.raises(IndexError, match=r"out of (range|bounds)"):
            run(implementation, loader, monkeypatch)


def test_a_model_that_is_not_fused_iterates(monkeypatch):
    def adam(model):
        return torch.optim.Adam(model.parameters())

    with pytest.warns(UserWarning, match="gradients:"):
        ours = run(fit, LOADERS["shuffled"], monkeypatch, make_optimizer=adam)
    theirs = run(plain_loop.fit, LOADERS["shuffled"], monkeypatch, make_optimizer=adam)
    assert ours.calls == []
    assert all(torch.equal(a, b) for a, b in zip(ours.draws, theirs.draws, strict=True))


def test_a_learning_rate_that_is_a_tensor(monkeypatch):
    make = lambda m: torch.optim.SGD(m.parameters(), lr=torch.tensor(0.05), foreach=False)  # noqa: E731
    ours, theirs = (run(f, LOADERS["shuffled"], monkeypatch, make_optimizer=make) for f in (fit, plain_loop.fit))
    assert_same(ours, theirs)
    assert len(ours.calls) == 1


def test_drawing_epoch_by_epoch_is_the_same(monkeypatch):
    """The fallback, for a version of torch whose bulk draws differ from single draws, changes nothing."""
    together = run(fit, LOADERS["shuffled"], monkeypatch)
    monkeypatch.setattr(batches, "_draws_one_by_one", lambda: False)
    alone = run(fit, LOADERS["shuffled"], monkeypatch)
    assert torch.equal(together.model.weight, alone.model.weight)
    assert all(torch.equal(a, b) for a, b in zip(together.draws, alone.draws, strict=True))


@pytest.mark.extended
def test_a_million_rows_need_less_memory_than_they_are():
    script = """
import resource, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from linreg_ext import fit
x, y = torch.randn(2**20, 16), torch.randn(2**20, 1)
model = nn.Linear(16, 1)
opt = torch.optim.SGD(model.parameters(), lr=1e-3)
fit(1, model, nn.MSELoss(), opt, DataLoader(TensorDataset(x[:512], y[:512]), 256, shuffle=True), progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fit(3, model, nn.MSELoss(), opt, DataLoader(TensorDataset(x, y), 256, shuffle=True), progress=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (x.nbytes + y.nbytes))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1
