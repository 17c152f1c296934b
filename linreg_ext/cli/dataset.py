# SPDX-License-Identifier: BSD-3-Clause
"""The data set to fit: features, targets, weights and the validation split."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..tables import NUMBER, Encoding, Options, Table, find_encoding, listing, position, read_table
from .errors import CommandError

_SHIPPED_TABLE = Path(__file__).parents[1] / "data" / "apples_and_oranges.csv"
_SHIPPED_TARGETS = ["apples", "oranges"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The rows of a table that `fit` uses, as tensors."""

    path: Path
    encoding: Encoding
    x: Tensor  # [N, D], float64, the encoding's columns
    y: Tensor  # [N, K]
    weight: Tensor | None  # [N], of the rows
    held_out: Tensor  # [N], bool: the rows that only validate
    notes: tuple[str, ...]  # one line for each decision
    default_target: bool  # neither an option nor the file names it
    counts: tuple[int, int] | None = None  # of training and validation rows, if x and y are only a sample of them

    @property
    def rows(self) -> tuple[int, int]:
        """The numbers of training and validation rows."""
        validating = int(self.held_out.sum())
        return self.counts or (len(self.x) - validating, validating)


def options_of(args: argparse.Namespace, marks: Sequence[str] = ()) -> Options:
    """The reading options, from the arguments and additional marks of missing cells."""
    return Options(args.delimiter, args.decimal, args.encoding, args.header, (*marks, *(args.na or ())))


def with_numbers(names: Sequence[str]) -> set[str]:
    """The names, plus x3 for each 3 among them."""
    return {*names, *(f"x{name}" for name in names if name.isdecimal())}


def read_dataset(args: argparse.Namespace, generator: torch.Generator) -> Dataset:
    """Read the data set that the arguments specify; `generator` draws the validation rows."""
    columns = Columns(args)
    options, categories = options_of(args), with_numbers(args.categories or ())
    table = read_table(columns.path, options, choose=columns.choose, text=categories, progress=args.bar)
    targets = columns.targets_of(table)
    features = columns.features_of(table, targets)
    encoding, rows, notes = find_encoding(
        table, features, targets, others=columns.weight, categories=categories, missing=args.missing,
        marks=options.missing,
    )  # fmt: skip
    held_out = hold_out(table.path, int(rows.sum()), args.val_fraction, generator)
    x, y = encoding.encode(table, rows), np.column_stack([table.columns[name].values[rows] for name in targets])
    if args.missing == "mean":
        encoding = replace(encoding, fill=tuple(_fill(x, held_out.numpy()).tolist()))
    weight = torch.from_numpy(weight_of(table, columns.weight[0], rows)[rows]) if columns.weight else None
    if weight is not None and not weight.any():
        raise CommandError(f"--weight {columns.weight[0]}: every weight is 0")
    labels = [f"left out {name}: it names the rows (--features)" for name in table.labels if name not in features]
    return Dataset(
        table.path, encoding, torch.from_numpy(x), torch.from_numpy(y), weight, held_out,
        (*table.notes, *labels, *notes), default_target=not columns.targets and not table.targets,
    )  # fmt: skip


def require_varying(dataset: Dataset) -> None:
    """Raise if a target is the same in all training rows."""
    used = ~dataset.held_out if dataset.weight is None else ~dataset.held_out & (dataset.weight > 0)
    for name, values in zip(dataset.encoding.targets, dataset.y.T, strict=True):
        training = values[used]
        if training.min() == training.max():
            where = f"the {len(training)} training rows; try another --seed or a smaller --val-fraction"
            where = "all rows" if values.min() == values.max() else where
            raise CommandError(f"target '{name}' must vary, got {training[0].item():g} in {where}")


class Columns:
    """The columns that the arguments select from a table."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self.path = args, args.table or _SHIPPED_TABLE
        self.features: list[str] = []
        self.targets: list[str] = []
        self.weight: list[str] = []
        self.drop: list[str] = []
        self.by: list[str] = []

    def choose(self, names: tuple[str, ...]) -> list[str]:
        """The columns to read from those of the table."""
        args = self._args
        self.targets = self._find("target", args.target or ([] if args.table else _SHIPPED_TARGETS), names)
        self.features = self._find("features", args.features or [], names)
        self.drop = self._find("drop", args.drop or [], names)
        self.weight = self._find("weight", [args.weight] if args.weight else [], names)
        self.by = self._find("by", [args.by] if args.by else [], names)
        self._find("categories", args.categories or [], names)
        for option, own in (("target", self.targets), ("by", self.by)):
            others = {*self.features, *self.drop, *self.weight, *(self.by if option == "target" else ())}
            if name := next((name for name in own if name in others), None):
                raise CommandError(f"--{option} {name}: another option names it, too")
        if self.features and self.targets:
            return [*self.features, *self.targets, *self.weight, *self.by]
        return [name for name in names if name not in self.drop]

    def targets_of(self, table: Table) -> list[str]:
        """The targets given as options, else those marked in the file, else the last column of numbers."""
        if self.targets:
            return self.targets
        if table.targets:
            return list(table.targets)
        taken = {*self.features, *self.weight, *self.by, *table.labels}
        numbers = [name for name, column in table.columns.items() if column.kind == NUMBER and name not in taken]
        if not numbers:
            raise CommandError(f"{table.path}: expected a column of numbers as the target, got none")
        return numbers[-1:]

    def features_of(self, table: Table, targets: Sequence[str]) -> list[str]:
        """The features given as options, else all other columns that do not just name the rows."""
        taken = {*targets, *self.weight, *self.drop, *self.by, *(() if self.features else table.labels)}
        features = [name for name in self.features or table.columns if name not in taken]
        if not features:
            raise CommandError(f"{table.path}: every column is a target ({listing(targets)}); no feature is left")
        return features

    def _find(self, option: str, wanted: Sequence[str], names: tuple[str, ...]) -> list[str]:
        found = []
        for name in wanted:
            place = position(names, name)
            if place is None:
                swallowed = not self._args.table and any(Path(other).exists() for other in wanted)
                hint = "; TABLE comes before the options that take several columns" if swallowed else ""
                raise CommandError(f"--{option} {name}: {self.path.name} has the columns {listing(names)}{hint}")
            if names[place] in found:
                raise CommandError(f"--{option} {name}: named twice")
            found.append(names[place])
        return found


def weight_of(table: Table, name: str, rows: np.ndarray) -> np.ndarray:
    """The column of weights, which must be valid in the given rows."""
    values = table.columns[name].values
    bad = rows & ~((values >= 0) & (values < np.inf))
    if bad.any():
        row = int(bad.argmax())
        raise table.error(row, name, f"expected a weight >= 0, got {values[row]:g}")
    return values


def _fill(x: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Replace missing cells of `x` with their column's mean over the training rows; return the means."""
    missing = np.isnan(x)
    present = ~(missing | held_out[:, None])
    means = np.where(present, x, 0).sum(0) / np.maximum(present.sum(0), 1)
    np.copyto(x, means, where=missing)
    return means


def hold_out(path: Path, rows: int, fraction: float, generator: torch.Generator) -> Tensor:
    """A random mask of validation rows, [N]."""
    count = round(rows * fraction)
    if fraction > 0 and (count < 1 or rows - count < 2):
        raise CommandError(
            f"--val-fraction {fraction:g}: holds out {count} of the {rows} rows of {path}, but at least 1 must "
            "validate and at least 2 must train; --val-fraction 0 trains on all"
        )
    held_out = torch.zeros(rows, dtype=torch.bool)
    if count:
        held_out[torch.randperm(rows, generator=generator)[:count]] = True
    return held_out
