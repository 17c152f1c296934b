# SPDX-License-Identifier: BSD-3-Clause
"""Stopping `fit` at the end of an epoch, and resuming in another process."""

import math
import subprocess
import sys

import plain_loop
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

import linreg_ext

X, Y = torch.randn(50, 3), torch.randn(50, 2)


def start(momentum=0.9, lr=0.05):
    torch.manual_seed(5)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    return model, optimizer, DataLoader(TensorDataset(X, Y), 16, shuffle=True)


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("patience", [1, 3])
def test_patience_ends_the_run_and_restores_the_best_parameters(patience, validate):
    ends = []
    for implementation in (linreg_ext.fit, plain_loop.fit):
        model, optimizer, loader = start()
        weights = []
        history = implementation(
            200, model, nn.MSELoss(), optimizer, loader, patience=patience, progress=False,
            val_dl=DataLoader(Subset(loader.dataset, range(9)), 4) if validate else None,
            on_epoch_end=lambda *_, model=model, weights=weights: weights.append(model.weight.detach().clone()),
        )  # fmt: skip
        losses = history.val_loss if validate else history.epoch_loss
        best = int(losses.argmin())
        assert len(losses) == best + 1 + patience < 200
        assert torch.equal(model.weight, weights[best])
        ends.append((history, model, torch.rand(1)))
    (ours, model, draw), (theirs, twin, twin_draw) = ends
    assert len(ours.step_loss) == len(theirs.step_loss)
    torch.testing.assert_close(model.weight, twin.weight)
    assert torch.equal(draw, twin_draw)


def test_patience_with_losses_that_are_not_numbers():
    for implementation in (linreg_ext.fit, plain_loop.fit):
        model, optimizer, _ = start()
        batch = [(X * math.nan, Y)]
        history = implementation(
            50, model, nn.MSELoss(), optimizer, batch, patience=2, on_divergence="continue", progress=False
        )
        assert len(history.epoch_loss) == 2


@pytest.mark.parametrize("implementation", [linreg_ext.fit, plain_loop.fit], ids=["fit", "reference"])
def test_a_callback_sees_every_epoch_and_can_end_the_run(implementation):
    seen = []

    def on_epoch_end(epoch, history):
        assert len(history.epoch_loss) == epoch
        assert len(history.step_loss) == 4 * epoch
        assert history.val_loss is None
        seen.append((epoch, history.epoch_loss[-1].item()))
        if epoch == 7:
            raise linreg_ext.StopTraining

    model, optimizer, loader = start()
    history = implementation(100, model, nn.MSELoss(), optimizer, loader, on_epoch_end=on_epoch_end, progress=False)
    assert seen == list(enumerate(history.epoch_loss.tolist(), start=1))
    assert len(seen) == 7
    state = torch.get_rng_state()
    model, optimizer, loader = start()
    implementation(7, model, nn.MSELoss(), optimizer, loader, progress=False)
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_patience():
    model, optimizer, loader = start()
    with pytest.raises(ValueError, match="fit: patience must be >= 1, got 0"):
        linreg_ext.fit(1, model, nn.MSELoss(), optimizer, loader, patience=0)


SCRIPT = """
import sys, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from linreg_ext import fit

path, first, epochs = sys.argv[1], sys.argv[2] == "first", int(sys.argv[3])
torch.manual_seed(1)
x, y, model = torch.randn(50, 3), torch.randn(50, 2), nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
generator = torch.Generator().manual_seed(7)
loader = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=generator)
if not first:
    saved = torch.load(path)
    for part, state in zip((model, optimizer, scheduler), saved["states"]):
        part.load_state_dict(state)
    torch.set_rng_state(saved["random"])
    generator.set_state(saved["generator"])
history = fit(epochs, model, nn.MSELoss(), optimizer, loader, scheduler=scheduler, progress=False)
states = [part.state_dict() for part in (model, optimizer, scheduler)]
torch.save({"states": states, "random": torch.get_rng_state(), "generator": generator.get_state(),
            "losses": history.step_loss}, path)
"""


@pytest.mark.extended
def test_a_run_that_is_saved_and_goes_on_elsewhere_is_one_run(tmp_path):
    """The resumed run agrees bit for bit, including the order of the batches."""

    def process(path, *arguments):
        subprocess.run([sys.executable, "-c", SCRIPT, str(path), *arguments], check=True, capture_output=True)
        return torch.load(path)

    whole = process(tmp_path / "whole", "first", "10")
    before = process(tmp_path / "parts", "first", "5")
    after = process(tmp_path / "parts", "then", "5")
    assert torch.equal(whole["losses"], torch.cat([before["losses"], after["losses"]]))
    for name in ("random", "generator"):
        assert torch.equal(whole[name], after[name])
    torch.testing.assert_close(whole["states"][:2], after["states"][:2], rtol=0, atol=0)
    assert whole["states"][2] == after["states"][2]
