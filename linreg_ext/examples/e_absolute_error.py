# SPDX-License-Identifier: BSD-3-Clause
"""Program E: a line fitted under the absolute error.

The tutorial's data is noisy in x: the clean line is y = 2x + 3, the training target 2(x + noise) + 3. It
trains `nn.Linear(1, 1)` under `nn.L1Loss` with full batches and plots the loss and the fitted line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn, optim

from .. import make_train_step
from .figures import Row, Run, contract, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "absolute error"
# Each row's part of the gradient hangs on a sign. With this seed no residual of the run comes within 2e-5 of
# zero, where rounding would decide the sign and the two runs could rightly part.
SEED = 1238
N = 1000
LR, EPOCHS = 0.01, 500


def make_data(device: torch.device) -> tuple[Tensor, Tensor]:
    """x [N, 1] and the training target [N, 1]."""
    torch.manual_seed(SEED)
    x = torch.empty(N, 1).uniform_(-10, 10)
    noise = torch.randn(N, 1)
    return x.to(device), (2 * (x + noise) + 3).to(device)


def eager(x: Tensor, y: Tensor) -> Run:
    """The plain loop."""
    torch.manual_seed(SEED)
    model = nn.Linear(1, 1).to(x.device)
    loss_fn = nn.L1Loss()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(EPOCHS):
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Run.of(model, losses, optimizer)


def fused(x: Tensor, y: Tensor) -> Run:
    """The same by `make_train_step`; the losses stay on the device until the end."""
    torch.manual_seed(SEED)
    model = nn.Linear(1, 1).to(x.device)
    loss_fn = nn.L1Loss()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    step = make_train_step(model, loss_fn, optimizer)
    losses = []
    for _ in range(EPOCHS):
        losses.append(step(x, y))
    return Run.of(model, losses, optimizer, step)


def check(device: torch.device) -> list[Row]:
    """Every figure of program E."""
    x, y = make_data(device)
    runs = eager(x, y), fused(x, y)
    slope, intercept = ([run.weights[name] for run in runs] for name in ("weight", "bias"))
    return [
        near("E  slope, within 0.2", "2.0000", *slope, atol=0.2),
        near("E  intercept, within 0.3", "3.0000", *intercept, atol=0.3),
        *contract("E ", {"E": runs}),
    ]


def draw(figure: Figure, device: torch.device) -> None:
    """Loss per epoch; data with the fitted line."""
    x, y = make_data(device)
    run = fused(x, y)
    left, right = figure.subplots(1, 2)
    left.plot(range(1, EPOCHS + 1), run.losses, color="#0072B2")
    left.set(title="E: loss", xlabel="epoch", ylabel="mean absolute error", ylim=(0, None))
    left.grid(alpha=0.3)

    slope, intercept = run.weights["weight"].item(), run.weights["bias"].item()
    ends = torch.tensor([-10.0, 10.0])
    right.scatter(x.cpu(), y.cpu(), s=6, alpha=0.4, color="#56B4E9", linewidths=0, label="data")
    right.plot(ends, slope * ends + intercept, color="#D55E00", label=f"fitted: y = {slope:.2f}x + {intercept:.2f}")
    right.plot(ends, 2 * ends + 3, color="black", linestyle="--", linewidth=1, label="clean: y = 2x + 3")
    right.set(title="E: data and fitted line", xlabel="x", ylabel="y")
    right.legend()
    right.grid(alpha=0.3)
