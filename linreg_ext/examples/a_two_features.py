# SPDX-License-Identifier: BSD-3-Clause
"""Program A: two features, with the bias folded into the matrix as a column of ones.

The tutorial minimises a mean squared error twice: with a raw weight vector that it updates by hand (A1), and
with `nn.Linear`, `nn.MSELoss` and `optim.SGD` (A2). Its draw was not seeded, so the figure to meet is the
least-squares solution of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from .. import linear_l1_loss, make_train_step, sgd_step_
from .figures import Row, Run, at_most, contract, near

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "two features, bias folded into the matrix"
SEED = 0
N, D = 100, 3
LR, STEPS = 0.1, 100


def make_data(device: torch.device) -> tuple[Tensor, Tensor]:
    """X = [1, x1, x2] of shape [N, D] and y = X [1, 2, 3] + noise, of shape [N]."""
    torch.manual_seed(SEED)
    X = torch.cat([torch.ones(N, 1), torch.randn(N, D - 1)], dim=1)
    y = torch.mv(X, torch.tensor([1.0, 2.0, 3.0])) + 0.5 * torch.randn(N)
    return X.to(device), y.to(device)


def warm_up_eager(X: Tensor) -> Tensor:
    """The gradient of o = sum(X a) with respect to a, which is the column sums of X."""
    a = torch.ones(D, device=X.device, requires_grad=True)
    o = torch.mv(X, a).sum()
    o.backward()
    return a.grad


def warm_up_fused(X: Tensor) -> Tensor:
    """The same: against a target below every prediction, the sum of absolute errors is sum(X a) plus N."""
    a = torch.ones(D, device=X.device, requires_grad=True)
    below = torch.mv(X, a.detach()) - 1
    o = linear_l1_loss(X, a, below, reduction="sum")
    o.backward()
    return a.grad


def a1_eager(X: Tensor, y: Tensor) -> Run:
    """A raw weight vector, updated by hand."""
    torch.manual_seed(SEED)
    w = torch.randn(D).to(X.device).requires_grad_()
    losses = []
    for _ in range(STEPS):
        w.grad = None
        loss = ((torch.mv(X, w) - y) ** 2).mean()
        loss.backward()
        w.data -= LR * w.grad
        losses.append(loss.item())
    return Run.of({"w": w}, losses)


def a1_fused(X: Tensor, y: Tensor) -> Run:
    """The same by `sgd_step_`: prediction, loss, gradient and update in one call."""
    torch.manual_seed(SEED)
    w = torch.randn(D).to(X.device)
    losses = []
    for _ in range(STEPS):
        losses.append(sgd_step_(X, w, y, lr=LR))
    return Run.of({"w": w}, losses)


def a2_eager(X: Tensor, y: Tensor) -> Run:
    """A module, a loss and an optimizer; the prediction [N, 1] is reshaped to y's [N]."""
    torch.manual_seed(SEED)
    model = nn.Linear(D, 1, bias=False).to(X.device)
    loss_fn = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(STEPS):
        prediction = model(X).reshape(y.shape)
        loss = loss_fn(prediction, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Run.of(model, losses, optimizer)


def a2_fused(X: Tensor, y: Tensor) -> Run:
    """The same by `make_train_step`, which calls a loss function that reshapes."""

    def loss_fn(prediction: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(prediction.reshape(y.shape), y)

    torch.manual_seed(SEED)
    model = nn.Linear(D, 1, bias=False).to(X.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    step = make_train_step(model, loss_fn, optimizer)
    losses = []
    for _ in range(STEPS):
        losses.append(step(X, y))
    return Run.of(model, losses, optimizer, step)


def check(device: torch.device) -> list[Row]:
    """Every figure of program A."""
    X, y = make_data(device)
    pairs = {"A1": (a1_eager(X, y), a1_fused(X, y)), "A2": (a2_eager(X, y), a2_fused(X, y))}
    solution = torch.linalg.lstsq(X.cpu().double(), y.cpu().double()[:, None]).solution

    # 100 float32 additions in any order are 100 roundings, by at most 2**-24 of a partial sum of at most 100.
    rows = [
        near(
            "A  gradient of sum(X a): column sums",
            X.double().sum(0),
            warm_up_eager(X),
            warm_up_fused(X),
            atol=6e-4,
        )
    ]
    for name, (eager, fused) in pairs.items():
        eager_w, fused_w = (next(iter(run.weights.values())) for run in (eager, fused))
        rows.append(near(f"{name} w, against least squares", solution, eager_w, fused_w, atol=1e-3))
        # Once converged, the loss may rise by its own rounding: a few units of 2**-23, relative to it.
        rows.append(
            at_most(f"{name} largest rise of the loss in a step", 1e-6, largest_rise(eager), largest_rise(fused))
        )
    return rows + contract("A ", pairs)


def largest_rise(run: Run) -> float:
    """The largest relative increase of the loss from one step to the next; 0 for a curve that only falls."""
    return float((run.losses[1:] / run.losses[:-1] - 1).clamp(min=0).max())


def draw(figure: Figure, device: torch.device) -> None:
    """The loss curve of A2."""
    losses = a2_fused(*make_data(device)).losses
    axes = figure.subplots()
    axes.semilogy(range(1, STEPS + 1), losses, color="#0072B2")
    axes.set(title="A: two features, full batch", xlabel="step", ylabel="mean squared error")
    axes.grid(alpha=0.3, which="both")
