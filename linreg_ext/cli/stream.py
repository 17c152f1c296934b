# SPDX-License-Identifier: BSD-3-Clause
"""`fit` on a table larger than memory: exactly, in a pass that finds the encoding and one that fits."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..least_squares import LeastSquares, LeastSquaresSolution, lstsq_batches
from ..tables import NUMBER, Stream, available_memory, bytes_in_memory, find_encoding, listing
from .coefficients import Coefficients, require_in_range
from .dataset import Columns, Dataset, options_of, weight_of, with_numbers
from .errors import CommandError
from .exact import LARGE
from .processes import Processes
from .report import Scores

_MOST_POINTS = 2000  # drawn
_CONDITION = 1e4  # beyond it, further passes refine the solution
_HELD = 1 << 24  # numbers: rows of 128 MB are added together to groups
_BY_COLUMNS = 33  # so few, targets included, are added up from columns as fast as from rows

# x, y and weight, how many rows train (those that are held out follow), and group
Rows = tuple[Tensor, Tensor, Tensor | None, int, Tensor | None]


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of `--by`: the distinct cells of a column."""

    column: str
    cells: np.ndarray  # [G], numbers or text, in ascending order
    of_rows: np.ndarray  # [N], int64: the group of each row, -1 if its cell is missing


class OpenTable:
    """A table that is read in blocks, each process its part of them, and the choices that the arguments make.

    Raises:
        CommandError: an option needs the table in memory.
    """

    def __init__(self, args: argparse.Namespace, processes: Processes) -> None:
        option, instead = ("--by", "") if args.by else ("--stream", " or --no-stream")
        for bad, other, cure in (
            (args.solver != "exact", "--solver sgd", "--solver exact"),
            (args.missing == "mean", "--missing mean", "--missing drop"),
        ):
            if bad:
                raise CommandError(f"{option}: {other} needs the table in memory; use {cure}{instead}")
        self.args, self.processes, self.columns = args, processes, Columns(args)
        columns, categories = self.columns, with_numbers(args.categories or ())
        shard = (processes.rank, processes.size)
        self.stream = processes.together(
            lambda: Stream(columns.path, options_of(args), columns.choose, categories, shard)
        )
        for name in columns.by:
            self.stream.wanted.remove(name)  # whatever it holds
        with self.bar("reading") as progress:
            short = self.stream.summary(progress, processes.gather)
        self.targets = columns.targets_of(short)
        features = columns.features_of(short, self.targets)
        self.encoding, _, notes = find_encoding(
            short, features, self.targets, others=columns.weight, categories=categories, missing="mean",
            marks=options_of(args).missing, count=self.stream.rows,
        )  # fmt: skip
        for name in (*self.encoding.columns, *self.targets):
            column = short.columns[name]
            largest = np.nanmax(np.abs(column.values)) if column.kind == NUMBER else 1.0
            if largest and not 1 / LARGE < largest < LARGE:
                raise CommandError(
                    f"{option}: column '{name}' is too large or too small; multiply it by a power of ten"
                )
        self.notes = [*self.stream.notes, *notes]

    @contextlib.contextmanager
    def bar(self, verb: str) -> Iterator[Callable[[int], Any] | None]:
        """A progress bar over the bytes of this process's part of the table."""
        if not self.args.bar:
            yield None
            return
        from tqdm import tqdm

        label = f"{verb} {self.columns.path.name}"
        with tqdm(desc=label, total=self.stream.bytes, unit="B", unit_scale=True, leave=False) as bar:
            yield bar.update

    def add_up(
        self, groups: Groups | None = None
    ) -> tuple[LeastSquares, LeastSquares, Blocks, list[tuple[Tensor, Tensor, Tensor]]]:
        """The moments of the training and the validation rows; the blocks; and some rows (x, y, held out) of each."""
        blocks = Blocks(self, groups)
        shape, count = (len(self.encoding.names), len(self.targets)), None if groups is None else len(groups.cells)
        training = LeastSquares(*shape, groups=count)
        validation = LeastSquares(*shape, groups=count if self.args.val_fraction else None)
        stride = -(-self.stream.rows // _MOST_POINTS)

        def add() -> tuple[int, dict[str, int], list[tuple[Tensor, Tensor, Tensor]]]:
            sample, seen, parts = [], [0, 0], (_Adder(training), _Adder(validation))
            for x, y, weight, count, group in blocks:
                for held_out, rows in enumerate((slice(count), slice(count, None))):
                    if not len(x[rows]):
                        continue
                    parts[held_out].add(*(None if t is None else t[rows] for t in (x, y, weight, group)))
                    some = slice(-seen[held_out] % stride, None, stride)
                    seen[held_out] += len(x[rows])
                    drawn = [t[rows][some].to(torch.float64, copy=True) for t in (x, y)]
                    sample.append((*drawn, torch.full((len(drawn[0]),), bool(held_out))))
            for part in parts:
                part.flush()
            return blocks.dropped, blocks.missing, sample

        counts, gaps, samples = zip(*self.processes.gather(add), strict=True)
        for moments in (training, validation):
            self.processes.all_reduce(moments)
        if self.columns.weight and not training.rows:
            raise CommandError(f"--weight {self.columns.weight[0]}: every weight is 0")
        if training.rows < 2:
            raise CommandError(
                f"{self.columns.path}: expected at least 2 rows without missing cells, got {training.rows}"
            )
        if any(counts):
            found = {name: sum(each[name] for each in gaps) for name in gaps[0]}
            listed = listing([f"{name} {count:,}" for name, count in found.items() if count])
            self.notes.append(f"dropped {sum(counts):,} of {self.stream.rows:,} rows with missing cells ({listed})")
        return training, validation, blocks, [part for each in samples for part in each]

    def dataset(self, sample: list[tuple[Tensor, Tensor, Tensor]], rows: tuple[int, int]) -> Dataset:
        """A data set of some rows, of as many training and validation rows in all."""
        x, y, held_out = (torch.cat(parts) for parts in zip(*sample, strict=True))
        return Dataset(
            self.stream.path, self.encoding, x, y, None, held_out, tuple(self.notes), not self.columns.targets, rows
        )


class _Adder:
    """Adds rows to moments. Those of groups are held until there are many, so that a group is visited once for several;
    the numbers of a row are side by side."""

    def __init__(self, moments: LeastSquares) -> None:
        self._moments, self._count = moments, 0
        self._held = self._group = torch.empty(0)

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None, group: Tensor | None) -> None:
        if group is None:
            self._moments.update(x, y, weight)
            return
        parts = [x, y] if weight is None else [x, y, weight[:, None]]
        widths = [part.shape[1] for part in parts]
        if self._count + len(x) > len(self._held):
            self.flush()
            if len(x) > len(self._held):
                most = max(len(x), _HELD // sum(widths))
                self._held = torch.empty(most, sum(widths), dtype=torch.float64)
                self._group = torch.empty(most, dtype=torch.int64)
        rows = slice(self._count, self._count + len(x))
        for to, part in zip(self._held[rows].split(widths, 1), parts, strict=True):
            to.copy_(part)
        self._group[rows] = group
        self._count = rows.stop

    def flush(self) -> None:
        """Add what is held."""
        if not self._count:
            return
        moments, rows = self._moments, self._held[: self._count]
        x, y, weight = rows.tensor_split((moments.in_features, moments.in_features + moments.out_features), 1)
        moments.update(x, y, weight if weight.shape[1] else None, self._group[: self._count])
        self._count = 0


def fit_stream(
    args: argparse.Namespace, processes: Processes
) -> tuple[Dataset, Coefficients, LeastSquaresSolution, list[str], list[Scores]]:
    """Fit without holding the table; each process reads and adds up a part of it.

    Returns:
        A data set of some rows, to draw; the model and its solution; the constant columns; and the scores.

    Raises:
        CommandError: an option needs the table in memory.
    """
    table = OpenTable(args, processes)
    training, validation, blocks, sample = table.add_up()
    encoding, targets = table.encoding, table.targets
    varying = training.variance[: len(encoding.names)] > 0
    solution = training.select(varying.nonzero()[:, 0].tolist()).solve(args.l2)
    if solution.rank < int(varying.sum()) or solution.condition > _CONDITION:
        solution = _solve_again(_Training(blocks, varying), len(targets), args.l2, processes)
    weight, errors = (torch.full((len(targets), len(varying)), fill, dtype=torch.float64) for fill in (0, np.nan))
    weight[:, varying], errors[:, varying] = solution.weight, solution.weight_stderr
    model = Coefficients(encoding.names, tuple(targets), weight, solution.bias, errors, solution.bias_stderr)
    require_in_range(model, vanished=torch.zeros_like(weight, dtype=torch.bool))
    constant = [name for name, varies in zip(encoding.names, varying, strict=True) if not varies]
    dataset = table.dataset(sample, (training.rows, validation.rows))
    return dataset, model, solution, constant, _scores(model, training, validation)


def _solve_again(rows: _Training, targets: int, l2: float, processes: Processes) -> LeastSquaresSolution:
    """The solution by more passes, for columns that are nearly dependent."""
    if processes.size == 1:
        return lstsq_batches(rows, l2=l2)
    factor = LeastSquares(int(rows.varying.sum()), targets, method="qr")

    def add() -> None:
        for x, y, weight in rows:
            factor.update(x, y, weight)

    processes.together(add)
    return processes.all_reduce(factor).solve(l2)


def wants_stream(args: argparse.Namespace, processes: Processes) -> bool:
    """Whether to stream: as the option says, else if processes share the table or it would not fit in memory."""
    if processes.started and args.solver == "exact":
        if args.stream is False and processes.size > 1:
            raise CommandError(
                "--no-stream: several processes read the table in parts; leave it out, or run one process"
            )
        return args.stream is not False
    if args.stream is not None or args.table is None or args.solver != "exact" or not args.table.exists():
        return bool(args.stream)
    return bytes_in_memory(args.table) > available_memory()


class Blocks:
    """The rows of a table in blocks, encoded; the same ones are held out each time.

    Attributes:
        dropped: the rows left out the last time because of missing cells.
        missing: how many cells of each column are missing.
    """

    def __init__(self, table: OpenTable, groups: Groups | None) -> None:
        self._table, self._groups = table, groups
        self._columns = [*table.encoding.targets, *table.columns.weight, *table.encoding.columns]
        self.dropped, self.missing = 0, dict.fromkeys([*self._columns, *table.columns.by], 0)

    def __iter__(self) -> Iterator[Rows]:
        args, stream, encoding, groups = self._table.args, self._table.stream, self._table.encoding, self._groups
        weights, begin = self._table.columns.weight, 0
        self.dropped, self.missing = 0, dict.fromkeys(self.missing, 0)
        with self._table.bar("fitting") as progress:
            for table in stream.blocks(self._columns, progress):
                rows, group = np.ones(table.rows, dtype=bool), None
                for name in self._columns:  # last the features
                    column = table.columns[name]
                    if column.is_complete:
                        continue
                    gone = np.ones(table.rows, dtype=bool) if column.values is None else column.missing
                    if args.missing == "error" and name in encoding.columns and (gone & rows).any():
                        row = int((gone & rows).argmax())
                        raise table.error(row, name, "expected a value, got none (--missing drop)")
                    rows &= ~gone
                    self.missing[name] += int(gone.sum())
                if groups is not None:
                    group = groups.of_rows[begin : begin + table.rows]
                    rows &= group >= 0
                    self.missing[groups.column] += int((group < 0).sum())
                    begin += table.rows
                self.dropped += table.rows - int(rows.sum())
                if not rows.any():
                    continue
                weight, order, count = weight_of(table, weights[0], rows) if weights else None, None, int(rows.sum())
                if args.val_fraction:
                    draws = np.random.PCG64(args.seed).advance(table.line(0))  # whoever reads these rows
                    held_out = np.random.Generator(draws).random(table.rows) < args.val_fraction
                    order = np.concatenate([np.flatnonzero(rows & ~held_out), np.flatnonzero(rows & held_out)])
                    count -= int((rows & held_out).sum())
                elif count < table.rows:
                    order = np.flatnonzero(rows)
                few = len(encoding.names) + len(encoding.targets) <= _BY_COLUMNS
                encode = encoding.encode_numbers if few and not encoding.categories else encoding.encode
                x = encode(table, order)
                y = np.column_stack([table.columns[name].values for name in encoding.targets])
                y, v, g = (
                    t if t is None else torch.from_numpy(np.require(t if order is None else t[order], None, "W"))
                    for t in (y, weight, group)
                )
                yield torch.from_numpy(x), y, v, count, g


class _Training:
    """The training rows and varying columns of blocks, for `lstsq_batches`."""

    def __init__(self, blocks: Blocks, varying: Tensor) -> None:
        self._blocks, self.varying = blocks, varying

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for x, y, weight, count, _ in self._blocks:
            yield x[:count, self.varying], y[:count], None if weight is None else weight[:count]


def _scores(model: Coefficients, training: LeastSquares, validation: LeastSquares) -> list[Scores]:
    scores = []
    for part, moments in (("training", training), ("validation", validation)):
        if moments.rows:
            squared = moments.loss_of(model.weight, model.bias, reduction="none")
            variance = moments.variance[len(model.features) :]
            r2 = torch.where(variance > 0, 1 - squared / variance, torch.nan)
            scores.append(Scores(part, r2.tolist(), squared.sqrt().tolist()))
    return scores
