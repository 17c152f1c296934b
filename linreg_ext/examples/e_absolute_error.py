# SPDX-License-Identifier: BSD-3-Clause
"""Program E: a line fitted under the absolute error, by `make_train_step`."""

import torch
from torch import Tensor, nn, optim

from linreg_ext import make_train_step
from linreg_ext.examples import compare, table

# The gradient depends on the residuals' signs. With this seed no residual comes within 2e-5 of zero, where rounding
# would decide its sign and the two runs could legitimately diverge.
SEED = 1238


def make_data(device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y = 2 (x + noise) + 3, both [1000, 1]."""
    torch.manual_seed(SEED)
    x = torch.empty(1000, 1).uniform_(-10, 10)
    return x.to(device), (2 * (x + torch.randn(1000, 1)) + 3).to(device)


def train(fused: bool, x: Tensor, y: Tensor) -> tuple:
    torch.manual_seed(SEED)
    model = nn.Linear(1, 1).to(x.device)
    loss_fn = nn.L1Loss()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    step = make_train_step(model, loss_fn, optimizer)
    losses = []
    for _ in range(500):
        if fused:
            loss = step(x, y)
        else:
            loss = loss_fn(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())  # on the device, so that no step waits for the previous one
    return model, losses, optimizer


def figures(fused: bool, device: torch.device) -> list[tuple]:
    model, _, _ = train(fused, *make_data(device))
    return [("E  slope", "2.0000", model.weight, 0.2), ("E  intercept", "3.0000", model.bias, 0.3)]


if __name__ == "__main__":
    print(table(compare(figures)))
