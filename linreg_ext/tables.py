# SPDX-License-Identifier: BSD-3-Clause
"""Tables of numbers from files: CSV, TSV, Parquet, .npy and .npz become float64 tensors with named columns.

Whatever is wrong with a file is one line that names file, row and column, what was expected and what came.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
import unicodedata
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

_LONGEST_LINE = 1 << 26  # characters: two million numbers as long as numbers get
_ROW_LABELS = re.compile(r"__index_level_\d+__")  # what pandas calls an index without a name in a Parquet file


class TableError(ValueError):
    """A table that cannot be read, or lacks what was asked of it; the message is one line."""


@dataclass(frozen=True, eq=False)
class Table:
    """A table whose every cell is a finite number.

    Attributes:
        path: the file it came from.
        columns: the columns' names, all different; x0, x1, … where the file names none.
        values: [rows, columns], float64.
    """

    path: Path
    columns: tuple[str, ...]
    values: Tensor

    def select(self, names: Sequence[str]) -> Tensor:
        """The columns of these names in this order, [rows, len(names)].

        Raises:
            TableError: there is no such column.
        """
        for name in names:
            if name not in self.columns:
                raise TableError(f"{self.path}: expected a column '{name}', got {listing(self.columns)}")
        return self.values[:, [self.columns.index(name) for name in names]]


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a table; its suffix names the format.

    - ``.csv``, ``.tsv``: UTF-8 text. A first row of numbers is data and the columns are x0, x1, …; any other
      first row holds the columns' names.
    - ``.parquet``: columns of numbers (needs pyarrow); pandas' index, where it has no name, is no column.
    - ``.npy``: a 2-D array, or a 1-D structured array whose fields are the columns.
    - ``.npz``: one 1-D array a column, or one 2-D array.

    Args:
        path: the file.

    Returns:
        The :class:`Table`.

    Raises:
        TableError: the file cannot be read, is no table, or holds anything but finite numbers. Rows count
            from 1: lines of a text file, rows of data in other files.

    Example:
        >>> table = read_table("houses.csv")
        >>> price = table.select(["price"])
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if path.is_dir():
        raise TableError(f"{path}: expected a file, got a directory")
    if not path.exists():
        raise TableError(f"{path}: no such file")
    if reader is None:
        got = f"'{path.suffix}'" if path.suffix else "none"
        raise TableError(f"{path}: expected one of the suffixes {', '.join(_READERS)}, got {got}")
    try:
        columns, values = reader(path)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror or error})") from error
    return Table(path, columns, values)


def listing(names: Sequence[str], limit: int = 10) -> str:
    """Names in a row, the end of a long row left out."""
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_text(path: Path, delimiter: str) -> tuple[tuple[str, ...], Tensor]:
    names: tuple[str, ...] = ()
    columns: list[array[float]] = []
    blank = line = 0
    with open(path, encoding="utf-8-sig", newline="") as file:  # -sig: a byte order mark is no part of the first name
        rows = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
        try:
            for row in rows:
                first_line, line = line + 1, rows.line_num  # a quoted field may hold line breaks
                if not row or (len(row) == 1 and not row[0].strip()):
                    blank = blank or first_line
                elif blank:
                    raise TableError(f"{path}, row {blank}: expected {_count(row)}, got an empty line")
                elif not names:
                    names = _header(path, row)
                    columns = [array("d") for _ in names]
                    if all(map(_is_number, row)):
                        _append(path, first_line, names, row, columns)
                else:
                    _append(path, first_line, names, row, columns)
        except UnicodeDecodeError:
            raise TableError(f"{path}, after row {line}: expected UTF-8 text, got other bytes") from None
        except csv.Error as error:
            raise TableError(f"{path}, row {line + 1}: expected quoted or plain fields ({error})") from None
    if not names:
        raise TableError(f"{path}: expected a table, got an empty file")
    if not columns[0]:
        raise TableError(f"{path}: expected rows of numbers below the header, got none")
    return names, torch.stack([torch.frombuffer(column, dtype=torch.float64) for column in columns], dim=1)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a file, none of which may need more memory than a table has in a row."""
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            raise TableError(f"{path}, row {number}: expected a row of numbers, got {_LONGEST_LINE:,} characters")
        if not line:
            return
        yield line


def _header(path: Path, row: list[str]) -> tuple[str, ...]:
    if all(map(_is_number, row)):
        return tuple(f"x{i}" for i in range(len(row)))
    names = tuple(cell.strip() for cell in row)
    for i, name in enumerate(names):
        if not name:
            raise TableError(f"{path}, row 1, column {i + 1}: expected a column name, got an empty cell")
    return _distinct(path, names)


def _append(path: Path, line: int, names: Sequence[str], row: Sequence[str], columns: Sequence[array[float]]) -> None:
    if len(row) != len(names):
        raise TableError(f"{path}, row {line}: expected {_count(names)}, got {len(row)}")
    for name, cell, column in zip(names, row, columns, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or "_" in cell:  # Python's 1_000 is no number elsewhere
            raise TableError(f"{path}, row {line}, column '{name}': expected a finite number, got {_quoted(cell)}")
        column.append(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _quoted(cell: str) -> str:
    if not cell.strip():
        return "an empty cell"
    return repr(cell if len(cell) <= 40 else cell[:37] + "…")


def _read_parquet(path: Path) -> tuple[tuple[str, ...], Tensor]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f"{path}: reading Parquet needs pyarrow (`pip install pyarrow`)") from None
    types = pyarrow.types
    numbers = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)
    columns: dict[str, np.ndarray] = {}
    try:
        # ParquetFile and not read_table: that would take folders named key=value for columns.
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _distinct(path, tuple(schema.names))
            labels = [name for name in schema.names if _ROW_LABELS.fullmatch(name)]
            for name, kind in zip(schema.names, schema.types, strict=True):
                if name not in labels and not any(is_number(kind) for is_number in numbers):
                    raise TableError(f"{path}, column '{name}': expected numbers, got {kind}")
            _require_memory(path, 8 * file.metadata.num_rows * len(schema.names))
            table = file.read().drop_columns(labels)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise TableError(f"{path}: expected a Parquet file ({first_line(error)})") from None
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            row = column.is_null().to_numpy().argmax() + 1
            raise TableError(f"{path}, row {row}, column '{name}': expected a finite number, got an empty cell")
        columns[name] = column.cast(pyarrow.float64(), safe=False).to_numpy()
    return _from_columns(path, columns)


def _read_npy(path: Path) -> tuple[tuple[str, ...], Tensor]:
    loaded = _load(path)
    if isinstance(loaded, dict):
        raise TableError(f"{path}: expected one array, got an archive; is it an .npz?")
    if loaded.dtype.names and loaded.ndim == 1:
        return _from_columns(path, {name: loaded[name] for name in loaded.dtype.names})
    return _from_matrix(path, loaded)


def _read_npz(path: Path) -> tuple[tuple[str, ...], Tensor]:
    loaded = _load(path)
    if not isinstance(loaded, dict):
        raise TableError(f"{path}: expected an archive of arrays, got one array; is it an .npy?")
    if len(loaded) == 1 and next(iter(loaded.values())).ndim != 1:
        return _from_matrix(path, next(iter(loaded.values())))
    return _from_columns(path, loaded)


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            if file.read(2) not in (b"\x93N", b"PK", b""):  # NumPy's words would be advice to unpickle it
                raise ValueError("another kind of file")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            _require_memory(path, sum(member.file_size for member in loaded.zip.infolist()))
            return {name: loaded[name] for name in loaded.files}
    except TableError:
        raise
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise TableError(f"{path}: expected NumPy arrays of numbers ({first_line(error)})") from None


def _require_memory(path: Path, size: int) -> None:
    """Raise if `size` bytes of columns, and a table made of them, are more than this machine has.

    A file of a few bytes may say that it unfolds to any number.
    """
    if 2 * size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise TableError(f"{path}: expected a table that fits into memory, got {size / 2**30:,.0f} GiB")


def _from_matrix(path: Path, matrix: np.ndarray) -> tuple[tuple[str, ...], Tensor]:
    if matrix.ndim != 2:
        raise TableError(f"{path}: expected a 2-D array, got shape {list(matrix.shape)}")
    return _from_columns(path, {f"x{i}": matrix[:, i] for i in range(matrix.shape[1])})


def _from_columns(path: Path, columns: dict[str, np.ndarray]) -> tuple[tuple[str, ...], Tensor]:
    if not columns:
        raise TableError(f"{path}: expected a table, got no columns")
    _distinct(path, tuple(columns))
    rows = next(iter(columns.values())).shape
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "biuf":
            got = f"shape {list(column.shape)}" if column.ndim != 1 else str(column.dtype)
            raise TableError(f"{path}, column '{name}': expected numbers of shape [rows], got {got}")
        if column.shape != rows:
            raise TableError(f"{path}, column '{name}': expected {rows[0]} rows as before it, got {len(column)}")
        bad = ~np.isfinite(column)
        if bad.any():
            row = int(bad.argmax())
            raise TableError(f"{path}, row {row + 1}, column '{name}': expected a finite number, got '{column[row]}'")
    if rows[0] == 0:
        raise TableError(f"{path}: expected rows of numbers, got none")
    values = torch.empty(rows[0], len(columns), dtype=torch.float64, device="cpu")
    for i, column in enumerate(columns.values()):
        values.numpy()[:, i] = column
    return tuple(columns), values


def _distinct(path: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:  # a terminal that shows them would obey
        if any(unicodedata.category(c) == "Cc" and c not in "\t\r\n" for c in name):
            raise TableError(f"{path}: expected column names without control characters, got {name!r}")
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise TableError(f"{path}: expected different column names, got '{name}' {times} times")
    return names


def _count(cells: Sequence[str]) -> str:
    return f"{len(cells)} value{'s' if len(cells) != 1 else ''}"


_READERS: dict[str, Callable[[Path], tuple[tuple[str, ...], Tensor]]] = {
    ".csv": partial(_read_text, delimiter=","),
    ".tsv": partial(_read_text, delimiter="\t"),
    ".parquet": _read_parquet,
    ".npy": _read_npy,
    ".npz": _read_npz,
}
