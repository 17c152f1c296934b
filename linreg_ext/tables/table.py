# SPDX-License-Identifier: BSD-3-Clause
"""What every reader returns: named columns of numbers or texts, with missing cells."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMBER, TEXT, DATE, EMPTY = "numbers", "text", "dates", "no values"


class TableError(ValueError):
    """A table that cannot be read, or lacks what was asked of it; the message is one line."""


@dataclass(frozen=True, eq=False)
class Column:
    """One column.

    Attributes:
        kind: "numbers", "text", "dates", "no values", or the file's word for anything else.
        values: [rows]; numbers are float64, nan where missing; texts are int32 indices into `levels`, -1 where missing.
            Other kinds have no values.
        levels: the different texts.
    """

    kind: str
    values: np.ndarray | None = None
    levels: tuple[str, ...] = ()

    @property
    def missing(self) -> np.ndarray:
        """[rows], bool."""
        return np.isnan(self.values) if self.kind == NUMBER else self.values < 0


@dataclass(frozen=True, eq=False)
class Table:
    """A table read from a file.

    Attributes:
        path: the file.
        names: the columns of the file, all different; a column without a name is called x0, x1, … by its position.
        columns: those that were read, by name, in the file's order.
        rows: how many.
        labels: columns that only name the rows, as pandas' index does.
        targets: the columns that the file marks as targets; often none.
        notes: one line for each decision of the reader.
        line: the number that an error message gives to a row: a text file's line, elsewhere the row, both from 1.
    """

    path: Path
    names: tuple[str, ...]
    columns: dict[str, Column]
    rows: int
    labels: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    line: Callable[[int], int] = lambda row: row + 1

    def error(self, row: int, column: str, message: str) -> TableError:
        """The error about one cell."""
        return TableError(f"{self.path}, row {self.line(row)}, column '{column}': {message}")


Choice = Callable[[tuple[str, ...]], Collection[str]]  # given all names, returns the columns to read


def names_of(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """Column names from the cells of a header.

    Raises:
        TableError: two columns have the same name, or a name holds control characters.
    """
    names = tuple(cell.strip() or f"x{i}" for i, cell in enumerate(cells))
    for name in names:  # a terminal would execute them
        if any(unicodedata.category(c) == "Cc" and c not in "\t\r\n" for c in name):
            raise TableError(f"{path}: expected column names without control characters, got {name!r}")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise TableError(f"{path}: expected different column names, got '{name}' {times} times")
    return names


def position(names: Sequence[str], wanted: str) -> int | None:
    """The position of the column named `wanted`, or of x0, x1, … for a number; None if there is none."""
    for name in (wanted, f"x{wanted}" if wanted.isdecimal() else wanted):
        if name in names:
            return names.index(name)
    return None


def require_memory(path: Path, size: int) -> None:
    """Raise if `size` bytes of columns, and a table made of them, are more than this machine has.

    A file of a few bytes may say that it unfolds to any number.
    """
    if 2 * size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise TableError(f"{path}: expected a table that fits into memory, got {size / 2**30:,.0f} GiB")


def listing(names: Sequence[str], limit: int = 10) -> str:
    """Names in a row, the end of a long row left out."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def quoted(cell: str) -> str:
    """A cell as a message shows it."""
    return repr(cell if len(cell) <= 40 else cell[:37] + "…") if cell.strip() else "an empty cell"
