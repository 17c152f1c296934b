# SPDX-License-Identifier: BSD-3-Clause
"""`fit --by`: an exact regression for each group of rows, and one table of all their coefficients."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..least_squares import LeastSquares, LeastSquaresSolution
from ..tables import NUMBER, TEXT, Column, kind_of
from . import report, run_folder
from .dataset import Dataset
from .errors import CommandError
from .processes import Processes
from .stream import Groups, OpenTable

_CONDITION = 1e5  # above it, coefficients from moments have fewer than six digits


@dataclass(frozen=True, eq=False)
class GroupFits:
    """The fits of G groups: for each of K targets D + 1 coefficients, of which the intercept is the first."""

    dataset: Dataset  # some of the rows
    groups: Groups
    solution: LeastSquaresSolution
    names: tuple[str, ...]  # of the coefficients
    coefficients: Tensor  # [G, K, D + 1]
    errors: Tensor  # [G, K, D + 1]
    rows: Tensor  # [G], int64: the training rows with weight > 0
    rmse: Tensor  # [G, K]
    val_rmse: Tensor | None  # [K], over the validation rows of all groups


def fit_groups(args: argparse.Namespace, processes: Processes) -> GroupFits:
    """Fit each group of a table, read in blocks."""
    if processes.size > 1:
        raise CommandError("--by: needs a single process; start it without torchrun")
    table = OpenTable(args, processes)
    with table.bar("grouping") as progress:
        groups = _groups_of(table.columns.by[0], table.stream.column(table.columns.by[0], progress))
    training, validation, _, sample = table.add_up(groups)
    dataset = table.dataset(sample, (training.rows, validation.rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "linreg_ext: LeastSquares.solve")  # groups without rows
        solution = training.solve(args.l2)
    return GroupFits(
        dataset,
        groups,
        solution,
        ("(intercept)", *dataset.encoding.names),
        torch.cat([solution.bias.unsqueeze(-1), solution.weight], -1),
        torch.cat([solution.bias_stderr.unsqueeze(-1), solution.weight_stderr], -1),
        training.group_rows,
        (solution.residual_sum_of_squares / training.weight_sum[:, None]).sqrt(),
        _validated(validation, solution) if validation.rows else None,
    )


def _groups_of(name: str, column: Column) -> Groups:
    """The groups by a column."""
    hint = f"--categories {name} reads its cells as text"
    if column.kind not in (NUMBER, TEXT):
        raise CommandError(f"--by {name}: expected a column of numbers or text, got {column.kind}; {hint}")
    present = None if column.is_complete else ~column.missing
    values = column.values if present is None else column.values[present]
    if column.kind == NUMBER and max(-values.min(), values.max()) >= 2**53:
        raise CommandError(f"--by {name}: has numbers beyond 2^53, of which float64 cannot tell all apart; {hint}")
    cells, codes = _distinct(values.astype(np.float64, copy=False) if column.kind == NUMBER else values)
    if column.kind == TEXT:
        cells = np.array(column.levels, dtype=object)[cells]
    of_rows = codes
    if present is not None:
        of_rows = np.full(len(column.values), -1)
        of_rows[present] = codes
    return Groups(name, cells, of_rows)


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values in ascending order, whole numbers as integers, and the index of each row's among them."""
    low, high = values.min(), values.max()
    if high - low < 4 * len(values):  # counting whole numbers is faster than sorting them
        places = values.astype(np.int64)
        if (places == values).all():
            places -= int(low)
            present = np.bincount(places) > 0
            return np.flatnonzero(present) + int(low), places if present.all() else (np.cumsum(present) - 1)[places]
    cells, codes = np.unique(values, return_inverse=True)
    return cells.astype(np.int64) if (cells == np.floor(cells)).all() else cells, codes


def _validated(validation: LeastSquares, solution: LeastSquaresSolution) -> Tensor:
    """The RMSE of each target over the validation rows whose group was fitted."""
    weight = torch.where(solution.bias[:, :1].isfinite(), validation.weight_sum[:, None], 0.0)
    losses = validation.loss_of(solution.weight, solution.bias, reduction="none")
    return (torch.where(weight > 0, losses * weight, 0.0).sum(0) / weight.sum()).sqrt()


def print_fits(fits: GroupFits, l2: float) -> None:
    """Print what was fitted, what the rows do not determine, and how the coefficients spread over the groups."""
    groups, solution, fitted = fits.groups, fits.solution, fits.rows > 0
    penalty = f" with an l2 penalty of {l2:g}" if l2 else ""
    least, most = int(fits.rows.min()), int(fits.rows.max())
    sizes = report.many(most, "row") if least == most else f"{least:,} to {report.many(most, 'row')}"
    print(f"by {groups.column}: {report.many(len(groups.cells), 'group')} of {sizes}")
    print(f"least squares{penalty} in each group, solved exactly")
    deficient = fitted & (solution.rank < len(fits.names) - 1)
    exact = fitted & ~deficient & (solution.degrees_of_freedom == 0)
    nearly = fitted & ~deficient & (solution.condition > _CONDITION)
    for which, what in (
        (~fitted, "no training rows and no coefficients"),
        (deficient, "too few rows, or constant or dependent columns: the minimum-norm coefficients"),
        (exact, "no more rows than coefficients, and no standard errors"),
        (nearly, "nearly dependent columns, whose coefficients have fewer than six correct digits"),
    ):
        if which.any():
            first = groups.cells[int(which.int().argmax())]
            print(f"{report.many(int(which.sum()), 'group')} ({first}{', …' if which.sum() > 1 else ''}) with {what}")
    print("\nCoefficients over the groups, in the table's own units:")
    for k, target in enumerate(fits.dataset.encoding.targets):
        rows = dict(zip(fits.names, fits.coefficients[fitted, k].T, strict=True))
        rows |= {"R²": solution.r2[fitted, k], "RMSE": fits.rmse[fitted, k]}
        report.print_quartiles(target, rows)
    if fits.val_rmse is not None:
        rmse = [f"{value:.4g}" for value in fits.val_rmse.tolist()]
        print(f"RMSE over the validation rows of all groups: {', '.join(rmse)}")


def files_of(fits: GroupFits) -> dict[str, bytes]:
    """A row for each group and target: coefficients, standard errors and quality of fit, in the table's format."""
    groups, (count, targets) = fits.groups, fits.rmse.shape
    columns: dict[str, object] = {groups.column: groups.cells.repeat(targets)}
    names = ["intercept", *fits.names[1:]]
    found = [
        ("target", np.tile(np.array(fits.dataset.encoding.targets, dtype=object), count)),
        ("rows", fits.rows.repeat_interleave(targets)),
        ("r2", fits.solution.r2), ("rmse", fits.rmse),
        *zip(names, fits.coefficients.unbind(-1), strict=True),
        *zip((f"{name}_stderr" for name in names), fits.errors.unbind(-1), strict=True),
    ]  # fmt: skip
    for name, values in found:
        while name in columns:
            name += "_"
        columns[name] = values.flatten().numpy() if isinstance(values, Tensor) else values
    form = "parquet" if kind_of(fits.dataset.path) == "parquet" else "csv"
    return {run_folder.COEFFICIENTS[form]: run_folder.table_of(columns, form)}
