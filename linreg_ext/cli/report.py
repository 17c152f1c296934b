# SPDX-License-Identifier: BSD-3-Clause
"""The report that `fit` prints: data, coefficients and scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..least_squares import LeastSquaresSolution
from ..tables import Encoding, listing
from .coefficients import Coefficients
from .dataset import Dataset

_MOST_COEFFICIENTS, _MOST_NOTES = 40, 20  # lines printed; the files contain all


@dataclass(frozen=True)
class Scores:
    """The scores of a part of the rows, for each of K targets."""

    part: str  # training or validation
    r2: list[float]  # nan where the actual values do not vary
    rmse: list[float]  # in the target's own units


def scores_of(dataset: Dataset, predicted: Tensor) -> list[Scores]:
    """The scores of the training and the validation rows, weighted if the rows are."""
    scores = []
    largest = dataset.y.abs().amax(0)  # scaled to 1, squares neither overflow nor underflow
    actual, predicted = dataset.y / largest, predicted / largest
    for part, rows in (("training", ~dataset.held_out), ("validation", dataset.held_out)):
        weight = rows.double() if dataset.weight is None else rows * dataset.weight
        if weight.any():
            share = weight / weight.sum()
            squared = share @ (actual - predicted).square()
            variance = share @ (actual - share @ actual).square()
            r2 = torch.where(variance > 0, 1 - squared / variance, torch.nan)
            scores.append(Scores(part, r2.tolist(), (squared.sqrt() * largest).tolist()))
    return scores


def print_dataset(dataset: Dataset) -> None:
    """Print a summary of the data set and each decision about it."""
    training, validating = dataset.rows
    split = f"{training:,} to train on, {validating:,} held out to validate" if validating else "all to train on"
    print(f"{dataset.path.name}: {training + validating:,} rows, {split}")
    for note in dataset.notes[:_MOST_NOTES]:
        print(" ".join(note.splitlines()))
    if len(dataset.notes) > _MOST_NOTES:
        print(f"… and {len(dataset.notes) - _MOST_NOTES} more (encoding.json)")
    features = [f"{f.column} ({len(f.levels)} levels)" if f.levels else f.column for f in dataset.encoding.features]
    columns = f" in {len(dataset.encoding.names):,} columns" if dataset.encoding.categories else ""
    print(f"{many(len(features), 'feature')}{columns}: {listing(features)}")
    hint = ", the last column of numbers (--target names another)" if dataset.default_target else ""
    print(f"{many(len(dataset.encoding.targets), 'target')}: {listing(dataset.encoding.targets)}{hint}")


def print_constant(names: Sequence[str]) -> None:
    """Print the columns that are constant over the training rows, if any."""
    if names:
        print(f"coefficient 0 because the column is constant over the training rows: {listing(names)}")


def print_solution(solution: LeastSquaresSolution, l2: float) -> None:
    """Print how the exact solution was found, and what it does not determine."""
    columns = solution.weight.shape[1]
    penalty = f" with an l2 penalty of {l2:g}" if l2 else ""
    print(f"least squares{penalty}, solved exactly ({solution.method})")
    if solution.rank < columns:
        print(
            f"the {columns:,} columns are linearly dependent (rank {solution.rank:,}): of all best solutions, these "
            "are the smallest coefficients, and they have no standard errors"
        )
    elif solution.degrees_of_freedom == 0:
        print("no standard errors: there are no more rows than coefficients")


def print_coefficients(model: Coefficients, encoding: Encoding) -> None:
    """Print one line per coefficient, with those of a category below its name."""
    print("\nCoefficients, in the table's own units:")
    weight, bias, header = model.weight, model.bias, list(model.targets)
    if model.weight_stderr is not None:  # beside each coefficient its standard error
        weight = torch.stack([weight, model.weight_stderr], 1).flatten(0, 1)
        bias = torch.stack([bias, model.bias_stderr], 1).flatten()
        header = [text for name in model.targets for text in (name, "std. error")]
    numbers = iter(weight.T.tolist())
    lines: list[tuple[str, list[float]]] = [("(intercept)", bias.tolist())]
    for feature in encoding.features:
        if feature.levels:
            lines.append((f"{feature.column} (base {feature.levels[0]})", []))
        lines += [(f"  {level}", next(numbers)) for level in feature.levels[1:]]
        lines += [] if feature.levels else [(feature.column, next(numbers))]
    shown = lines[:_MOST_COEFFICIENTS]
    columns = [_aligned([row[k] for _, row in shown if row]) for k in range(len(header))]
    cells = iter(zip(*columns, strict=True))
    _print_table([["", *header], *([name, *(next(cells) if row else ())] for name, row in shown)])
    if len(lines) > len(shown):
        print(f"… and {len(lines) - len(shown)} more in the weights file")


def print_scores(targets: Sequence[str], scores: Sequence[Scores]) -> None:
    """Print the scores of the model."""
    header = ["", *(f"{figure} {score.part}" for score in scores for figure in ("R²", "RMSE"))]
    rows = [[name, *(c for s in scores for c in (r2(s.r2[k]), f"{s.rmse[k]:.4g}"))] for k, name in enumerate(targets)]
    print("\nQuality of the fit (R² is 1 at best; RMSE is the typical error, in the target's own units):")
    _print_table([header, *rows])


def print_quartiles(target: str, rows: Mapping[str, Tensor]) -> None:
    """Print the quartiles of numbers over groups; nan does not count."""
    shown = dict(itertools.islice(rows.items(), _MOST_COEFFICIENTS))
    present = [values[~values.isnan()].numpy() for values in shown.values()]
    cells = [_aligned(np.quantile(v, (0.25, 0.5, 0.75)).tolist() if len(v) else 3 * [math.nan]) for v in present]
    header = [target, "25 %", "median", "75 %"]
    _print_table([header, *([name, *row] for name, row in zip(shown, cells, strict=True))])
    if len(rows) > len(shown):
        print(f"… and {len(rows) - len(shown)} more in the table of coefficients")


def r2(value: float) -> str:
    """R² as text."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def many(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _aligned(numbers: Sequence[float]) -> list[str]:
    """Format numbers with six digits and aligned decimal points."""
    texts = ["–" if math.isnan(number) else f"{number:.6g}" for number in numbers]
    after = [len(text) - len(text.partition(".")[0].partition("e")[0]) for text in texts]
    return [text + " " * (max(after) - own) for text, own in zip(texts, after, strict=True)]


def _print_table(rows: list[list[str]]) -> None:
    rows = [[" ".join(cell.splitlines()) if i == 0 else cell for i, cell in enumerate(row)] for row in rows]
    width = max(len(row) for row in rows)
    widths = [max(len(row[i]) for row in rows if len(row) > i) for i in range(width)]
    for first, *others in rows:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=False))
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())
