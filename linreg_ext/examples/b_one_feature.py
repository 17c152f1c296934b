# SPDX-License-Identifier: BSD-3-Clause
"""Program B: one feature, mini-batches from data loaders, and validation.

`fit` replaces the loops of this, the tutorial's final program. Its earlier programs loop over NumPy arrays, tensors and
modules as A and D do.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset, random_split

from linreg_ext import fit
from linreg_ext.examples import compare, table


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """x and y = 1 + 2x + noise, both [100, 1]."""
    np.random.seed(42)
    x = np.random.rand(100, 1)
    return x, 1 + 2 * x + 0.1 * np.random.randn(100, 1)


def make_train_step(model: nn.Module, loss_fn: nn.Module, optimizer: optim.SGD) -> Callable:
    """B9: the tutorial's version; `linreg_ext.make_train_step` takes the same arguments and does the same."""

    def train_step(x: Tensor, y: Tensor) -> float:
        model.train()
        loss = loss_fn(y, model(x))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train_step


def train(fused: bool, dataset: TensorDataset, device: torch.device) -> tuple:
    """B15: mini-batches, with a validation loss after every epoch."""
    torch.manual_seed(42)
    train_set, val_set = random_split(dataset, [80, 20])
    train_dl, val_dl = DataLoader(train_set, batch_size=16), DataLoader(val_set, batch_size=20)
    model, loss_fn = nn.Sequential(nn.Linear(1, 1)).to(device), nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    if fused:  # `history.plot("loss.png")` draws both curves
        history = fit(150, model, loss_fn, optimizer, train_dl, val_dl=val_dl, device=device, progress=False)
        return model, history.step_loss, optimizer, history.val_loss
    train_step = make_train_step(model, loss_fn, optimizer)
    losses, val_losses = [], []
    for _ in range(150):
        for x, y in train_dl:
            losses.append(train_step(x.to(device), y.to(device)))
        with torch.no_grad():
            for x, y in val_dl:
                model.eval()
                val_losses.append(loss_fn(y.to(device), model(x.to(device))).item())
    return model, losses, optimizer, val_losses


def figures(fused: bool, device: torch.device) -> list[tuple]:
    dataset = TensorDataset(*(torch.from_numpy(column).float() for column in make_data()))
    model, *_ = train(fused, dataset, device)
    return [("B15 weight, bias", "1.9625 1.0147", list(model.parameters()))]


if __name__ == "__main__":
    print(table(compare(figures)))
