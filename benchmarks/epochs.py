# SPDX-License-Identifier: BSD-3-Clause
"""Many epochs over a few rows: every loop that a user would write, each from the same start."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import linreg_ext

from . import peers, peers_jax
from .availability import installed
from .clocks import Variant
from .names import NAME
from .problem import Expected, Problem

NEAR = 0.05  # other solvers only come near the result of 1000 epochs


def fit(problem: Problem, epochs: int) -> Variant:
    """linreg_ext.fit with a DataLoader that yields all rows as one batch."""
    loader = DataLoader(TensorDataset(problem.x, problem.y), batch_size=problem.n)
    last: dict[str, nn.Linear] = {}

    def run() -> None:
        model = last["model"] = peers.linear(problem)
        optimizer = torch.optim.SGD(model.parameters(), lr=problem.lr)
        linreg_ext.fit(epochs, model, nn.MSELoss(), optimizer, loader, progress=False)

    return Variant(run, lambda: {"weight": last["model"].weight, "bias": last["model"].bias}, role="ours")


def sgd_step(problem: Problem, epochs: int) -> Variant:
    """linreg_ext.sgd_step_ in a Python loop."""

    def start() -> tuple[Callable[[], object], dict[str, Tensor]]:
        x, y, w, b, lr = problem.x, problem.y, problem.weight.clone(), problem.bias.clone(), problem.lr
        return lambda: linreg_ext.sgd_step_(x, w, y, linear_bias=b, lr=lr), {"weight": w, "bias": b}

    return _loop(start, epochs, "ours", problem)


def sgd_run(problem: Problem, epochs: int, batch_size: int | None = None) -> Variant:
    """linreg_ext.sgd_run_, all epochs in one call."""
    last: dict[str, Tensor] = {}

    def run() -> None:
        w, b = last["weight"], last["bias"] = problem.weight.clone(), problem.bias.clone()
        options = {"epochs": epochs, "batch_size": batch_size, "lr": problem.lr}
        linreg_ext.sgd_run_(problem.x, w, problem.y, linear_bias=b, **options)

    return Variant(run, lambda: last, role="ours", finish=problem.wait)


def eager(problem: Problem, epochs: int) -> Variant:
    """The plain loop."""

    def start() -> tuple[Callable[[], object], dict[str, Tensor]]:
        model, step = peers.training_loop(problem)
        return step, {"weight": model.weight, "bias": model.bias}

    return _loop(start, epochs, "peer", problem)


def mini_batches(problem: Problem, batch_size: int) -> dict[str, Expected]:
    """The parameters after one epoch in batches, in float64."""
    weight, bias = problem.weight.double(), problem.bias.double()
    for x, y in zip(problem.x.split(batch_size), problem.y.split(batch_size), strict=True):
        batch = Problem(x, y, problem.weight, problem.bias, problem.lr)
        _, of_weight, of_bias = batch.gradients(weight, bias)
        weight, bias = weight - problem.lr * of_weight, bias - problem.lr * of_bias
    return {"weight": Expected(weight, problem.weight.double()), "bias": Expected(bias, problem.bias.double())}


def stepping(name: str) -> Callable[[Problem, int], Variant]:
    """A Python loop over a peer's steps; each run starts where the last one ended."""

    def make(problem: Problem, epochs: int) -> Variant:
        one = peers.STEPS[name](problem)

        def run() -> None:
            for _ in range(epochs):
                one.run()

        return Variant(run, one.answer, finish=one.finish, rest=one.rest)

    return make


def jax_scan(problem: Problem, epochs: int) -> Variant:
    """All epochs in one jitted lax.scan."""
    jax, step = peers_jax.jax_step(problem.x)
    x, y, *parameters = (jax.dlpack.from_dlpack(t) for t in peers_jax.jax_operands(problem))
    last = {}

    @jax.jit
    def all_epochs(parameters, x, y):
        return jax.lax.scan(lambda p, _: step(p, x, y, problem.lr), parameters, None, length=epochs)

    def run() -> None:
        last["parameters"], last["losses"] = all_epochs(tuple(parameters), x, y)

    def answer() -> dict[str, Tensor]:
        weight, bias = (torch.from_dlpack(p) for p in last["parameters"])
        return {"weight": weight, "bias": bias}

    return Variant(run, answer, finish=lambda: jax.block_until_ready(last))


def sgd_regressor(problem: Problem, epochs: int) -> Variant:
    """scikit-learn's SGD, which steps after every row, at a small learning rate."""
    installed("sklearn")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import SGDRegressor

    x, y = problem.x.numpy(), problem.y[:, 0].numpy()
    model = SGDRegressor(penalty=None, learning_rate="constant", eta0=0.001, max_iter=epochs, tol=None)

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)

    return Variant(run, lambda: _coefficients(model), tolerance=NEAR)


def linear_regression(problem: Problem, _epochs: int) -> Variant:
    """scikit-learn's exact solution, which that many epochs approach."""
    installed("sklearn")
    from sklearn.linear_model import LinearRegression

    x, y = problem.x.numpy(), problem.y[:, 0].numpy()
    model = LinearRegression()
    return Variant(lambda: model.fit(x, y), lambda: _coefficients(model), tolerance=NEAR)


LOOPS: dict[str, Callable[[Problem, int], Variant]] = {
    f"{NAME} fit": fit,
    f"{NAME} sgd_run_": sgd_run,
    f"{NAME} sgd_step_": sgd_step,
    "eager": eager,
    **{name: stepping(name) for name in ("compiled", "by hand", "by hand, compiled", "NumPy", "numba")},
    "JAX scan": jax_scan,
    "scikit-learn SGDRegressor": sgd_regressor,
    "scikit-learn LinearRegression": linear_regression,
}


def _loop(
    start: Callable[[], tuple[Callable[[], object], dict[str, Tensor]]], epochs: int, role: str, problem: Problem
) -> Variant:
    last: dict[str, dict[str, Tensor]] = {}

    def run() -> None:
        step, last["parameters"] = start()
        for _ in range(epochs):
            step()

    return Variant(run, lambda: last["parameters"], role=role, finish=problem.wait)


def _coefficients(model: object) -> dict[str, Tensor]:
    weight, bias = (torch.as_tensor(value).double().reshape(-1) for value in (model.coef_, model.intercept_))
    return {"weight": weight, "bias": bias}
