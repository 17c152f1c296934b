# SPDX-License-Identifier: BSD-3-Clause
"""Reads tables from files. The first bytes of a file, not its suffix, determine its format."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import arrays
from .cells import MISSING_NUMBER, column_of, number_column
from .dialect import BLANKS, Dialect, Options, blanks_to_tabs, find_dialect, is_comment, split
from .table import NUMBER, Choice, Column, Table, TableError, first_line

Progress = Callable[[int], Any]  # is called with numbers of bytes read

_SLOW = 1 << 25  # bytes of text, which take about half a second to parse


def read_table(
    path: str | os.PathLike[str],
    options: Options | None = None,
    *,
    choose: Choice = lambda names: names,
    text: Collection[str] = (),
    progress: bool = False,
) -> Table:
    """Read a table.

    - Text: CSV with any delimiter, optionally compressed with gzip, bzip2 or zstd.
    - Parquet: a file, or a folder of files whose partitions become columns.
    - NumPy: a 2-D array, a structured array, or an archive of columns and matrices.

    docs/tables.md has the rules. Without pyarrow, only NumPy files and text of plain numbers can be read.

    Args:
        path: the file or folder.
        options: the format of a text file; fields that are None are detected.
        choose: maps the names of all columns to those to read; the others are not parsed.
        text: columns to read as text even if they hold numbers.
        progress: show a progress bar on stderr for large files (needs tqdm).

    Returns:
        The `Table`.

    Raises:
        TableError: the file cannot be read or holds no table.

    Example:
        >>> table = read_table("houses.csv")
        >>> price = table.columns["price"].values
    """
    path, options = Path(path), options or Options()
    try:
        if path.is_dir():
            return arrays.read_parquet(path, options, choose, text)
        if not path.is_file():
            raise TableError(f"{path}: expected a file, got a device" if path.exists() else f"{path}: no such file")
        kind = kind_of(path)
        if kind == "parquet":
            return arrays.read_parquet(path, options, choose, text)
        if kind == "numpy":
            return arrays.read_numpy(path, options, choose, text)
        return TextFile(path, options, choose, frozenset(text), progress).read()
    except (OSError, EOFError, zlib.error) as error:  # EOFError and zlib.error: truncated or corrupt compressed files
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TableError(f"{path}: cannot be read ({reason})") from error


def kind_of(path: Path) -> str:
    """ "parquet", "numpy" or "text"."""
    if path.is_dir():
        return "parquet"
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"PAR1" or path.suffix == ".parquet":
        return "parquet"
    is_numpy = magic == b"PK\3\4" or magic[:2] == b"\x93N" or path.suffix in (".npy", ".npz")
    return "numpy" if is_numpy else "text"


class ReadAgain(Exception):  # noqa: N818 - no failure
    """What was assumed about a file is wrong and has been corrected."""


class TextFile:
    """A text file."""

    def __init__(self, path: Path, options: Options, choose: Choice, text: frozenset[str], progress: bool) -> None:
        self._path, self._options, self._text, self._progress = path, options, text, progress
        with self._open() as file:
            try:
                dialect = self._dialect = find_dialect(path, file, options)
            except csv.Error as error:  # an unterminated quoted cell
                raise TableError(f"{path}: expected a table in text ({error})") from None
        self._encoding = dialect.encoding
        chosen = set(choose(dialect.names))
        self._wanted = [name for name in dialect.names if name in chosen]
        plain = (name for name, is_plain in zip(dialect.names, dialect.numbers, strict=True) if is_plain)
        self._numbers = chosen.intersection(plain) - text
        self._block, self._breaks = 1 << 20, False  # bytes that are parsed at a time; line breaks in cells

    @property
    def dialect(self) -> Dialect:
        """The format of the file."""
        return self._dialect

    def read(self) -> Table:
        try:
            import pyarrow.csv
        except ImportError:
            rows, columns = self._by_numpy()
        else:
            pool = pyarrow.default_memory_pool()
            pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the other pools keep freed memory
            try:
                rows, columns = self._by_pyarrow(pyarrow)
            finally:
                pyarrow.system_memory_pool().release_unused()
                pyarrow.set_memory_pool(pool)
        if not rows:
            raise TableError(f"{self._path}: expected rows of data, got none")
        names, notes = self._dialect.names, self._dialect.notes
        if self._encoding == "cp1252" and not self._options.encoding:
            notes += ("the text is not valid UTF-8 and is read as Windows-1252 (--encoding)",)
        first = columns.get(names[0])
        labels = names[:1] if self._dialect.labelled and first is not None and _names_rows(first) else ()
        return Table(self._path, names, columns, rows, labels=labels, notes=notes, line=self._line)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Progress | None]:
        """A progress bar over the bytes of a large file."""
        size = os.path.getsize(self._path)
        if not self._progress or size <= _SLOW:
            yield None
            return
        from tqdm import tqdm

        with tqdm(desc=f"reading {self._path.name}", total=size, unit="B", unit_scale=True, leave=False) as bar:
            yield bar.update

    @contextlib.contextmanager
    def _open(self, progress: Progress | None = None) -> Iterator[BinaryIO]:
        """Open the file; yields its decompressed bytes."""
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(self._path, "rb"))
            magic = file.read(4)
            file.seek(0)
            if progress:
                file = _Counted(file, progress)
            if magic[:2] == b"\x1f\x8b":
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            elif magic[:3] == b"BZh":
                file = stack.enter_context(bz2.BZ2File(file))
            elif magic == b"\x28\xb5\x2f\xfd":
                try:
                    import pyarrow
                except ImportError:
                    raise TableError(f"{self._path}: reading zstd needs pyarrow (`pip install pyarrow`)") from None
                file = stack.enter_context(pyarrow.CompressedInputStream(file, "zstd"))
            yield file

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """The line number and cells of each row, from Python's csv reader: slow, for error messages only."""
        with self._open() as file, io.TextIOWrapper(io.BufferedReader(file), self._encoding, newline="") as lines:
            yield from ((n, cells) for n, cells in split(lines, self._dialect.delimiter) if n > self._dialect.skip)

    def _line(self, row: int) -> int:
        """The line on which a row of data begins."""
        with contextlib.suppress(csv.Error):
            return next(itertools.islice((line for line, _ in self._rows()), row, None), row + 1)
        return row + 1

    def _by_numpy(self) -> tuple[int, dict[str, Column]]:
        dialect = self._dialect
        places = [dialect.names.index(name) for name in self._wanted]
        try:
            with self._open() as raw, io.TextIOWrapper(raw, self._encoding) as file:
                values = np.loadtxt(
                    file, delimiter=None if dialect.delimiter == BLANKS else dialect.delimiter, skiprows=dialect.skip,
                    usecols=places, quotechar='"', ndmin=2,
                )  # fmt: skip
        except ValueError as error:
            raise TableError(
                f"{self._path}: anything but plain numbers needs pyarrow (`pip install pyarrow`): {first_line(error)}"
            ) from None
        marks = self._options.missing
        return len(values), {name: number_column(v, marks) for name, v in zip(self._wanted, values.T, strict=True)}

    def _by_pyarrow(self, pyarrow: Any) -> tuple[int, dict[str, Column]]:
        table = self._arrow_table(pyarrow)
        rows, parsed, columns = table.num_rows, table.columns[::-1], {}
        del table
        # One block, which the allocator returns to the system once freed.
        store = iter(np.empty((len(self._numbers), rows)))
        for name in self._wanted if rows else ():
            column = parsed.pop()  # frees the column's memory before the next is copied
            if name in self._numbers:
                values = next(store)
                values[:] = column.to_numpy()
                columns[name] = number_column(values, self._options.missing)
                continue
            column = column.unify_dictionaries().combine_chunks()
            columns[name] = column_of(
                column.indices.to_numpy(),
                column.dictionary.to_pylist(),
                self._options.missing,
                decimal=self._dialect.decimal,
                as_text=name in self._text,
            )
        return rows, columns

    def _arrow_table(self, pyarrow: Any) -> Any:
        """The wanted columns, as float64 or dictionary-encoded text."""
        while True:
            with (
                contextlib.suppress(ReadAgain),
                self._bar() as progress,
                self._arrow_input(pyarrow, self._wanted, progress) as arguments,
            ):
                return pyarrow.csv.read_csv(*arguments)

    def blocks(self, names: Sequence[str], progress: Progress | None = None) -> Iterator[Any]:
        """The rows of some columns as record batches.

        Raises:
            ReadAgain: the sample was not representative; the next call takes what was found into account.
        """
        import pyarrow.csv

        with self._arrow_input(pyarrow, names, progress) as arguments:
            yield from pyarrow.csv.open_csv(*arguments)

    @contextlib.contextmanager
    def _arrow_input(self, pyarrow: Any, names: Sequence[str], progress: Progress | None) -> Iterator[tuple[Any, ...]]:
        """The arguments of pyarrow's readers; adapts to their errors."""
        arrow_csv, dialect = pyarrow.csv, self._dialect
        text = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
        try:
            with self._open(progress) as file:
                yield (
                    _Plain(file, self._encoding, dialect) if dialect.irregular else file,
                    arrow_csv.ReadOptions(
                        column_names=dialect.names,
                        skip_rows=dialect.skip,
                        encoding="utf-8" if dialect.irregular else self._encoding,
                        block_size=self._block,
                    ),
                    arrow_csv.ParseOptions(
                        delimiter="\t" if dialect.delimiter == BLANKS else dialect.delimiter,
                        newlines_in_values=self._breaks,
                        invalid_row_handler=_skip_no_row,
                    ),
                    arrow_csv.ConvertOptions(
                        column_types={n: pyarrow.float64() if n in self._numbers else text for n in names},
                        include_columns=names,
                        null_values=[*MISSING_NUMBER, *self._options.missing],
                        decimal_point=dialect.decimal,
                    ),
                )
                return
        except UnicodeError:
            raise TableError(
                f"{self._path}: expected {self._encoding} text, got other bytes; --encoding names another"
            ) from None
        except pyarrow.ArrowInvalid as error:
            message = first_line(error)
        column = re.match(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to double", message)
        if column:
            self._numbers.discard(dialect.names[int(column[1])])
        elif "invalid UTF8" in message and self._encoding == "utf-8" and not self._options.encoding:
            self._encoding = "cp1252"
        elif "straddling" in message and self._block < 1 << 26:
            self._block *= 8
        elif not self._breaks:
            self._breaks = True
        else:
            raise self._diagnosis(message)
        raise ReadAgain

    def _diagnosis(self, message: str) -> TableError:
        """The error to raise for a file that pyarrow cannot parse."""
        width = len(self._dialect.names)
        with contextlib.suppress(csv.Error):
            for line, cells in self._rows():
                if len(cells) != width:
                    return TableError(
                        f"{self._path}, row {line}: expected {width} values, got {len(cells)} (the delimiter is "
                        f"{self._dialect.delimiter!r}; --delimiter names another)"
                    )
        return TableError(f"{self._path}: expected a table in text ({message})")


class _Counted(io.RawIOBase):
    """A file that reports how many bytes are read."""

    def __init__(self, file: BinaryIO, progress: Progress) -> None:
        self._file, self._progress = file, progress

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._progress(count)
        return count


class _Plain(io.RawIOBase):
    """Converts text for pyarrow: UTF-8, with tabs for runs of blanks and empty lines for comments."""

    def __init__(self, file: BinaryIO, encoding: str, dialect: Dialect) -> None:
        self._text = io.TextIOWrapper(io.BufferedReader(file), encoding)
        self._blanks, self._cut, self._ready = dialect.delimiter == BLANKS, "", b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._text.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            more = self._text.read(1 << 20)
            text, newline, self._cut = (self._cut + more).rpartition("\n") if more else (self._cut, "", "")
            if not more and not text:
                return 0
            text = _COMMENT.sub("", text)
            self._ready = ((blanks_to_tabs(text) if self._blanks else text) + newline).encode()
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


_COMMENT = re.compile(r"(?m)^[ \t]*#.*$")


def _skip_no_row(row: Any) -> str:
    return "skip" if not row.text.strip() or is_comment(row.text) else "error"


def _names_rows(column: Column) -> bool:
    """Whether an unnamed column is an index: text or distinct whole numbers."""
    if column.kind != NUMBER:
        return True
    values = column.values
    return bool((values == np.floor(values)).all()) and len(np.unique(values)) == len(values)
