# SPDX-License-Identifier: BSD-3-Clause
"""Program B, second part: modules, and `make_train_step` (B6 to B9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn, optim

from .. import make_train_step
from .figures import Row, Run, printed, same

LR, EPOCHS = 0.1, 1000


class ManualLinearRegression(nn.Module):
    """B6: two scalar parameters, and no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(1))
        self.b = nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.a + self.b * x


class LayerLinearRegression(nn.Module):
    """B7: a module that holds a linear layer and forwards to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def sequential() -> nn.Module:
    """B8: the same as a Sequential."""
    return nn.Sequential(nn.Linear(1, 1))


def modules_eager(make_model: Callable[[], nn.Module], x: Tensor, y: Tensor) -> Run:
    """B6, B7, B8: one loop for any module."""
    torch.manual_seed(42)
    model = make_model().to(x.device)
    loss_fn = nn.MSELoss(reduction="mean")
    optimizer = optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(EPOCHS):
        model.train()
        prediction = model(x)
        loss = loss_fn(y, prediction)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Run.of(model, losses, optimizer)


def modules_fused(make_model: Callable[[], nn.Module], x: Tensor, y: Tensor) -> Run:
    """The same by `make_train_step`, which sees what each module computes."""
    torch.manual_seed(42)
    model = make_model().to(x.device)
    loss_fn = nn.MSELoss(reduction="mean")
    optimizer = optim.SGD(model.parameters(), lr=LR)
    step = make_train_step(model, loss_fn, optimizer)
    losses = []
    for _ in range(EPOCHS):
        losses.append(step(x, y))
    return Run.of(model, losses, optimizer, step)


def make_train_step_by_hand(
    model: nn.Module, loss_fn: nn.Module, optimizer: optim.Optimizer
) -> Callable[[Tensor, Tensor], float]:
    """B9: the tutorial's own; `linreg_ext.make_train_step` has its signature and its effect."""

    def train_step(x: Tensor, y: Tensor) -> float:
        model.train()
        prediction = model(x)
        loss = loss_fn(y, prediction)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return train_step


def b9_eager(x: Tensor, y: Tensor) -> Run:
    """The tutorial's train step."""
    torch.manual_seed(42)
    model = sequential().to(x.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step_by_hand(model, nn.MSELoss(), optimizer)
    losses = [train_step(x, y) for _ in range(EPOCHS)]
    return Run.of(model, losses, optimizer)


def b9_fused(x: Tensor, y: Tensor) -> Run:
    """The fused one: only the function that makes it changes."""
    torch.manual_seed(42)
    model = sequential().to(x.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step(model, nn.MSELoss(), optimizer)
    losses = [train_step(x, y) for _ in range(EPOCHS)]
    return Run.of(model, losses, optimizer, train_step)


def check(x: Tensor, y: Tensor) -> tuple[list[Row], dict[str, tuple[Run, Run]]]:
    """The figures of B6 to B9, on the training rows."""
    rows: list[Row] = []
    pairs: dict[str, tuple[Run, Run]] = {}
    for name, make_model, keys, begin, end in (
        ("B6", ManualLinearRegression, "a b", "0.3367 0.1288", "1.0235 1.9690"),
        ("B7", LayerLinearRegression, "linear.weight linear.bias", "0.7645 0.8300", "1.9690 1.0235"),
        ("B8", sequential, "0.weight 0.bias", "0.7645 0.8300", "1.9690 1.0235"),
    ):
        torch.manual_seed(42)
        model = make_model()
        pairs[name] = eager, fused = modules_eager(make_model, x, y), modules_fused(make_model, x, y)
        rows += [
            same(f"{name} state_dict keys", keys, " ".join(eager.weights), " ".join(fused.weights)),
            printed(f"{name} start", begin, model.parameters(), model.parameters()),
            printed(f"{name} end", end, eager.weights.values(), fused.weights.values()),
        ]
    pairs["B9"] = b9_eager(x, y), b9_fused(x, y)
    rows.append(printed("B9 end, by make_train_step", "1.9690 1.0235", *(run.weights.values() for run in pairs["B9"])))
    return rows, pairs
