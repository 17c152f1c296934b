# SPDX-License-Identifier: BSD-3-Clause
"""The folder that a fit leaves: weights, history and plot."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from .errors import CommandError

WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS = "weights.safetensors", "weights.pt"
HISTORY, PLOT = "history.csv", "plot.png"
_NAMES = {WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS, HISTORY, PLOT}


def require_writable(place: Path, table: Path) -> None:
    """Raise unless a fit of `table` may be written to `place`: a new folder, an empty one or an earlier fit's.

    Asked before training, so that a long one does not end at a place that cannot be written.
    """
    nearest = next(path for path in (place, *place.absolute().parents) if path.exists())
    if not nearest.is_dir():
        got = "expected a folder, got a file" if nearest == place else f"cannot be written ({nearest} is not a folder)"
        raise CommandError(f"--out {place}: {got}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CommandError(f"--out {place}: cannot be written ({nearest} is read-only)")
    if nearest != place:
        return
    names = {entry.name for entry in place.iterdir()}
    if names and not (names <= _NAMES and HISTORY in names):
        raise CommandError(f"--out {place}: is a folder of something else than an earlier fit, and is left as it is")
    if table.parent.samefile(place) or table.resolve().parent.samefile(place):
        raise CommandError(f"--out {place}: the table {table} lies in it and would be lost")


def write(place: Path, files: Mapping[str, bytes]) -> None:
    """Replace what an earlier fit left in `place`, once all of the new is on the disk."""
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".linreg_ext-", dir=place) as scratch:
        for name, content in files.items():
            Path(scratch, name).write_bytes(content)
        for name in _NAMES - files.keys():
            (place / name).unlink(missing_ok=True)
        for name in files:
            os.replace(Path(scratch, name), place / name)


def write_csv(file: TextIO, header: Sequence[str], rows: Iterable[Sequence[float]]) -> None:
    """Write a table as :func:`linreg_ext.tables.read_table` reads it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
