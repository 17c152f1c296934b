# SPDX-License-Identifier: BSD-3-Clause
"""Ends a run when its loss has stopped to fall."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class EarlyStopping:
    """Remembers the best epoch of a run.

    Args:
        model: whose parameters and buffers are remembered.
        patience: how many epochs may pass without a new best one.
    """

    def __init__(self, model: nn.Module, patience: int) -> None:
        self._model, self._patience = model, patience
        self._best, self._waited = math.inf, 0
        self._kept: list[Tensor] | None = None

    def is_over(self, loss: float) -> bool:
        """Whether the epoch that has just ended, with this loss, was the last to wait for."""
        if loss < self._best:
            self._best, self._waited = loss, 0
            self._kept = [tensor.detach().clone() for tensor in self._tensors()]
        else:
            self._waited += 1
        return self._waited >= self._patience

    def restore(self) -> None:
        """Put the best epoch's parameters and buffers back."""
        if self._kept is not None:
            with torch.no_grad():
                for tensor, kept in zip(self._tensors(), self._kept, strict=True):
                    tensor.copy_(kept)

    def _tensors(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]
