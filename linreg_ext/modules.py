# SPDX-License-Identifier: BSD-3-Clause
"""A linear layer and its regression loss as one `nn.Module`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .functional import FUNCTIONS
from .losses import LOSSES, Loss


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


class LinearRegressionLoss(nn.Module):
    """The base class of the modules `Linear…Loss`, documented in `LinearMSELoss`."""

    _loss: Loss

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **threshold: float,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.reduction = reduction
        own = self._loss.threshold
        if own is not None:
            setattr(self, own.name, threshold.pop(own.name, own.default))
        if threshold:
            name = type(self).__name__
            raise TypeError(f"{name}.__init__() got an unexpected keyword argument '{next(iter(threshold))}'")

    def _threshold(self) -> dict[str, float]:
        own = self._loss.threshold
        return {} if own is None else {own.name: getattr(self, own.name)}

    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The loss of `input` [*, in_features] against `target` [*, out_features]; `weight` as in `linear_mse_loss`."""
        linear = self.linear
        if type(linear) is not nn.Linear or _has_hooks(linear) or "forward" in linear.__dict__:
            own = " with a custom forward" if "forward" in linear.__dict__ else ""
            own = " with hooks" if _has_hooks(linear) else own
            raise RuntimeError(
                f"{type(self).__name__}: linear must be an nn.Linear without hooks, parametrizations or a custom "
                f"forward, got {type(linear).__name__}{own}; apply the loss to predict(input) instead"
            )
        return FUNCTIONS[self._loss.name](
            input, linear.weight, target, linear_bias=linear.bias, weight=weight, reduction=self.reduction,
            **self._threshold(),
        )  # fmt: skip

    def predict(self, input: Tensor) -> Tensor:
        """The predictions `input @ weight.T + bias`, of shape [*, out_features]."""
        return self.linear(input)

    def extra_repr(self) -> str:
        return ", ".join([f"reduction='{self.reduction}'", *(f"{k}={v:g}" for k, v in self._threshold().items())])


_SUMMARY = """A linear layer and its loss in one module. {title}: ℓ(r) = {formula}, r = prediction − target.
"""

_ARGUMENTS = """
    The layer is `linear`, an `nn.Linear` with its initialisation and its state_dict keys (`linear.weight` [K, D],
    `linear.bias` [K]). `forward(input, target, weight=None)` returns the loss; `predict(input)` returns the
    predictions [*, K].

    Args:
        in_features: D, the size of a row of the input.
        out_features: K, the number of targets.
        bias: whether the layer has a bias.
        reduction: `"mean"`, `"sum"` or `"none"`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError, RuntimeError: in `forward`, as in `linear_mse_loss`.
"""

_EXAMPLE = """
    Example:
        >>> model = {name}(8, 1)
        >>> model(torch.randn(32, 8), torch.randn(32, 1)).backward()
    """


def _loss_module(loss: Loss) -> type[LinearRegressionLoss]:
    """The public module for a row of the table."""
    name, own = f"Linear{loss.camel_case}Loss", loss.threshold
    doc = _SUMMARY.format(title=loss.title, formula=loss.formula)
    if loss.name == "mse":
        doc += _ARGUMENTS
    else:
        doc += f"\n    Args:\n        {own.name}: {own.meaning}.\n" if own else ""
        doc += "\n    Everything else is as in `LinearMSELoss`.\n"
    if loss.module is not None:
        option = f", {own.name}={own.name}" if own else ""
        doc += f"\n    Equivalent to:\n        `nn.{loss.module.__name__}(reduction=reduction{option})"
        doc += "(nn.Linear(in_features, out_features, bias)(input), target)`\n"
    members: dict[str, Any] = {"_loss": loss, "__doc__": doc + _EXAMPLE.format(name=name), "__module__": __package__}
    return type(name, (LinearRegressionLoss,), members)


MODULES = {loss.name: _loss_module(loss) for loss in LOSSES.values()}
