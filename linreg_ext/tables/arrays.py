# SPDX-License-Identifier: BSD-3-Clause
"""Reads tables with typed columns: Parquet with pyarrow, .npy and .npz with NumPy."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from .cells import column_of, number_column
from .dialect import Options
from .table import DATE, EMPTY, Choice, Column, Table, TableError, first_line, names_of, require_memory


def read_parquet(path: Path, options: Options, choose: Choice, text: Collection[str]) -> Table:
    """Read a Parquet file, or a folder of Parquet files."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f"{path}: reading Parquet needs pyarrow (`pip install pyarrow`)") from None
    try:
        with contextlib.ExitStack() as stack:
            if path.is_dir():
                import pyarrow.dataset

                source = pyarrow.dataset.dataset(path, format="parquet", partitioning="hive")
                schema, rows, read = source.schema, source.count_rows(), source.to_table
            else:  # a pyarrow data set would turn parent folders named key=value into columns
                source = stack.enter_context(pyarrow.parquet.ParquetFile(path))
                schema, rows, read = source.schema_arrow, source.metadata.num_rows, source.read
            names = names_of(path, schema.names)
            chosen = set(choose(names))
            wanted = [name for name in schema.names if name in chosen]
            require_memory(path, 8 * rows * len(wanted))
            table = read(columns=wanted)
        if not rows or not names:
            raise TableError(f"{path}: expected rows of data, got none")
        columns, stored = {}, table.columns[::-1]
        del table
        for name in wanted:  # frees each column's memory before the next is copied
            columns[name] = from_arrow(pyarrow, stored.pop(), options.missing, name in text)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise TableError(f"{path}: expected a Parquet file ({first_line(error)})") from None
    return Table(path, names, columns, rows, labels=index_of(schema))


def index_of(schema: Any) -> tuple[str, ...]:
    """The columns that hold a pandas index."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        columns = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return tuple(name for name in columns if isinstance(name, str) and name in schema.names)
    return tuple(name for name in schema.names if name.startswith("__index_level_"))


def from_arrow(
    pyarrow: Any, column: Any, marks: Collection[str], as_text: bool, decimal: str = ".", *, single: bool = False
) -> Column:
    """A chunked array as a column; with `single`, float32 numbers remain float32."""
    types, kind = pyarrow.types, column.type
    if types.is_dictionary(kind):
        kind = kind.value_type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            column = column.cast(kind)
    if types.is_null(kind):
        return Column(EMPTY)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    if is_number and not as_text:
        if single and types.is_float32(kind):
            return number_column(column.to_numpy(), marks)
        return number_column(column.cast(pyarrow.float64(), safe=False).to_numpy(), marks)
    is_date = types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind)
    if types.is_duration(kind) or (is_date and not as_text):
        return Column(DATE)
    if not (is_number or is_date or types.is_string(kind) or types.is_large_string(kind)):
        return Column(str(kind))
    column = column if types.is_dictionary(column.type) else column.cast(pyarrow.string()).dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    codes = column.indices.fill_null(-1).to_numpy()
    return column_of(codes, column.dictionary.to_pylist(), marks, decimal=decimal, as_text=as_text)


def read_numpy(path: Path, options: Options, choose: Choice, text: Collection[str]) -> Table:
    """Read an array or an archive of arrays. A 1-D array is a column; the columns of a 2-D array are numbered."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray) and loaded.dtype.names and loaded.ndim == 1:
        loaded = {name: loaded[name] for name in loaded.dtype.names}
    elif isinstance(loaded, np.ndarray) or (len(loaded) == 1 and next(iter(loaded.values())).ndim != 1):
        matrix = loaded if isinstance(loaded, np.ndarray) else next(iter(loaded.values()))
        if matrix.ndim != 2:
            raise TableError(f"{path}: expected a 2-D array, got shape {list(matrix.shape)}")
        loaded = {"x": matrix}
    arrays, targets = {}, ()
    for name, array in loaded.items():
        columns = {name: array}
        if array.ndim == 2:
            columns = {f"{name.lower()}{i}": column for i, column in enumerate(array.T)}
        if name in ("y", "Y") and len(loaded) > 1:
            targets = tuple(columns)
        for column, values in columns.items():
            if values.ndim != 1:
                raise TableError(f"{path}, array '{name}': expected shape [rows] or [rows, columns], got {array.shape}")
            if arrays and len(values) != (rows := len(next(iter(arrays.values())))):
                raise TableError(f"{path}, array '{name}': expected {rows} rows as in the first, got {len(values)}")
            if column in arrays:
                raise TableError(f"{path}: expected distinct column names, got '{column}' 2 times")
            arrays[column] = values
    if not arrays or not len(next(iter(arrays.values()))):
        raise TableError(f"{path}: expected rows of data, got none")
    names = names_of(path, tuple(arrays))
    chosen = set(choose(names))
    columns = {n: _from_array(arrays[n], options.missing, n in text) for n in names if n in chosen}
    return Table(path, names, columns, len(arrays[names[0]]), targets=targets)


def _from_array(array: np.ndarray, marks: Collection[str], as_text: bool) -> Column:
    if array.dtype.kind in "biuf" and not as_text:
        return number_column(array.astype(np.float64), marks)
    if array.dtype.kind in "biufU":
        levels, codes = np.unique(array, return_inverse=True)
        return column_of(codes, list(map(str, levels.tolist())), marks, as_text=as_text)
    return Column(DATE if array.dtype.kind in "Mm" else str(array.dtype))


def _load(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:
            if file.read(2) not in (b"\x93N", b"PK", b""):  # NumPy's own message advises unpickling
                raise ValueError("not a NumPy file")
            file.seek(0)
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            require_memory(path, sum(member.file_size for member in loaded.zip.infolist()))
            arrays = {name: loaded[name] for name in loaded.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("an archive of other files; save a spreadsheet as CSV")
            return arrays
    except TableError:
        raise
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise TableError(f"{path}: expected NumPy arrays of numbers ({first_line(error)})") from None
