# SPDX-License-Identifier: BSD-3-Clause
"""`fit` on a table larger than memory: exactly, in a pass that finds the encoding and one that fits."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..least_squares import LeastSquares, LeastSquaresSolution, lstsq_batches
from ..tables import Encoding, Stream, available_memory, bytes_in_memory, find_encoding, listing
from .coefficients import Coefficients, require_in_range
from .dataset import Columns, Dataset, options_of, weight_of, with_numbers
from .errors import CommandError
from .processes import Processes
from .report import Scores

_MOST_POINTS = 2000  # drawn
_CONDITION = 1e4  # beyond it, further passes refine the solution

Rows = tuple[Tensor, Tensor, Tensor | None, Tensor]  # x, y, weight and, bool, held out


def fit_stream(
    args: argparse.Namespace, processes: Processes
) -> tuple[Dataset, Coefficients, LeastSquaresSolution, list[str], list[Scores]]:
    """Fit without holding the table; each process reads and adds up a part of it.

    Returns:
        A data set of some rows, to draw; the model and its solution; the constant columns; and the scores.

    Raises:
        CommandError: an option needs the table in memory.
    """
    for bad, option, cure in (
        (args.solver != "exact", "--solver sgd", "--solver exact"),
        (args.missing == "mean", "--missing mean", "--missing drop"),
    ):
        if bad:
            raise CommandError(f"--stream: {option} needs the table in memory; use {cure} or --no-stream")
    columns, categories = Columns(args), with_numbers(args.categories or ())
    shard = (processes.rank, processes.size)
    stream = processes.together(lambda: Stream(columns.path, options_of(args), columns.choose, categories, shard))
    with _bar(args.bar, f"reading {columns.path.name}", None) as progress:
        short = stream.summary(progress, processes.gather)
    targets = columns.targets_of(short)
    features = columns.features_of(short, targets)
    encoding, _, notes = find_encoding(
        short, features, targets, others=columns.weight, categories=categories, missing="mean",
        marks=options_of(args).missing, count=stream.rows,
    )  # fmt: skip
    blocks = _Blocks(args, stream, encoding, columns.weight)
    training, validation = (LeastSquares(len(encoding.names), len(targets)) for _ in range(2))
    stride = -(-stream.rows // _MOST_POINTS)

    def add() -> tuple[int, dict[str, int], list[tuple[Tensor, Tensor, Tensor]]]:
        sample = []
        for x, y, weight, held_out in blocks:
            for part, rows in ((training, ~held_out), (validation, held_out)):
                part.update(x[rows], y[rows], None if weight is None else weight[rows])
            sample.append((x[::stride].clone(), y[::stride].clone(), held_out[::stride].clone()))
        return blocks.dropped, blocks.missing, sample

    counts, gaps, samples = zip(*processes.gather(add), strict=True)
    for moments in (training, validation):
        processes.all_reduce(moments)
    if training.rows < 2:
        raise CommandError(f"{columns.path}: expected at least 2 rows without missing cells, got {training.rows}")
    if any(counts):
        found = {name: sum(each[name] for each in gaps) for name in blocks.columns}
        listed = listing([f"{name} {count:,}" for name, count in found.items() if count])
        notes.append(f"dropped {sum(counts):,} of {stream.rows:,} rows with missing cells ({listed})")
    varying = training.variance[: len(encoding.names)] > 0
    solution = training.select(varying.nonzero()[:, 0].tolist()).solve(args.l2)
    if solution.rank < int(varying.sum()) or solution.condition > _CONDITION:
        solution = _solve_again(_Training(blocks, varying), len(targets), args.l2, processes)
    weight, errors = (torch.full((len(targets), len(varying)), fill, dtype=torch.float64) for fill in (0, np.nan))
    weight[:, varying], errors[:, varying] = solution.weight, solution.weight_stderr
    model = Coefficients(encoding.names, tuple(targets), weight, solution.bias, errors, solution.bias_stderr)
    require_in_range(model, vanished=torch.zeros_like(weight, dtype=torch.bool))
    x, y, held_out = (torch.cat(parts) for parts in zip(*itertools.chain(*samples), strict=True))
    dataset = Dataset(
        stream.path, encoding, x, y, None, held_out, (*stream.notes, *notes), not columns.targets,
        (training.rows, validation.rows),
    )  # fmt: skip
    constant = [name for name, varies in zip(encoding.names, varying, strict=True) if not varies]
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


class _Blocks:
    """The rows of a stream, encoded; the same ones are held out each time."""

    def __init__(self, args: argparse.Namespace, stream: Stream, encoding: Encoding, weight: list[str]) -> None:
        self._args, self._stream, self._encoding, self._weight = args, stream, encoding, weight
        self.columns = [*encoding.columns, *encoding.targets, *weight]
        self.dropped, self.missing = 0, dict.fromkeys(self.columns, 0)

    def __iter__(self) -> Iterator[Rows]:
        self.dropped, self.missing = 0, dict.fromkeys(self.columns, 0)
        with _bar(self._args.bar, f"fitting {self._stream.path.name}", self._stream.rows) as progress:
            for table in self._stream.blocks(self.columns, progress):
                rows = np.ones(table.rows, dtype=bool)
                for name in self.columns:
                    column = table.columns[name]
                    gone = np.ones(table.rows, dtype=bool) if column.values is None else column.missing
                    if self._args.missing == "error" and gone.any() and name in self._encoding.columns:
                        raise table.error(int(gone.argmax()), name, "expected a value, got none (--missing drop)")
                    rows &= ~gone
                    self.missing[name] += int(gone.sum())
                self.dropped += table.rows - int(rows.sum())
                if not rows.any():
                    continue
                x = torch.from_numpy(self._encoding.encode(table, rows))
                y = np.column_stack([table.columns[name].values[rows] for name in self._encoding.targets])
                weight = weight_of(table, self._weight[0], rows) if self._weight else None
                draws = np.random.PCG64(self._args.seed).advance(table.line(0))  # whoever reads these rows
                held_out = np.random.Generator(draws).random(table.rows)[rows] < self._args.val_fraction
                yield x, torch.from_numpy(y), weight, torch.from_numpy(held_out)


class _Training:
    """The training rows and varying columns of blocks, for `lstsq_batches`."""

    def __init__(self, blocks: _Blocks, varying: Tensor) -> None:
        self._blocks, self.varying = blocks, varying

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        for x, y, weight, held_out in self._blocks:
            yield x[~held_out][:, self.varying], y[~held_out], None if weight is None else weight[~held_out]


def _scores(model: Coefficients, training: LeastSquares, validation: LeastSquares) -> list[Scores]:
    scores = []
    for part, moments in (("training", training), ("validation", validation)):
        if moments.rows:
            squared = moments.loss_of(model.weight, model.bias, reduction="none")
            variance = moments.variance[len(model.features) :]
            r2 = torch.where(variance > 0, 1 - squared / variance, torch.nan)
            scores.append(Scores(part, r2.tolist(), squared.sqrt().tolist()))
    return scores


@contextlib.contextmanager
def _bar(shown: bool, label: str, total: int | None) -> Iterator[Callable[[int], Any]]:
    """A progress bar over rows."""
    if not shown:
        yield lambda rows: None
        return
    from tqdm import tqdm

    with tqdm(desc=label, total=total, unit=" rows", unit_scale=True, leave=False) as bar:
        yield bar.update
