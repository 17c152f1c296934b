# SPDX-License-Identifier: BSD-3-Clause
"""``fit``: train on a table, print coefficients and figures, leave a folder with weights, history and plot."""

from __future__ import annotations

import argparse
import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .. import plots
from ..tables import first_line, listing
from ..training import History
from . import run_folder
from .coefficients import Coefficients, weights_file
from .dataset import Dataset, read_dataset
from .errors import CommandError
from .train import train

_LONGEST_LISTING = 40  # coefficients printed; the file has them all


@dataclass(frozen=True)
class Scores:
    """How well some rows are predicted, for each of K targets."""

    part: str  # training or validation
    r2: list[float]  # nan where the actual values do not vary
    rmse: list[float]  # in the target's own units


def fit(args: argparse.Namespace) -> None:
    """Run the command."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: this PyTorch finds no CUDA device")
    generator = torch.Generator().manual_seed(args.seed)
    dataset = read_dataset(args, generator)
    place = args.out or Path("runs") / dataset.path.stem
    run_folder.require_writable(place, dataset.path)
    _print_dataset(dataset, last_by_default=args.table is not None and not args.target)
    model, history = train(dataset, args, generator)
    predicted = model.predict(dataset.x)
    scores = _scores(dataset, predicted)
    _print_coefficients(model)
    _print_scores(dataset.targets, scores)
    label = f"{args.loss} loss" + (" (standardised targets)" if args.standardize else "")
    files = {**weights_file(model), **_history_file(history), **_plot_file(dataset, history, predicted, scores, label)}
    try:
        run_folder.write(place, files)
    except OSError as error:
        raise CommandError(f"--out {place}: {error.strerror or error}") from None
    print(f"\nwrote {place}: {', '.join(files)}")


def _scores(dataset: Dataset, predicted: Tensor) -> list[Scores]:
    scores = []
    largest = dataset.y.abs().amax(0)  # squares of numbers about 1 neither overflow nor vanish
    actual, predicted = dataset.y / largest, predicted / largest
    for part, rows in (("training", ~dataset.held_out), ("validation", dataset.held_out)):
        if rows.any():
            squared = (actual[rows] - predicted[rows]).square().mean(0)
            variance = actual[rows].var(0, correction=0)
            r2 = torch.where(variance > 0, 1 - squared / variance, torch.nan)
            scores.append(Scores(part, r2.tolist(), (squared.sqrt() * largest).tolist()))
    return scores


def _print_dataset(dataset: Dataset, *, last_by_default: bool) -> None:
    rows, validating = len(dataset.x), int(dataset.held_out.sum())
    split = (
        f"{rows - validating:,} to train on, {validating:,} held out to validate" if validating else "all to train on"
    )
    print(f"{dataset.path.name}: {rows:,} rows, {split}")
    if dataset.path.suffix.lower() in (".csv", ".tsv") and "x0" in (*dataset.features, *dataset.targets):
        print("the first line holds numbers, so it is taken for data, and the columns are named x0, x1, …")
    print(f"{_many(len(dataset.features), 'feature')}: {listing(dataset.features)}")
    hint = ", the last column (--target names another)" if last_by_default else ""
    print(f"{_many(len(dataset.targets), 'target')}: {listing(dataset.targets)}{hint}")


def _print_coefficients(model: Coefficients) -> None:
    names = ("intercept", *model.features)
    numbers = torch.cat([model.bias[:, None], model.weight], dim=1).T
    rows = [[name, *(f"{value:.6g}" for value in row)] for name, row in zip(names, numbers.tolist(), strict=True)]
    print("\nCoefficients, in the table's own units:")
    _print_aligned([["", *model.targets], *rows[:_LONGEST_LISTING]])
    if len(rows) > _LONGEST_LISTING:
        print(f"… and {len(rows) - _LONGEST_LISTING} more in the weights file")


def _print_scores(targets: Sequence[str], scores: Sequence[Scores]) -> None:
    header = ["", *(f"{figure} {score.part}" for score in scores for figure in ("R²", "RMSE"))]
    rows = [[name, *(c for s in scores for c in (_r2(s.r2[k]), f"{s.rmse[k]:.4g}"))] for k, name in enumerate(targets)]
    print("\nQuality of the fit (R² is 1 at best; RMSE is the typical error, in the target's own units):")
    _print_aligned([header, *rows])


def _print_aligned(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        print(first.ljust(widths[0]), *cells, sep="  ")


def _r2(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _history_file(history: History) -> dict[str, bytes]:
    epochs = len(history.epoch_loss)
    columns = {"epoch": range(1, epochs + 1), "train_loss": history.epoch_loss.tolist()}
    if history.val_loss is not None:
        columns["validation_loss"] = history.val_loss.tolist()
    columns["lr"] = history.lr[:: len(history.lr) // epochs].tolist()  # of each epoch's first step
    file = io.StringIO()
    run_folder.write_csv(file, tuple(columns), zip(*columns.values(), strict=True))
    return {run_folder.HISTORY: file.getvalue().encode()}


def _plot_file(
    dataset: Dataset, history: History, predicted: Tensor, scores: Sequence[Scores], label: str
) -> dict[str, bytes]:
    captions = ["\n".join(f"R² {_r2(s.r2[k])} {s.part}" for s in scores) for k in range(len(dataset.targets))]
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a column name with a letter that the font lacks
            plots.fit_figure(
                history, dataset.targets, dataset.y, predicted, dataset.held_out, captions, file, loss=label
            )
    except Exception as error:  # no picture is worth the run that it shows
        print(f"\nno {run_folder.PLOT}: {first_line(error)}")
        return {}
    return {run_folder.PLOT: file.getvalue()}
