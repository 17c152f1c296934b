# SPDX-License-Identifier: BSD-3-Clause
"""Two processes that train a DistributedDataParallel model, for the target C16."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import linreg_ext

from .clocks import Variant
from .harness import Bench, Case
from .names import BARE_REDUCE, NAME
from .problem import Answer, Expected

_N, _D, _STEPS, _LR = 4096, 64, 100, 0.05
_END = -1


def processes(bench: Bench) -> None:
    """100 steps of an affine model under DistributedDataParallel, by two processes of one thread with gloo."""
    steps = 3 if bench.quick else _STEPS
    with tempfile.TemporaryDirectory() as folder, bench.threads(1):
        where = f"file://{Path(folder) / 'meeting'}"
        partner = torch.multiprocessing.get_context("spawn").Process(target=_partner, args=(where, steps), daemon=True)
        partner.start()
        dist.init_process_group("gloo", init_method=where, rank=0, world_size=2)
        try:
            works = _works(0, steps)
            makers = {name: functools.partial(_variant, name, code, works) for code, name in enumerate(works)}
            case = Case("processes", "C16", f"{steps} steps on 2 × {_N:,} × {_D}", 2 * _N, _D)
            bench.compare(case, makers, _expected(steps))
            _announce(_END)
            partner.join()
        finally:
            dist.destroy_process_group()


def _partner(where: str, steps: int) -> None:
    """The other process: takes part in whatever the first one announces."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=where, rank=1, world_size=2)
    works = list(_works(1, steps).values())
    while (code := _announce(0)) != _END:
        works[code]()
    dist.destroy_process_group()


def _announce(code: int) -> int:
    """Tell the other process, or learn from the first, which work comes next."""
    message = torch.tensor([code])
    dist.broadcast(message, 0)
    return int(message)


def _rows(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(_N, _D, generator=generator)
    return x, x.sum(1, keepdim=True) + torch.randn(_N, 1, generator=generator)


def _works(rank: int, steps: int) -> dict[str, Callable[[], Answer]]:
    """For each variant all steps of a process, from a model of zeros; they return the model."""
    x, y = _rows(rank)
    loss_fn = nn.MSELoss()

    def of_model(make_step: Callable[[nn.Module, torch.optim.Optimizer], Callable[[], object]]) -> Callable[[], Answer]:
        linear = nn.Linear(_D, 1)
        model = DistributedDataParallel(linear)
        step = make_step(model, torch.optim.SGD(model.parameters(), lr=_LR))

        def work() -> Answer:
            with torch.no_grad():
                linear.weight.zero_(), linear.bias.zero_()
            for _ in range(steps):
                step()
            return {"weight": linear.weight, "bias": linear.bias}

        return work

    def fused(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        return functools.partial(linreg_ext.make_train_step(model, loss_fn, optimizer), x, y)

    def plain(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], object]:
        def step() -> None:
            loss_fn(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def bare() -> Answer:
        w, b, buffer = torch.zeros(1, _D), torch.zeros(1), torch.zeros(_D + 1 + 4, dtype=torch.float64)
        for _ in range(steps):
            linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=_LR)
            dist.all_reduce(buffer)
        return {}

    return {f"{NAME} TrainStep": of_model(fused), BARE_REDUCE: bare, "plain DDP": of_model(plain)}


def _variant(name: str, code: int, works: dict[str, Callable[[], Answer]]) -> Variant:
    last: Answer = {}

    def run() -> None:
        _announce(code)
        last.update(works[name]())

    role = "ours" if name.startswith(NAME) else "bound" if name == BARE_REDUCE else "peer"
    return Variant(run, None if role == "bound" else lambda: last, role=role)


def _expected(steps: int) -> dict[str, Expected]:
    """One process's steps on all rows."""
    x, y = (torch.cat(parts).double() for parts in zip(_rows(0), _rows(1), strict=True))
    w, b = torch.zeros(1, _D).double(), torch.zeros(1).double()
    for _ in range(steps):
        linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=_LR)
    return {"weight": Expected(w), "bias": Expected(b)}
