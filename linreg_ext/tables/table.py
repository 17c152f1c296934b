# SPDX-License-Identifier: BSD-3-Clause
"""The table that every reader returns: named columns of numbers or text, with missing cells."""

from __future__ import annotations

import contextlib
import os
import resource
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUMBER, TEXT, DATE, EMPTY = "numbers", "text", "dates", "no values"


class TableError(ValueError):
    """A table cannot be read or lacks something required; the message is one line."""


@dataclass(frozen=True, eq=False)
class Column:
    """One column.

    Attributes:
        kind: "numbers", "text", "dates", "no values", or the file's own type name for anything else.
        values: [rows]; numbers are float64, in a stream also float32, nan where missing; text is int32 indices into
            `levels`, -1 where missing. None for other kinds.
        levels: the distinct texts.
    """

    kind: str
    values: np.ndarray | None = None
    levels: tuple[str, ...] = ()

    @property
    def missing(self) -> np.ndarray:
        """[rows], bool: the missing cells."""
        return np.isnan(self.values) if self.kind == NUMBER else self.values < 0

    @property
    def is_complete(self) -> bool:
        """Whether no cell is missing."""
        return self.values is not None and (self.has_finite_sum or not self.missing.any())

    @property
    def has_finite_sum(self) -> bool:
        """Whether these are numbers with a finite sum; then all are finite. Faster than np.isfinite."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.kind == NUMBER and bool(np.isfinite(self.values.sum()))


@dataclass(frozen=True, eq=False)
class Table:
    """A table read from a file.

    Attributes:
        path: the file.
        names: the distinct names of the file's columns; an unnamed column is x0, x1, … by position.
        columns: the columns that were read, by name, in the file's order.
        rows: the number of rows.
        labels: columns that only label the rows, such as a pandas index.
        targets: the columns that the file marks as targets; usually none.
        notes: one line for each decision of the reader.
        line: maps a row to its number in error messages: the line of a text file, else the row, counted from 1.
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
        """An error about one cell."""
        return TableError(f"{self.path}, row {self.line(row)}, column '{column}': {message}")


Choice = Callable[[tuple[str, ...]], Collection[str]]  # maps all names to the columns to read


def names_of(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    """Column names from the cells of a header.

    Raises:
        TableError: two columns have the same name, or a name holds control characters.
    """
    names = tuple(cell.strip() or f"x{i}" for i, cell in enumerate(cells))
    for name in names:  # a terminal would interpret control characters
        if any(unicodedata.category(c) == "Cc" and c not in "\t\r\n" for c in name):
            raise TableError(f"{path}: expected column names without control characters, got {name!r}")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise TableError(f"{path}: expected distinct column names, got '{name}' {times} times")
    return names


def position(names: Sequence[str], wanted: str) -> int | None:
    """The position of the column named `wanted`, or of x3 if `wanted` is 3; None if there is no such column."""
    for name in (wanted, f"x{wanted}" if wanted.isdecimal() else wanted):
        if name in names:
            return names.index(name)
    return None


def available_memory() -> int:
    """The bytes that this process may use: the machine's memory, or less under a cgroup's or `ulimit -v`'s limit."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        with contextlib.suppress(OSError, ValueError):  # the libraries' address space counts, too
            limit -= os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
        limits.append(max(0, limit))
    return min(limits)


def require_memory(path: Path, size: int) -> None:
    """Raise if `size` bytes of columns, and a table made from them, exceed the available memory.

    A file of a few bytes may claim to decompress to any size.
    """
    if 2 * size > available_memory():
        raise TableError(
            f"{path}: expected a table that fits in memory, got {size / 2**30:,.1f} GiB; fit --stream reads a CSV or "
            "Parquet file in blocks"
        )


def listing(names: Sequence[str], limit: int = 10) -> str:
    """Names joined by commas, cut off after `limit`."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def quoted(cell: str) -> str:
    """A cell as a message shows it."""
    return repr(cell if len(cell) <= 40 else cell[:37] + "…") if cell.strip() else "an empty cell"
