# SPDX-License-Identifier: BSD-3-Clause
"""`fit`: fit a model to a table, print coefficients and scores, and write a folder from which `predict` can run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import torch

from .. import plots
from .._version import __version__
from ..tables import TableError, first_line
from ..training import History
from . import exact, groups, report, run_folder
from .coefficients import weights_file
from .dataset import Dataset, read_dataset, require_varying
from .errors import CommandError
from .processes import LostRankError, Processes
from .stream import fit_stream, wants_stream
from .train import train


def fit(args: argparse.Namespace) -> None:
    """Run the command; under torchrun, as one of several processes, of which the first alone prints and writes."""
    processes = Processes()
    is_first = processes.rank == 0
    args.bar = args.bar and is_first
    with contextlib.redirect_stdout(sys.stdout if is_first else io.StringIO()):
        try:
            _fit(args, processes)
        except LostRankError:
            raise
        except (CommandError, TableError, OSError) as error:
            processes.fail(error)
        finally:
            processes.close()


def _fit(args: argparse.Namespace, processes: Processes) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("--device cuda: this PyTorch finds no CUDA device")
    clock = _Clock(args.verbose)
    place = args.out or Path("runs") / _stem(args.table)
    is_first, history = processes.rank == 0, None
    if note := processes.thread_note():
        print(f"note: {note}")
    if args.by:
        _fit_groups(args, processes, place, clock)
        return
    if wants_stream(args, processes):
        dataset, model, solution, constant, scores = fit_stream(args, processes)
        processes.together(lambda: is_first and run_folder.require_writable(place, dataset.path))
        report.print_dataset(dataset)
        clock.says("reading and solving")
    else:
        generator = torch.Generator().manual_seed(args.seed)
        dataset = processes.together(lambda: read_dataset(args, generator))
        processes.together(lambda: is_first and run_folder.require_writable(place, dataset.path))
        require_varying(dataset)
        report.print_dataset(dataset)
        clock.says("reading")
        if args.solver == "exact":
            model, solution, constant = exact.solve(dataset, args.l2)
            clock.says("solving")
        else:
            model, history = train(dataset, args, generator, processes)
            clock.says("training")
        scores = report.scores_of(dataset, model.predict(dataset.x))

    def finish() -> None:
        if args.solver == "exact":
            report.print_constant(constant)
            report.print_solution(solution, args.l2)
        report.print_coefficients(model, dataset.encoding)
        report.print_scores(model.targets, scores)
        if args.solver == "sgd" and args.loss == "mse" and not args.weight_decay:
            print(f"SGD: {exact.distance_line(model, dataset)}")
        label = f"{args.loss} loss" + (" (standardised targets)" if args.standardize else "")
        captions = ["\n".join(f"R² {report.r2(s.r2[k])} {s.part}" for s in scores) for k in range(len(model.targets))]
        predicted = model.predict(dataset.x)
        files = {**weights_file(model), **({} if history is None else {run_folder.HISTORY: _history_file(history)})}
        files |= _plot_file(
            lambda file: plots.fit_figure(
                history, model.targets, dataset.y, predicted, dataset.held_out, captions, file, loss=label
            )
        )
        clock.says("drawing")
        _write(args, dataset, place, files)

    processes.together(lambda: is_first and finish())


def _fit_groups(args: argparse.Namespace, processes: Processes, place: Path, clock: _Clock) -> None:
    fits = groups.fit_groups(args, processes)
    run_folder.require_writable(place, fits.dataset.path)
    report.print_dataset(fits.dataset)
    clock.says("reading and solving")
    groups.print_fits(fits, args.l2)
    files = groups.files_of(fits)
    clock.says("tabulating")
    target = "" if len(fits.dataset.encoding.targets) == 1 else f"{fits.dataset.encoding.targets[0]}: "
    names = [target + name for name in fits.names]
    files |= _plot_file(
        lambda file: plots.groups_figure(
            names, fits.coefficients[:, 0], fits.errors[:, 0], file, groups=f"groups of {fits.groups.column}"
        )
    )
    clock.says("drawing")
    _write(args, fits.dataset, place, files)


def _write(args: argparse.Namespace, dataset: Dataset, place: Path, files: dict[str, bytes]) -> None:
    """Write the folder of a fit: its own files, the encoding and the provenance."""
    files[run_folder.ENCODING] = _json(dataset.encoding.to_json())
    files[run_folder.MODEL] = _json(_origin(args, dataset))
    try:
        run_folder.write(place, files)
    except OSError as error:
        raise CommandError(f"--out {place}: {error.strerror or error}") from None
    print(f"\nwrote {place}: {', '.join(sorted(files))}")


class _Clock:
    """Prints the time of each phase if verbose."""

    def __init__(self, talks: bool) -> None:
        self._talks, self._began = talks, time.perf_counter()

    def says(self, part: str) -> None:
        now = time.perf_counter()
        if self._talks:
            print(f"{part} took {now - self._began:.2f} s", flush=True)
        self._began = now


def _stem(table: Path | None) -> str:
    """The default name of a table's folder: its file name without suffixes."""
    return "apples_and_oranges" if table is None else table.resolve().name.split(".")[0] or "table"


def _origin(args: argparse.Namespace, dataset: Dataset) -> dict[str, object]:
    """The provenance of the model: command, data and versions."""
    packages = {"linreg_ext": __version__, "torch": torch.__version__, "python": platform.python_version()}
    for name in ("numpy", "pyarrow"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": args.command_line,
        "table": str(dataset.path),
        "training_rows": dataset.rows[0],
        "validation_rows": dataset.rows[1],
        "loss": args.loss,
        "solver": args.solver,
        "l2": args.l2,
        **({"by": args.by} if args.by else {}),
        "versions": packages,
    }


def _json(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def _history_file(history: History) -> bytes:
    epochs = len(history.epoch_loss)
    columns = {"epoch": range(1, epochs + 1), "train_loss": history.epoch_loss.tolist()}
    if history.val_loss is not None:
        columns["validation_loss"] = history.val_loss.tolist()
    columns["lr"] = history.lr[:: len(history.lr) // epochs].tolist()  # of each epoch's first step
    file = io.StringIO()
    run_folder.write_csv(file, tuple(columns), zip(*columns.values(), strict=True))
    return file.getvalue().encode()


def _plot_file(draw: Callable[[BinaryIO], object]) -> dict[str, bytes]:
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about glyphs missing from the font
            draw(file)
    except Exception as error:  # a failed plot must not lose the run
        print(f"\nno {run_folder.PLOT}: {first_line(error)}")
        return {}
    return {run_folder.PLOT: file.getvalue()}
