# SPDX-License-Identifier: BSD-3-Clause
"""Several processes, with batches of any sizes and numbers, train as one process does on the joined batches."""

import contextlib
import copy
import io
import itertools
import os
import re
import signal
import time

import pytest
import torch
import torch.distributed as dist
from conftest import cases
from processes import join, run_in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from linreg_ext import LeastSquares, StopTraining, evaluate, fit, make_train_step
from linreg_ext.training import DivergenceError

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)

SIZES = ((5, 3, 4, 1), (2, 7), (), (6, 0, 2))  # of the batches of each rank


def batches(rank, dtype=torch.float32, targets=1, weighted=False):
    """A rank's batches."""
    generator, found = torch.Generator().manual_seed(rank), []
    for size in SIZES[rank]:
        x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        y = x @ torch.arange(3.0 * targets, dtype=torch.float64).view(3, targets) + 1
        y += torch.randn(size, targets, generator=generator, dtype=torch.float64)
        weight = torch.rand(size, generator=generator, dtype=torch.float64)
        found.append(tuple(t.to(dtype) for t in ((x, y, weight) if weighted else (x, y))))
    return found


def joined(parts):
    """The batches of all ranks, joined step by step."""
    steps = itertools.zip_longest(*parts)
    return [tuple(map(torch.cat, zip(*(b for b in step if b is not None), strict=True))) for step in steps]


def everyones(**options):
    return joined([batches(rank, **options) for rank in range(dist.get_world_size())])


def mine(**options):
    return batches(dist.get_rank(), **options)


def twins(build, seed=1):
    """A model, with other parameters on each rank but the first, and a copy of the first's."""
    torch.manual_seed(seed)
    model = build()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += dist.get_rank()
    return model, twin


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.02, "momentum": 0.9, **options})


def assert_close(ours, theirs, rtol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


def assert_same_training(model, twin, optimizer, its_optimizer, rtol=1e-5):
    """The same parameters and optimizer state, and the same bits on all ranks."""
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(ours.detach(), theirs.detach(), rtol)
        ours = ours.detach().contiguous()
        of_all = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
        dist.all_gather(of_all, ours)
        assert all(torch.equal(other, ours) for other in of_all)
    ours, theirs = (o.state_dict()["state"] for o in (optimizer, its_optimizer))
    assert ours.keys() == theirs.keys()
    for state, its_state in zip(ours.values(), theirs.values(), strict=True):
        assert state.keys() == its_state.keys()
        for value, its_value in zip(state.values(), its_state.values(), strict=True):
            if isinstance(value, torch.Tensor):
                assert_close(value, its_value, rtol)


def assert_same_history(ours, theirs, rtol=1e-5):
    for name, value in vars(theirs).items():
        assert_close(getattr(ours, name), value, rtol)


def linear(dtype=torch.float32, targets=1):
    return lambda: nn.Linear(3, targets, dtype=dtype)


class Network(nn.Module):
    """A model that is not affine, with a parameter that is not used."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.unused = nn.Linear(3, 4), nn.Linear(4, 1), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def check_fit_is_that_of_one_process():
    """Fails if a batch is not weighted by its rows or weights, a rank without rows counts, or a step is missed."""
    for loss_fn, dtype, options in (
        (nn.MSELoss(), torch.float32, {"targets": 2}),
        (nn.MSELoss(), torch.float64, {}),
        (nn.HuberLoss(), torch.float64, {"weighted": True}),
        (nn.L1Loss(reduction="sum"), torch.float32, {}),
        (nn.MSELoss(reduction="sum"), torch.float64, {"weighted": True, "targets": 2}),
    ):
        model, twin = twins(linear(dtype, options.get("targets", 1)))
        summed = loss_fn.reduction == "sum"
        optimizer, its_optimizer = (sgd(m, lr=0.001 if summed else 0.02, weight_decay=0.1) for m in (model, twin))
        history = fit(20, model, loss_fn, optimizer, mine(dtype=dtype, **options), process_group=dist.group.WORLD)
        its_history = fit(20, twin, loss_fn, its_optimizer, everyones(dtype=dtype, **options))
        rtol = 1e-5 if dtype == torch.float32 else 1e-12
        assert_same_training(model, twin, optimizer, its_optimizer, rtol)
        assert_same_history(history, its_history, rtol)


def check_any_model_and_optimizer():
    """Fails if only recognised models and optimizers are exact."""
    for build, cls, level in (
        (linear(), torch.optim.Adam, "gradients"), (Network, torch.optim.Adam, "eager"), (Network, sgd, "eager"),
    ):  # fmt: skip
        model, twin = twins(build)
        optimizer, its_optimizer = (cls(m if cls is sgd else list(m.parameters()), lr=0.01) for m in (model, twin))
        step = make_train_step(model, nn.MSELoss(), optimizer, process_group=dist.group.WORLD)
        assert step.explain().startswith(level), step.explain()
        history = fit(5, model, nn.MSELoss(), optimizer, mine(), process_group=dist.group.WORLD)
        its_history = fit(5, twin, nn.MSELoss(), its_optimizer, everyones())
        assert_same_history(history, its_history)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert_close(ours.detach(), theirs.detach())


def check_one_exchange_a_step():
    """Fails if a step exchanges more than one buffer, or more numbers than it needs."""
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    step = make_train_step(model, nn.MSELoss(), sgd(model), process_group=dist.group.WORLD)
    plain = make_train_step(twin, nn.MSELoss(), sgd(twin))
    assert step.explain() == (
        f"fused: an affine model under mse with SGD, one all-reduce of {dist.get_world_size()} ranks between pass and "
        "update"
    )
    sizes, all_reduce = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        sizes.append((tensor.numel(), tensor.dtype))
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        (x, y), rank = next(iter(everyones(targets=2))), dist.get_rank()
        part = slice(2 * rank, None if rank == dist.get_world_size() - 1 else 2 * rank + 2)
        loss = step(x[part], y[part])
    finally:
        dist.all_reduce = all_reduce
    assert sizes == [(2 * (3 + 1) + 4, torch.float64)]
    assert loss.dtype == torch.float32
    assert_close(loss, plain(x, y))
    before = [p.clone() for p in model.parameters()]
    assert step(x[:0], y[:0]).isnan()
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def check_settings_that_change():
    """Fails if a loss that is changed, and with it the step bound again, loses the sums of that step."""
    model, twin = twins(linear())
    loss_fn = nn.HuberLoss(delta=1.0)
    step = make_train_step(model, loss_fn, sgd(model, lr=0.1), process_group=dist.group.WORLD)
    plain = make_train_step(twin, loss_fn, sgd(twin, lr=0.1))
    for delta, rate, batch, ours in zip(
        (1.0, 0.1, 5.0), (0.1, 0.2, 0.3), everyones(), [*mine(), *3 * [None]], strict=False
    ):
        loss_fn.delta = delta
        for each in (step, plain):
            each.optimizer.param_groups[0]["lr"] = rate
        x, y = (t[:0] for t in batch) if ours is None else ours
        assert_close(step(x, y), plain(*batch))
    assert_same_training(model, twin, step.optimizer, plain.optimizer)


def check_layouts_frozen_parameters_and_16_bits():
    """Fails if a gradient is stored in another layout than its parameter's, or overflows."""

    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return x @ self.w + self.b

    class Vector(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return (x @ self.w + self.b).unsqueeze(-1)

    def frozen():
        model = nn.Linear(3, 1)
        model.bias.requires_grad_(False)
        return model

    def strided():
        model = nn.Linear(3, 2)
        model.weight = nn.Parameter(model.weight.detach().t().contiguous().t())
        return model

    for build, targets in ((Columns, 2), (Vector, 1), (frozen, 1), (strided, 2)):
        model, twin = twins(build)
        optimizer, its_optimizer = sgd(model), sgd(twin)
        fit(3, model, nn.MSELoss(), optimizer, mine(targets=targets), process_group=dist.group.WORLD)
        fit(3, twin, nn.MSELoss(), its_optimizer, everyones(targets=targets))
        assert_same_training(model, twin, optimizer, its_optimizer)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    nn.init.ones_(model.weight)
    step = make_train_step(model, nn.MSELoss(), sgd(model, lr=2.0**-14, momentum=0.0), process_group=dist.group.WORLD)
    loss = step(torch.full((100, 1), 64.0).half(), torch.zeros(100, 1).half())
    assert loss == 64 * 64  # the sum of the gradients is beyond 16 bits
    assert model.weight.item() == 1 - 2 * 64 * 64 / 2**14


def check_the_ranks_agree():
    """Fails if scheduler, validation, patience or history depend on one rank's rows alone."""
    model, twin = twins(linear())
    optimizer, its_optimizer = sgd(model, lr=0.3), sgd(twin, lr=0.3)
    make = torch.optim.lr_scheduler.ReduceLROnPlateau
    schedulers = [make(o, patience=0, factor=0.5) for o in (optimizer, its_optimizer)]
    options = {"patience": 3, "progress": False}
    history = fit(
        30, model, nn.MSELoss(), optimizer, mine(), val_dl=mine(weighted=True), scheduler=schedulers[0],
        process_group=dist.group.WORLD, **options,
    )  # fmt: skip
    theirs = fit(
        30, twin, nn.MSELoss(), its_optimizer, everyones(), val_dl=everyones(weighted=True), scheduler=schedulers[1],
        **options,
    )  # fmt: skip
    assert 3 < len(theirs.epoch_loss) < 30
    assert_same_history(history, theirs)
    assert_same_training(model, twin, optimizer, its_optimizer)
    mean = evaluate(model, nn.MSELoss(), mine(), process_group=dist.group.WORLD)
    assert mean == pytest.approx(evaluate(model, nn.MSELoss(), everyones()), rel=1e-6)


def check_one_rank_stops_all():
    def stop(epoch, history):
        if epoch == 3 and dist.get_rank() == 1:
            raise StopTraining

    model = nn.Linear(3, 1)
    assert (
        len(
            fit(
                9, model, nn.MSELoss(), sgd(model), mine(), on_epoch_end=stop, process_group=dist.group.WORLD
            ).epoch_loss
        )
        == 3
    )


def check_state_is_broadcast():
    """Fails if momentum or settings of other ranks survive."""
    model, _ = twins(linear())
    optimizer = sgd(model, lr=0.1 * (1 + dist.get_rank()))
    make_train_step(model, nn.MSELoss(), optimizer)(torch.randn(4, 3), torch.randn(4, 1))  # each on its own
    make_train_step(model, nn.MSELoss(), optimizer, process_group=dist.group.WORLD)
    assert optimizer.param_groups[0]["lr"] == 0.1
    buffers = [s["momentum_buffer"] for s in optimizer.state.values()]
    for tensor in [*model.parameters(), *buffers]:
        of_all = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(of_all, tensor.detach())
        assert all(torch.equal(other, tensor) for other in of_all)


def check_divergence_on_one_rank_ends_all():
    """Fails if another rank trains on, waits, or takes the step."""
    model = nn.Linear(3, 1)
    rows = [(x.clone(), y) for x, y in mine()]
    if dist.get_rank() == 1:
        rows[1][0][2, 1] = float("nan")
    kept = []
    step = (
        rf"step {len(everyones()) + 2} \(epoch 2, batch 2\): rank 1: input\[2, 1\] of that batch is nan; clean the data"
    )
    loader = Failing(rows, lambda epoch, i: kept.append([p.clone() for p in model.parameters()]), mine())
    with pytest.raises(DivergenceError, match=step) as error:
        fit(9, model, nn.MSELoss(), sgd(model), loader, process_group=dist.group.WORLD)
    assert len(error.value.history.step_loss) == error.value.step
    assert all(p.isfinite().all() for p in model.parameters())


class Failing:
    """Batches that come from `first` in the first epoch, and then from `rows` after a call of `each`."""

    def __init__(self, rows, each, first=None):
        self.rows, self.each, self.first, self.epoch = rows, each, first, 0

    def __iter__(self):
        self.epoch += 1
        for i, batch in enumerate(self.first if self.epoch == 1 and self.first is not None else self.rows):
            self.each(self.epoch, i)
            yield batch


def check_a_failure_on_one_rank_ends_all():
    """Fails if the others wait for it, or do not learn of its cause."""

    def fail(epoch, i):
        if (epoch, i, dist.get_rank()) == (2, 1, 1):
            raise OSError("no such file: rows.bin")

    def fail_after(epoch, history):
        if epoch == 2 and dist.get_rank() == 1:
            raise OSError("no such file: rows.bin")

    for loader, options in (
        (Failing(mine(), fail), {}), (mine(), {"val_dl": Failing(mine(), fail)}), (mine(), {"on_epoch_end": fail_after}),
    ):  # fmt: skip
        model = nn.Linear(3, 1)
        with pytest.raises((OSError, RuntimeError)) as error:
            fit(9, model, nn.MSELoss(), sgd(model), loader, process_group=dist.group.WORLD, **options)
        if dist.get_rank() == 1:
            assert str(error.value) == "no such file: rows.bin"
        else:
            assert str(error.value) == (
                "fit: rank 1 failed with OSError: no such file: rows.bin "
                f"(this is rank {dist.get_rank()} of {dist.get_world_size()})"
            )
    model = nn.Linear(3, 1 + (dist.get_rank() == 1))
    words = re.escape("all ranks must have a model of the same shapes, got [1, 3] torch.float32, [1] torch.float32 on ")
    with pytest.raises(RuntimeError, match=words + r"rank 0 and .* on rank 1"):
        make_train_step(model, nn.MSELoss(), sgd(model), process_group=dist.group.WORLD)
    with pytest.raises(
        ValueError, match="train_dl must yield at least one batch on some rank in every epoch, got none"
    ):
        fit(1, nn.Linear(3, 1), nn.MSELoss(), sgd(nn.Linear(3, 1)), [], process_group=dist.group.WORLD)


def check_a_part_of_the_world():
    """Fails if a group's ranks are taken for the world's."""
    ranks = [rank for rank in range(dist.get_world_size()) if rank != 0]
    group = dist.new_group(ranks)
    model, _ = twins(linear())
    if dist.get_rank() == 0:
        with pytest.raises(TypeError, match="process_group must be a ProcessGroup with this process"):
            make_train_step(model, nn.MSELoss(), sgd(model), process_group=group)
        return
    torch.manual_seed(1)
    twin = nn.Linear(3, 1)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter += 1  # as rank 1's
    history = fit(3, model, nn.MSELoss(), sgd(model), mine(), process_group=group)
    rest = joined([batches(rank) for rank in ranks])
    assert_same_history(history, fit(3, twin, nn.MSELoss(), sgd(twin), rest))


SETTINGS = [
    {"momentum": m, "dampening": d, "weight_decay": w, "nesterov": n, "maximize": x}
    for m, d, w, n, x in itertools.product((0.0, 0.9), (0.0, 0.3), (0.0, 0.1), (False, True), (False, True))
    if not n or (m > 0 and d == 0)
]
SETTINGS += [
    {"lr": torch.tensor(0.01)},
    {"foreach": True},
    {"fused": True, "momentum": 0.9},
    {"dampening": 0.5, "momentum": 0.9},
]


def check_distributed_data_parallel():
    """Fails if a recognised model trains unlike the plain loop over the same batches."""
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    data = [(torch.randn(n, 3, generator=generator), torch.randn(n, 2, generator=generator)) for n in (3 + rank, 4, 1)]
    for settings in SETTINGS:
        models = [DistributedDataParallel(m) for m in twins(linear(targets=2))]
        optimizers = [sgd(model, **{"lr": 0.01, **settings}) for model in models]
        step = make_train_step(models[0], nn.MSELoss(), optimizers[0])
        assert step.explain().startswith("fused: an affine model under mse with SGD, one all-reduce of "), (
            step.explain()
        )
        for x, y in [*data, *data]:
            step(x, y)
            nn.functional.mse_loss(models[1](x), y).backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
        assert step.level == "fused"
        assert_same_training(*models, *optimizers)
    models = [DistributedDataParallel(m, gradient_as_bucket_view=True) for m in twins(linear(targets=2))]
    optimizers = [
        torch.optim.SGD([{"params": [m.module.weight], "lr": 0.1}, {"params": [m.module.bias]}], lr=0.01)
        for m in models
    ]
    step = make_train_step(models[0], nn.MSELoss(), optimizers[0])
    assert step.explain() == "gradients: weight and bias have different settings in the optimizer"
    for x, y in data:
        step(x, y)
        nn.functional.mse_loss(models[1](x), y).backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
    assert_same_training(*models, *optimizers)


def check_distributed_data_parallel_that_is_not_fused():
    """Fails if one rank updates a model that DistributedDataParallel must reduce in its own way."""
    rank = dist.get_rank()
    x, y = torch.randn(2 + rank, 3), torch.randn(2 + rank, 1)

    def parallel(model, **options):
        return DistributedDataParallel(model, **options)

    def hooked(model):
        found = parallel(model)
        found.register_comm_hook(
            None, lambda state, bucket: torch.futures.collect_all([]).then(lambda _: bucket.buffer())
        )
        return found

    for wrap, reason in (
        (lambda model: parallel(model, static_graph=True), "has a static graph"), (hooked, "has a communication hook"),
    ):  # fmt: skip
        model = wrap(nn.Linear(3, 1))
        step = make_train_step(model, nn.MSELoss(), sgd(model))
        assert step.explain() == f"eager: the DistributedDataParallel model {reason}"
        step(x, y)
    model, twin = (parallel(m) for m in twins(linear()))
    step = make_train_step(model, nn.MSELoss(), sgd(model))
    optimizer = sgd(twin)
    for _ in range(2):
        for is_last in (False, True):  # of two micro-batches
            with (model.no_sync if not is_last else _nothing)(), (twin.no_sync if not is_last else _nothing)():
                step(x, y)
                assert step.explain().startswith(
                    "fused" if is_last else "eager: the DistributedDataParallel model is in"
                )
                nn.functional.mse_loss(twin(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(ours.detach(), theirs.detach())
    with pytest.raises(ValueError, match="process_group must be None with a DistributedDataParallel model"):
        make_train_step(model, nn.MSELoss(), sgd(model), process_group=dist.group.WORLD)
    network = parallel(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1)))
    assert make_train_step(network, nn.MSELoss(), sgd(network)).explain() == "eager: the model holds a Tanh"


def _nothing():
    return torch.enable_grad()


def check_fit_of_distributed_data_parallel():
    """Fails if epochs are not shuffled anew, or ranks differ in their history."""
    rank, size = dist.get_rank(), dist.get_world_size()
    data = TensorDataset(
        *(t.float() for t in (torch.arange(36.0).view(12, 3).sin(), torch.arange(12.0).view(12, 1).cos()))
    )
    samplers = [DistributedSampler(data, num_replicas=size, rank=rank, seed=5) for _ in range(2)]
    loaders = [DataLoader(data, batch_size=2, sampler=sampler) for sampler in samplers]
    models = [DistributedDataParallel(m) for m in twins(linear())]
    optimizers = [sgd(model) for model in models]
    history = fit(4, models[0], nn.MSELoss(), optimizers[0], loaders[0])
    for epoch in range(4):
        samplers[1].set_epoch(epoch)
        for x, y in loaders[1]:
            nn.functional.mse_loss(models[1](x), y).backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
    assert_same_training(*models, *optimizers)
    losses = [torch.empty_like(history.step_loss) for _ in range(size)]
    dist.all_gather(losses, history.step_loss)
    assert all(torch.equal(other, history.step_loss) for other in losses)


def check_what_is_said():
    """Fails if every rank prints, or repeated rows go unnoticed."""
    data = TensorDataset(torch.randn(6 * dist.get_world_size() + 1, 3), torch.randn(6 * dist.get_world_size() + 1, 1))
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data))
    model, out = nn.Linear(3, 1), io.StringIO()
    words = rf"the DistributedSampler of train_dl counts {dist.get_world_size() - 1} of {len(data)} rows twice so that"
    with contextlib.redirect_stdout(out), pytest.warns(UserWarning, match=words):
        fit(2, model, nn.MSELoss(), sgd(model), loader, log_every=1, process_group=dist.group.WORLD)
    assert out.getvalue().count("Epoch [") == (2 if dist.get_rank() == 0 else 0)


def check_moments():
    """Fails if moments are not those of all rows, however they are spread."""
    rank, offset = dist.get_rank(), 1e6
    rows = [(x + offset, y, w) for x, y, w in batches(rank, torch.float64, 2, weighted=True)]
    parts = [b for r in range(dist.get_world_size()) for b in batches(r, torch.float64, 2, weighted=True)]
    everything = [(x + offset, y, w) for x, y, w in parts]
    for method, groups in (("gram", None), ("gram", 3), ("qr", None)):
        ours, whole = (LeastSquares(3, 2, method=method, groups=groups) for _ in range(2))
        for moments, data in ((ours, rows), (whole, everything)):
            for x, y, weight in data:
                group = None if groups is None else (y[:, 0] > 1).long() * 2  # no row in group 1
                moments.update(x, y, weight, group)
        assert ours.all_reduce() is ours
        assert ours.rows == whole.rows
        solution, its = ours.solve(), whole.solve()
        used = slice(None) if groups is None else [0, 2]
        for name in ("weight", "bias", "residual_sum_of_squares"):
            a, b = (getattr(s, name)[used] for s in (solution, its))
            assert_close(a, b, 1e-8 if name == "bias" else 1e-9)


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("size", cases([2], [3, 4]))
def test_processes(size, tmp_path):
    run_in_processes(size, CHECKS, tmp_path)


def killed(epoch, i):
    if (epoch, i, dist.get_rank()) == (2, 1, 1):
        os.kill(os.getpid(), signal.SIGKILL)


def silent(epoch, i):
    if (epoch, i, dist.get_rank()) == (2, 1, 1):
        time.sleep(25)


def work(rank, size, sabotage, folder):
    join(rank, size, folder, seconds=6)
    model = nn.Linear(3, 1)
    try:
        loader = Failing(batches(rank), sabotage)
        fit(
            99,
            model,
            nn.MSELoss(),
            torch.optim.SGD(model.parameters(), lr=0.01),
            loader,
            process_group=dist.group.WORLD,
        )
    except RuntimeError as error:
        (folder / f"{rank}.txt").write_text(str(error))
        os._exit(1)


@pytest.mark.extended
@pytest.mark.parametrize("sabotage", [killed, silent])
def test_a_lost_rank_ends_all(sabotage, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    processes = [context.Process(target=work, args=(rank, 3, sabotage, tmp_path), daemon=True) for rank in range(3)]
    for process in processes:
        process.start()
    processes[1].join(60)
    since = time.monotonic()
    for process in processes:
        process.join(max(0, 30 + since - time.monotonic()))
    assert [process.exitcode for process in processes] == [1, -signal.SIGKILL if sabotage is killed else 1, 1]
    for rank in (0, 2):
        message = (tmp_path / f"{rank}.txt").read_text()
        assert re.match(
            rf"fit: rank {rank} of 3 has lost another rank, which was killed or did not answer before the timeout of the "
            "process group: .",
            message,
        ), message
