# SPDX-License-Identifier: BSD-3-Clause
"""The folder that a fit leaves: weights, history and plot; and files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from .errors import CommandError

WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS = "weights.safetensors", "weights.pt"
HISTORY, PLOT = "history.csv", "plot.png"
_NAMES = {WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS, HISTORY, PLOT}
_SCRATCH = ".linreg_ext-"  # begins the name of a folder that lies beside what is being written


def require_writable(place: Path, table: Path) -> None:
    """Raise unless a fit of `table` may be written to `place`: a new folder, an empty one or an earlier fit's.

    Asked before training, so that a long one does not end at a place that cannot be written.
    """
    nearest = next(path for path in (place, *place.absolute().parents) if path.exists())
    if not nearest.is_dir():
        got = "expected a folder, got a file" if nearest == place else f"cannot be written ({nearest} is not a folder)"
        raise CommandError(f"--out {place}: {got}")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise CommandError(f"--out {place}: cannot be written ({nearest}: {error.strerror})") from None
    if nearest != place:
        return
    scratch, names = set(), set()
    for entry in place.iterdir():
        (scratch if entry.name.startswith(_SCRATCH) else names).add(entry.name)
    of_a_fit = HISTORY in names or scratch  # that one left which was killed
    if names and not (names <= _NAMES and of_a_fit):
        other = min(names - _NAMES or names)
        raise CommandError(
            f"--out {place}: is a folder of something else than an earlier fit (it holds {other!r}), "
            "and is left as it is"
        )
    if table.parent.samefile(place) or table.resolve().parent.samefile(place):
        raise CommandError(f"--out {place}: the table {table} lies in it and would be lost")


def write(place: Path, files: Mapping[str, bytes]) -> None:
    """Replace what an earlier fit left in `place`, once all of the new is written; the weights come first in `files`.

    Killed at any moment, it leaves weights, each file whole, and no files of two fits side by side.
    """
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place) as scratch:
        for name, content in files.items():
            _write_through(Path(scratch, name), content)
        for name in _NAMES - {next(iter(files))}:
            (place / name).unlink(missing_ok=True)
        for name in files:
            os.replace(Path(scratch, name), place / name)
    for left in place.glob(f"{_SCRATCH}*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)


def _write_through(path: Path, content: bytes) -> None:
    """To the disk: a name must not get there before what it names."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` once it is written to its end. What is no file, as a pipe is not, is
    written to as it is."""
    place = path.resolve()  # the file that a link leads to
    if place.exists() and not place.is_file():
        with open(path, "w", encoding="utf-8", newline="") as file:
            yield file
        return
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=place.parent) as scratch:
        new = Path(scratch, place.name)
        with open(new, "w", encoding="utf-8", newline="") as file:
            yield file
        if place.exists():
            shutil.copymode(place, new)
        os.replace(new, place)


def write_csv(file: TextIO, header: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    """Write a table as :func:`linreg_ext.tables.read_table` reads it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
