# SPDX-License-Identifier: BSD-3-Clause
"""Atomic output: the folder that `fit` writes, and the file that `predict` writes."""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from .errors import CommandError

WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS = "weights.safetensors", "weights.pt"
ENCODING, MODEL, HISTORY, PLOT = "encoding.json", "model.json", "history.csv", "plot.png"
COEFFICIENTS = {"csv": "coefficients.csv", "parquet": "coefficients.parquet"}  # of groups
_NAMES = {WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS, ENCODING, MODEL, HISTORY, PLOT, *COEFFICIENTS.values()}
_SCRATCH = ".linreg_ext-"  # prefix of the temporary folder beside the output


def require_writable(place: Path, table: Path) -> None:
    """Raise unless a fit of `table` may be written to `place`: a new folder, an empty one or an earlier fit's.

    Called before training, so that a long run does not fail at the end.
    """
    parents = place.absolute().parents
    nearest = place if place.exists() else next(path for path in parents if path.exists())
    if not nearest.is_dir():
        got = "expected a folder, got a file" if nearest == place else f"cannot be written ({nearest} is not a folder)"
        raise CommandError(f"--out {place}: {got}")
    beside = nearest.resolve().parent if nearest == place else nearest
    try:
        tempfile.TemporaryFile(dir=beside).close()
    except OSError as error:
        raise CommandError(f"--out {place}: cannot be written ({beside}: {error.strerror})") from None
    if nearest != place:
        return
    names = {entry.name for entry in place.iterdir()}
    if names and not (names <= _NAMES and ENCODING in names):
        other = min(names - _NAMES or names)
        raise CommandError(
            f"--out {place}: contains files that are not from an earlier fit, such as {other!r}, and is left unchanged"
        )
    if os.path.ismount(place) or place.samefile("."):
        raise CommandError(f"--out {place}: cannot be replaced; choose a new folder inside it")
    if table.parent.samefile(place) or table.resolve().parent.samefile(place):
        raise CommandError(f"--out {place}: contains the table {table}, which would be lost")


def write(place: Path, files: Mapping[str, bytes]) -> None:
    """Replace an earlier fit's folder with a folder of `files`, once all of them are written.

    If killed at any time, it leaves the old folder, the new one or, between two renames, none.
    """
    place = place.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{_SCRATCH}{place.name}."
    for left in place.parent.glob(glob.escape(prefix) + 8 * "?"):  # from a killed process
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        for name, content in files.items():
            _write_through(new / name, content)
        if place.exists():
            shutil.copymode(place, new)
            place.rename(Path(scratch, "old"))
        new.rename(place)


def _write_through(path: Path, content: bytes) -> None:
    """Write to the disk itself, so that a file's name does not get there before its content."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` once complete. Pipes and devices are written directly."""
    place = path.resolve()  # follows a link
    if place.exists() and not place.is_file():
        with open(path, "wb") as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place.parent) as scratch:
        new = Path(scratch, place.name)
        with open(new, "wb") as file:
            yield file
        if place.exists():
            shutil.copymode(place, new)
        os.replace(new, place)


def write_csv(file: TextIO, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table in the form that `read_table` reads."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)


def table_of(columns: Mapping[str, object], form: str) -> bytes:
    """A table of many rows as CSV or Parquet, in the form that `read_table` reads; nan is a missing cell.

    Raises:
        CommandError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise CommandError("--by needs pyarrow (`pip install pyarrow`)") from None
    table = pyarrow.table({name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()})
    file = io.BytesIO()
    (pyarrow.parquet.write_table if form == "parquet" else pyarrow.csv.write_csv)(table, file)
    return file.getvalue()
