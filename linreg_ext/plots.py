# SPDX-License-Identifier: BSD-3-Clause
"""Plots of a training run, drawn on a matplotlib Figure: no pyplot, no global state, no window."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    class Losses(Protocol):
        """The losses of each epoch, as in `linreg_ext.History`."""

        @property
        def epoch_loss(self) -> Tensor: ...
        @property
        def val_loss(self) -> Tensor | None: ...


# Okabe and Ito's blue and vermilion: distinct for any colour vision, and in black and white by their markers.
_TRAINING, _VALIDATION, _QUIET = "#0072B2", "#D55E00", "#666666"
_MAX_POINTS = 2000  # per panel; more only darken it
_MAX_BARS = 400
_MAX_PANELS = 6


def loss_curves(
    history: Losses, path: str | os.PathLike[str] | IO[bytes] | None = None, *, loss: str = "loss"
) -> Figure:
    """Plot the training (and validation) loss of each epoch.

    Args:
        history: the `linreg_ext.History` of a run.
        path: where to save the plot: a path, whose suffix is the format, or a binary file for a PNG. None: nowhere.
        loss: the label of the vertical axis.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> loss_curves(fit(10, model, loss_fn, opt, train_dl), "loss.png")
    """
    figure = _figure(1, 1, width=6.0, height=4.0)
    _draw_losses(figure.add_subplot(), history, loss)
    return _saved(figure, path)


def fit_figure(
    history: Losses | None,
    targets: Sequence[str],
    actual: Tensor,
    predicted: Tensor,
    validation: Tensor,
    r2: Sequence[str],
    path: str | os.PathLike[str] | IO[bytes] | None = None,
    *,
    loss: str = "loss",
) -> Figure:
    """Plot the loss curves and, in one panel per target, predicted against actual values.

    Args:
        history: the `linreg_ext.History` of the run, or an object with the same epoch losses; None draws no losses.
        targets: the names of the K targets; the first 6 are drawn.
        actual: [N, K], in the targets' own units.
        predicted: [N, K].
        validation: [N], bool: the rows held out from training.
        r2: a caption for each target, with its R².
        path: as in `loss_curves`.
        loss: the label of the loss axis.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> fit_figure(history, ["price"], y, x @ w.T + b, torch.arange(len(y)) >= 80, ["R² 0.93"], "fit.png")
    """
    shown, before = min(len(targets), _MAX_PANELS), int(history is not None)
    columns = min(before + shown, 4)
    rows = math.ceil((before + shown) / columns)
    figure = _figure(rows, columns, width=3.7 * columns, height=3.7 * rows)
    if history is not None:
        losses = figure.add_subplot(rows, columns, 1)
        losses.set_box_aspect(1)  # like the panels beside it
        _draw_losses(losses, history, loss)
    for k in range(shown):
        axes = figure.add_subplot(rows, columns, k + before + 1)
        _draw_predictions(axes, targets[k], actual[:, k], predicted[:, k], validation, r2[k])
        _finish(axes, legend=k == 0)
    return _saved(figure, path)


def groups_figure(
    names: Sequence[str],
    coefficients: Tensor,
    errors: Tensor,
    path: str | os.PathLike[str] | IO[bytes] | None = None,
    *,
    groups: str = "groups",
) -> Figure:
    """Plot coefficients of many regressions, in one panel each: in ascending order, with two standard errors each way.

    Args:
        names: of the M coefficients; the first 6 are drawn.
        coefficients: [G, M], of G groups; nan is not drawn.
        errors: [G, M], their standard errors; nan where there is none.
        path: as in `loss_curves`.
        groups: the label of the horizontal axis.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> groups_figure(["price"], solution.weight[:, 0], solution.weight_stderr[:, 0], "stores.png", groups="stores")
    """
    shown = min(len(names), _MAX_PANELS)
    columns = min(shown, 3)
    rows = math.ceil(shown / columns)
    figure = _figure(rows, columns, width=3.7 * columns, height=3.2 * rows)
    for m in range(shown):
        values, error = coefficients[:, m], errors[:, m].nan_to_num(0.0)
        order = values.argsort()[: int((~values.isnan()).sum())]  # nan is last
        place = torch.arange(1, len(order) + 1, device=order.device)[:: math.ceil(len(order) / _MAX_BARS)]
        order = order[place - 1]
        value, reach = values[order], 2 * error[order]
        axes = figure.add_subplot(rows, columns, m + 1)
        few = len(order) <= 100
        axes.vlines(
            place.tolist(), (value - reach).tolist(), (value + reach).tolist(), color=_TRAINING,
            alpha=0.6 if few else 0.25, linewidth=1.2, label="± 2 standard errors",
        )  # fmt: skip
        axes.plot(place.tolist(), value.tolist(), "o" if few else "-", color=_TRAINING, markersize=3, label="estimate")
        if len(order) and (value - reach).min() < 0 < (value + reach).max():
            axes.axhline(0.0, color=_QUIET, linewidth=0.8, zorder=1)
        axes.set_title(_plain(names[m]))
        axes.set_ylabel("coefficient")
        axes.set_xlabel(f"{_plain(groups)}, in ascending order")
        axes.locator_params(nbins=5)
        axes.ticklabel_format(axis="y", scilimits=(-3, 5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _finish(axes, legend=m == 0)
    return _saved(figure, path)


def _draw_losses(axes: Axes, history: Losses, label: str) -> None:
    curves = [("training", history.epoch_loss, _TRAINING, "-")]
    if history.val_loss is not None:
        curves.append(("validation", history.val_loss, _VALIDATION, "--"))
    for name, values, colour, dashes in curves:
        epochs = range(1, len(values) + 1)
        marker = "o" if len(values) == 1 else ""
        axes.plot(epochs, values.tolist(), dashes, color=colour, marker=marker, linewidth=1.6, label=name)
    values = torch.cat([curve[1] for curve in curves])
    # Beyond a factor of ten, a linear axis hides the end of the run.
    if len(values) and values.min() > 0 and values.max() > 10 * values.min():
        axes.set_yscale("log")
        axes.set_xscale("log")  # most of such a drop is in the first epochs, a cliff on a linear axis
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
    else:
        axes.locator_params(axis="x", integer=True)
    axes.set_title("Loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel(_plain(label))
    _finish(axes)


def _draw_predictions(
    axes: Axes, name: str, actual: Tensor, predicted: Tensor, validation: Tensor, caption: str
) -> None:
    low = min(actual.min().item(), predicted.min().item())
    high = max(actual.max().item(), predicted.max().item())
    margin = 0.05 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=_QUIET, linewidth=1.0, zorder=1)
    stride = math.ceil(len(actual) / _MAX_POINTS)
    few = len(actual) <= 100
    groups = [("training", ~validation, _TRAINING, "o")]
    if validation.any():
        groups.append(("validation", validation, _VALIDATION, "D"))
    for label, rows, colour, marker in groups:
        # The same stride for both keeps the proportion of training to validation rows.
        x, y = actual[rows][::stride], predicted[rows][::stride]
        axes.scatter(
            x.tolist(), y.tolist(), s=34 if few else 10, color=colour, marker=marker, label=label,
            alpha=0.85 if few else 0.45, linewidths=0.6 if few else 0, edgecolors="white", zorder=2,
        )  # fmt: skip
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.locator_params(nbins=5)  # long tick labels must not touch
    axes.set_title(_plain(name))
    axes.set_xlabel(f"actual {_plain(name)}")
    axes.set_ylabel(f"predicted {_plain(name)}")
    axes.text(0.97, 0.04, caption, transform=axes.transAxes, ha="right", va="bottom", color="#333333")
    axes.ticklabel_format(scilimits=(-3, 5))


def _plain(name: str) -> str:
    """A name as literal text, at most 32 characters: matplotlib would parse what is between dollars as a formula."""
    return (name if len(name) <= 32 else name[:31] + "…").replace("$", r"\$")


def _finish(axes: Axes, legend: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    if legend and len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False)


def _figure(rows: int, columns: int, width: float, height: float) -> Figure:
    """An empty figure with room for `rows` × `columns` panels; a layout engine would take as long as the drawing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("linreg_ext: a plot needs matplotlib (`pip install matplotlib`)") from None
    figure = Figure(figsize=(width, height))
    left, right, bottom, top = 0.85, 0.15, 0.6, 0.4  # inches around each panel, of which the labels take most
    panel_width, panel_height = width / columns - left - right, height / rows - bottom - top
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height,
        (left + right) / panel_width, (bottom + top) / panel_height,
    )  # fmt: skip
    return figure


def _saved(figure: Figure, path: str | os.PathLike[str] | IO[bytes] | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
