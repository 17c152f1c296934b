# SPDX-License-Identifier: BSD-3-Clause
"""What is measured. Each workload checks the answer before it times it and returns the lines of a table."""

from __future__ import annotations

import copy
import subprocess
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linreg_ext
from linreg_ext import _extension, reference

from .harness import Result, timings

LR = 1e-4


def step(quick: bool) -> list[Result]:
    """One tiny step (32 rows, 8 features, 1 target), Python to Python, by every way in."""
    torch.manual_seed(0)
    x, y, model = torch.randn(32, 8), torch.randn(32, 1), nn.Linear(8, 1)
    _check(model, x, y)
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    arguments = (
        x, w, y, b, None, None, None, "mse", 1.0, "mean", None, LR, 0.0, 0.0, 0.0, False, False,
        False, False, False, False, False,
    )  # fmt: skip
    direct, op = _extension._C.sgd_step_, torch.ops.linreg_ext.sgd_step_
    fused, eager = _train_steps(model)
    seconds = timings(
        {
            "eager PyTorch": lambda: eager(x, y),
            "_C.sgd_step_": lambda: direct(*arguments),
            "torch.ops.linreg_ext.sgd_step_": lambda: op(*arguments),
            "linreg_ext.sgd_step_": lambda: linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=LR),
            "TrainStep": lambda: fused(x, y),
        },
        repeats=9 if quick else 25,
        calls=500 if quick else 2000,
    )
    return [
        Result(
            name,
            f"{value * 1e6:.2f} µs",
            f"{seconds['eager PyTorch'] / value:.0f}× as fast as eager" if name != "eager PyTorch" else "",
        )
        for name, value in seconds.items()
    ]


def large(quick: bool) -> list[Result]:
    """One step on 1 GB (64 MB with --quick), float32, one target."""
    return [_large(d, 2**24 if quick else 2**28, 5 if quick else 9) for d in (1, 8, 64, 512, 1024)]


def _large(d: int, elements: int, repeats: int) -> Result:
    torch.manual_seed(0)
    n = min(elements // d, 2**24)
    x, y, model = torch.empty(n, d).uniform_(-1, 1), torch.empty(n, 1).uniform_(-1, 1), nn.Linear(d, 1)
    _check(model, x[:1000], y[:1000])
    fused, eager = _train_steps(model)
    seconds = timings(
        {"fused": lambda: fused(x, y), "eager": lambda: eager(x, y), "x.sum()": lambda: x.sum()}, repeats, calls=1
    )
    return Result(
        f"{n:,} × {d}",
        f"{seconds['fused'] * 1e3:.1f} ms",
        f"{seconds['eager'] / seconds['fused']:.1f}× as fast as eager ({seconds['eager'] * 1e3:.1f} ms), "
        f"{seconds['x.sum()'] / seconds['fused']:.2f} of the speed of x.sum()",
    )


def memory(quick: bool) -> list[Result]:
    """How much the process grows while it trains on a 2 GB float32 matrix (128 MB with --quick)."""
    script = f"""
import resource, torch, linreg_ext
x = torch.empty({2**15 if quick else 2**19}, 1024).uniform_()
y = torch.empty(len(x), 1).uniform_()
model = torch.nn.Linear(1024, 1)
step = linreg_ext.make_train_step(model, torch.nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=1e-4))
step(x[:1024], y[:1024])  # loads what a first step loads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(5):
    loss = step(x, y)
assert loss.isfinite()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, x.nbytes)
"""
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    grown, data = map(int, output.split())
    return [Result(f"{data / 1e9:.1f} GB of data", f"{grown / 1e6:.1f} MB more", f"{grown / data:.2%} of the data")]


def _train_steps(model: nn.Module) -> tuple[linreg_ext.TrainStep, object]:
    """The fused and the plain step of two copies of a model."""
    pair = []
    for make in (linreg_ext.make_train_step, reference.make_train_step):
        twin = copy.deepcopy(model)
        pair.append(make(twin, nn.MSELoss(), torch.optim.SGD(twin.parameters(), lr=LR)))
    return tuple(pair)


def _check(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """The fused step gives what autograd and torch.optim.SGD give."""
    fused, eager = _train_steps(model)
    for _ in range(3):
        torch.testing.assert_close(fused(x, y), eager(x, y))
    w, b = model.weight.detach().clone(), model.bias.detach().clone()
    loss = linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=LR)
    torch.testing.assert_close(loss, F.mse_loss(model(x), y).detach())
