# SPDX-License-Identifier: BSD-3-Clause
"""A linear layer and its regression loss as one `nn.Module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import functional
from .check import REDUCTIONS, require_number


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class _LinearRegressionLoss(nn.Module):
    _loss: Callable[..., Tensor]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"{type(self).__name__}: reduction must be one of 'none', 'mean' or 'sum', got '{reduction}'"
            )
        self.linear = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of `input` [*, in_features] against `target` [*, out_features]; `weight` as in the function."""
        linear = self.linear
        if type(linear) is not nn.Linear or _has_hooks(linear) or "forward" in linear.__dict__:
            own = " with hooks" if _has_hooks(linear) else " with its own" if "forward" in linear.__dict__ else ""
            raise RuntimeError(
                f"{type(self).__name__}: linear must be an nn.Linear without hooks, parametrizations or a forward of "
                f"its own, got {type(linear).__name__}{own}; apply the loss to predict(input) instead"
            )
        return self._loss(
            input, linear.weight, target, linear_bias=linear.bias, weight=weight, reduction=self.reduction
        )

    def predict(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``, of shape [*, out_features]."""
        return self.linear(input)

    def extra_repr(self) -> str:
        return f"reduction='{self.reduction}'"


class LinearMSELoss(_LinearRegressionLoss):
    r"""A linear layer and its mean squared error: :math:`\text{loss} = \tfrac{1}{NK} \sum (X W^T + b - Y)^2`.

    Args:
        in_features: D, the size of each input row.
        out_features: K, the number of targets.
        bias: whether the layer learns b.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        device, dtype: of the parameters.

    `linear` is an :class:`nn.Linear` with its initialisation and its state_dict keys (``linear.weight`` [K, D],
    ``linear.bias`` [K]). ``forward(input, target)`` takes [*, D] and [*, K] and returns the loss; ``predict(input)``
    returns [*, K].

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`linear_mse_loss`.

    Equivalent to:
        ``nn.MSELoss(reduction=reduction)(nn.Linear(in_features, out_features, bias)(input), target)``

    Example:
        >>> model = LinearMSELoss(8, 1)
        >>> model(torch.randn(32, 8), torch.randn(32, 1)).backward()
    """

    def _loss(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return functional.linear_mse_loss(*args, **kwargs)


class LinearL1Loss(_LinearRegressionLoss):
    r"""A linear layer and its mean absolute error: :math:`\text{loss} = \tfrac{1}{NK} \sum |X W^T + b - Y|`.

    Arguments, shapes, errors and state are those of :class:`LinearMSELoss`.

    Equivalent to:
        ``nn.L1Loss(reduction=reduction)(nn.Linear(in_features, out_features, bias)(input), target)``

    Example:
        >>> model = LinearL1Loss(8, 1)
        >>> model(torch.randn(32, 8), torch.randn(32, 1)).backward()
    """

    def _loss(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return functional.linear_l1_loss(*args, **kwargs)


class LinearHuberLoss(_LinearRegressionLoss):
    r"""A linear layer and its Huber loss: r²/2 where |r| ≤ δ, δ(|r| − δ/2) elsewhere.

    Args:
        delta: δ, where the quadratic part ends; > 0.

    The other arguments, shapes, errors and state are those of :class:`LinearMSELoss`.

    Equivalent to:
        ``nn.HuberLoss(reduction, delta)(nn.Linear(in_features, out_features, bias)(input), target)``

    Example:
        >>> model = LinearHuberLoss(8, 1, delta=0.5)
        >>> model(torch.randn(32, 8), torch.randn(32, 1)).backward()
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, delta: float = 1.0, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        require_number("LinearHuberLoss", "delta", delta)
        if not delta > 0:
            raise ValueError(f"LinearHuberLoss: delta must be > 0, got {delta:g}")
        self.delta = delta

    def _loss(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return functional.linear_huber_loss(*args, **kwargs, delta=self.delta)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, delta={self.delta:g}"


class LinearSmoothL1Loss(_LinearRegressionLoss):
    r"""A linear layer and its smooth L1 loss: r²/(2β) where |r| < β, |r| − β/2 elsewhere.

    Args:
        beta: β, where the quadratic part ends; >= 0.

    The other arguments, shapes, errors and state are those of :class:`LinearMSELoss`.

    Equivalent to:
        ``nn.SmoothL1Loss(reduction=reduction, beta=beta)(nn.Linear(in_features, out_features, bias)(input), target)``

    Example:
        >>> model = LinearSmoothL1Loss(8, 1, beta=0.5)
        >>> model(torch.randn(32, 8), torch.randn(32, 1)).backward()
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, beta: float = 1.0, **options: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **options)
        require_number("LinearSmoothL1Loss", "beta", beta)
        if not beta >= 0:
            raise ValueError(f"LinearSmoothL1Loss: beta must be >= 0, got {beta:g}")
        self.beta = beta

    def _loss(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return functional.linear_smooth_l1_loss(*args, **kwargs, beta=self.beta)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, beta={self.beta:g}"
