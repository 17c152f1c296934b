# SPDX-License-Identifier: BSD-3-Clause
"""Tables larger than memory: read in blocks of rows, as often as needed."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .arrays import from_arrow, index_of
from .dialect import Options
from .reading import Progress, ReadAgain, TextFile, kind_of
from .table import EMPTY, NUMBER, TEXT, Choice, Column, Table, TableError, first_line, names_of

T = TypeVar("T")

_ROWS, _NUMBERS = 1 << 17, 1 << 22  # of a block of Parquet, at most: 32 MB of float64
_MOST_LEVELS = 1 << 17  # of a column; with more it cannot be a category


@dataclass
class _Summary:
    """What all blocks of a column have in common."""

    kinds: set[str] = field(default_factory=set)
    has_empty: bool = False  # some blocks hold no values
    low: float = np.inf
    high: float = -np.inf
    levels: set[str] = field(default_factory=set)

    def add(self, column: Column) -> None:
        if column.kind == EMPTY:
            self.has_empty = True
            return
        self.kinds.add(column.kind)
        if column.kind not in (NUMBER, TEXT):
            return
        if column.kind == TEXT:
            if len(self.levels) <= _MOST_LEVELS:
                self.levels.update(column.levels)
        elif not column.missing.all():
            self.low = min(self.low, float(np.nanmin(column.values)))
            self.high = max(self.high, float(np.nanmax(column.values)))

    def merge(self, other: _Summary) -> None:
        self.kinds |= other.kinds
        self.has_empty |= other.has_empty
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.levels |= other.levels

    def column(self) -> Column:
        """A short column with the same kind, extremes and levels."""
        if not self.kinds:
            return Column(EMPTY)
        (kind,) = self.kinds
        if kind == NUMBER:
            return Column(NUMBER, np.array([self.low, self.high]))
        if kind == TEXT:
            return Column(TEXT, np.arange(len(self.levels), dtype=np.int32), tuple(sorted(self.levels)))
        return Column(kind)


def bytes_in_memory(path: Path) -> int:
    """Roughly how many bytes an in-memory fit needs: three copies of the numbers."""
    kind = kind_of(path)
    if kind == "text":
        return 4 * path.stat().st_size  # a number takes some 6 characters
    if kind == "parquet":
        with contextlib.suppress(ImportError, OSError, ValueError):
            import pyarrow.dataset

            found = pyarrow.dataset.dataset(path, format="parquet")
            return 24 * found.count_rows() * len(found.schema.names)
    return 0


class Stream:
    """A text or Parquet file, or a folder of Parquet files, as blocks of rows.

    Several readers may share it, each with a part of the rows: of Parquet files, contiguous row groups; of a text file,
    which all of them parse, every n-th block.

    Args:
        shard: the number of this reader, from 0, and the number of all. The workers of a DataLoader divide a reader's
            part among themselves.

    Attributes:
        path: the file.
        names: its columns.
        bytes: of this reader's part of the file; all of a text file.
        rows: the number of rows, once summarised.
    """

    def __init__(
        self, path: Path, options: Options, choose: Choice, text: Collection[str], shard: tuple[int, int] = (0, 1)
    ) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise TableError(f"{path}: reading it in blocks needs pyarrow (`pip install pyarrow`)") from None
        kind = kind_of(path)
        if kind == "numpy":
            raise TableError(f"{path}: expected text or Parquet to read in blocks (--stream, --by), got a NumPy file")
        self.path, self.rows, self._options, self._as_text, self._shard = path, 0, options, set(text), shard
        self._arrow, self._decimal, self.notes, self.labels = pyarrow, ".", (), ()
        if kind == "text":
            file = TextFile(path, options, choose, frozenset(text), progress=False)
            self.names, self.notes, self._decimal = file.dialect.names, file.dialect.notes, file.dialect.decimal
            self.labels = self.names[:1] if file.dialect.labelled else ()
            self.bytes = path.stat().st_size
            self._read = lambda names, progress: self._text_blocks(file, names, progress)
        else:
            schema = self._parquet().schema
            self.names, self.labels = names_of(path, schema.names), index_of(schema)
            with self._readable():
                self.bytes = sum(size for *_, size in self._parts())
            self._read = self._parquet_blocks
        chosen = set(choose(self.names))
        self.wanted = [name for name in self.names if name in chosen]

    def summary(
        self,
        progress: Progress | None = None,
        together: Callable[[Callable[[], Any]], list[Any]] = lambda work: [work()],
    ) -> Table:
        """A short table that has the kinds, extremes and levels of the whole one; sets `rows`.

        Args:
            together: does some work in each of the readers that share the table, and returns their results.
        """
        found = self._stored_summary()
        while found is None:
            parts = together(lambda: self._summarise(progress))
            found = None if None in parts else self._merged(parts)
        if not self.rows:
            raise TableError(f"{self.path}: expected rows of data, got none")
        columns = {name: summary.column() for name, summary in found.items()}
        length = max(2, *(len(c.values) for c in columns.values() if c.values is not None), 2)
        for name, column in columns.items():
            if column.values is not None:
                values = np.resize(column.values, length) if len(column.values) else np.full(length, -1, np.int32)
                columns[name] = Column(column.kind, values, column.levels)
        return Table(self.path, self.names, columns, length, labels=self.labels, notes=self.notes)

    def _stored_summary(self) -> dict[str, _Summary] | None:
        """What Parquet's metadata say of columns of numbers; None if they do not suffice, and the rows must be read."""
        if self._read != self._parquet_blocks or self._as_text.intersection(self.wanted) or self._options.missing:
            return None
        found = {name: _Summary({NUMBER}) for name in self.wanted}
        fragments = list(self._parquet().get_fragments())
        for fragment in fragments:
            metadata = fragment.metadata
            places = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
            for group in range(metadata.num_row_groups):
                for name, summary in found.items():
                    stored = metadata.row_group(group).column(places[name]) if name in places else None
                    numbers = stored and stored.statistics
                    plain = numbers and numbers.has_min_max and isinstance(numbers.min, (int, float))
                    if not plain or isinstance(numbers.min, bool):
                        return None
                    summary.low, summary.high = min(summary.low, numbers.min), max(summary.high, numbers.max)
        self.rows = sum(fragment.metadata.num_rows for fragment in fragments)
        return found

    def _summarise(self, progress: Progress | None) -> tuple[int, dict[str, _Summary]] | None:
        """The number of this reader's rows and their summaries; None if they must be read again."""
        rows, found = 0, {name: _Summary() for name in self.wanted}
        with contextlib.suppress(ReadAgain):
            for block in self.blocks(progress=progress):
                rows += block.rows
                for name, column in block.columns.items():
                    found[name].add(column)
            return rows, found
        return None

    def _merged(self, parts: list[tuple[int, dict[str, _Summary]]]) -> dict[str, _Summary] | None:
        """The summaries of all readers; None if the rows must be read again."""
        self.rows, found = sum(rows for rows, _ in parts), parts[0][1]
        for _, other in parts[1:]:
            for name, summary in other.items():
                found[name].merge(summary)
        mixed = {name for name, summary in found.items() if self._must_be_text(name, summary.kinds, summary.has_empty)}
        self._as_text |= mixed
        return None if mixed else found

    def _must_be_text(self, name: str, kinds: set[str], has_empty: bool) -> bool:
        """Whether to read a column again, as text: numbers in some blocks and text in others, or only cells that would
        be missing among numbers, such as "none", in some."""
        return len(kinds) > 1 or (TEXT in kinds and has_empty and name not in self._as_text)

    def blocks(self, columns: Sequence[str] | None = None, progress: Progress | None = None) -> Iterator[Table]:
        """The rows of some columns that are this reader's, as tables whose `line` counts the rows of the whole one.

        Args:
            progress: is called with numbers of bytes read, of `bytes` in all.
        """
        with self._readable():
            yield from _ahead(self._tables(list(columns or self.wanted), progress))

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (self._arrow.ArrowException, OSError) as error:
            raise TableError(f"{self.path}: cannot be read ({first_line(error)})") from None

    def _tables(self, names: list[str], progress: Progress | None) -> Iterator[Table]:
        for begin, batch in self._read(names, progress):
            found = {name: self._column(batch.column(name), name) for name in names}
            yield Table(self.path, self.names, found, batch.num_rows, line=lambda row, first=begin: first + row + 1)

    def column(self, name: str, progress: Progress | None = None) -> Column:
        """A whole column of this reader's rows."""
        parts: list[tuple[int, Column]] = []
        with contextlib.suppress(ReadAgain):
            parts = [(block.rows, block.columns[name]) for block in self.blocks([name], progress)]
        if not parts:
            return self.column(name, progress)
        found = {part.kind for _, part in parts}
        kinds = found - {EMPTY}
        if self._must_be_text(name, kinds, EMPTY in found):
            self._as_text.add(name)
            return self.column(name, progress)
        kind = kinds.pop() if kinds else EMPTY
        if kind not in (NUMBER, TEXT):
            return Column(kind)
        levels = tuple(sorted({level for _, part in parts for level in part.levels}))
        index = {level: i for i, level in enumerate(levels)}
        values = []
        for rows, part in parts:
            if part.kind == EMPTY:
                values.append(np.full(rows, np.nan if kind == NUMBER else -1))
            elif kind == NUMBER:
                values.append(part.values)
            else:
                values.append(np.array([*(index[level] for level in part.levels), -1])[part.values])
        return Column(kind, np.concatenate(values), levels)

    def _column(self, values: Any, name: str) -> Column:
        chunked, marks = self._arrow.chunked_array([values]), self._options.missing
        return from_arrow(self._arrow, chunked, marks, name in self._as_text, self._decimal, single=True)

    def _parquet(self) -> Any:
        import pyarrow.dataset

        try:
            options = {"partitioning": "hive"} if self.path.is_dir() else {}
            return pyarrow.dataset.dataset(self.path, format="parquet", **options)
        except (self._arrow.ArrowException, OSError) as error:
            raise TableError(f"{self.path}: expected a Parquet file ({first_line(error)})") from None

    def _place(self) -> tuple[int, int]:
        """The number of this reader, or DataLoader worker, and the number of all."""
        from torch.utils.data import get_worker_info

        (index, count), worker = self._shard, get_worker_info()
        return (
            (index, count) if worker is None else (index * worker.num_workers + worker.id, count * worker.num_workers)
        )

    def _text_blocks(self, file: TextFile, names: list[str], progress: Progress | None) -> Iterator[tuple[int, Any]]:
        """This reader's blocks of a text file, each with the number of its first row."""
        (index, count), begin = self._place(), 0
        for i, batch in enumerate(file.blocks(names, progress)):
            if i % count == index:
                yield begin, batch
            begin += batch.num_rows

    def _parts(self) -> list[tuple[Any, list[int], int, int, int]]:
        """This reader's part of each Parquet file: the file, its row groups, its first row, and its rows and bytes."""
        fragments = list(self._parquet().get_fragments())
        groups = [(fragment, i) for fragment in fragments for i in range(fragment.metadata.num_row_groups)]
        sizes = [fragment.metadata.row_group(i).num_rows for fragment, i in groups]
        mine = shard_of(sizes, *self._place())
        begin, parts = sum(sizes[: mine.start]), []
        for fragment, found in itertools.groupby(groups[mine.start : mine.stop], key=lambda group: group[0]):
            numbers = [i for _, i in found]
            stored = [fragment.metadata.row_group(i) for i in numbers]
            rows = sum(group.num_rows for group in stored)
            size = sum(group.column(c).total_compressed_size for group in stored for c in range(group.num_columns))
            parts.append((fragment, numbers, begin, rows, size))
            begin += rows
        return parts

    def _parquet_blocks(self, names: list[str], progress: Progress | None) -> Iterator[tuple[int, Any]]:
        """This reader's blocks of Parquet files, each with the number of its first row.

        A data set's own reader would read far ahead.
        """
        from pyarrow.dataset import get_partition_keys
        from pyarrow.parquet import ParquetFile

        for fragment, numbers, begin, rows, size in self._parts():
            keys = get_partition_keys(fragment.partition_expression)
            stored = [name for name in names if name not in keys]
            most = max(1, min(_ROWS, _NUMBERS // max(1, len(names))))
            with ParquetFile(fragment.path, pre_buffer=False) as file:
                for batch in file.iter_batches(batch_size=most, row_groups=numbers, columns=stored):
                    columns = {name: self._arrow.repeat(keys[name], batch.num_rows) for name in names if name in keys}
                    columns.update(zip(stored, batch.columns, strict=True))
                    yield begin, self._arrow.RecordBatch.from_pydict({name: columns[name] for name in names})
                    begin += batch.num_rows
                    if progress:
                        progress(size * batch.num_rows // rows)


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, of which a thread gets the next while one is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def shard_of(sizes: Sequence[int], index: int, count: int) -> range:
    """The items of one of `count` readers: contiguous, each item with one reader, and the sizes about equal."""
    middles = np.cumsum(sizes, dtype=np.float64) - np.asarray(sizes) / 2
    begin, end = np.searchsorted(middles * count, np.array([index, index + 1]) * sum(sizes)).tolist()
    return range(begin, len(sizes) if index + 1 == count else end)
