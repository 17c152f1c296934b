# SPDX-License-Identifier: BSD-3-Clause
"""The loss of one batch in plain PyTorch, with weights and without silent broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..losses import LOSSES
from .match import NotFusable, RegressionLoss, match_loss


class BatchLoss:
    """`loss_fn(model(x), y)`; with weights, its weighted mean or sum.

    Args:
        op: the name of the public function, for messages.
    """

    def __init__(self, op: str, model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._op, self._model, self._loss_fn = op, model, loss_fn
        self._harmless: set[tuple[torch.Size, torch.Size]] = set()  # row shapes that this loss does not broadcast
        self._known: RegressionLoss | None = None  # of a function only: a module's numbers may change

    def __call__(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss, a single number.

        Raises:
            RuntimeError: the target or weight has the wrong shape and would be broadcast.
            ValueError: the loss is not a single number, or is not recognised but there are weights.
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
        """The loss of a prediction and target whose shapes differ, as for losses that reshape or take class indices."""
        shapes = prediction.shape[1:], y.shape[1:]
        if shapes in self._harmless:
            return self._loss_fn(prediction, y)
        with _RefuseBroadcast(self._op, prediction, y):
            loss = self._loss_fn(prediction, y)
        self._harmless.add(shapes)
        return loss

    def _weighted(self, prediction: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        if not isinstance(weight, Tensor):
            raise TypeError(f"{self._op}: weight must be a Tensor, got {type(weight).__name__}")
        try:
            if getattr(self._loss_fn, "_forward_hooks", None) or getattr(self._loss_fn, "_forward_pre_hooks", None):
                raise NotFusable("the loss has hooks")
            known = self._known or match_loss(self._loss_fn)
        except NotFusable as reason:
            raise ValueError(
                f"{self._op}: a batch with weights needs a loss that linreg_ext recognises, such as nn.MSELoss(), to "
                f"compute its weighted mean, but {reason}"
            ) from None
        self._known = None if isinstance(self._loss_fn, nn.Module) else known
        if not known.flattens and prediction.shape != y.shape:
            refuse_shapes(self._op, prediction, y)
        rows = prediction.shape[: max(1, prediction.dim() - 1)]
        if weight.shape in (rows, (*rows, 1)) and weight.shape != y.shape:
            weight = weight.reshape(*rows, *[1] * (prediction.dim() - len(rows))).expand(prediction.shape)
        elif weight.shape != y.shape:
            shapes = " or ".join(dict.fromkeys(str([*shape]) for shape in (y.shape, rows, (*rows, 1))))
            raise RuntimeError(f"{self._op}: weight must have shape {shapes}, got {[*weight.shape]}")
        losses = LOSSES[known.loss].plain(prediction.reshape(y.shape), y, known.threshold)
        total = (weight.reshape(y.shape) * losses).sum()
        return total if known.reduction == "sum" else total / weight.sum()


def refuse_shapes(op: str, prediction: Tensor, y: Tensor) -> None:
    """Raise because the target does not have the prediction's shape."""
    cure = "unsqueeze(-1)" if (*y.shape, 1) == (*prediction.shape,) else "expand_as(prediction) to broadcast it"
    raise RuntimeError(
        f"{op}: target must have shape {list(prediction.shape)}, got {list(y.shape)}; pass target.{cure}"
    )


# The names of functions, methods and operators that broadcast two tensors against each other: arithmetic and losses.
# A function mode does not see scripted losses or calls of torch.ops.
_BROADCASTING = {
    *("add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "maximum", "minimum"),
    *(f"__{r}{name}__" for r in ("", "r") for name in ("add", "sub", "mul", "truediv", "div")),
    *("mse_loss", "l1_loss", "huber_loss", "smooth_l1_loss", "poisson_nll_loss", "gaussian_nll_loss", "kl_div"),
    *("soft_margin_loss", "multilabel_soft_margin_loss", "hinge_embedding_loss"),
    *("cosine_similarity", "pairwise_distance", "dist"),
}


class _RefuseBroadcast(TorchFunctionMode):
    """Raises when an operation would broadcast two tensors of these shapes against each other."""

    def __init__(self, op: str, prediction: Tensor, y: Tensor) -> None:
        super().__init__()
        self._op, self._prediction, self._y = op, prediction, y
        try:
            torch.broadcast_shapes(prediction.shape, y.shape)
            self._shapes = {prediction.shape, y.shape}
        except RuntimeError:  # not broadcastable: PyTorch itself raises
            self._shapes = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._shapes is not None and getattr(func, "__name__", "") in _BROADCASTING:
            shapes = {value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
            if self._shapes <= shapes:
                refuse_shapes(self._op, self._prediction, self._y)
        return func(*args, **kwargs)
