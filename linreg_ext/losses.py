# SPDX-License-Identifier: BSD-3-Clause
"""The table of losses: what each is called, what it computes, and which of PyTorch's losses it is.

A loss is a row here, an entry of ``csrc/math/losses.h`` and two names in ``__init__.py``; functions, modules,
recognition and the command line follow from the table.
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
    """The number that a loss has beside the residual."""

    name: str  # its keyword
    default: float
    meaning: str  # in the docstring, with its range


@dataclass(frozen=True)
class Loss:
    """A loss ℓ(r) of the residual r = prediction − target.

    Attributes:
        name: as operators and the `loss` argument of steps spell it.
        camel_case: as the module's name does: ``Linear{camel_case}Loss``.
        title, formula, derivative: for docstrings; `formula` is LaTeX.
        plain: ``plain(prediction, target, threshold)``, every element's loss in plain PyTorch: the definition.
        dloss: ``dloss(r, threshold)``, its derivative in r, which can be differentiated itself.
        threshold: the loss's own number, if it has one.
        function, module: of torch.nn that compute the same, if there are any.
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
        formula="r^2",
        derivative=(
            r"The factor is PyTorch's: :math:`dW = \tfrac{2}{NK} R^T X` for a mean; scikit-learn halves the loss."
        ),
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
        derivative="The derivative is sign(r), 0 at r = 0.",
        plain=lambda p, y, _: F.l1_loss(p, y, reduction="none"),
        dloss=lambda r, _: r.sgn(),
        function=F.l1_loss,
        module=nn.L1Loss,
    ),
    Loss(
        name="huber",
        camel_case="Huber",
        title="Huber loss",
        formula=r"r^2/2 \text{ if } |r| \le \delta \text{ else } \delta(|r| - \delta/2)",
        derivative="The derivative is r clamped to [−δ, δ].",
        plain=lambda p, y, delta: F.huber_loss(p, y, reduction="none", delta=delta),
        dloss=lambda r, delta: torch.where(r.abs() < delta, r, r.detach().clamp(-delta, delta)),
        threshold=Threshold("delta", 1.0, "δ, where the quadratic part ends; > 0"),
        function=F.huber_loss,
        module=nn.HuberLoss,
    ),
    Loss(
        name="smooth_l1",
        camel_case="SmoothL1",
        title="Smooth L1 loss",
        formula=r"r^2/(2\beta) \text{ if } |r| < \beta \text{ else } |r| - \beta/2",
        derivative="The derivative is r/β clamped to [−1, 1]; β = 0 is the absolute error.",
        plain=lambda p, y, beta: F.smooth_l1_loss(p, y, reduction="none", beta=beta),
        dloss=_dsmooth_l1,
        threshold=Threshold("beta", 1.0, "β, where the quadratic part ends; >= 0"),
        function=F.smooth_l1_loss,
        module=nn.SmoothL1Loss,
    ),
    Loss(
        name="quantile",
        camel_case="Quantile",
        title="Quantile (pinball) loss",
        formula=r"\max(-q r, (1 - q) r)",
        derivative="The derivative is −q below 0, 1 − q above and 0 at r = 0; q = 0.5 is half the absolute error.",
        plain=lambda p, y, q: (1 - q) * F.relu(p - y) + q * F.relu(y - p),
        dloss=lambda r, q: 0.5 * r.sgn() + (0.5 - q) * r.sgn().abs(),
        threshold=Threshold("quantile", 0.5, "q, the quantile to fit; > 0 and < 1"),
    ),
)
LOSSES = {loss.name: loss for loss in _ROWS}


def threshold_of(op: str, loss: str, **given: Any) -> Any:
    """The threshold of `loss` among the keyword arguments of `op`, None where it was not given.

    Raises:
        ValueError: one was given that belongs to another loss.
    """
    row = LOSSES.get(loss) if isinstance(loss, str) else None
    if row is None:
        return 1.0  # the operator says what is wrong with the loss
    own = row.threshold.name if row.threshold else None
    for name, value in given.items():
        if value is not None and name != own:
            of = "".join(f" (of loss '{r.name}')" for r in LOSSES.values() if r.threshold and r.threshold.name == name)
            raise ValueError(f"{op}: {name}{of} must be None with loss '{loss}', got {value}")
    return 1.0 if row.threshold is None else row.threshold.default if given[own] is None else given[own]
