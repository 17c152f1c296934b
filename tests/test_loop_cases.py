# SPDX-License-Identifier: BSD-3-Clause
"""Pitfalls of real training loops: silent broadcasting, default devices, weights, empty loaders, callbacks, wrong
arguments, and the wording of messages."""

import ast
import io
import re
import warnings
from pathlib import Path

import plain_loop
import pytest
import torch
import torch.nn.functional as F
from conftest import crossed
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import linreg_ext
from linreg_ext import functional
from linreg_ext.training import DivergenceError

pytestmark = pytest.mark.filterwarnings("ignore:linreg_ext. (eager|gradients)")

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(50, 3, generator=RANDOM)
Y = X @ torch.tensor([[1.0], [2.0], [-1.0]]) + 0.1 * torch.randn(50, 1, generator=RANDOM)
MSE = nn.MSELoss()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, **options})


def start(model=None, **options):
    torch.manual_seed(3)
    model = model() if model else nn.Linear(3, 1)
    return model, sgd(model, **options)


def deep():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


# ---- Shapes ----------------------------------------------------------------------------------------------------------

LOSSES = {
    "nn.MSELoss": MSE,
    "nn.HuberLoss": nn.HuberLoss(),
    "F.l1_loss": F.l1_loss,
    "F.smooth_l1_loss": F.smooth_l1_loss,
    "F.poisson_nll_loss": F.poisson_nll_loss,
    "a function": lambda p, y: ((p - y) ** 2).mean(),
    "a function that says more than fx can follow": lambda p, y: (p - y).abs().mean() if y.numel() else p.sum(),
    "by keywords": lambda p, y: torch.sub(input=p, other=y).square().mean(),
    "in a product": lambda p, y: -(p * y).mean(),
    "torch.dist": torch.dist,
    "F.kl_div": lambda p, y: F.kl_div(p, y, reduction="batchmean"),
    "F.cosine_similarity": lambda p, y: F.cosine_similarity(p, y, 0).mean(),
    "F.pairwise_distance": lambda p, y: F.pairwise_distance(p, y).mean(),
}


@pytest.mark.parametrize("loss_fn", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("make_optimizer", [sgd, adam], ids=["SGD", "Adam"])
@pytest.mark.parametrize("make_model", [None, deep], ids=["linear", "deep"])
@pytest.mark.parametrize("target", [Y[:, 0], torch.cat([Y, Y], 1)], ids=["[N]", "[N, 2]"])
def test_a_target_that_would_be_broadcast_is_refused(target, make_model, make_optimizer, loss_fn):
    model, _ = start(make_model)
    optimizer = make_optimizer(model)
    before = [p.detach().clone() for p in model.parameters()]
    expected = rf"target must have shape \[50, 1\], got {re.escape(str(list(target.shape)))}"
    expected += r"; pass target.unsqueeze\(-1\)" if target.dim() == 1 else ".*"
    for op, call in (
        ("evaluate", lambda: linreg_ext.evaluate(model, loss_fn, [(X, target)])),
        ("step", lambda: linreg_ext.make_train_step(model, loss_fn, optimizer)(X, target)),
        ("fit", lambda: linreg_ext.fit(1, model, loss_fn, optimizer, [(X, target)])),
        ("fit", lambda: linreg_ext.fit(1, model, loss_fn, optimizer, DataLoader(TensorDataset(X, target), 50))),
        ("fit: val_dl", lambda: linreg_ext.fit(1, model, MSE, sgd(model, lr=0.0), [(X, Y)], val_dl=[(X, target)])),
        ("fit: val_dl", lambda: linreg_ext.fit(1, model, MSE, sgd(model, lr=0.0), DataLoader(TensorDataset(X, Y), 50),
                                               val_dl=DataLoader(TensorDataset(X, target), 50))),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=f"^{op}: {expected}$"):
            call()
    assert all(torch.equal(p, old) and p.grad is None for p, old in zip(model.parameters(), before, strict=True))
    assert not optimizer.state


@pytest.mark.parametrize("loss_fn", [
    lambda p, y: ((p.view(-1) - y) ** 2).mean(),
    lambda p, y: F.mse_loss(p.squeeze(-1), y),
    lambda p, y: F.mse_loss(p, y[:, None]),
    lambda p, y: F.mse_loss(p, y.unsqueeze(1).to(p.dtype), reduction="sum") / len(y),
])  # fmt: skip
@pytest.mark.parametrize("make_model", [None, deep], ids=["linear", "deep"])
def test_a_loss_that_reshapes_may(make_model, loss_fn):
    ends = []
    for fit in (linreg_ext.fit, plain_loop.fit):
        model, optimizer = start(make_model)
        history = fit(3, model, loss_fn, optimizer, [(X, Y[:, 0])], val_dl=[(X, Y[:, 0])], progress=False)
        ends.append([history.val_loss, *(p.detach().double() for p in model.parameters())])
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make_model", [None, deep], ids=["linear", "deep"])
def test_batches_of_one_row_and_explicit_shapes_are_no_broadcast(make_model):
    for loss_fn in (
        lambda p, y: F.mse_loss(p, y.view_as(p)),
        lambda p, y: F.mse_loss(p, y.reshape(p.shape)),
        lambda p, y: F.l1_loss(p, y[:, None].expand_as(p)),
    ):
        model, optimizer = start(make_model)
        loader = DataLoader(TensorDataset(X[:5], Y[:5, 0]), 1)
        assert linreg_ext.fit(1, model, loss_fn, optimizer, loader, progress=False).step_loss.isfinite().all()
    model = nn.Linear(3, 3)
    step = linreg_ext.make_train_step(model, lambda p, y: -p.log_softmax(1).index_select(1, y).mean(), sgd(model))
    step(X[:3], torch.tensor([0, 1, 2]))


def test_what_would_be_broadcast_is_never_computed():
    model, rows = deep(), 200_000  # 160 GB of differences
    x, y = torch.randn(rows, 3), torch.randn(rows)
    with pytest.raises(RuntimeError, match="evaluate: target must have shape"):
        linreg_ext.evaluate(model, lambda p, y: ((p - y) ** 2).mean(), [(x, y)])


def test_classes_are_no_broadcast():
    for count in (3, 7):  # as many rows as classes, too
        model, labels = nn.Linear(3, 3), torch.randint(3, (count,))
        step = linreg_ext.make_train_step(model, F.cross_entropy, sgd(model))
        losses = [step(X[:count], labels).item() for _ in range(20)]
        assert losses[-1] < losses[0]
        assert linreg_ext.evaluate(model, F.cross_entropy, [(X[:count], labels)]) < losses[0]


# ---- Default device and dtype ----------------------------------------------------------------------------------------

FACTORIES = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm",
             "scalar_tensor", "tensor", "zeros", "Generator"}  # fmt: skip


def factories_without_a_device(source):
    """(line, name) of each call of a torch factory that uses the default device."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES):
            continue
        if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
            names = {keyword.arg for keyword in node.keywords}
            if "device" not in names and None not in names:
                yield node.lineno, node.func.attr


def test_every_tensor_that_the_library_makes_says_where():
    package = Path(linreg_ext.__file__).parent
    for part in ("*.py", "training/*.py"):  # the command line is a process of its own
        for file in package.glob(part):
            found = list(factories_without_a_device(file.read_text()))
            assert not found, f"{file}: {found}"
    assert list(factories_without_a_device("import torch\ntorch.zeros(3, dtype=int)")) == [(2, "zeros")]


@pytest.mark.parametrize("make_model", [None, deep], ids=["linear", "deep"])
@pytest.mark.parametrize(
    "make_loader", [lambda d: [(d.tensors)], lambda d: DataLoader(d, 16)], ids=["list", "DataLoader"]
)
def test_a_default_device_changes_nothing(make_loader, make_model):
    ends, data = [], TensorDataset(X, Y)
    for device in ("cpu", "meta"):
        model, optimizer = start(make_model)
        loader = make_loader(data)
        if device == "meta" and isinstance(loader, DataLoader):  # draws its seed on the default device
            loader = list(loader)
        with torch.device(device):
            history = linreg_ext.fit(3, model, MSE, optimizer, loader, val_dl=loader, patience=2, progress=False)
            loss = linreg_ext.evaluate(model, MSE, loader)
        ends.append([history.epoch_loss, history.val_loss, history.lr, torch.tensor(loss)])
    for ours, theirs in zip(*ends, strict=True):
        assert ours.device.type == "cpu"
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)


def test_a_default_device_where_a_dataloader_draws():
    """Under another default device, a DataLoader fails or draws on that device; fit does the same."""
    model, optimizer = start()
    loader = DataLoader(TensorDataset(X, Y), 16)
    with torch.device("meta"):
        with pytest.raises(RuntimeError):
            next(iter(loader))
        with pytest.raises(RuntimeError):
            linreg_ext.fit(1, model, MSE, optimizer, loader, progress=False)


def test_a_default_dtype_changes_nothing():
    ends = []
    for dtype in (torch.float32, torch.float64, torch.float16):
        model, optimizer = start()
        torch.set_default_dtype(dtype)
        try:
            history = linreg_ext.fit(3, model, MSE, optimizer, DataLoader(TensorDataset(X, Y), 16), progress=False)
            ends.append(
                [history.epoch_loss, history.lr, torch.as_tensor(linreg_ext.evaluate(model, MSE, [(X, Y)])).double()]
            )
        finally:
            torch.set_default_dtype(torch.float32)
    for end in ends[1:]:
        for a, b in zip(ends[0], end, strict=True):
            assert a.dtype == b.dtype == torch.float64
            torch.testing.assert_close(a, b, rtol=1e-3 if a.dim() == 0 else 0, atol=0)


# ---- Weights ---------------------------------------------------------------------------------------------------------

W = {
    name: torch.rand(shape, generator=RANDOM)
    for name, shape in (("[N]", (50,)), ("[N, 1]", (50, 1)), ("[N, K]", (50, 2)))
}
Y2 = torch.cat([Y, -Y], 1)


class Weighted(Dataset):
    """A data set with weights that `fit` must iterate."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, i):
        return tuple(t[i] for t in self.tensors)


@crossed(
    5,
    weight=W,
    data={"in memory": TensorDataset, "iterated": Weighted},
    level=["fused", "gradients", "eager"],
    loss={"mse": nn.MSELoss, "l1": nn.L1Loss, "huber": nn.HuberLoss, "smooth_l1": nn.SmoothL1Loss},
    reduction=["mean", "sum"],
)
def test_weights_at_every_level(weight, data, level, loss, reduction):
    make = (lambda: nn.Linear(3, 2)) if level != "eager" else lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    ends, loss_fn = [], loss(reduction=reduction)
    for module in (linreg_ext, plain_loop):
        torch.manual_seed(3)
        model = make().double()
        lr = 0.05 if reduction == "mean" else 0.001
        optimizer = adam(model) if level == "gradients" else sgd(model, lr=lr, momentum=0.5)
        loader = DataLoader(data(X.double(), Y2.double(), weight.double()), 16, shuffle=True)
        history = module.fit(3, model, loss_fn, optimizer, loader, val_dl=loader, progress=False)
        found = module.evaluate(model, loss_fn, loader)
        ends.append([history.step_loss, history.epoch_loss, history.val_loss, torch.tensor(found, dtype=torch.float64),
                     *(p.detach() for p in model.parameters())])  # fmt: skip
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


def test_weights_of_a_loss_that_reshapes():
    """Weights have the target's shape, not the prediction's."""
    x, y, weight = X.double(), Y2.double().flatten(), torch.rand(100, dtype=torch.float64)
    model = nn.Linear(3, 2).double()
    step = linreg_ext.make_train_step(model, lambda p, y: ((p.reshape(y.shape) - y) ** 2).mean(), sgd(model))
    expected = ((model(x).flatten() - y) ** 2 * weight).sum() / weight.sum()
    torch.testing.assert_close(step(x, y, weight), expected.detach())
    assert step.explain().startswith("fused")


@pytest.mark.parametrize("make_model", [None, deep], ids=["linear", "deep"])
def test_a_weight_of_k_is_k_copies_of_a_row(make_model):
    """This holds within a batch. A weight of zero drops a row, whatever its contents."""
    counts = torch.randint(0, 4, (50,))
    x = X.clone()
    copies = torch.arange(50).repeat_interleave(counts)
    ends = []
    for batch in ((x, Y, counts.float()), (x[copies], Y[copies])):
        model, optimizer = start(make_model)
        history = linreg_ext.fit(5, model, MSE, optimizer, [batch], val_dl=[batch], progress=False)
        ends.append([history.epoch_loss, history.val_loss, *(p.detach().double() for p in model.parameters())])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_history_has_the_weighted_means():
    weight = torch.rand(50, dtype=torch.float64)
    x, y = X.double(), Y.double()
    model = nn.Linear(3, 1).double()
    loader = DataLoader(TensorDataset(x, y, weight), 16)
    history = linreg_ext.fit(1, model, MSE, sgd(model, lr=0.0), loader, val_dl=loader, progress=False)
    losses = ((model(x) - y) ** 2)[:, 0].detach()
    mean = (losses * weight).sum() / weight.sum()
    for found in (
        history.epoch_loss[0],
        history.val_loss[0],
        torch.tensor(linreg_ext.evaluate(model, MSE, loader)).double(),
    ):
        torch.testing.assert_close(found, mean, rtol=1e-6, atol=0)
    first = (losses[:16] * weight[:16]).sum() / weight[:16].sum()
    torch.testing.assert_close(history.step_loss[0], first)


def test_weights_of_whole_epochs_are_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(functional, "run_in_chunks", _counting(calls))
    model, optimizer = start()
    loader = DataLoader(TensorDataset(X, Y, torch.rand(50)), 16, shuffle=True)
    subset = DataLoader(Subset(loader.dataset, range(9)), 4)
    linreg_ext.fit(10, model, MSE, optimizer, loader, val_dl=subset, progress=False)
    assert calls == [40]


def _counting(calls):
    original = functional.run_in_chunks

    def run(*arguments):
        calls.append(arguments[2])
        return original(*arguments)

    return run


def test_weights_that_do_not_fit():
    model, optimizer = start()
    step = linreg_ext.make_train_step(model, MSE, optimizer)
    eager, deep_optimizer = start(deep)
    slow = linreg_ext.make_train_step(eager, MSE, deep_optimizer)
    for call in (step, slow):
        with pytest.raises(RuntimeError, match=r"weight must have shape \[50, 1\].* or .*, got \[7\]"):
            call(X, Y, torch.rand(7))
        with pytest.raises(RuntimeError, match=r"step: target must have shape \[50, 1\], got \[50\]"):
            call(X, Y[:, 0], torch.rand(50))
    with pytest.raises(
        ValueError, match=r"step: a batch with weights needs a loss that linreg_ext recognises, such as .*, but "
    ):
        linreg_ext.make_train_step(eager, F.cross_entropy, deep_optimizer)(X, torch.zeros(50).long(), torch.rand(50))


def test_a_column_of_weights_beside_flat_predictions():
    """The weights count per row, for any layout of the weight parameter and at every level."""

    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x @ self.w + self.b

    weight = torch.rand(50, 1)
    for make in (Vector, lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))):
        model = make()
        expected = ((model(X) - Y[:, 0]) ** 2 * weight[:, 0]).sum() / weight.sum()
        for v in (weight, weight[:, 0]):
            torch.testing.assert_close(
                torch.tensor(linreg_ext.evaluate(model, MSE, [(X, Y[:, 0], v)])),
                expected.detach().double(),
                check_dtype=False,
            )
            step = linreg_ext.make_train_step(model, MSE, sgd(model, lr=0.0))
            torch.testing.assert_close(step(X, Y[:, 0], v), expected.detach())
            assert step.explain().startswith("fused")


@pytest.mark.parametrize("make_loader", [DataLoader, lambda d, n: list(DataLoader(d, n))], ids=["DataLoader", "list"])
def test_a_batch_without_weight_counts_nothing(make_loader):
    weight = torch.cat([torch.zeros(16), torch.rand(34)])
    model, optimizer = start(lr=0.0)
    loader = make_loader(TensorDataset(X, Y, weight), 16)
    expected = ((model(X) - Y)[:, 0] ** 2 * weight).sum() / weight.sum()
    history = linreg_ext.fit(1, model, MSE, optimizer, [(X, Y)], val_dl=loader, progress=False)
    for found in (history.val_loss[0].item(), linreg_ext.evaluate(model, MSE, loader)):
        assert found == pytest.approx(expected.item(), rel=1e-5)


def test_a_weight_of_another_dtype_is_eager():
    model, optimizer = start()
    step = linreg_ext.make_train_step(model, MSE, optimizer)
    loss = step(X, Y, torch.ones(50, dtype=torch.float64))
    assert step.explain() == "eager: a target of float32 meets weights of float64"
    torch.testing.assert_close(loss.float(), MSE(start()[0](X), Y))


def test_weights_that_add_up_to_nothing():
    model, optimizer = start()
    with pytest.raises(DivergenceError, match="the weights of that batch add up to 0"):
        linreg_ext.fit(1, model, MSE, optimizer, [(X, Y, torch.zeros(50))])


# ---- Callbacks -------------------------------------------------------------------------------------------------------


def test_what_a_callback_returns_means_nothing_and_warns_once():
    import tqdm

    for returned in (True, "epoch.pt", 0):
        model, optimizer = start()
        bar = tqdm.tqdm(total=20, file=io.StringIO(), mininterval=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            history = linreg_ext.fit(
                20, model, MSE, optimizer, [(X, Y)], progress=False,
                on_epoch_end=lambda *_, bar=bar, returned=returned: (bar.update(), returned)[1],
            )  # fmt: skip
        assert len(history.epoch_loss) == bar.n == 20
        assert [str(w.message) for w in caught] == [
            f"linreg_ext: fit: on_epoch_end returned {returned!r}, which is ignored; raise linreg_ext.StopTraining to "
            "end the run"
        ]


def test_only_a_callback_and_patience_need_a_call_an_epoch(monkeypatch, capsys):
    loader = DataLoader(TensorDataset(X, Y), 16, shuffle=True)
    for options, most in (
        ({}, 1), ({"val_dl": loader}, 1), ({"scheduler": "step"}, 1), ({"log_every": 1}, 12), ({"progress": True}, 12),
        ({"on_epoch_end": lambda *_: None}, 200), ({"patience": 200}, 200),
    ):  # fmt: skip
        calls = []
        with monkeypatch.context() as patch:
            patch.setattr(functional, "run_in_chunks", _counting(calls))
            model, optimizer = start(lr=0.001)
            if "scheduler" in options:
                options = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 50)}
            linreg_ext.fit(200, model, MSE, optimizer, loader, **{"progress": False, **options})
        assert sum(calls) == 800
        assert len(calls) <= most, options
        assert most < 200 or len(calls) == 200
    assert len(capsys.readouterr().out.splitlines()) == 200


def test_stop_training_keeps_the_epoch():
    model, optimizer = start()

    def stop(epoch, history):
        if epoch == 3:
            raise linreg_ext.StopTraining

    history = linreg_ext.fit(9, model, MSE, optimizer, [(X, Y)], on_epoch_end=stop, patience=2, progress=False)
    assert len(history.epoch_loss) == 3


# ---- Nothing to train on ---------------------------------------------------------------------------------------------


class Nothing(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("which", ["train_dl", "val_dl"])
@pytest.mark.parametrize(
    ("loader", "why"),
    [
        ([], "got none"),
        (DataLoader(TensorDataset(X[:0], Y[:0]), 4), "but its data set is empty"),
        (DataLoader(Subset(TensorDataset(X, Y), []), 4), "but its data set is empty"),
        (
            DataLoader(TensorDataset(X[:5], Y[:5]), 8, drop_last=True),
            "but drop_last=True drops the only one: it has 5 rows, fewer than batch_size=8",
        ),
        (DataLoader(Nothing(), 4), "got none"),
        (iter(()), "got none"),
    ],
    ids=["list", "no rows", "empty subset", "drop_last", "iterable", "iterator"],
)
def test_a_loader_without_batches_says_why(loader, why, which):
    model, optimizer = start()
    before = model.weight.detach().clone()
    loaders = {"train_dl": [(X, Y)], which: loader}
    with pytest.raises(ValueError, match=f"fit: {which} must yield at least one batch.*{re.escape(why)}"):
        linreg_ext.fit(3, model, MSE, optimizer, **loaders)
    if which == "train_dl" or why != "got none" or isinstance(loader, list):  # otherwise an epoch has been trained
        assert torch.equal(model.weight, before)


# ---- Wording of messages ---------------------------------------------------------------------------------------------


def test_counts_are_integers():
    model, optimizer = start()
    for name, value in (("num_epochs", 2.5), ("num_epochs", "3"), ("log_every", 1.0), ("patience", 2.0)):
        arguments = {
            "num_epochs": 1,
            "model": model,
            "loss_fn": MSE,
            "opt": optimizer,
            "train_dl": [(X, Y)],
            name: value,
        }
        with pytest.raises(TypeError, match=f"fit: {name} must be an int, got {type(value).__name__}"):
            linreg_ext.fit(**arguments)
    linreg_ext.fit(torch.tensor(1), model, MSE, optimizer, [(X, Y)], progress=False)  # converts to an index


def test_arguments_in_another_order_or_of_another_kind():
    model, optimizer = start()
    order = re.escape("fit(num_epochs, model, loss_fn, opt, train_dl)")
    loader = [(X, Y)]
    for arguments, words in (
        ((model, MSE, optimizer, loader, 3), f"fit: num_epochs must be an int, got Linear; the order is {order}"),
        ((3, optimizer, MSE, model, loader), f"fit: model must be an nn.Module, got an SGD; the order is {order}"),
        (
            (3, model, nn.MSELoss, optimizer, loader),
            r"fit: loss_fn must be .*, got the class MSELoss; pass MSELoss\(\)",
        ),
        ((3, model, optimizer, MSE, loader), r"fit: loss_fn must be a function of \(prediction, target\), got an SGD"),
        ((3, model, MSE, torch.optim.SGD, loader), "fit: opt must be an optimizer, got the class SGD"),
        ((3, nn.Linear, MSE, optimizer, loader), "fit: model must be an nn.Module, got the class Linear"),
    ):
        with pytest.raises(TypeError, match=words):
            linreg_ext.fit(*arguments)
    with pytest.raises(
        TypeError, match=r"make_train_step: optimizer must be .* the order is make_train_step\(model, loss_fn"
    ):
        linreg_ext.make_train_step(model, MSE, model.parameters())


@pytest.mark.parametrize("make_optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Rprop,
                                            type("Own", (torch.optim.SGD,), {})], ids=lambda cls: cls.__name__)  # fmt: skip
def test_other_optimizers_under_a_scheduler(make_optimizer):
    ends = []
    for fit in (linreg_ext.fit, plain_loop.fit):
        model, _ = start()
        optimizer = make_optimizer(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        history = fit(3, model, MSE, optimizer, [(X, Y)], scheduler=scheduler, progress=False)
        ends.append([history.lr, *(p.detach().double() for p in model.parameters())])
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)


def test_an_optimizer_that_needs_a_closure():
    model, _ = start()
    optimizer = torch.optim.LBFGS(model.parameters())
    for call in (
        lambda: linreg_ext.fit(1, model, MSE, optimizer, [(X, Y)]),
        lambda: linreg_ext.make_train_step(model, MSE, optimizer),
    ):
        with pytest.raises(TypeError, match="must be an optimizer whose step needs no closure, got LBFGS"):
            call()


@pytest.mark.parametrize("make_optimizer", [sgd, adam], ids=["fused", "gradients"])
def test_a_wrong_number_of_features_speaks_of_the_input(make_optimizer):
    model, _ = start()
    for x in (X[:, :2], torch.randn(50, 4)):
        for loader in ([(x, Y)], DataLoader(TensorDataset(x, Y), 16)):
            words = rf"^fit: input must have 3 features, as the model has, got shape \[\d+, {x.shape[1]}\]$"
            with pytest.raises(RuntimeError, match=words):
                linreg_ext.fit(1, model, MSE, make_optimizer(model), loader, progress=False)


@pytest.mark.parametrize("make_loader", [lambda *t: DataLoader(TensorDataset(*t), 16), lambda *t: list(
    DataLoader(TensorDataset(*t), 16))], ids=["DataLoader", "list"])  # fmt: skip
def test_a_nan_in_the_data_is_named(make_loader):
    for i, name in enumerate(("input", "target", "weight")):
        tensors = [X.clone(), Y.clone(), torch.rand(50, 1)]
        tensors[i][37, -1] = float("nan")
        column = tensors[i].shape[1] - 1
        model, optimizer = start()
        with pytest.raises(DivergenceError) as raised:
            linreg_ext.fit(2, model, MSE, optimizer, make_loader(*tensors), progress=False)
        assert str(raised.value) == (
            f"fit: the loss is nan at step 3 (epoch 1, batch 3): {name}[5, {column}] of that batch is nan; clean the data "
            "(the parameters are those before that step)"
        )


def test_an_order_that_is_expanded_says_how_to_copy_it():
    order = torch.arange(50)[None].expand(3, -1)
    with pytest.raises(
        RuntimeError, match=r"order must be contiguous, got strides \[0, 1\]; pass order.contiguous\(\)"
    ):
        linreg_ext.sgd_run_(X, torch.zeros(1, 3), Y, order=order, batch_size=16, lr=0.1)


def test_schedulers_made_for_more_steps_warn_once():
    lr_scheduler = torch.optim.lr_scheduler
    for make, options, words in (
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, epochs=5, steps_per_epoch=4), {}, "OneCycleLR expects 20 steps, but the run takes only 5; use scheduler_interval='step'"),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 30), {"scheduler_interval": "step"}, "OneCycleLR expects 30 steps, but the run takes only 20$"),
        (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1), {}, None),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 20), {"scheduler_interval": "step"}, None),
        (lambda o: lr_scheduler.OneCycleLR(o, 0.1, 5), {}, None),
        (lambda o: lr_scheduler.CosineAnnealingLR(o, 50), {}, None),
    ):  # fmt: skip
        model, optimizer = start(momentum=0.9)
        loader = DataLoader(TensorDataset(X[:48], Y[:48]), 12)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            linreg_ext.fit(5, model, MSE, optimizer, loader, scheduler=make(optimizer), progress=False, **options)
        assert len(caught) == bool(words)
        if words:
            assert re.match(f"linreg_ext: fit: {words}", str(caught[0].message))
    with pytest.raises(ValueError, match="fit: scheduler_interval must be 'epoch' or 'step', got 'batch'"):
        linreg_ext.fit(1, model, MSE, optimizer, loader, scheduler_interval="batch")
