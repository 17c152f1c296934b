# SPDX-License-Identifier: BSD-3-Clause
"""What tutorial B does before the final program, which is the example: from NumPy arrays to data loaders (B1 to B14)."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset, TensorDataset

import linreg_ext
from linreg_ext.examples import b_one_feature

LR, EPOCHS = 0.1, 1000


def training_rows():
    """The 80 rows that a shuffled index puts first; it continues the NumPy stream of the data."""
    x, y = b_one_feature.make_data()
    index = np.arange(100)
    np.random.shuffle(index)
    return x[index[:80]], y[index[:80]]


def training_tensors(device="cpu"):
    return [torch.from_numpy(column).float().to(device) for column in training_rows()]


def all_rows():
    """B11."""
    return TensorDataset(*(torch.from_numpy(column).float() for column in b_one_feature.make_data()))


def numpy_arrays(fused, epochs=EPOCHS):
    """B1: gradients derived by hand, in float64."""
    x, y = training_rows()
    np.random.seed(42)
    a, b = np.random.randn(1), np.random.randn(1)
    if fused:
        x, y, a, b = map(torch.from_numpy, (x, y[:, 0], a, b))
        return {"a": a, "b": b}, [linreg_ext.sgd_step_(x, b, y, linear_bias=a, lr=LR) for _ in range(epochs)]
    losses = []
    for _ in range(epochs):
        error = y - (a + b * x)
        losses.append((error**2).mean())
        a_grad, b_grad = -2 * error.mean(), -2 * (x * error).mean()
        a, b = a - LR * a_grad, b - LR * b_grad
    return {"a": torch.from_numpy(a), "b": torch.from_numpy(b)}, losses


def closed_form():
    """B2: [a, b]."""
    x, y = training_rows()
    return np.linalg.lstsq(np.hstack([np.ones_like(x), x]), y[:, 0], rcond=None)[0].tolist()


def raw_tensors(stage, fused, x, y):
    """B3: autograd, and an update by hand; B4: an optimizer; B5: a loss, called with its arguments swapped."""
    torch.manual_seed(42)
    a, b = (torch.randn(1).to(x.device).requires_grad_() for _ in range(2))
    optimizer = optim.SGD([a, b], lr=LR)
    losses = []
    for _ in range(EPOCHS):
        if fused and stage == "B3":
            losses.append(linreg_ext.sgd_step_(x, b, y[:, 0], linear_bias=a, lr=LR))
            continue
        if fused:
            loss = linreg_ext.linear_mse_loss(x, b, y[:, 0], linear_bias=a)
        else:
            loss = nn.MSELoss()(y, a + b * x) if stage == "B5" else ((y - (a + b * x)) ** 2).mean()
        loss.backward()
        if stage == "B3":
            with torch.no_grad():
                a -= LR * a.grad
                b -= LR * b.grad
        else:
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {"a": a, "b": b}, losses, optimizer


class ManualLinearRegression(nn.Module):
    """B6: no nn.Linear."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(1))

    def forward(self, x):
        return self.a + self.b * x


def sequential():
    """B8."""
    return nn.Sequential(nn.Linear(1, 1))


def full_batch(fused, make_model, x, y, loss_fn=None):
    """B6 to B9: one loop for any module, with either `make_train_step`."""
    torch.manual_seed(42)
    model = make_model().to(x.device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = (linreg_ext if fused else b_one_feature).make_train_step(model, loss_fn or nn.MSELoss(), optimizer)
    return model, [train_step(x, y) for _ in range(EPOCHS)], optimizer


def swapped_loss(fused, x, y):
    """B5: `make_train_step` needs a module, and B6's draws the same a and b."""
    if not fused:
        return raw_tensors("B5", fused, x, y)
    return full_batch(fused, ManualLinearRegression, x, y, lambda prediction, y: F.mse_loss(y, prediction))


class CustomDataset(Dataset):
    """B10."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __getitem__(self, index):
        return self.x[index], self.y[index]

    def __len__(self):
        return len(self.x)


def mini_batches(fused, device, make_sets):
    """B10 to B14: shuffled batches of 16, and a validation loss after every epoch where there is a second data set."""
    torch.manual_seed(42)
    train_set, *val_sets = make_sets()
    train_dl = DataLoader(train_set, batch_size=16, shuffle=True)
    val_dls = [DataLoader(val_set, batch_size=20) for val_set in val_sets]
    model, loss_fn = sequential().to(device), nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = (linreg_ext if fused else b_one_feature).make_train_step(model, loss_fn, optimizer)
    losses, val_losses = [], []
    for _ in range(100):
        losses += [train_step(x.to(device), y.to(device)) for x, y in train_dl]
        for val_dl in val_dls:
            batches = ((x.to(device), y.to(device)) for x, y in val_dl)
            if fused:
                val_losses.append(linreg_ext.evaluate(model, loss_fn, batches))
            else:
                model.eval()
                with torch.no_grad():
                    val_losses += [loss_fn(y, model(x)).item() for x, y in batches]
    return model, losses, optimizer, val_losses
