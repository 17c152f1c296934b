# SPDX-License-Identifier: BSD-3-Clause
"""Interprets cells of text: numbers, missing values, dates, or text."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from .table import DATE, EMPTY, NUMBER, TEXT, Column

# The marks of missing cells in any column, and those in columns of numbers.
MISSING = frozenset({
    "", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "NAN", "-nan", "-NaN", "NULL", "Null", "null", "?",
})  # fmt: skip
MISSING_NUMBER = MISSING | {"-", "--", ".", "None", "none", "na"}

_BOOLEANS = {"true": 1.0, "false": 0.0}
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T]\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(:\d{2}(\.\d+)?)?")
_NUMBER = {  # by decimal mark; otherwise Python's float syntax
    mark: re.compile(rf"[+-]?(\d+{re.escape(mark)}?\d*|{re.escape(mark)}\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.I)
    for mark in ".,"
}
_GROUPED = {  # by decimal mark, which cannot separate thousands
    mark: re.compile(rf"[+-]?\d{{1,3}}([{other}' \u00a0\u202f])\d{{3}}(\1\d{{3}})*({re.escape(mark)}\d*)?")
    for mark, other in (".,", ",.")
}


def is_number(cell: str, decimal: str) -> bool:
    """Whether a cell holds a number without thousands separators."""
    return _NUMBER[decimal].fullmatch(cell) is not None


def number(cell: str, decimal: str) -> float | None:
    """The number in a cell, with or without thousands separators; None if the cell is not a number."""
    if not is_number(cell, decimal):
        grouped = _GROUPED[decimal].fullmatch(cell)
        if not grouped:
            return None
        cell = cell.replace(grouped[1], "")
    return float(cell.replace(",", "."))


def decimal_mark(cells: Sequence[str], delimiter: str) -> str:
    """Detects the decimal mark."""
    commas = [cell for cell in cells if "," in cell and is_number(cell, ",")]
    plain = [cell for cell in commas if not _GROUPED["."].fullmatch(cell)]
    points = any("." in cell and is_number(cell, ".") and not _GROUPED[","].fullmatch(cell) for cell in cells)
    if points or any(_GROUPED["."].fullmatch(cell) and "." in cell for cell in cells):
        return "."
    return "," if plain or (commas and delimiter == ";") else "."


def _numbers(cells: Sequence[str], decimal: str) -> dict[str, float]:
    """The value of each cell, with 1 and 0 for true and false; {} if any cell has no value."""
    booleans = cells[0].lower() in _BOOLEANS
    numbers = {}
    for cell in cells:
        value = _BOOLEANS.get(cell.lower()) if booleans else number(cell, decimal)
        if value is None:
            return {}
        numbers[cell] = value
    return numbers


def number_column(values: np.ndarray, marks: Collection[str]) -> Column:
    """A column of numbers; those that equal a mark are missing."""
    if marks:
        values = np.require(values, np.float64, "W")
    for mark in marks:
        missing = number(mark, ".")
        if missing is not None:
            values[values == missing] = np.nan
    return Column(EMPTY) if np.isnan(values[:1]).all() and np.isnan(values).all() else Column(NUMBER, values)


def column_of(
    codes: np.ndarray, levels: Sequence[str], marks: Collection[str], *, decimal: str = ".", as_text: bool = False
) -> Column:
    """Build a column from its distinct cells, `levels`, and each row's index into them (-1: missing).

    If all non-missing cells are numbers, the column holds numbers; if all are true or false, 1 and 0; if all are dates,
    dates; otherwise, or with `as_text`, text.
    """
    levels = [level.strip() for level in levels]
    missing = MISSING_NUMBER.union(marks)
    present = [level for level in levels if level not in missing]
    if present and not as_text:
        numbers = _numbers(present, decimal)
        if numbers:
            lookup = np.array([*(numbers.get(level, np.nan) for level in levels), np.nan])
            return number_column(lookup[codes], marks)
        if all(map(_DATE.fullmatch, present)):
            return Column(DATE)
    missing = MISSING.union(marks)
    index = {level: i for i, level in enumerate(sorted({level for level in levels if level not in missing}))}
    if not index or not (present or as_text):
        return Column(EMPTY)
    lookup = np.array([*(index.get(level, -1) for level in levels), -1], dtype=np.int32)
    return Column(TEXT, lookup[codes], tuple(index))
