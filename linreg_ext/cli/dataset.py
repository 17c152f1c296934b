# SPDX-License-Identifier: BSD-3-Clause
"""What is to be fitted: which columns predict which, and which rows only validate."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..tables import Table, listing, read_table
from .errors import CommandError

_SHIPPED_TABLE = Path(__file__).parents[1] / "data" / "apples_and_oranges.csv"
_SHIPPED_TARGETS = ("apples", "oranges")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A table taken apart."""

    path: Path
    features: tuple[str, ...]
    targets: tuple[str, ...]
    x: Tensor  # [N, D], float64, as in the table
    y: Tensor  # [N, K]
    held_out: Tensor  # [N], bool: the rows that only validate


def read_dataset(args: argparse.Namespace, generator: torch.Generator) -> Dataset:
    """The data set that the arguments name; `generator` chooses the rows that validate."""
    table = read_table(args.table or _SHIPPED_TABLE)
    targets = tuple(args.target or (table.columns[-1:] if args.table else _SHIPPED_TARGETS))
    for name in targets:
        if name not in table.columns:
            swallowed = not args.table and any(Path(target).exists() for target in targets)
            hint = "; TABLE comes before --target" if swallowed else ""
            raise CommandError(f"--target {name}: {table.path.name} has the columns {listing(table.columns)}{hint}")
        if targets.count(name) > 1:
            raise CommandError(f"--target {name}: named twice")
    features = tuple(name for name in table.columns if name not in targets)
    if not features:
        raise CommandError(f"{table.path}: every column is a target ({listing(targets)}), no feature is left")
    held_out = hold_out(table, args.val_fraction, generator)
    return Dataset(table.path, features, targets, table.select(features), table.select(targets), held_out)


def hold_out(table: Table, fraction: float, generator: torch.Generator) -> Tensor:
    """Which rows validate, [N] of bool: a random choice."""
    rows = len(table.values)
    count = round(rows * fraction)
    if rows < 2:
        raise CommandError(f"{table.path}: expected at least 2 rows, got {rows}")
    if fraction > 0 and (count < 1 or rows - count < 2):
        raise CommandError(
            f"--val-fraction {fraction:g}: of the {rows} rows of {table.path} that holds {count} out, "
            "where 1 or more must validate and 2 or more train; --val-fraction 0 trains on all"
        )
    held_out = torch.zeros(rows, dtype=torch.bool)
    if count:
        held_out[torch.randperm(rows, generator=generator)[:count]] = True
    return held_out
