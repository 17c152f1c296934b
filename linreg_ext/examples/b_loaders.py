# SPDX-License-Identifier: BSD-3-Clause
"""Program B, third part: data sets, loaders, validation, and the final program (B10 to B15)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from .. import evaluate, fit, make_train_step
from .b_modules import LR, make_train_step_by_hand
from .figures import Row, Run, near, printed, same

LOADER_EPOCHS, FINAL_EPOCHS = 100, 150


class CustomDataset(Dataset[tuple[Tensor, Tensor]]):
    """B10: a data set written by hand."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __len__(self) -> int:
        return len(self.x)


def shuffled_batches(dataset: Dataset[tuple[Tensor, Tensor]]) -> DataLoader[tuple[Tensor, Tensor]]:
    """B12: batches of 16 in a new order every epoch."""
    return DataLoader(dataset, batch_size=16, shuffle=True)


def batches_eager(make_dataset: Callable[[], Dataset[tuple[Tensor, Tensor]]], device: torch.device) -> Run:
    """B10 to B13: mini-batches of any data set."""
    torch.manual_seed(42)
    train_loader = shuffled_batches(make_dataset())
    model = nn.Sequential(nn.Linear(1, 1)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step_by_hand(model, nn.MSELoss(), optimizer)
    losses = []
    for _ in range(LOADER_EPOCHS):
        for x_batch, y_batch in train_loader:
            losses.append(train_step(x_batch.to(device), y_batch.to(device)))
    return Run.of(model, losses, optimizer)


def batches_fused(make_dataset: Callable[[], Dataset[tuple[Tensor, Tensor]]], device: torch.device) -> Run:
    """The same: only the function that makes the train step changes."""
    torch.manual_seed(42)
    train_loader = shuffled_batches(make_dataset())
    model = nn.Sequential(nn.Linear(1, 1)).to(device)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step(model, nn.MSELoss(), optimizer)
    losses = []
    for _ in range(LOADER_EPOCHS):
        for x_batch, y_batch in train_loader:
            losses.append(train_step(x_batch.to(device), y_batch.to(device)))
    return Run.of(model, losses, optimizer, train_step)


def b14_eager(dataset: TensorDataset, device: torch.device) -> Run:
    """A validation loss after every epoch."""
    torch.manual_seed(42)
    train_set, val_set = random_split(dataset, [80, 20])
    train_loader, val_loader = shuffled_batches(train_set), DataLoader(val_set, batch_size=20)
    model = nn.Sequential(nn.Linear(1, 1)).to(device)
    loss_fn = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step_by_hand(model, loss_fn, optimizer)
    losses, val_losses = [], []
    for _ in range(LOADER_EPOCHS):
        for x_batch, y_batch in train_loader:
            losses.append(train_step(x_batch.to(device), y_batch.to(device)))
        with torch.no_grad():
            model.eval()
            for x_val, y_val in val_loader:
                val_losses.append(loss_fn(y_val.to(device), model(x_val.to(device))).item())
    return Run.of(model, losses, optimizer, validation=val_losses)


def b14_fused(dataset: TensorDataset, device: torch.device) -> Run:
    """The same, validated by `evaluate`."""
    torch.manual_seed(42)
    train_set, val_set = random_split(dataset, [80, 20])
    train_loader, val_loader = shuffled_batches(train_set), DataLoader(val_set, batch_size=20)
    model = nn.Sequential(nn.Linear(1, 1)).to(device)
    loss_fn = nn.MSELoss()
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step(model, loss_fn, optimizer)
    losses, val_losses = [], []
    for _ in range(LOADER_EPOCHS):
        for x_batch, y_batch in train_loader:
            losses.append(train_step(x_batch.to(device), y_batch.to(device)))
        on_device = ((x_val.to(device), y_val.to(device)) for x_val, y_val in val_loader)
        val_losses.append(evaluate(model, loss_fn, on_device))
    return Run.of(model, losses, optimizer, train_step, validation=val_losses)


def b15_setting(dataset: TensorDataset, device: torch.device) -> tuple[DataLoader, DataLoader, nn.Module]:
    """Both loaders and the model, drawn from seed 42 in the tutorial's order."""
    torch.manual_seed(42)
    train_set, val_set = random_split(dataset, [80, 20])
    train_loader, val_loader = DataLoader(train_set, batch_size=16), DataLoader(val_set, batch_size=20)
    return train_loader, val_loader, nn.Sequential(nn.Linear(1, 1)).to(device)


def b15_eager(dataset: TensorDataset, device: torch.device) -> Run:
    """The final program."""
    train_loader, val_loader, model = b15_setting(dataset, device)
    loss_fn = nn.MSELoss(reduction="mean")
    optimizer = optim.SGD(model.parameters(), lr=LR)
    train_step = make_train_step_by_hand(model, loss_fn, optimizer)
    losses, val_losses = [], []
    for _ in range(FINAL_EPOCHS):
        for x_batch, y_batch in train_loader:
            losses.append(train_step(x_batch.to(device), y_batch.to(device)))
        with torch.no_grad():
            for x_val, y_val in val_loader:
                model.eval()
                val_losses.append(loss_fn(y_val.to(device), model(x_val.to(device))).item())
    return Run.of(model, losses, optimizer, validation=val_losses)


def b15_fused(dataset: TensorDataset, device: torch.device) -> Run:
    """The same by `fit`, which takes both loaders."""
    train_loader, val_loader, model = b15_setting(dataset, device)
    loss_fn = nn.MSELoss(reduction="mean")
    optimizer = optim.SGD(model.parameters(), lr=LR)
    history = fit(
        FINAL_EPOCHS,
        model,
        loss_fn,
        optimizer,
        train_loader,
        val_dl=val_loader,
        device=device,
        progress=False,
    )
    step = make_train_step(model, loss_fn, optimizer)  # as `fit` makes it; here to ask for its level
    return Run.of(model, history.step_loss, optimizer, step, validation=history.val_loss)


def check(
    x: np.ndarray, y: np.ndarray, x_train: Tensor, y_train: Tensor, device: torch.device
) -> tuple[list[Row], dict[str, tuple[Run, Run]]]:
    """The figures of B10 to B15, on all rows and on the training rows."""
    dataset = all_rows(x, y)
    x_train, y_train = x_train.cpu(), y_train.cpu()  # loaders collate on the CPU; each batch is moved
    splits = []

    def first_of_split() -> Dataset[tuple[Tensor, Tensor]]:
        splits.append(random_split(dataset, [80, 20]))
        return splits[-1][0]

    makers = {
        "B10": lambda: CustomDataset(x_train, y_train),
        "B12": lambda: TensorDataset(x_train, y_train),
        "B13": first_of_split,
    }
    pairs = {name: (batches_eager(make, device), batches_fused(make, device)) for name, make in makers.items()}
    pairs["B14"] = b14_eager(dataset, device), b14_fused(dataset, device)
    pairs["B15"] = b15_eager(dataset, device), b15_fused(dataset, device)

    rows = []
    for name, what in (("B10", "custom Dataset"), ("B12", "TensorDataset (B11)")):
        # Mini-batches end near least squares (B2), not on it: each follows the noise of its own 16 rows.
        ends = (run.weights.values() for run in pairs[name])
        rows.append(near(f"{name} end, {what}, within 0.05", "1.9690 1.0235", *ends, atol=0.05))
    losses_of_both = zip(pairs["B10"], pairs["B12"], strict=True)
    alike = [torch.equal(custom.losses, tensors.losses) for custom, tensors in losses_of_both]
    sizes = [" ".join(str(len(part)) for part in split) for split in splits]
    last_validation = (run.validation[-1] for run in pairs["B14"])
    rows += [
        same("B10 B12 same losses from both data sets", True, *alike),
        same("B13 rows of the split", "80 20", *sizes),
        # 20 squares of N(0, 0.1**2): a mean of 0.01 with a standard deviation of 0.01 * sqrt(2 / 20).
        near("B14 validation loss, within 3 sigma", "0.0100", *last_validation, atol=0.0095),
    ]
    _, _, model = b15_setting(dataset, device)
    rows += [
        printed("B15 start", "-0.9676 -0.5727", model.parameters(), model.parameters()),
        printed("B15 end", "1.9625 1.0147", *(run.weights.values() for run in pairs["B15"])),
    ]
    return rows, pairs


def all_rows(x: np.ndarray, y: np.ndarray) -> TensorDataset:
    """B11: the 100 rows as float32 tensors."""
    return TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(y).float())
