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
        module, function: the loss of a prediction and a target, in torch.nn where it has one.
        threshold: the loss's parameter, if any.
    """

    name: str
    camel_case: str
    title: str
    formula: str
    derivative: str
    plain: Callable[[Tensor, Tensor, float], Tensor]
    dloss: Callable[[Tensor, float], Tensor]
    module: type[nn.Module]
    function: Callable[..., Tensor] | None = None
    threshold: Threshold | None = None

    def options(self, threshold: float) -> dict[str, float]:
        """The threshold as a keyword argument."""
        return {} if self.threshold is None else {self.threshold.name: threshold}


def _dsmooth_l1(r: Tensor, beta: float) -> Tensor:
    if beta == 0:
        return r.sgn()
    return torch.where(r.abs() < beta, r / beta, (r.detach() / beta).clamp(-1, 1))


def _quantile(prediction: Tensor, target: Tensor, q: float) -> Tensor:
    return (1 - q) * F.relu(prediction - target) + q * F.relu(target - prediction)


class QuantileLoss(nn.Module):
    """The quantile (pinball) loss of a prediction and a target, which torch.nn lacks: max(−q r, (1 − q) r) with
    r = prediction − target.

    Training with it makes a model predict the q-th quantile of the target. `fit` and `make_train_step` fuse it.

    Args:
        quantile: q, between 0 and 1 exclusive.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> step = make_train_step(model, QuantileLoss(0.9), torch.optim.SGD(model.parameters(), lr=0.1))
    """

    def __init__(self, quantile: float = 0.5, reduction: str = "mean") -> None:
        super().__init__()
        if not 0 < quantile < 1:
            raise ValueError(f"QuantileLoss: quantile must be between 0 and 1 exclusive, got {quantile}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"QuantileLoss: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.quantile, self.reduction = quantile, reduction

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The loss of `prediction` and `target`, of one shape."""
        loss = _quantile(prediction, target, self.quantile)
        return loss if self.reduction == "none" else getattr(loss, self.reduction)()

    def extra_repr(self) -> str:
        return f"quantile={self.quantile:g}, reduction='{self.reduction}'"


_ROWS = (
    Loss(
        name="mse",
        camel_case="MSE",
        title="Mean squared error",
        formula="r²",
        derivative="With a mean over N·K elements, dW = (2/NK) Rᵀ X, as in PyTorch; scikit-learn halves the loss.",
        plain=lambda p, y, _: F.mse_loss(p, y, reduction="none"),
        dloss=lambda r, _: 2 * r,
        module=nn.MSELoss,
        function=F.mse_loss,
    ),
    Loss(
        name="l1",
        camel_case="L1",
        title="Mean absolute error",
        formula="|r|",
        derivative="The derivative is sign(r), with sign(0) = 0.",
        plain=lambda p, y, _: F.l1_loss(p, y, reduction="none"),
        dloss=lambda r, _: r.sgn(),
        module=nn.L1Loss,
        function=F.l1_loss,
    ),
    Loss(
        name="huber",
        camel_case="Huber",
        title="Huber loss",
        formula="r²/2 if |r| ≤ δ else δ (|r| − δ/2)",
        derivative="The derivative is r clamped to [−δ, δ].",
        plain=lambda p, y, delta: F.huber_loss(p, y, reduction="none", delta=delta),
        dloss=lambda r, delta: torch.where(r.abs() < delta, r, r.detach().clamp(-delta, delta)),
        module=nn.HuberLoss,
        function=F.huber_loss,
        threshold=Threshold("delta", 1.0, "δ > 0, where the quadratic part ends"),
    ),
    Loss(
        name="smooth_l1",
        camel_case="SmoothL1",
        title="Smooth L1 loss",
        formula="r²/(2β) if |r| < β else |r| − β/2",
        derivative="The derivative is r/β clamped to [−1, 1]. β = 0 gives the absolute error.",
        plain=lambda p, y, beta: F.smooth_l1_loss(p, y, reduction="none", beta=beta),
        dloss=_dsmooth_l1,
        module=nn.SmoothL1Loss,
        function=F.smooth_l1_loss,
        threshold=Threshold("beta", 1.0, "β ≥ 0, where the quadratic part ends"),
    ),
    Loss(
        name="quantile",
        camel_case="Quantile",
        title="Quantile (pinball) loss",
        formula="max(−q r, (1 − q) r)",
        derivative="The derivative is −q for r < 0, 1 − q for r > 0 and 0 at 0. q = 0.5 gives half the absolute error.",
        plain=_quantile,
        dloss=lambda r, q: 0.5 * r.sgn() + (0.5 - q) * r.sgn().abs(),
        module=QuantileLoss,
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
