# SPDX-License-Identifier: BSD-3-Clause
"""Program B, first part: the data, NumPy by hand, the closed form, and raw tensors (B1 to B5).

The parameters are a (the intercept) and b (the slope), each of shape [1]: the tutorial's y = a + b x.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from .. import linear_mse_loss, make_train_step, sgd_step_
from .b_modules import EPOCHS, LR, ManualLinearRegression
from .figures import Row, Run, printed

Pairs = dict[str, tuple[Run, Run]]


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """All 100 rows of x [100, 1] and y = 1 + 2x + noise; the shuffle continues their NumPy stream."""
    np.random.seed(42)
    x = np.random.rand(100, 1)
    y = 1 + 2 * x + 0.1 * np.random.randn(100, 1)
    return x, y


def training_rows() -> tuple[np.ndarray, np.ndarray]:
    """The 80 rows that a shuffled index puts first."""
    x, y = make_data()
    index = np.arange(100)
    np.random.shuffle(index)
    return x[index[:80]], y[index[:80]]


def training_tensors(device: torch.device) -> tuple[Tensor, Tensor]:
    """The same in float32."""
    x, y = training_rows()
    return torch.from_numpy(x).float().to(device), torch.from_numpy(y).float().to(device)


def b1_eager(x: np.ndarray, y: np.ndarray) -> Run:
    """NumPy, with the gradients derived by hand."""
    np.random.seed(42)
    a, b = np.random.randn(1), np.random.randn(1)
    losses = []
    for _ in range(EPOCHS):
        error = y - (a + b * x)
        losses.append((error**2).mean())
        a_grad = -2 * error.mean()
        b_grad = -2 * (x * error).mean()
        a = a - LR * a_grad
        b = b - LR * b_grad
    return Run.of({"a": torch.from_numpy(a), "b": torch.from_numpy(b)}, losses)


def b1_fused(x: np.ndarray, y: np.ndarray, epochs: int = EPOCHS) -> Run:
    """The same by `sgd_step_`, in float64: a slope of shape [1] gives one number a row."""
    np.random.seed(42)
    a, b = torch.from_numpy(np.random.randn(1)), torch.from_numpy(np.random.randn(1))
    x, y = torch.from_numpy(x), torch.from_numpy(y[:, 0])
    losses = []
    for _ in range(epochs):
        losses.append(sgd_step_(x, b, y, linear_bias=a, lr=LR))
    return Run.of({"a": a, "b": b}, losses)


def b2_closed_form(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[a, b] of least squares; the tutorial takes it from scikit-learn's LinearRegression."""
    return np.linalg.lstsq(np.hstack([np.ones_like(x), x]), y[:, 0], rcond=None)[0]


def start(device: torch.device, *, requires_grad: bool) -> tuple[Tensor, Tensor]:
    """a and b under seed 42, drawn on the CPU so that every device starts alike."""
    torch.manual_seed(42)
    a, b = torch.randn(1).to(device), torch.randn(1).to(device)
    return a.requires_grad_(requires_grad), b.requires_grad_(requires_grad)


def b3_eager(x: Tensor, y: Tensor) -> Run:
    """Autograd, and an update by hand."""
    a, b = start(x.device, requires_grad=True)
    losses = []
    for _ in range(EPOCHS):
        error = y - (a + b * x)
        loss = (error**2).mean()
        loss.backward()
        with torch.no_grad():
            a -= LR * a.grad
            b -= LR * b.grad
        a.grad.zero_()
        b.grad.zero_()
        losses.append(loss.item())
    return Run.of({"a": a, "b": b}, losses)


def b3_fused(x: Tensor, y: Tensor) -> Run:
    """The same by `sgd_step_`, which needs no autograd."""
    a, b = start(x.device, requires_grad=False)
    losses = []
    for _ in range(EPOCHS):
        losses.append(sgd_step_(x, b, y[:, 0], linear_bias=a, lr=LR))
    return Run.of({"a": a, "b": b}, losses)


def b4_eager(x: Tensor, y: Tensor) -> Run:
    """Autograd, and an optimizer."""
    a, b = start(x.device, requires_grad=True)
    optimizer = optim.SGD([a, b], lr=LR)
    losses = []
    for _ in range(EPOCHS):
        error = y - (a + b * x)
        loss = (error**2).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Run.of({"a": a, "b": b}, losses, optimizer)


def b4_fused(x: Tensor, y: Tensor) -> Run:
    """The same with a fused loss, whose backward works with any optimizer."""
    a, b = start(x.device, requires_grad=True)
    optimizer = optim.SGD([a, b], lr=LR)
    losses = []
    for _ in range(EPOCHS):
        loss = linear_mse_loss(x, b, y[:, 0], linear_bias=a)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return Run.of({"a": a, "b": b}, losses, optimizer)


def b5_eager(x: Tensor, y: Tensor) -> Run:
    """A loss module, called with its arguments swapped."""
    a, b = start(x.device, requires_grad=True)
    loss_fn = nn.MSELoss()
    optimizer = optim.SGD([a, b], lr=LR)
    losses = []
    for _ in range(EPOCHS):
        prediction = a + b * x
        loss = loss_fn(y, prediction)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return Run.of({"a": a, "b": b}, losses, optimizer)


def b5_fused(x: Tensor, y: Tensor) -> Run:
    """The same by `make_train_step`, which needs a module: B6's draws the same a and b."""

    def loss_fn(prediction: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(y, prediction)

    torch.manual_seed(42)
    model = ManualLinearRegression().to(x.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    step = make_train_step(model, loss_fn, optimizer)
    losses = []
    for _ in range(EPOCHS):
        losses.append(step(x, y))
    return Run.of(model, losses, optimizer, step)


def check(device: torch.device) -> tuple[list[Row], Pairs]:
    """The figures of B1 to B5."""
    x, y = training_rows()
    b1 = b1_eager(x, y), b1_fused(x, y)
    further = b1_fused(x, y, epochs=3 * EPOCHS)  # gradient descent, continued, arrives at the closed form
    rows = [
        printed("B1 a, b by NumPy", "1.02354094 1.96896411", *(run.weights.values() for run in b1)),
        printed("B2 a, b closed form; fused: 3000 epochs", "1.02354075 1.96896447",
                b2_closed_form(x, y), further.weights.values()),
    ]  # fmt: skip

    x, y = training_tensors(device)
    pairs = {
        "B3": (b3_eager(x, y), b3_fused(x, y)),
        "B4": (b4_eager(x, y), b4_fused(x, y)),
        "B5": (b5_eager(x, y), b5_fused(x, y)),
    }
    for name, what in (("B3", "autograd"), ("B4", "optim.SGD"), ("B5", "swapped nn.MSELoss")):
        rows.append(printed(f"{name} a, b by {what}", "1.0235 1.9690", *(run.weights.values() for run in pairs[name])))
    return rows, {"B1": b1, **pairs}
