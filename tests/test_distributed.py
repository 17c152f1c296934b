# SPDX-License-Identifier: BSD-3-Clause
"""Two processes train like one: DistributedDataParallel, FSDP2 and DTensor over gloo, on the CPU."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import run_in_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from linreg_ext import LinearMSELoss, linear_huber_loss, linear_mse_loss, make_train_step, sgd_step_

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)


class Head(nn.Module):
    """A body with a fused head."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), LinearMSELoss(4, 1)

    def forward(self, x, y):
        return self.head(torch.tanh(self.body(x)), y)


class PlainHead(Head):
    def forward(self, x, y):
        return F.mse_loss(self.head.linear(torch.tanh(self.body(x))), y)


class Function(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.w, self.b = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(2))

    def forward(self, x, y):
        return linear_huber_loss(self.body(x), self.w, y.expand(-1, 2), linear_bias=self.b)


class PlainFunction(Function):
    def forward(self, x, y):
        return F.huber_loss(F.linear(self.body(x), self.w, self.b), y.expand(-1, 2))


def data(rows):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, 3, generator=generator), torch.randn(rows, 1, generator=generator)


def made(cls, seed=1):
    torch.manual_seed(seed)
    return cls()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model, batches):
    optimizer = sgd(model)
    for x, y in batches:
        model(x, y).backward()
        optimizer.step()
        optimizer.zero_grad()


def assert_same_parameters(model, twin):
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        ours = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


def loaders(rows, batch_size):
    """This process's batches, and the concatenated batches of both."""
    dataset = TensorDataset(*data(rows))
    samplers = [DistributedSampler(dataset, num_replicas=2, rank=r, shuffle=True, seed=5) for r in range(2)]
    mine = DataLoader(dataset, batch_size=batch_size, sampler=samplers[dist.get_rank()])
    both = zip(*[DataLoader(dataset, batch_size=batch_size, sampler=s) for s in samplers], strict=True)
    joined = [(torch.cat([x0, x1]), torch.cat([y0, y1])) for (x0, y0), (x1, y1) in both]
    return mine, joined


def data_parallel(ours, plain):
    mine, joined = loaders(12, 3)
    model, twin = made(ours), made(plain)
    train(DistributedDataParallel(model), mine)
    train(twin, joined)
    assert_same_parameters(model, twin)


def check_data_parallel_module():
    """Fails if the gradients of the fused head bypass the reducer."""
    data_parallel(Head, PlainHead)


def check_data_parallel_function():
    """Fails if the gradients of the functional loss are not those of the concatenated batch."""
    data_parallel(Function, PlainFunction)


def check_unequal_last_batches():
    """One process has more batches, the last one smaller, and join stands in for the other. Fails if the gradients to
    average differ from plain PyTorch's."""
    x, y = data(11)
    batches = (
        [(x[:3], y[:3]), (x[3:6], y[3:6])] if dist.get_rank() else [(x[i : i + 2], y[i : i + 2]) for i in (5, 7, 9, 10)]
    )
    models = [DistributedDataParallel(made(cls)) for cls in (Head, PlainHead)]
    for model in models:
        with model.join():
            train(model, batches)
    assert_same_parameters(*models)


def check_train_step_of_the_wrapped():
    """Fails if the reducer's hooks on the parameters are bypassed."""
    model = nn.Linear(3, 1)
    kept = DistributedDataParallel(model)
    step = make_train_step(model, nn.MSELoss(), sgd(model))
    assert step.explain() == "gradients: a parameter has hooks"
    del kept


def check_fully_sharded():
    """Fails if the gradients of gathered parameters are wrong or not scattered, or a shard is used as the whole."""
    from torch.distributed.fsdp import fully_shard

    mine, joined = loaders(12, 3)
    twin = made(PlainHead)
    train(twin, joined)
    for parts in (lambda m: [m], lambda m: [m.head, m]):
        model = made(Head)
        for part in parts(model):
            fully_shard(part)
        train(model, mine)
        assert_same_parameters(model, twin)
    model = made(Head)
    fully_shard(model.head.linear)
    with pytest.raises(RuntimeError, match=r"LinearMSELoss: linear must be an nn.Linear .* got FSDPLinear"):
        model(*next(iter(mine)))


def check_train_step_of_a_fully_sharded_model():
    """Fails if a shard is updated as if it were the parameter."""
    from torch.distributed.fsdp import fully_shard

    mine, joined = loaders(12, 3)
    model, twin = made(lambda: nn.Linear(3, 1)), made(lambda: nn.Linear(3, 1))
    fully_shard(model)
    step, plain = (make_train_step(m, nn.MSELoss(), sgd(m)) for m in (model, twin))
    for (x, y), batch in zip(mine, joined, strict=True):
        step(x, y)
        plain(*batch)
    assert step.explain() == "eager: the model holds an FSDPLinear"
    assert_same_parameters(model, twin)


def check_dtensors():
    """Fails if a DTensor reaches a kernel, which would use a shard as the whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    def distributed(tensor):
        return distribute_tensor(tensor, mesh, [Replicate()])

    mesh = init_device_mesh("cpu", (2,))
    x, y = data(8)
    w = torch.randn(1, 3)
    words = r"{}: linear_weight is a DTensor, .* to_local\(\)"
    for operands in ((x, distributed(w), y), [distributed(t) for t in (x, w, y)]):
        with pytest.raises(NotImplementedError, match=words.format("linear_mse_loss")):
            linear_mse_loss(*operands)
        with pytest.raises(NotImplementedError, match=words.format("sgd_step_")):
            sgd_step_(*operands, lr=0.1)
    model = nn.Linear(3, 1)
    twin = copy.deepcopy(model)
    for name, parameter in list(model.named_parameters()):
        setattr(model, name, nn.Parameter(distributed(parameter.detach())))
    step, plain = (make_train_step(m, nn.MSELoss(), sgd(m)) for m in (model, twin))
    for _ in range(3):
        step(distributed(x), distributed(y))
        plain(x, y)
    assert step.explain().startswith("eager: a parameter is a DTensor"), step.explain()
    assert_same_parameters(model, twin)


CHECKS = [check for name, check in list(globals().items()) if name.startswith("check_")]


@pytest.mark.extended
def test_two_processes(tmp_path):
    run_in_processes(2, CHECKS, tmp_path)
