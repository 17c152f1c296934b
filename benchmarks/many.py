# SPDX-License-Identifier: BSD-3-Clause
"""Many regressions at once beside what batches them elsewhere, for the targets C12, C12b and C13."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import linreg_ext

from .availability import installed, needs_all_threads
from .clocks import Variant
from .harness import Bench, Case
from .names import NAME, ONE_BY_ONE
from .problem import Answer, Expected

Runs = tuple[Tensor, Tensor, Tensor, int]  # rows [P, N, D] or [N, D], targets [P, N, 1] or [N, 1], rates [P], epochs


def groups(bench: Bench) -> None:
    """100 full-batch epochs of up to 10,000 problems of 100 × 4, and their exact solutions."""
    for count in (50,) if bench.quick else (10, 100, 1000, 10_000):
        x, y, epochs = torch.randn(count, 100, 4), torch.randn(count, 100, 1), 10 if bench.quick else 100
        runs = x, y, torch.full((count,), 0.1), epochs
        id = "C12" if count == 10_000 else ""
        makers = {
            f"{NAME} sgd_run_many_": _many,
            f"{NAME} moments": _moments_of_groups,
            ONE_BY_ONE: _one_by_one,
            "bmm by hand": _bmm,
            "vmap": _vmap,
            "JAX vmap": _jax,
        }
        _compare(bench, Case("groups", id, f"{count:,} problems of 100 × 4, {epochs} epochs", 100, 4), makers, runs)
        exact = {f"{NAME} LeastSquares": _exact, "batched lstsq": _batched_lstsq, "scikit-learn": _scikit_learn}
        expected = {"weight": Expected(_solved(x.double(), y.double()))}
        case = Case("groups", "", f"{count:,} problems of 100 × 4, exact", 100, 4)
        bench.compare(case, {name: functools.partial(make, x, y) for name, make in exact.items()}, expected, 1e-4)


def sweep(bench: Bench) -> None:
    """50 full-batch epochs of 64 learning rates on 10,000 × 16."""
    rows, count, epochs = (500, 8, 5) if bench.quick else (10_000, 64, 50)
    runs = torch.randn(rows, 16), torch.randn(rows, 1), torch.logspace(-3, -1, count), epochs
    case = Case("sweep", "C13", f"{count} learning rates on {rows:,} × 16, {epochs} epochs", rows, 16)
    makers = {
        f"{NAME} sgd_run_many_": _many,
        f"{NAME} moments": _moments_of_a_sweep,
        ONE_BY_ONE: _one_by_one,
        "by hand": _bmm,
        "vmap": _vmap,
        "JAX vmap": _jax,
    }
    _compare(bench, case, makers, runs)


def _compare(bench: Bench, case: Case, makers: dict[str, Callable[[Runs], Variant]], runs: Runs) -> None:
    x, y, lr, epochs = runs
    exact = _bmm((x.double(), y.double(), lr.double(), epochs))
    exact.run()
    expected = {name: Expected(value) for name, value in exact.answer().items()}
    bench.compare(case, {name: functools.partial(make, runs) for name, make in makers.items()}, expected, 1e-4)


def _variant(runs: Runs, take: Callable[[Tensor, Tensor], None], role: str = "peer") -> Variant:
    """`take` updates weights [P, D, 1] and biases [P, 1, 1] from 0."""
    x, _, lr, _ = runs
    w, b = x.new_zeros(len(lr), x.shape[-1], 1), x.new_zeros(len(lr), 1, 1)

    def run() -> None:
        w.zero_()
        b.zero_()
        take(w, b)

    return Variant(run, lambda: {"weight": w, "bias": b}, role=role)


def _many(runs: Runs) -> Variant:
    """One call."""
    x, y, lr, epochs = runs

    def take(w: Tensor, b: Tensor) -> None:
        linreg_ext.sgd_run_many_(x, w.mT, y, linear_bias=b[:, 0], lr=lr, epochs=epochs)

    return _variant(runs, take, "ours")


def _one_by_one(runs: Runs) -> Variant:
    """A loop of sgd_run_."""
    x, y, lr, epochs = runs
    rates = lr.tolist()

    def take(w: Tensor, b: Tensor) -> None:
        for p, rate in enumerate(rates):
            own = (x, y) if x.dim() == 2 else (x[p], y[p])
            linreg_ext.sgd_run_(own[0], w[p].T, own[1], linear_bias=b[p, 0], lr=rate, epochs=epochs)

    return _variant(runs, take)


def _moments_of_groups(runs: Runs) -> Variant:
    """Moments of all groups, and steps without the rows."""
    x, y, lr, epochs = runs
    group = torch.arange(len(x)).repeat_interleave(x.shape[1])

    def take(w: Tensor, b: Tensor) -> None:
        moments = linreg_ext.LeastSquares(x.shape[2], groups=len(x))
        moments.update(x.flatten(0, 1), y.flatten(0, 1), group=group)
        moments.sgd_run_(w.mT, b[:, 0], steps=epochs, lr=lr[0].item())

    return _variant(runs, take, "ours")


def _moments_of_a_sweep(runs: Runs) -> Variant:
    x, y, lr, epochs = runs

    def take(w: Tensor, b: Tensor) -> None:
        linreg_ext.LeastSquares(x.shape[1]).update(x, y).sgd_run_(w.mT, b[:, 0], steps=epochs, lr=lr)

    return _variant(runs, take, "ours")


def _solved(x: Tensor, y: Tensor) -> Tensor:
    """The coefficients [P, 4] of a regression with a bias."""
    return torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[..., :1])], -1), y).solution[:, :-1, 0]


def _exact(x: Tensor, y: Tensor) -> Variant:
    group, found = torch.arange(len(x)).repeat_interleave(x.shape[1]), {}

    def run() -> None:
        moments = linreg_ext.LeastSquares(x.shape[2], groups=len(x))
        solution = moments.update(x.flatten(0, 1), y.flatten(0, 1), group=group).solve()
        found.update(weight=solution.weight[:, 0])

    return Variant(run, lambda: found, role="ours")


def _batched_lstsq(x: Tensor, y: Tensor) -> Variant:
    found = {}
    return Variant(lambda: found.update(weight=_solved(x, y)), lambda: found)


def _scikit_learn(x: Tensor, y: Tensor) -> Variant:
    """A loop of LinearRegression."""
    linear_model = installed("sklearn.linear_model")
    arrays, found = (x.numpy(), y.numpy()), {}

    def run() -> None:
        coefficients = [linear_model.LinearRegression().fit(*own).coef_ for own in zip(*arrays, strict=True)]
        found.update(weight=torch.stack([torch.from_numpy(own[0]) for own in coefficients]))

    return Variant(run, lambda: found)


def _bmm(runs: Runs) -> Variant:
    """Batched products without autograd."""
    x, y, lr, epochs = runs
    rate = lr.view(-1, 1, 1)

    def take(w: Tensor, b: Tensor) -> None:
        for _ in range(epochs):
            slope = (x @ w + b - y) * (2 / x.shape[-2])
            w -= rate * (x.mT @ slope)
            b -= rate * slope.sum(1, keepdim=True)

    return _variant(runs, take)


def _vmap(runs: Runs) -> Variant:
    """torch.func.vmap of the gradient."""
    x, y, lr, epochs = runs
    shared = None if x.dim() == 2 else 0
    gradient = torch.func.grad(lambda w, b, x, y: F.mse_loss(x @ w + b, y), argnums=(0, 1))
    gradients = torch.func.vmap(gradient, in_dims=(0, 0, shared, shared))
    rate = lr.view(-1, 1, 1)

    def take(w: Tensor, b: Tensor) -> None:
        for _ in range(epochs):
            dw, db = gradients(w, b, x, y)
            w -= rate * dw
            b -= rate * db

    return _variant(runs, take)


def _jax(runs: Runs) -> Variant:
    """jax.vmap of a scan over the epochs."""
    needs_all_threads("JAX")
    jax = installed("jax")
    x, y, lr, epochs = runs
    shared = None if x.dim() == 2 else 0

    def loss_of(parameters: tuple, x: object, y: object) -> object:
        return ((x @ parameters[0] + parameters[1] - y) ** 2).mean()

    def train(x: object, y: object, lr: object) -> tuple:
        def step(parameters: tuple, _: None) -> tuple:
            gradients = jax.grad(loss_of)(parameters, x, y)
            return jax.tree.map(lambda p, g: p - lr * g, parameters, gradients), None

        zeros = jax.numpy.zeros((x.shape[1], 1)), jax.numpy.zeros((1, 1))
        return jax.lax.scan(step, jax.tree.map(lambda z: z.astype(x.dtype), zeros), None, epochs)[0]

    train_all = jax.jit(jax.vmap(train, in_axes=(shared, shared, 0)))
    operands = [jax.dlpack.from_dlpack(t) for t in (x, y, lr)]
    last: Answer = {}

    def run() -> None:
        w, b = jax.block_until_ready(train_all(*operands))
        last.update(weight=torch.from_dlpack(w), bias=torch.from_dlpack(b))

    return Variant(run, lambda: last)
