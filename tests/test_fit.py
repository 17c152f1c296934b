# SPDX-License-Identifier: BSD-3-Clause
"""`fit` against the plain loop: batches, weights, histories, random generators; divergence, logs, evaluation."""

import copy
import functools
import itertools
import math
import re

import plain_loop
import pytest
import torch
from conftest import crossed
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

import linreg_ext
from linreg_ext.training import DivergenceError

X, Y = torch.randn(50, 3), torch.randn(50, 2)


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return X[index], Y[index]


LOADERS = {
    "in order": lambda: DataLoader(TensorDataset(X, Y), batch_size=16),
    "shuffled": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    "last batch dropped": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, drop_last=True),
    "a generator of its own": lambda: DataLoader(
        TensorDataset(X, Y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "split": lambda: DataLoader(random_split(TensorDataset(X, Y), [40, 10])[0], batch_size=7, shuffle=True),
    "subset of subset": lambda: DataLoader(Subset(Subset(TensorDataset(X, Y), range(5, 45)), range(0, 40, 2)), 6),
    "with replacement": lambda: DataLoader(TensorDataset(X, Y), 16, sampler=RandomSampler(range(50), replacement=True)),
    "subset at random": lambda: DataLoader(TensorDataset(X, Y), 8, sampler=SubsetRandomSampler(range(10, 30))),
    "weighted": lambda: DataLoader(TensorDataset(X, Y), 8, sampler=WeightedRandomSampler(torch.rand(50), 30)),
    "a data set of one's own": lambda: DataLoader(Pairs(), batch_size=16, shuffle=True),
    "workers": lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, num_workers=2),
    "a list of batches": lambda: [(X[:20], Y[:20]), (X[20:], Y[20:])],
}


def both(make_loader, loss_fn, make_optimizer, *, epochs=4, make_scheduler=None, validate=False, model=None):
    """(history, model, optimizer, scheduler, random state) of `fit` and of the plain loop, with the same seed."""
    results = []
    model = model or nn.Linear(3, 2)
    for implementation in (linreg_ext, plain_loop):
        torch.manual_seed(5)
        twin = copy.deepcopy(model)
        optimizer = make_optimizer(twin)
        scheduler = make_scheduler(optimizer) if make_scheduler else None
        loader = make_loader()
        val_dl = DataLoader(TensorDataset(X[:9], Y[:9]), 4, shuffle=True) if validate else None
        history = implementation.fit(epochs, twin, loss_fn, optimizer, loader, val_dl=val_dl, scheduler=scheduler)
        results.append((history, twin, optimizer, scheduler, torch.get_rng_state()))
    return results


def assert_same(results, rtol=1e-5):
    (ours, model, optimizer, scheduler, state), (theirs, twin, twin_optimizer, twin_scheduler, twin_state) = results
    for name in ("step_loss", "epoch_loss", "val_loss", "lr"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if b is None:
            assert a is None
        else:
            assert a.dtype == torch.float64
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, equal_nan=True)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=rtol, atol=rtol)
    assert optimizer.state_dict()["param_groups"] == twin_optimizer.state_dict()["param_groups"]
    assert optimizer.state_dict()["state"].keys() == twin_optimizer.state_dict()["state"].keys()
    assert torch.equal(state, twin_state), "the random generator ends elsewhere"
    if scheduler is not None:
        states = scheduler.state_dict(), twin_scheduler.state_dict()
        best = [state.pop("best", 0.0) for state in states]
        assert states[0] == states[1]
        assert best[0] == pytest.approx(best[1], rel=rtol)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


@crossed(2, loader=list(LOADERS), validate=[False, True])
def test_every_loader(loader, validate):
    assert_same(both(LOADERS[loader], nn.MSELoss(), sgd, validate=validate))


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.MSELoss(reduction="sum")])
def test_every_loss(loss):
    small = lambda model: torch.optim.SGD(model.parameters(), lr=0.001)  # noqa: E731
    assert_same(both(LOADERS["shuffled"], loss, small, validate=True))


@pytest.mark.filterwarnings("ignore:linreg_ext")
def test_levels_below_fused():
    assert_same(both(LOADERS["shuffled"], nn.MSELoss(), lambda m: torch.optim.Adam(m.parameters()), validate=True))
    deep = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Tanh(), nn.Linear(4, 2))
    assert_same(both(LOADERS["shuffled"], nn.MSELoss(), sgd, validate=True, model=deep))


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    ],
)
@pytest.mark.parametrize("validate", [False, True])
def test_schedulers_step_once_an_epoch(make, validate):
    results = both(LOADERS["in order"], nn.MSELoss(), sgd, make_scheduler=make, validate=validate, epochs=6)
    assert_same(results)
    assert len(set(results[0][0].lr.tolist())) > 1


def test_history_and_epoch_loss_by_rows():
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)  # 16, 16, 16, 2
    model = nn.Linear(3, 2)
    history = linreg_ext.fit(3, model, nn.MSELoss(), sgd(model), loader)
    assert history.step_loss.shape == (12,) == history.lr.shape
    assert history.val_loss is None
    rows = torch.tensor([16.0, 16, 16, 2], dtype=torch.float64)
    torch.testing.assert_close(history.epoch_loss, history.step_loss.view(3, 4) @ rows / 50)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in vars(history).values() if t is not None)


def test_history_keeps_the_rates_that_a_tensor_had():
    """A scheduler changes a tensor rate in place, and so may the loader."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))
    for batches in ([(X, Y)] * 2, DataLoader(TensorDataset(X, Y), batch_size=25)):
        optimizer.param_groups[0]["lr"].fill_(0.5)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        history = linreg_ext.fit(3, model, nn.MSELoss(), optimizer, batches, scheduler=scheduler)
        assert history.lr.tolist() == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]

    class Decaying:
        def __iter__(self):
            for _ in range(2):
                optimizer.param_groups[0]["lr"].mul_(0.5)
                yield X, Y

    optimizer.param_groups[0]["lr"].fill_(0.5)
    history = linreg_ext.fit(2, model, nn.MSELoss(), optimizer, Decaying())
    assert history.lr.tolist() == [0.25, 0.125, 0.0625, 0.03125]


@pytest.mark.parametrize("spent", ["train_dl", "val_dl"])
def test_an_iterator_has_batches_for_one_epoch_only(spent):
    """The training before the iterator is exhausted is kept."""
    batches = [(X[:20], Y[:20]), (X[20:], Y[20:])]
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    options = {"train_dl": batches, "val_dl": batches, spent: iter(batches)}
    with pytest.raises(
        ValueError, match=f"fit: {spent} must yield at least one batch in every epoch, got none.* iterator"
    ):
        linreg_ext.fit(3, models[0], nn.MSELoss(), sgd(models[0]), **options)
    trained = 1 if spent == "train_dl" else 2  # epochs; the last has no validation
    linreg_ext.fit(trained, models[1], nn.MSELoss(), sgd(models[1]), batches)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))
    options[spent] = iter(batches)
    assert linreg_ext.fit(1, models[1], nn.MSELoss(), sgd(models[1]), **options).val_loss.isfinite().all()


def test_log_lines_are_the_tutorials(capsys):
    model = nn.Linear(3, 2)
    loader = DataLoader(TensorDataset(X, Y), batch_size=25)
    history = linreg_ext.fit(20, model, nn.MSELoss(), sgd(model), loader, log_every=10)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Epoch [{e}/20], Loss: {history.step_loss[2 * e - 1]:.4f}" for e in (10, 20)]
    linreg_ext.fit(2, model, nn.MSELoss(), sgd(model), loader, val_dl=loader, log_every=2)
    assert re.fullmatch(r"Epoch \[2/2\], Loss: \d+\.\d{4}, Val loss: \d+\.\d{4}\n", capsys.readouterr().out)


def test_progress_goes_to_stderr_only_when_asked_or_on_a_terminal(capsys):
    pytest.importorskip("tqdm")
    model = nn.Linear(3, 2)
    for progress, shown in ((None, False), (False, False), (True, True)):
        linreg_ext.fit(2, model, nn.MSELoss(), sgd(model), [(X, Y)], progress=progress)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert ("epoch" in captured.err) == shown


@pytest.mark.parametrize("level", ["fused", "gradients", "eager"])
@pytest.mark.filterwarnings("ignore:linreg_ext")
def test_divergence_stops_with_the_last_finite_parameters(level):
    model = {"eager": nn.Sequential(nn.Linear(3, 2), nn.Identity(), nn.Linear(2, 2))}.get(level, nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4, momentum=0.5, foreach=False)
    if level == "gradients":
        optimizer.register_step_post_hook(lambda *_: None)
    loader = DataLoader(TensorDataset(X, Y), batch_size=25)
    with pytest.raises(
        DivergenceError,
        match=r"fit: the loss is (nan|inf) at step \d+ \(epoch \d+, batch \d\): training diverges; scale the features or lower",
    ) as raised:
        linreg_ext.fit(100, model, nn.MSELoss(), optimizer, loader)
    history, step = raised.value.history, raised.value.step
    assert len(history.step_loss) == step
    assert history.step_loss[:-1].isfinite().all()
    assert not history.step_loss[-1].isfinite()
    assert all(p.isfinite().all() for p in model.parameters())
    # The parameters are those before the step: its batch still has a non-finite loss.
    batch = slice(0, 25) if step % 2 else slice(25, 50)
    assert not nn.MSELoss()(model(X[batch]), Y[batch]).isfinite()


@pytest.mark.parametrize(
    "make", [list, lambda batch: DataLoader(TensorDataset(*batch[0]), 25)], ids=["list", "DataLoader"]
)
def test_a_first_step_that_diverges_leaves_no_state(make):
    """Fails if an unwritten momentum buffer is used as that of a second step."""
    model = nn.Linear(3, 2)
    optimizer = sgd(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        DivergenceError, match=r"at step 1 \(epoch 1, batch 1\): input\[0, 0\] of that batch is -?inf; clean the data"
    ):
        linreg_ext.fit(1, model, nn.MSELoss(), optimizer, make([(X * math.inf, Y)]))
    assert not optimizer.state_dict()["state"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_data_is_only_read():
    x, y, v = X.clone(), Y.clone(), torch.rand(50)
    data = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True), [(x, y)]
    for loader, momentum in itertools.product(data, (0.0, 0.9)):
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        linreg_ext.fit(2, model, nn.MSELoss(), optimizer, loader, val_dl=loader)
    w, kept, order = torch.zeros(2, 3), v.clone(), torch.randperm(50)
    linreg_ext.sgd_run_(x, w, y, weight=v, order=order, batch_size=7, lr=0.1)
    for tensor, before in ((x, X), (y, Y), (v, kept)):
        assert torch.equal(tensor, before)
        assert tensor._version == 0
    assert order.sort().values.equal(torch.arange(50))


def test_divergence_can_be_let_go_on():
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    loader = [(X, Y)]
    make = lambda m: torch.optim.SGD(m.parameters(), lr=1e4)  # noqa: E731
    ours = linreg_ext.fit(60, model, nn.MSELoss(), make(model), loader, on_divergence="continue")
    theirs = plain_loop.fit(60, twin, nn.MSELoss(), make(twin), loader, on_divergence="continue")
    assert len(ours.step_loss) == len(theirs.step_loss) == 60
    assert not ours.step_loss[-1].isfinite()
    assert model.weight.isnan().any()


def test_evaluate_is_the_mean_over_rows_and_restores_the_mode():
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    for training in (True, False):
        model.train(training)
        for loss in (nn.MSELoss(), nn.MSELoss(reduction="sum")):
            value = linreg_ext.evaluate(model, loss, loader)
            assert isinstance(value, float)
            assert value == pytest.approx(plain_loop.evaluate(model, loss, loader), rel=1e-6)
        assert model.training == training
    model.train()
    model[0].eval()
    linreg_ext.evaluate(model, nn.MSELoss(), loader)
    assert [module.training for module in model.modules()] == [True, False, True]
    summed = functools.partial(torch.nn.functional.mse_loss, reduction="sum")
    model.eval()
    by_module = linreg_ext.evaluate(model, nn.MSELoss(reduction="sum"), loader)
    assert linreg_ext.evaluate(model, summed, loader) == plain_loop.evaluate(model, summed, loader) == by_module
    assert linreg_ext.evaluate(model, nn.MSELoss(), loader) == pytest.approx(nn.MSELoss()(model(X), Y).item(), rel=1e-6)
    assert math.isnan(linreg_ext.evaluate(model, nn.MSELoss(), []))


def test_a_loader_that_raises_leaves_a_model_that_can_go_on():
    def broken():
        yield X, Y
        raise OSError("the disk is gone")

    model = nn.Linear(3, 2)
    optimizer = sgd(model)
    with pytest.raises(OSError, match="the disk is gone"):
        linreg_ext.fit(1, model, nn.MSELoss(), optimizer, broken())
    linreg_ext.fit(1, model, nn.MSELoss(), optimizer, [(X, Y)])


@pytest.mark.extended
def test_training_a_large_matrix_does_not_grow_the_process():
    """Memory grows by at most 1 % of the data: 256 MB here, 2 GB in `python -m benchmarks memory`."""
    import subprocess
    import sys

    script = """
import resource, torch, linreg_ext
x = torch.empty(2**18, 256).uniform_()
y = torch.empty(2**18, 1).uniform_()
model = torch.nn.Linear(256, 1)
step = linreg_ext.make_train_step(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=1e-3))
step(x[:1024], y[:1024])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(3):
    step(x, y)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(grown / x.nbytes)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.01
