# SPDX-License-Identifier: BSD-3-Clause
"""The loss of one batch as plain PyTorch computes it, without PyTorch's silent broadcasts, and with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..losses import LOSSES
from .match import NotFusable, RegressionLoss, match_loss


class BatchLoss:
    """``loss_fn(model(x), y)``, or with weights their weighted mean or sum.

    Args:
        op: the function that messages name.
    """

    def __init__(self, op: str, model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._op, self._model, self._loss_fn = op, model, loss_fn
        self._harmless: set[tuple[torch.Size, torch.Size]] = set()  # shapes of a row that this loss does not broadcast
        self._known: RegressionLoss | None = None  # a function's; a module's numbers may change

    def __call__(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss, which is one number.

        Raises:
            RuntimeError: the prediction and the target, or a weight, would be broadcast.
            ValueError: the loss is not one number, or is not known where there are weights.
        """
        prediction = self._model(x)
        if weight is not None:
            loss = self._weighted(prediction, y, weight)
        elif isinstance(prediction, Tensor) and isinstance(y, Tensor) and prediction.shape != y.shape:
            loss = self._unbroadcast(prediction, y)
        else:
            loss = self._loss_fn(prediction, y)
        if loss.numel() != 1:
            raise ValueError(
                f"{self._op}: the loss must be one number, got shape {list(loss.shape)}; reduce it (reduction='mean')"
            )
        return loss

    def _unbroadcast(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The loss of a prediction and a target of different shapes, as a loss that reshapes or takes classes has."""
        shapes = prediction.shape[1:], y.shape[1:]
        if shapes in self._harmless:
            return self._loss_fn(prediction, y)
        with _RefuseBroadcast(self._op, prediction, y):
            loss = self._loss_fn(prediction, y)
        self._harmless.add(shapes)
        return loss

    def _weighted(self, prediction: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        try:
            known = self._known or match_loss(self._loss_fn)
        except NotFusable as reason:
            raise ValueError(
                f"{self._op}: a batch with weights needs a loss that linreg_ext knows, such as nn.MSELoss(), whose "
                f"weighted mean it can compute, but {reason}"
            ) from None
        self._known = None if isinstance(self._loss_fn, nn.Module) else known
        if known.flattens:
            prediction = prediction.reshape(y.shape)
        if prediction.shape != y.shape:
            refuse_shapes(self._op, prediction, y)
        rows = list(y.shape[:1])
        if list(weight.shape) not in (list(y.shape), rows, [*rows, 1]):
            raise RuntimeError(
                f"{self._op}: weight must have shape {list(y.shape)}, {rows} or {[*rows, 1]}, got {list(weight.shape)}"
            )
        if weight.shape != y.shape:
            weight = weight.reshape(-1, *[1] * (y.dim() - 1)).expand_as(y)
        total = (weight * LOSSES[known.loss].plain(prediction, y, known.threshold)).sum()
        return total if known.reduction == "sum" else total / weight.sum()


def refuse_shapes(op: str, prediction: Tensor, y: Tensor) -> None:
    """Raise the error of a target that does not have the prediction's shape."""
    cure = "; pass target.unsqueeze(-1)" if (*y.shape, 1) == (*prediction.shape,) else ""
    raise RuntimeError(f"{op}: target must have shape {list(prediction.shape)}, got {list(y.shape)}{cure}")


# Of torch.nn.functional, the losses that broadcast a target.
_BROADCASTING = {
    getattr(F, f"{name}_loss")
    for name in ("mse", "l1", "huber", "smooth_l1", "poisson_nll", "gaussian_nll", "soft_margin")
}


class _RefuseBroadcast(TorchFunctionMode):
    """Raises when an operation broadcasts two tensors of these shapes against each other."""

    def __init__(self, op: str, prediction: Tensor, y: Tensor) -> None:
        super().__init__()
        self._op, self._prediction, self._y = op, prediction, y
        try:
            self._broadcast = torch.broadcast_shapes(prediction.shape, y.shape)
        except RuntimeError:  # PyTorch cannot broadcast these, and says so
            self._broadcast = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        shapes = {value.shape for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)}
        meet = self._broadcast is not None and {self._prediction.shape, self._y.shape} <= shapes
        if meet and func in _BROADCASTING:
            refuse_shapes(self._op, self._prediction, self._y)
        result = func(*args, **(kwargs or {}))
        if meet and isinstance(result, Tensor) and result.shape == self._broadcast:
            refuse_shapes(self._op, self._prediction, self._y)
        return result
