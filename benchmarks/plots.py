# SPDX-License-Identifier: BSD-3-Clause
"""One figure per machine: the share of its read bandwidth by row width, and the speed-up over eager PyTorch."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from .results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct for any colour vision, each with a marker for black and white.
STYLES = {
    "linreg_ext": ("#0072B2", "o"),
    "eager": ("#D55E00", "s"),
    "compiled": ("#E69F00", "^"),
    "by hand": ("#009E73", "v"),
    "by hand, compiled": ("#56B4E9", "D"),
    "NumPy": ("#CC79A7", "P"),
    "numba": ("#999999", "X"),
    "JAX": ("#000000", "*"),
}
QUIET = "#555555"
ODD = "linreg_ext, odd widths"
OVER_WIDTH = ("narrow", "large", "types", "wide")


def draw(rows: list[Row], path: Path) -> bool:
    """Draw the figure and save it; return False if the rows have nothing to draw."""
    from matplotlib.figure import Figure

    step = [row for row in rows if row["k"] == "1" and row["dtype"] == "float32"]
    widths = [row for row in step if row["workload"] in OVER_WIDTH and row["of_bwread"]]
    sizes = [row for row in step if row["workload"] == "sizes" and row["over_eager"]]
    panels = [(panel, chosen) for panel, chosen in ((_bandwidth, widths), (_speed, sizes)) if chosen]
    if not panels:
        return False
    figure = Figure(figsize=(5.25 * len(panels), 4.4), layout="constrained", facecolor="white")
    figure.suptitle(rows[0]["machine"], fontsize="medium", color=QUIET)
    named = {}
    for axes, (panel, chosen) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axes, chosen)
        named |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    ordered = [name for name in (*STYLES, ODD) if name in named]
    lines = [named[name] for name in ordered]
    figure.legend(lines, ordered, loc="outside lower center", ncols=3 if len(panels) == 1 else 8, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return True


def draw_estimators(rows: list[Row], path: Path) -> None:
    """Draw the speed-up of `LinearRegressor` over scikit-learn's estimators, by rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    chosen = [row for row in rows if row["workload"] == "estimators" and row["d"] == "16"]
    ours = {row["case"]: float(row["seconds"]) for row in chosen if row["role"] == "ours"}
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for row in chosen:
        if row["role"] == "peer":
            points[row["variant"].split()[-1]][int(row["n"])] = float(row["seconds"]) / ours[row["case"]]
    for (name, line), (color, marker) in zip(points.items(), STYLES.values(), strict=False):
        axes.plot(*zip(*sorted(line.items()), strict=True), label=name, color=color, marker=marker)
    axes.axhline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(title="LinearRegressor: times as fast, 16 features", xlabel="rows", xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}×")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def draw_many(rows: list[Row], path: Path) -> None:
    """Draw the speed-up of `sgd_run_many_`, and of exact solutions, over each peer, by the number of problems."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained", facecolor="white")
    titles = {"epochs": "100 epochs of SGD: times as fast", "exact": "exact solutions: times as fast"}
    for (kind, title), axes in zip(titles.items(), figure.subplots(1, 2), strict=True):
        chosen = [row for row in rows if row["workload"] == "groups" and row["case"].endswith(kind)]
        ways = ("linreg_ext sgd_run_many_", "linreg_ext LeastSquares")
        ours = {row["case"]: float(row["seconds"]) for row in chosen if row["variant"] in ways}
        points: dict[str, dict[int, float]] = defaultdict(dict)
        for row in chosen:
            if row["role"] == "peer":
                count = int(row["case"].partition(" ")[0].replace(",", ""))
                points[row["variant"]][count] = float(row["seconds"]) / ours[row["case"]]
        for (name, line), (color, marker) in zip(points.items(), list(STYLES.values())[1:], strict=False):
            axes.plot(*zip(*sorted(line.items()), strict=True), label=name, color=color, marker=marker)
        axes.axhline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.set(title=title, xlabel="problems of 100 × 4", xscale="log", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}×")
        axes.grid(alpha=0.25, which="major")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def _bandwidth(axes: Axes, rows: list[Row]) -> None:
    even = [row for row in rows if int(row["d"]).bit_count() == 1]
    _lines(axes, even, "d", "of_bwread")
    odd = [row for row in rows if row not in even and row["role"] == "ours"]
    if odd:
        points = ([int(row["d"]) for row in odd], [float(row["of_bwread"]) for row in odd])
        axes.plot(*points, "o", color=STYLES["linreg_ext"][0], fillstyle="none", markersize=7, label=ODD)
    axes.axhline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    across = axes.get_yaxis_transform()
    axes.text(0.01, 1.01, "as fast as the rows can be read", transform=across, va="bottom", color=QUIET)
    axes.set(title="one SGD step: share of the read bandwidth", xlabel="features", xscale="log")
    axes.set_ylim(0, max(1.15, axes.get_ylim()[1]))
    _ticks(axes, even, "d")


def _speed(axes: Axes, rows: list[Row]) -> None:
    _lines(axes, rows, "n", "over_eager")
    axes.set(title="one SGD step on 8 features: times as fast as eager", xlabel="rows", xscale="log", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}×")
    _ticks(axes, rows, "n")


def _lines(axes: Axes, rows: list[Row], over: str, column: str) -> None:
    points: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["role"] != "bound":
            name = "linreg_ext" if row["role"] == "ours" else row["variant"]
            points[name][int(row[over])] = max(float(row[column]), points[name].get(int(row[over]), 0))
    for name, (color, marker) in STYLES.items():
        if name in points:
            ours = name == "linreg_ext"
            axes.plot(
                *zip(*sorted(points[name].items()), strict=True), label=name, color=color, marker=marker,
                linewidth=2.4 if ours else 1.2, markersize=7 if ours else 5, zorder=3 if ours else 2,
            )  # fmt: skip
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(axes: Axes, rows: list[Row], over: str) -> None:
    """Put ticks at the measured sizes, as many as fit."""
    sizes = sorted({int(row[over]) for row in rows})
    kept: list[int] = []
    for size in sizes:
        if not kept or size >= kept[-1] * (sizes[-1] / sizes[0]) ** 0.06:
            kept.append(size)
    axes.set_xticks(kept, [_short(size) for size in kept])
    axes.set_xticks([], minor=True)


def _short(size: int) -> str:
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if size >= unit:
            return f"{size / unit:.3g}{letter}"
    return str(size)
