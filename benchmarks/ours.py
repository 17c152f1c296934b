# SPDX-License-Identifier: BSD-3-Clause
"""Every entry to the fused step, and the bounds on its speed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import linreg_ext
from linreg_ext import _extension

from .clocks import Variant
from .peers import linear
from .problem import Problem


def train_step(problem: Problem) -> Variant:
    """linreg_ext.make_train_step, in place of the plain loop's body."""
    model = linear(problem)
    step = linreg_ext.make_train_step(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=problem.lr))
    if step.level != "fused":
        raise RuntimeError(step.explain())
    return _variant(problem, model.weight, model.bias, lambda: step(problem.x, problem.y))


def function(problem: Problem) -> Variant:
    """linreg_ext.sgd_step_ on tensors."""
    x, y, w, b, lr = _operands(problem)
    return _variant(problem, w, b, lambda: linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=lr))


def operator(problem: Problem) -> Variant:
    """torch.ops.linreg_ext.sgd_step_, through the dispatcher."""
    x, y, w, b, lr = _operands(problem)
    step = torch.ops.linreg_ext.sgd_step_
    parameters, buffers, rule = [w, b], [], [lr]
    return _variant(problem, w, b, lambda: step(x, y, parameters, buffers, rule))


def entry(problem: Problem) -> Variant:
    """_C.sgd_step_, the direct entry."""
    x, y, w, b, lr = _operands(problem)
    step = _extension._C.sgd_step_
    rule = [lr, 0.0, 0.0, 0.0, 0.0, 0.0]
    arguments = (x, y, [w, b], [], rule, "mse", 1.0, None, None, "mean", 0, 0, False)
    return _variant(problem, w, b, lambda: step(*arguments))


def read_sum(problem: Problem) -> Variant:
    """The bound: a sum over the rows, which only reads them (16-bit ones in pairs, as float32)."""
    x = problem.x.reshape(-1)
    if x.element_size() == 2 and len(x) % 2 == 0:
        x = x.view(torch.float32)
    return Variant(lambda: x.sum(), role="bound", bytes=x.nbytes, finish=problem.wait)


def two_products(problem: Problem) -> Variant:
    """The bound for many targets: only the two matrix products of a step."""
    x, w = problem.x, problem.weight
    p, g = torch.empty_like(problem.y), torch.empty_like(w)

    def run() -> None:
        torch.mm(x, w.t(), out=p)
        torch.mm(p.t(), x, out=g)

    return Variant(run, role="bound", finish=problem.wait)


def _operands(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    return problem.x, problem.y, problem.weight.clone(), problem.bias.clone(), problem.lr


def _variant(problem: Problem, w: Tensor, b: Tensor, run: Callable[[], Tensor]) -> Variant:
    last: dict[str, Tensor] = {}

    def remembered() -> None:
        last["loss"] = run()

    return Variant(remembered, lambda: {**last, "weight": w, "bias": b}, role="ours", finish=problem.wait)
