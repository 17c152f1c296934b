# SPDX-License-Identifier: BSD-3-Clause
"""The table of losses: their names, their formulas and their counterparts in PyTorch.

A loss is a row here, an entry in `csrc/math/losses.h` and two names in `__init__.py`; functions, modules, recognition
and the command line follow from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Threshold:
    """The parameter of a loss, such as Huber's delta."""

    name: str  # of the keyword argument
    default: float
    meaning: str  # for the docstring, with the valid range


@dataclass(frozen=True)
class Loss:
    """A loss ℓ(r) of the residual r = prediction − target.

    Attributes:
        name: for operators and the `loss` argument of steps.
        camel_case: for the module, `Linear{camel_case}Loss`.
        title, formula, derivative: for docstrings.
        plain: the definition in plain PyTorch: `plain(prediction, target, threshold)` is the elementwise loss.
        dloss: the derivative with respect to r, `dloss(r, threshold)`; differentiable itself.
        threshold: the loss's parameter, if any.
        function, module: the counterparts in torch.nn, if any.
    """

    name: str
    camel_case: str
    title: str
    formula: str
    derivative: str
    plain: Callable[[Tensor, Tensor, float], Tensor]
    dloss: Callable[[Tensor, float], Tensor]
    threshold: Threshold | None = None
    function: Callable[..., Tensor] | None = None
    module: type[nn.Module] | None = None

    def options(self, threshold: float) -> dict[str, float]:
        """The threshold as a keyword argument."""
        return {} if self.threshold is None else {self.threshold.name: threshold}


def _dsmooth_l1(r: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return r.sgn()
    return torch.where(r.abs() < beta, r / beta, (r.detach() / beta).clamp(-1, 1))


_ROWS = (
    Loss(
        name="mse",
        camel_case="MSE",
        title="Mean squared error",
        formula="r²",
        derivative="With a mean over N·K elements, dW = (2/NK) Rᵀ X, as in PyTorch; scikit-learn halves the loss.",
        plain=lambda p, y, _: F.mse_loss(p, y, reduction="none"),
        dloss=lambda r, _: 2 * r,
        function=F.mse_loss,
        module=nn.MSELoss,
    ),
    Loss(
        name="l1",
        camel_case="L1",
        title="Mean absolute error",
        formula="|r|",
        derivative="The derivative is sign(r), with sign(0) = 0.",
        plain=lambda p, y, _: F.l1_loss(p, y, reduction="none"),
        dloss=lambda r, _: r.sgn(),
        function=F.l1_loss,
        module=nn.L1Loss,
    ),
    Loss(
        name="huber",
        camel_case="Huber",
        title="Huber loss",
        formula="r²/2 if |r| ≤ δ else δ (|r| − δ/2)",
        derivative="The derivative is r clamped to [−δ, δ].",
        plain=lambda p, y, delta: F.huber_loss(p, y, reduction="none", delta=delta),
        dloss=lambda r, delta: torch.where(r.abs() < delta, r, r.detach().clamp(-delta, delta)),
        threshold=Threshold("delta", 1.0, "δ > 0, where the quadratic part ends"),
        function=F.huber_loss,
        module=nn.HuberLoss,
    ),
    Loss(
        name="smooth_l1",
        camel_case="SmoothL1",
        title="Smooth L1 loss",
        formula="r²/(2β) if |r| < β else |r| − β/2",
        derivative="The derivative is r/β clamped to [−1, 1]. β = 0 gives the absolute error.",
        plain=lambda p, y, beta: F.smooth_l1_loss(p, y, reduction="none", beta=beta),
        dloss=_dsmooth_l1,
        threshold=Threshold("beta", 1.0, "β ≥ 0, where the quadratic part ends"),
        function=F.smooth_l1_loss,
        module=nn.SmoothL1Loss,
    ),
    Loss(
        name="quantile",
        camel_case="Quantile",
        title="Quantile (pinball) loss",
        formula="max(−q r, (1 − q) r)",
        derivative="The derivative is −q for r < 0, 1 − q for r > 0 and 0 at 0. q = 0.5 gives half the absolute error.",
        plain=lambda p, y, q: (1 - q) * F.relu(p - y) + q * F.relu(y - p),
        dloss=lambda r, q: 0.5 * r.sgn() + (0.5 - q) * r.sgn().abs(),
        threshold=Threshold("quantile", 0.5, "q, the quantile to fit, between 0 and 1 exclusive"),
    ),
)
LOSSES = {loss.name: loss for loss in _ROWS}


def threshold_of(op: str, loss: str, **given: Any) -> Any:
    """The threshold of `loss` as given to `op`, or its default.

    Raises:
        ValueError: a threshold of another loss is given.
    """
    row = LOSSES.get(loss) if isinstance(loss, str) else None
    if row is None:
        return 1.0  # the operator rejects the loss
    own = row.threshold.name if row.threshold else None
    for name, value in given.items():
        if value is not None and name != own:
            of = "".join(f" (of loss '{r.name}')" for r in LOSSES.values() if r.threshold and r.threshold.name == name)
            raise ValueError(f"{op}: {name}{of} must be None with loss '{loss}', got {value}")
    return 1.0 if row.threshold is None else row.threshold.default if given[own] is None else given[own]
