# SPDX-License-Identifier: BSD-3-Clause
"""Rows of results, as a CSV file and as aligned text."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

Row = dict[str, str]

MEASURED = (
    "workload", "id", "case", "n", "d", "k", "dtype", "device", "variant", "role", "clock", "seconds", "spread",
    "repeats", "bytes", "gb_per_s", "of_bwread", "over_eager", "memory_bytes", "value", "unit",
)  # fmt: skip
ABOUT = ("machine", "driver", "threads", "isa", "python", "torch", "cuda", "numpy", "linreg_ext", "commit")
COLUMNS = (*MEASURED, *ABOUT)
RUN = ("workload", "device", "threads", "isa", "machine")  # what tells runs of a workload apart
CASE = ("id", "case", "dtype")


class Results:
    """The rows of one run, written to a file one by one.

    Rows already in the file are kept, unless this run measures the same case, or completes the same workload, with the
    same device, threads and instruction set: a run that is killed loses only the case that it was at.
    """

    def __init__(self, path: Path | None, about: Row) -> None:
        self.path, self.about = path, about
        self.kept = read([path]) if path and path.exists() else []
        self.rows: list[Row] = []

    def add(self, **measured: object) -> Row:
        """Write one row; columns not given are empty."""
        row = {column: _text(measured.get(column, "")) for column in MEASURED} | self.about
        self.rows.append(row)
        self.kept = [old for old in self.kept if _of(old, *RUN, *CASE) != _of(row, *RUN, *CASE)]
        self._write()
        return row

    def finish(self, workload: str) -> None:
        """Drop the rows that earlier runs of a workload have left, now that it has ended."""
        ran = [_of(row, *RUN) for row in self.rows if row["workload"] == workload]
        self.kept = [old for old in self.kept if _of(old, *RUN) not in ran]
        self._write()

    def _write(self) -> None:
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self.path.with_suffix(".new")
            with scratch.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows([*self.kept, *self.rows])
            scratch.replace(self.path)


def read(paths: Iterable[Path]) -> list[Row]:
    """The rows of result files, in order."""
    rows = []
    for path in paths:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise SystemExit(f"{path}: must be a file of results, got no column '{min(missing)}'")
            rows += reader
    return rows


def aligned(lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines in columns, the first `left` left-aligned and the others right-aligned."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def duration(seconds: float) -> str:
    """A duration with three significant digits and its unit."""
    unit, name = next((pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0]), (1e-6, "µs"))
    value = seconds / unit
    return f"{value:.{2 - (value >= 10) - (value >= 100)}f} {name}"


def _of(row: Row, *columns: str) -> tuple[str, ...]:
    return tuple(row[column] for column in columns)


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
