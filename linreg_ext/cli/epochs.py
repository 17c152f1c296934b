# SPDX-License-Identifier: BSD-3-Clause
"""The epochs of a fit: all that its files show of its history, and that a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..training import History


@dataclass(frozen=True, eq=False)
class Epochs:
    """Whole epochs, as float64 on the CPU: as many numbers for each, however many steps it has.

    Attributes:
        epoch_loss, val_loss: [epochs], as :class:`History` has them.
        lr: [epochs], the learning rate of each epoch's first step.
        steps: how many they have together.
    """

    epoch_loss: Tensor
    val_loss: Tensor | None
    lr: Tensor
    steps: int

    @classmethod
    def of(cls, history: History) -> Epochs:
        """Those of a run that has ended, or goes on, after an epoch; copies."""
        each = max(1, len(history.lr) // max(1, len(history.epoch_loss)))
        validation = None if history.val_loss is None else history.val_loss.clone()
        return cls(history.epoch_loss.clone(), validation, history.lr[::each].clone(), len(history.lr))

    def then(self, later: Epochs) -> Epochs:
        """These and those after them."""
        validation = None if later.val_loss is None else torch.cat([self.val_loss, later.val_loss])
        losses, rates = torch.cat([self.epoch_loss, later.epoch_loss]), torch.cat([self.lr, later.lr])
        return Epochs(losses, validation, rates, self.steps + later.steps)
