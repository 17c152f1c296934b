# SPDX-License-Identifier: BSD-3-Clause
"""What a training run leaves behind beside its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class History:
    """The losses and learning rates of a run, as float64 tensors on the CPU.

    Attributes:
        step_loss: [steps], each batch's loss as the loss function gave it, before that batch's update.
        epoch_loss: [epochs], the mean of those over the epoch's rows.
        val_loss: [epochs], the mean over the validation rows after each epoch; None without validation data.
        lr: [steps], the learning rate of the first parameter group at each step.
    """

    step_loss: Tensor
    epoch_loss: Tensor
    val_loss: Tensor | None
    lr: Tensor

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw training (and validation) loss per epoch.

        Args:
            path: where to save the picture (its suffix names the format); None saves nothing.

        Returns:
            The :class:`matplotlib.figure.Figure`.

        Raises:
            ImportError: matplotlib is not installed.

        Example:
            >>> history = fit(10, model, loss_fn, opt, train_dl)
            >>> history.plot("loss.png")
        """
        from ..plots import loss_curves

        return loss_curves(self, path)
