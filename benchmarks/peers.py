# SPDX-License-Identifier: BSD-3-Clause
"""The alternatives for an SGD step of a linear regression, each as its users would write it.

Every function makes a `Variant` whose call is one step on the problem. Its parameters persist between calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .clocks import Variant
from .peers_arrays import with_numba, with_numpy
from .peers_jax import with_jax
from .problem import Problem


def eager(problem: Problem) -> Variant:
    """nn.Linear, nn.MSELoss and optim.SGD in the plain loop."""
    model, step = training_loop(problem)
    return _training(problem, model, step)


def compiled(problem: Problem) -> Variant:
    """The step of the same loop under torch.compile."""
    model, step = training_loop(problem)
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # no warnings about graph breaks
    return _training(problem, model, torch.compile(step, dynamic=False))


def by_hand(problem: Problem) -> Variant:
    """PyTorch without autograd: two products and an in-place update."""
    return _stepping(problem, _hand_written)


def by_hand_compiled(problem: Problem) -> Variant:
    """The same under torch.compile."""
    return _stepping(problem, torch.compile(_hand_written, dynamic=False, fullgraph=True))


STEPS: dict[str, Callable[[Problem], Variant]] = {
    "eager": eager,
    "compiled": compiled,
    "by hand": by_hand,
    "by hand, compiled": by_hand_compiled,
    "NumPy": with_numpy,
    "numba": with_numba,
    "JAX": with_jax,
}


def training_loop(problem: Problem) -> tuple[nn.Linear, Callable[[], Tensor]]:
    """A model with the problem's initial parameters, and the body of the plain training loop."""
    model = linear(problem)
    loss_fn, optimizer = nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=problem.lr)
    x, y = problem.x, problem.y

    def step() -> Tensor:
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return model, step


def linear(problem: Problem) -> nn.Linear:
    """nn.Linear with the problem's initial parameters."""
    model = nn.Linear(problem.d, problem.k, device=problem.x.device, dtype=problem.weight.dtype)
    model.load_state_dict({"weight": problem.weight, "bias": problem.bias})
    return model


def _training(problem: Problem, model: nn.Linear, step: Callable[[], Tensor]) -> Variant:
    last: dict[str, Tensor] = {}

    def run() -> None:
        last["loss"] = step()

    return Variant(run, lambda: {**last, "weight": model.weight, "bias": model.bias}, finish=problem.wait)


def _stepping(problem: Problem, step: Callable[..., Tensor]) -> Variant:
    x, y, w, b, lr = problem.x, problem.y, problem.weight.clone(), problem.bias.clone(), problem.lr
    last: dict[str, Tensor] = {}

    def run() -> None:
        last["loss"] = step(x, y, w, b, lr)

    return Variant(run, lambda: {**last, "weight": w, "bias": b}, finish=problem.wait)


def _hand_written(x: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Tensor:
    n, k = y.shape
    scale = 2 / (n * k)
    if k == 1:  # matrix-vector products are faster
        r = torch.mv(x, w[0]).add_(b).sub_(y[:, 0])
        loss = torch.dot(r, r) / n
        w[0].addmv_(x.t(), r, alpha=-lr * scale)
    else:
        r = torch.addmm(b, x, w.t()).sub_(y)
        loss = r.square().mean()
        w.addmm_(r.t(), x, alpha=-lr * scale)
    b.sub_(r.sum(0), alpha=lr * scale)
    return loss
