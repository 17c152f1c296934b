# SPDX-License-Identifier: BSD-3-Clause
"""The pictures: what they show, and that drawing them leaves matplotlib as it was."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from linreg_ext import History
from linreg_ext.plots import fit_figure, loss_curves

matplotlib = pytest.importorskip("matplotlib")


def history(epochs: int, *, validation: bool = True, lowest: float = 0.01) -> History:
    train = torch.logspace(0, torch.tensor(lowest).log10().item(), epochs, dtype=torch.float64)
    return History(train, train, train * 2 if validation else None, torch.full((epochs,), 0.1))


def test_loss_curves_show_the_history(tmp_path: Path) -> None:
    run = history(50)
    figure = loss_curves(run, tmp_path / "loss.png")
    (axes,) = figure.axes
    training, validation = axes.lines
    assert training.get_xdata().tolist() == list(range(1, 51))
    assert training.get_ydata().tolist() == run.epoch_loss.tolist()
    assert validation.get_ydata().tolist() == run.val_loss.tolist()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation"]
    assert axes.get_xlabel() == "epoch"
    assert axes.get_yscale() == "log"
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("lowest", "scale"), [(0.5, "linear"), (0.0, "linear"), (0.01, "log")])
def test_the_axes_are_logarithmic_where_that_helps(lowest: float, scale: str) -> None:
    run = history(20, validation=False, lowest=lowest or 0.5)
    if lowest == 0:
        run.epoch_loss[-1] = 0
    (axes,) = loss_curves(run).axes
    assert (axes.get_xscale(), axes.get_yscale()) == (scale, scale)


def test_short_and_broken_histories_are_drawn(tmp_path: Path) -> None:
    for epochs in (0, 1):
        loss_curves(history(epochs), tmp_path / f"{epochs}.png")
    run = history(5)
    run.epoch_loss[3:] = torch.nan
    loss_curves(run, tmp_path / "nan.svg")


def test_history_plot_draws_loss_curves(tmp_path: Path) -> None:
    assert len(history(5).plot(tmp_path / "loss.pdf").axes[0].lines) == 2


def test_fit_figure_has_a_panel_for_each_target(tmp_path: Path) -> None:
    torch.manual_seed(0)
    actual = torch.randn(30, 2)
    predicted = actual + 0.1
    held_out = torch.arange(30) >= 24
    names = ["price $^$", "a very long name that would not fit above its panel"]
    figure = fit_figure(history(9), names, actual, predicted, held_out, ["R² 0.5", "R² 0.6"], tmp_path / "fit.png")
    _, first, second = figure.axes
    train, validation = (points.get_offsets() for points in first.collections)
    torch.testing.assert_close(torch.tensor(train.data), torch.stack([actual[:24, 0], predicted[:24, 0]], 1).double())
    assert len(validation) == 6
    assert first.texts[0].get_text() == "R² 0.5"
    assert second.get_xlabel().startswith("actual a very long")
    (identity,) = first.lines
    assert list(identity.get_xdata()) == list(identity.get_ydata())


def test_many_targets_and_rows_stay_a_picture() -> None:
    actual = torch.randn(10_001, 9)
    everything = torch.zeros(10_001, dtype=torch.bool)
    figure = fit_figure(history(3), [f"y{k}" for k in range(9)], actual, actual, everything, [""] * 9)
    assert len(figure.axes) == 7
    assert len(figure.axes[1].collections[0].get_offsets()) <= 2000


def test_a_binary_file_gets_a_png() -> None:
    file = io.BytesIO()
    loss_curves(history(5), file)
    assert file.getvalue().startswith(b"\x89PNG")


def test_no_global_state_is_touched() -> None:
    before = dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules
    loss_curves(history(5))
    assert (dict(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules) == before


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        loss_curves(history(5))
