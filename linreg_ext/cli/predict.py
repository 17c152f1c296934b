# SPDX-License-Identifier: BSD-3-Clause
"""`predict`: apply the model of an earlier `fit` to another table."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from ..tables import EMPTY, NUMBER, TEXT, Table, listing, position, read_table
from .coefficients import load_encoding, load_weights
from .dataset import options_of, with_numbers
from .errors import CommandError
from .run_folder import atomic_write, write_csv


def predict(args: argparse.Namespace) -> None:
    """Write the predictions as CSV or Parquet, one column per target."""
    model = load_weights(args.dir)
    encoding = load_encoding(args.dir, model)
    if args.out is not None and args.out.exists() and args.table.exists() and args.out.samefile(args.table):
        raise CommandError(f"--out {args.out}: is the table itself")
    ids: list[str] = []

    def choose(names: tuple[str, ...]) -> list[str]:
        if args.id is not None:
            place = position(names, args.id)
            if place is None:
                raise CommandError(f"--id {args.id}: {args.table.name} has the columns {listing(names)}")
            if names[place] in encoding.targets:
                raise CommandError(f"--id {args.id}: the model predicts a column of this name")
            ids.append(names[place])
        return [*encoding.columns, *ids]

    id_texts = with_numbers([args.id] if args.id is not None else []) - set(encoding.columns)
    table = read_table(
        args.table, options_of(args, encoding.marks), choose=choose, text={*encoding.categories, *id_texts},
        progress=args.bar,
    )  # fmt: skip
    predicted = model.predict(torch.from_numpy(encoding.encode(table, unseen=args.unseen))).numpy()
    without = int(np.isnan(predicted).any(1).sum())
    if without:
        gaps = [f"{name} in {count:,}" for name, count in _gaps(table, encoding.columns) if count]
        where = f"{without:,} of {table.rows:,} rows get no prediction because of missing cells: {listing(gaps)}"
        print(f"linreg_ext: {where}", file=sys.stderr)
    columns = {name: _cells(table, name) for name in ids}
    for name, values in zip(model.targets, predicted.T, strict=True):
        columns[name] = [None if value != value else value for value in values.tolist()]
    _write(args.out, columns)
    if args.out is not None:
        print(f"wrote {args.out}: {table.rows:,} rows")


def _gaps(table: Table, names: Sequence[str]) -> list[tuple[str, int]]:
    columns = ((name, table.columns[name]) for name in names)
    return [(n, table.rows if c.kind == EMPTY else int(c.missing.sum())) for n, c in columns]


def _cells(table: Table, name: str) -> list[str | float | None]:
    """The cells of a column to copy to the output."""
    column = table.columns[name]
    if column.kind == NUMBER:
        return [None if v != v else int(v) if v == int(v) else v for v in column.values.tolist()]
    if column.kind == TEXT:
        return [None if code < 0 else column.levels[code] for code in column.values.tolist()]
    return [None] * table.rows


def _write(place: Path | None, columns: Mapping[str, Sequence[str | float | None]]) -> None:
    if place is None:
        write_csv(sys.stdout, list(columns), zip(*columns.values(), strict=True))
        return
    try:
        with atomic_write(place) as file:
            if place.suffix == ".parquet":
                try:
                    import pyarrow
                    import pyarrow.parquet
                except ImportError:
                    raise CommandError(
                        f"--out {place}: writing Parquet needs pyarrow (`pip install pyarrow`)"
                    ) from None
                pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)
            else:
                text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
                write_csv(text, list(columns), zip(*columns.values(), strict=True))
                text.detach()
    except OSError as error:
        raise CommandError(f"--out {place}: {error.strerror or error}") from None
