# SPDX-License-Identifier: BSD-3-Clause
"""`LinearRegressor` beside scikit-learn's estimators, for the targets S1 and S2."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from linreg_ext.losses import LOSSES

from .availability import installed, needs_all_threads
from .clocks import Variant
from .harness import Bench, Case
from .names import NAME
from .problem import Answer, Expected, Problem

_NEAR = 0.01  # of the minimum, which SGD, Huber's and the quantile's estimators reach


@dataclass(frozen=True)
class Pair:
    """An estimator of scikit-learn, and the arguments with which `LinearRegressor` minimises the same objective."""

    name: str
    theirs: dict[str, Any]
    ours: Callable[[Any], dict[str, Any]]  # of the fitted peer
    most: int  # rows; with more, the peer takes minutes
    target: tuple[str, int, int] | None = None  # its id, rows and features


_PAIRS = (
    Pair("LinearRegression", {}, lambda _: {}, 10**6, ("S1", 2**20, 64)),
    Pair("Ridge", {"alpha": 1.0}, lambda _: {"alpha": 1.0}, 10**7),
    Pair(
        "SGDRegressor", {"alpha": 0.0, "random_state": 0}, lambda _: {"solver": "sgd", "random_state": 0}, 10**6,
        ("S2", 10**6, 32),
    ),
    Pair("HuberRegressor", {"alpha": 0.0}, lambda m: {"loss": "huber", "delta": m.epsilon * m.scale_}, 10**6),
    Pair("QuantileRegressor", {"alpha": 0.0, "quantile": 0.9}, lambda _: {"loss": "quantile", "quantile": 0.9}, 10**4),
)  # fmt: skip


def estimators(bench: Bench) -> None:
    """Fit tables of float64 from 100 to 10⁷ rows, by every estimator up to where it takes minutes."""
    for pair in _PAIRS:
        sizes = [("", 10**e, 16) for e in range(2, 8) if 10**e <= (1000 if bench.quick else pair.most)]
        for id, n, d in sizes + [pair.target] * (pair.target is not None and not bench.quick):
            _compare(bench, pair, Case("estimators", id, f"{pair.name}: {n:,} × {d}", n, d, dtype=torch.float64))


def _compare(bench: Bench, pair: Pair, case: Case) -> None:
    needs_all_threads("scikit-learn")
    problem = Problem.random(case.n, case.d, dtype=torch.float64)
    x, y = problem.x.numpy(), problem.y[:, 0].numpy()
    peer = getattr(installed("sklearn.linear_model"), pair.name)(**pair.theirs).fit(x, y)
    arguments = pair.ours(peer)
    ours = installed("linreg_ext.estimator").LinearRegressor(**arguments)

    def answer(model: Any) -> Answer:
        weight, bias = torch.as_tensor(model.coef_), torch.as_tensor(model.intercept_).reshape(())
        if pair.name in ("LinearRegression", "Ridge"):
            return {"weight": weight, "bias": bias}
        loss, threshold = LOSSES[ours.loss], 1.0
        if loss.threshold is not None:
            threshold = arguments[loss.threshold.name]
        return {"loss": loss.plain(problem.x @ weight + bias, problem.y[:, 0], threshold).mean()}

    expected = answer(peer)
    if pair.name == "SGDRegressor":
        expected = answer(installed("linreg_ext.estimator").LinearRegressor().fit(x, y))
    tolerance = _NEAR if "loss" in expected else 1e-8

    def fit(model: Any, role: str) -> Variant:
        return Variant(lambda: model.fit(x, y), lambda: answer(model), role=role, tolerance=tolerance, rest=0.05)

    makers = {f"{NAME} LinearRegressor": functools.partial(fit, ours, "ours")}
    if pair.name == "SGDRegressor" and pair.target and (case.n, case.d) == pair.target[1:]:
        once = type(ours)(**arguments, max_iter=1)
        warnings.filterwarnings("ignore", "LinearRegressor: SGD did not converge in 1 epochs")
        makers[f"{NAME} LinearRegressor, one epoch"] = functools.partial(fit, once, "ours")
    makers[f"scikit-learn {pair.name}"] = functools.partial(fit, peer, "peer")
    bench.compare(case, makers, {name: Expected(value) for name, value in expected.items()})
