# SPDX-License-Identifier: BSD-3-Clause
"""Program A: two features, with the bias folded into the matrix as a column of ones.

`sgd_step_` takes a step on tensors, and the function that `make_train_step` returns takes one on a module.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from linreg_ext import make_train_step, sgd_step_
from linreg_ext.examples import compare, table


def make_data(device: torch.device) -> tuple[Tensor, Tensor]:
    """X = [1, x1, x2] of shape [100, 3] and y = X [1, 2, 3] + noise of shape [100]."""
    torch.manual_seed(0)
    X = torch.cat([torch.ones(100, 1), torch.randn(100, 2)], dim=1)
    y = torch.mv(X, torch.tensor([1.0, 2.0, 3.0])) + 0.5 * torch.randn(100)
    return X.to(device), y.to(device)


def train_tensors(fused: bool, X: Tensor, y: Tensor) -> tuple:
    """A1: a weight vector of shape [3]."""
    torch.manual_seed(0)
    w = torch.randn(3).to(X.device).requires_grad_()
    losses = []
    for _ in range(100):
        if fused:
            loss = sgd_step_(X, w, y, lr=0.1)
        else:
            w.grad = None
            loss = ((torch.mv(X, w) - y) ** 2).mean()
            loss.backward()
            w.data -= 0.1 * w.grad
        losses.append(loss.detach())
    return {"w": w}, losses


def train_module(fused: bool, X: Tensor, y: Tensor) -> tuple:
    """A2: a module, a loss and an optimizer."""

    def loss_fn(prediction: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(prediction.reshape(y.shape), y)  # [100, 1] against [100]

    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).to(X.device)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    step = make_train_step(model, loss_fn, optimizer)
    losses = []
    for _ in range(100):
        if fused:
            loss = step(X, y)
        else:
            loss = loss_fn(model(X), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())  # on the device, so that no step waits for the previous one
    return model, losses, optimizer


def figures(fused: bool, device: torch.device) -> list[tuple]:
    X, y = make_data(device)
    best = torch.linalg.lstsq(X.cpu().double(), y.cpu().double()[:, None]).solution
    return [
        ("A1 w, against least squares", best, train_tensors(fused, X, y)[0]["w"], 1e-3),
        ("A2 w, against least squares", best, train_module(fused, X, y)[0].weight, 1e-3),
    ]


if __name__ == "__main__":
    print(table(compare(figures)))
