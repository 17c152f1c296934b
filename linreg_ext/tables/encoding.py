# SPDX-License-Identifier: BSD-3-Clause
"""The encoding of a table's columns as the inputs of a linear model, saved with the model.

Numbers are used as they are; true is 1 and false is 0. A category with L levels becomes L - 1 columns of 0 and 1, one
for each level except the base, the first in sorted order (treatment coding).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cells import MISSING_NUMBER, number
from .table import DATE, EMPTY, NUMBER, TEXT, Column, Table, TableError, listing, quoted

_BLOCK = 4096  # rows that fit in cache with all their columns


@dataclass(frozen=True)
class Feature:
    """A column of the table: numbers, or a category if it has levels. The first level is the base."""

    column: str
    levels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the model's columns that encode this feature."""
        return tuple(f"{self.column}[{level}]" for level in self.levels[1:]) or (self.column,)


@dataclass(frozen=True)
class Encoding:
    """The features and targets of a model, and how each is read from a table.

    Attributes:
        features: in the order of the model's columns.
        targets: the columns that the model predicts.
        fill: [names], the values that replace missing cells; () drops rows with missing cells.
        marks: additional marks of missing cells.
        left_out: (column, reason) for each unused column.
    """

    features: tuple[Feature, ...]
    targets: tuple[str, ...]
    fill: tuple[float, ...] = ()
    marks: tuple[str, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the model's columns."""
        return tuple(name for feature in self.features for name in feature.names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The table's columns that the model reads."""
        return tuple(feature.column for feature in self.features)

    @property
    def categories(self) -> tuple[str, ...]:
        """The columns to read as text."""
        return tuple(feature.column for feature in self.features if feature.levels)

    def encode(self, table: Table, rows: np.ndarray | None = None, *, unseen: str = "error") -> np.ndarray:
        """The model's columns, [rows, names], float64. Missing cells are filled from `fill`, or nan without it.

        Args:
            table: contains the model's columns, with its categories read as text.
            rows: the rows to encode, as indices or a mask; None encodes all.
            unseen: `"error"` rejects levels unknown to the model; `"base"` treats them as the base.

        Raises:
            TableError: a column is missing or of the wrong kind, or a level is unknown.
        """
        rows = np.arange(table.rows) if rows is None else np.arange(table.rows)[rows]
        whole = np.ones(len(rows), dtype=bool)  # only rows that get a prediction need known levels
        for name in self.columns if self.categories and not self.fill else ():
            column = _column(table, name)
            whole &= column.kind != EMPTY and (column.values is None or ~column.missing[rows])
        columns = [
            _codes(table, f, rows[whole], unseen) if f.levels else _numbers(table, f.column) for f in self.features
        ]
        x = np.empty((len(rows), len(self.names)))
        for begin in range(0, len(rows), _BLOCK):
            block, j = rows[begin : begin + _BLOCK], 0
            for feature, values in zip(self.features, columns, strict=True):
                part, width = values[block], max(1, len(feature.levels) - 1)
                if feature.levels:
                    part = np.where(part[:, None] < 0, np.nan, part[:, None] == np.arange(1, width + 1))
                x[begin : begin + _BLOCK, j : j + width] = part.reshape(-1, width)
                j += width
        if self.fill:
            np.copyto(x, np.array(self.fill), where=np.isnan(x))
        return x

    def encode_numbers(self, table: Table, rows: np.ndarray | None = None) -> np.ndarray:
        """The model's columns, none of which is a category, each contiguous: float32 if the table's are, else float64.

        Args:
            table: contains the model's columns, in these rows without missing cells.
            rows: the indices of the rows to encode; None encodes all.
        """
        columns = [_numbers(table, name) for name in self.columns]
        count = table.rows if rows is None else len(rows)
        x = np.empty((count, len(columns)), np.result_type(np.float32, *columns), "F")
        for to, values in zip(x.T, columns, strict=True):
            if rows is None:
                to[:] = values
            else:
                np.take(values.astype(x.dtype, copy=False), rows, out=to, mode="clip")  # "raise" would copy twice
        return x

    def to_json(self) -> dict[str, Any]:
        """The encoding as JSON types."""
        return {
            "features": [
                {"column": f.column, **({"levels": list(f.levels)} if f.levels else {})} for f in self.features
            ],
            "targets": list(self.targets),
            "fill": list(self.fill),
            "missing": list(self.marks),
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_json(cls, saved: Any) -> Encoding:
        """The inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError: `saved` is not an encoding.
        """
        features = tuple(Feature(_text(f["column"]), _texts(f.get("levels", []))) for f in saved["features"])
        fill = tuple(map(float, saved["fill"]))
        left_out = tuple((column, _text(why)) for column, why in saved["left_out"].items())
        encoding = cls(features, _texts(saved["targets"]), fill, _texts(saved["missing"]), left_out)
        if fill and len(fill) != len(encoding.names):
            raise ValueError(f"expected {len(encoding.names)} values in 'fill', got {len(fill)}")
        return encoding


def find_encoding(
    table: Table,
    features: Sequence[str],
    targets: Sequence[str],
    *,
    others: Sequence[str] = (),
    categories: Collection[str] = (),
    missing: str = "drop",
    marks: Sequence[str] = (),
    count: int | None = None,
) -> tuple[Encoding, np.ndarray, list[str]]:
    """Choose the encoding of a table's columns, and the rows to use.

    Args:
        table: contains all the columns.
        features: the candidates; unusable ones are left out.
        targets: columns of numbers.
        others: further columns of numbers without which a row is dropped.
        categories: columns to encode as categories regardless of how many levels they have.
        missing: for rows that lack a feature: `"drop"` drops them, `"mean"` keeps them, `"error"` raises.
        marks: additional marks of missing cells.
        count: the number of rows, if the table is a summary of a longer one.

    Returns:
        The encoding, without `fill`; a mask of the rows to use, [rows]; and one line for each decision.

    Raises:
        TableError: a target is not numeric, a cell is missing under `"error"`, or no row or feature is left.
    """
    lost, rows = {}, np.ones(table.rows, dtype=bool)
    for name in (*targets, *others):
        gone = np.isnan(_numbers(table, name))
        lost[name] = int(gone.sum())
        rows &= ~gone
    if not rows.any():
        raise TableError(f"{table.path}: no row has values for {listing([n for n in lost if lost[n]])}")
    _require_two(table, rows)
    limit = max(20, (int(rows.sum()) if count is None else count) // 10)
    left_out: dict[str, str] = {}

    def usable(names: Sequence[str]) -> list[str]:
        left_out.update((n, why) for n in names if (why := _useless(table, n, rows, limit, n in categories)))
        return [n for n in names if n not in left_out]

    names = usable(features)
    if missing == "error":
        for name in names:
            gone = table.columns[name].missing & rows
            if gone.any():
                raise table.error(int(gone.argmax()), name, "expected a value, got none (--missing drop or mean)")
    gaps = {name: int((table.columns[name].missing & rows).sum()) for name in names}
    before = rows.copy()
    for name in names if missing == "drop" else ():
        rows &= ~table.columns[name].missing
    if not rows.any():
        worst = sorted(gaps, key=gaps.get, reverse=True)[:3]
        counts = ", ".join(f"{name} in {gaps[name]:,}" for name in worst)
        raise TableError(
            f"{table.path}: each of {before.sum():,} rows has missing cells: {counts}; "
            f"--missing mean keeps the rows, --drop {worst[0]} leaves a column out"
        )
    _require_two(table, rows)
    names = usable(names)
    if not names:
        why = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise TableError(f"{table.path}: no feature is left{f' ({why})' if why else ''}")
    notes = [f"left out {name}: {why}" for name, why in left_out.items()]
    found = []
    for name in names:
        column = table.columns[name]
        present = np.unique(column.values[rows]) if column.kind == TEXT else np.array([], int)
        found.append(Feature(name, tuple(column.levels[i] for i in present if i >= 0)))
        odd = _among_numbers(table, name, present) if len(present) and name not in categories else None
        notes += [f"{name} is a category: {odd}"] if odd else []
    return (
        Encoding(tuple(found), tuple(targets), marks=tuple(marks), left_out=tuple(left_out.items())),
        rows,
        notes + _missing_notes(table, rows, lost, gaps, missing),
    )


def _require_two(table: Table, rows: np.ndarray) -> None:
    if rows.sum() < 2:
        raise TableError(f"{table.path}: expected at least 2 rows without missing cells, got {rows.sum()}")


def _missing_notes(
    table: Table, rows: np.ndarray, lost: dict[str, int], gaps: dict[str, int], missing: str
) -> list[str]:
    counts = {**lost, **gaps}
    shown = [f"{name} {count:,}" for name, count in counts.items() if count]
    if not shown:
        return []
    dropped = table.rows - int(rows.sum())
    which = "a missing target" if missing == "mean" else "missing cells"
    line = [f"dropped {dropped:,} of {table.rows:,} rows with {which}"] if dropped else []
    if missing == "mean" and any(gaps.values()):
        line.append("filled missing features with means")
    hint = "; --missing mean keeps them" if missing == "drop" and any(gaps.values()) else ""
    return [f"{', '.join(line)} ({listing(shown)}){hint}"]


def _useless(table: Table, name: str, rows: np.ndarray, limit: int, wanted: bool) -> str | None:
    """The reason why a column cannot be a feature; None if it can."""
    column = table.columns[name]
    if column.kind == DATE:
        return f"dates; --categories {name} makes each a level"
    if column.kind == EMPTY:
        return "no values"
    if column.kind not in (NUMBER, TEXT):
        return column.kind
    values = column.values[rows & ~column.missing]
    if column.kind == NUMBER:
        if len(values) == 0 or values.min() == values.max():
            return f"{values[0]:g} in every row" if len(values) else "no values"
        return None
    present = np.unique(values)
    if len(present) < 2:
        return f"{quoted(column.levels[present[0]])} in every row" if len(present) else "no values"
    if len(present) <= limit or wanted:
        return None
    return _among_numbers(table, name, present) or (
        f"text with {len(present):,} distinct values; --categories {name} makes it a category"
    )


def _among_numbers(table: Table, name: str, present: np.ndarray) -> str | None:
    """A note about a text column if most of its `present` levels are numbers, else None."""
    levels = [table.columns[name].levels[i] for i in present if i >= 0]
    if sum(number(level, ".") is not None for level in levels) <= 0.5 * len(levels):
        return None
    cell, row = _no_number(table, name)
    return f"text in row {table.line(row)}, {quoted(cell)}, among numbers; --na {cell!r} treats it as missing"


def _no_number(table: Table, name: str) -> tuple[str, int]:
    """The first cell of a text column that is not a number, and its row."""
    column = table.columns[name]
    texts = np.array([number(level, ".") is None and level not in MISSING_NUMBER for level in (*column.levels, "")])
    row = int(texts[column.values].argmax())
    return column.levels[column.values[row]], row


def _numbers(table: Table, name: str) -> np.ndarray:
    """The values of a column of numbers."""
    column = _column(table, name)
    if column.kind == EMPTY:
        return np.full(table.rows, np.nan)
    if column.kind == TEXT:
        cell, row = _no_number(table, name)
        raise table.error(row, name, f"expected a number, got {quoted(cell)} (--na {cell!r} treats it as missing)")
    if column.kind != NUMBER:
        raise TableError(f"{table.path}, column '{name}': expected numbers, got {column.kind}")
    if not column.has_finite_sum and np.isinf(column.values).any():
        row = int(np.isinf(column.values).argmax())
        raise table.error(
            row, name, f"expected a finite number, got {column.values[row]} (--na inf treats it as missing)"
        )
    return column.values


def _codes(table: Table, feature: Feature, rows: np.ndarray, unseen: str) -> np.ndarray:
    """[table.rows], the index of each row's level, -1 if missing. The levels in `rows` must be known."""
    column = _column(table, feature.column)
    if column.kind == EMPTY:
        return np.full(table.rows, -1)
    if column.kind != TEXT:
        raise TableError(f"{table.path}, column '{feature.column}': expected text, got {column.kind}")
    index = {level: i for i, level in enumerate(feature.levels)}
    lookup = np.array([*(index.get(level, 0) for level in column.levels), -1], dtype=np.int32)
    counts = np.bincount(column.values[rows] + 1, minlength=len(column.levels) + 1)[1:].tolist()
    unknown = {quoted(n): c for n, c in zip(column.levels, counts, strict=True) if c and n not in index}
    if unknown and unseen == "error":
        raise TableError(
            f"{table.path}, column '{feature.column}': the model does not know "
            f"{listing([f'{level} ({count:,} rows)' for level, count in unknown.items()])}; it knows "
            f"{listing(feature.levels)} (--unseen base treats others as {feature.levels[0]})"
        )
    return lookup[column.values]


def _column(table: Table, name: str) -> Column:
    if name not in table.columns:
        raise TableError(f"{table.path}: expected a column '{name}', got {listing(table.names)}")
    return table.columns[name]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list, got {type(values).__name__}")
    return tuple(map(_text, values))
