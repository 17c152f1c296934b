# SPDX-License-Identifier: BSD-3-Clause
"""Program D: one feature, three rows, and a table printed every hundred epochs.

The tutorial fits y = x on x = 1, 2, 3: first with two scalar tensors that start at zero (D1), then with a
module that holds `nn.Linear(1, 1)` (D2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from .. import LinearMSELoss, make_train_step, sgd_step_
from .figures import Row, Run, contract, near, printed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "one feature, three rows, printed table"
LR, EPOCHS, LOG_EVERY = 0.01, 1001, 100

# W, b and cost as the tutorial prints them; W and b of after the step, the cost of before it.
TABLE = {
    0: "-0.101 0.508 4.630286",
    100: "0.713 0.653 0.061555",
    200: "0.774 0.514 0.038037",
    300: "0.822 0.404 0.023505",
    400: "0.860 0.317 0.014525",
    500: "0.890 0.250 0.008975",
    600: "0.914 0.196 0.005546",
    700: "0.932 0.154 0.003427",
    800: "0.947 0.121 0.002118",
    900: "0.958 0.095 0.001309",
    1000: "0.967 0.075 0.000809",
}


def make_data(device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y, both [3, 1]."""
    return torch.tensor([[1.0], [2.0], [3.0]], device=device), torch.tensor([[1.0], [2.0], [3.0]], device=device)


def d1_eager(x: Tensor, y: Tensor, epochs: int) -> Run:
    """Two scalars of shape [1], trained by an optimizer."""
    W = torch.zeros(1, device=x.device, requires_grad=True)
    b = torch.zeros(1, device=x.device, requires_grad=True)
    optimizer = optim.SGD([W, b], lr=LR)
    losses = []
    for _ in range(epochs):
        cost = torch.mean((x * W + b - y) ** 2)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        losses.append(cost.item())
    return Run.of({"W": W, "b": b}, losses)


def d1_fused(x: Tensor, y: Tensor, epochs: int) -> Run:
    """The same by `sgd_step_`: a weight of shape [1] gives one number a row, so y loses its column."""
    W = torch.zeros(1, device=x.device)
    b = torch.zeros(1, device=x.device)
    losses = []
    for _ in range(epochs):
        losses.append(sgd_step_(x, W, y[:, 0], linear_bias=b, lr=LR))
    return Run.of({"W": W, "b": b}, losses)


class LinearRegressionModel(nn.Module):
    """A module that holds a linear layer and forwards to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def d2_eager(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Run, dict[int, list[float]]]:
    """The first model's prediction and loss, the second one's run, and its printed table."""
    torch.manual_seed(1)
    first = LinearRegressionModel().to(x.device)
    prediction = first(x)
    first_loss = F.mse_loss(prediction, y)

    model = LinearRegressionModel().to(x.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    losses, log = [], {}
    for epoch in range(EPOCHS):
        cost = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        losses.append(cost.item())
        if epoch % LOG_EVERY == 0:
            log[epoch] = [model.linear.weight.item(), model.linear.bias.item(), cost.item()]
    return prediction, first_loss, Run.of(model, losses, optimizer), log


def d2_fused(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Run, dict[int, list[float]]]:
    """The same, with layer and loss as one module for the first model and a fused step for the second."""
    torch.manual_seed(1)
    first = LinearMSELoss(1, 1).to(x.device)
    prediction = first.predict(x)
    first_loss = first(x, y)

    model = LinearRegressionModel().to(x.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    step = make_train_step(model, F.mse_loss, optimizer)
    losses, log = [], {}
    for epoch in range(EPOCHS):
        cost = step(x, y)
        losses.append(cost)
        if epoch % LOG_EVERY == 0:  # only here does the program wait for the device
            log[epoch] = [model.linear.weight.item(), model.linear.bias.item(), cost.item()]
    return prediction, first_loss, Run.of(model, losses, optimizer, step), log


def check(device: torch.device) -> list[Row]:
    """Every figure of program D."""
    x, y = make_data(device)
    two = d1_eager(x, y, 2), d1_fused(x, y, 2)
    one = d1_eager(x, y, 1), d1_fused(x, y, 1)
    d1 = d1_eager(x, y, EPOCHS), d1_fused(x, y, EPOCHS)
    rows = [
        printed("D1 loss before the first step", "4.6667", *(run.losses[0] for run in two)),
        printed("D1 W, b after it", "0.0933 0.0400", *([run.weights["W"], run.weights["b"]] for run in one)),
        printed("D1 loss after it", "3.6927", *(run.losses[1] for run in two)),
        # As far as float32 determines them: each step rounds W, of size 1, by up to 3e-8, and b follows.
        # About 400 steps are remembered (the slower mode shrinks by 0.0024 a step) and add up to some 1e-7.
        near("D1 W after 1001 steps", "0.9854263663291931", *(run.weights["W"] for run in d1), atol=1e-6),
        near("D1 b after 1001 steps", "0.0331293", *(run.weights["b"] for run in d1), atol=1e-6),
        printed("D1 cost of step 1001", "0.000158", *(run.losses[-1] for run in d1)),
    ]

    eager_first, eager_loss, eager, eager_log = d2_eager(x, y)
    fused_first, fused_loss, fused, fused_log = d2_fused(x, y)
    rows += [
        printed("D2 first model, prediction", "0.0739 0.5891 1.1044", eager_first, fused_first),
        printed("D2 first model, loss", "2.1471", eager_loss, fused_loss),
    ]
    for epoch, expected in TABLE.items():
        # The cost of epoch 400 is 0.01452451: on the edge between two prints, where rounding decides.
        ours, theirs = eager_log[epoch], fused_log[epoch]
        rows.append(printed(f"D2 epoch {epoch}: W, b, cost", expected, ours, theirs, rtol=1e-5))
    return rows + contract("D ", {"D1": d1, "D2": (eager, fused)})


def draw(figure: Figure, device: torch.device) -> None:
    """The cost of both programs."""
    x, y = make_data(device)
    axes = figure.subplots()
    axes.semilogy(d1_fused(x, y, EPOCHS).losses, color="#0072B2", label="D1: two scalars from zero")
    axes.semilogy(d2_fused(x, y)[2].losses, color="#D55E00", linestyle="--", label="D2: module, seed 1")
    axes.set(title="D: three rows", xlabel="epoch", ylabel="cost (mean squared error)")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
