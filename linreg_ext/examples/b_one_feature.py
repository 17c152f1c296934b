# SPDX-License-Identifier: BSD-3-Clause
"""Program B: one feature, from NumPy to DataLoader.

The longest of the tutorials. It fits y = 1 + 2x + noise again and again, each time giving one more part of
the loop to PyTorch: `b_raw_tensors` (NumPy, autograd, an optimizer, a loss), `b_modules` (modules, a train
step), `b_loaders` (data sets, mini-batches, validation, the final program).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import b_loaders, b_modules, b_raw_tensors
from .figures import Row, contract

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "one feature, from NumPy to DataLoader"


def check(device: torch.device) -> list[Row]:
    """Every figure of program B."""
    x_train, y_train = b_raw_tensors.training_tensors(device)
    raw_rows, raw_pairs = b_raw_tensors.check(device)
    module_rows, module_pairs = b_modules.check(x_train, y_train)
    loader_rows, loader_pairs = b_loaders.check(*b_raw_tensors.make_data(), x_train, y_train, device)
    pairs = raw_pairs | module_pairs | loader_pairs
    return raw_rows + module_rows + loader_rows + contract("B ", pairs)


def draw(figure: Figure, device: torch.device) -> None:
    """Summed training loss and summed validation loss per epoch, of the final program."""
    run = b_loaders.b15_fused(b_loaders.all_rows(*b_raw_tensors.make_data()), device)
    epochs = range(1, b_loaders.FINAL_EPOCHS + 1)
    training = run.losses.reshape(b_loaders.FINAL_EPOCHS, -1).sum(1)  # five batches an epoch
    validation = run.validation  # one batch an epoch
    for axes, losses, title, color in zip(
        figure.subplots(1, 2),
        (training, validation),
        ("training", "validation"),
        ("#0072B2", "#D55E00"),
        strict=True,
    ):
        axes.semilogy(epochs, losses, color=color)
        axes.set(title=f"B15: {title} loss", xlabel="epoch", ylabel="mean squared error, summed over batches")
        axes.grid(alpha=0.3, which="both")
