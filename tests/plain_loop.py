# SPDX-License-Identifier: BSD-3-Clause
"""The training loops that users write in plain PyTorch: what `make_train_step`, `fit` and `evaluate` must equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from linreg_ext import History, StopTraining
from linreg_ext.training.match import reduction_of


def make_train_step(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[Tensor, Tensor], Tensor]:
    def step(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        model.train()
        loss = loss_of(loss_fn, model(x), y, weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def loss_of(loss_fn: Callable[[Tensor, Tensor], Tensor], p: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """The loss, or for weights the weighted mean or sum of an nn module's losses."""
    if weight is None:
        return loss_fn(p, y)
    unreduced = copy.copy(loss_fn)
    unreduced.reduction = "none"
    weight = weight if weight.shape == y.shape else weight.reshape(len(y), *[1] * (y.dim() - 1)).expand(y.shape)
    total = (unreduced(p, y) * weight).sum()
    return total if loss_fn.reduction == "sum" else total / weight.sum()


def rows_of(batch: list[Tensor]) -> float:
    """By what the loss of a batch counts."""
    return len(batch[0]) if len(batch) == 2 else batch[2].double().reshape(len(batch[2]), -1).mean(1).sum().item()


def fit(
    num_epochs: int,
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    opt: torch.optim.Optimizer,
    train_dl: Iterable[tuple[Tensor, Tensor]],
    *,
    val_dl: Iterable[tuple[Tensor, Tensor]] | None = None,
    scheduler: Any = None,
    scheduler_interval: str = "epoch",
    device: torch.device | str | None = None,
    log_every: int | None = None,
    progress: bool | None = None,
    on_divergence: str = "stop",
    patience: int | None = None,
    on_epoch_end: Callable[[int, History], None] | None = None,
) -> History:
    summed = reduction_of(loss_fn) == "sum"
    model.to(device)
    step = make_train_step(model, loss_fn, opt)
    step_loss, epoch_loss, val_loss, lr = [], [], [], []

    def history() -> History:
        tensors = (torch.tensor(values, dtype=torch.float64) for values in (step_loss, epoch_loss, val_loss, lr))
        steps, epochs, validation, rates = tensors
        return History(steps, epochs, validation if val_dl is not None else None, rates)

    best, best_epoch, kept = math.inf, 0, None
    for epoch in range(num_epochs):
        total, rows = 0.0, 0
        for batch in train_dl:
            lr.append(float(opt.param_groups[0]["lr"]))
            before = [p.detach().clone() for p in model.parameters()]
            step_loss.append(step(*(t.to(device) for t in batch)).item())
            if on_divergence == "stop" and not math.isfinite(step_loss[-1]):
                with torch.no_grad():
                    for p, old in zip(model.parameters(), before, strict=True):
                        p.copy_(old)
                raise RuntimeError(f"fit: the loss is {step_loss[-1]} at step {len(step_loss)}")
            total, rows = total + step_loss[-1] * (1 if summed else rows_of(batch)), rows + rows_of(batch)
            if scheduler_interval == "step":
                step_scheduler(scheduler, step_loss[-1])
        epoch_loss.append(total / rows if rows else math.nan)
        if val_dl is not None:
            val_loss.append(evaluate(model, loss_fn, ([t.to(device) for t in batch] for batch in val_dl)))
        if scheduler_interval == "epoch":
            step_scheduler(scheduler, (val_loss or epoch_loss)[-1])
        if log_every is not None and (epoch + 1) % log_every == 0:
            validation = f", Val loss: {val_loss[-1]:.4f}" if val_loss else ""
            print(f"Epoch [{epoch + 1}/{num_epochs}], Loss: {step_loss[-1]:.4f}{validation}")
        over = False
        try:
            if on_epoch_end is not None:
                on_epoch_end(epoch + 1, history())
        except StopTraining:
            over = True
        if patience is not None and (val_loss or epoch_loss)[-1] < best:
            best, best_epoch, kept = (val_loss or epoch_loss)[-1], epoch, copy.deepcopy(model.state_dict())
        if over or (patience is not None and epoch - (best_epoch if kept else -1) >= patience):
            break
    if kept is not None:
        model.load_state_dict(kept)
    return history()


def step_scheduler(scheduler: Any, loss: float) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        scheduler.step(loss)
    elif scheduler is not None:
        scheduler.step()


def evaluate(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], dataloader: Iterable[tuple[Tensor, Tensor]]
) -> float:
    summed = reduction_of(loss_fn) == "sum"
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    total, rows = 0.0, 0
    with torch.no_grad():
        for batch in dataloader:
            x, y, weight = (*batch, None)[:3]
            loss = loss_of(loss_fn, model(x), y, weight).item()
            total, rows = total + loss * (1 if summed else rows_of(batch)), rows + rows_of(batch)
    for module, training in modes:
        module.training = training
    return total / rows if rows else math.nan
