# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of each command, their defaults and their help."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import print_error
from .fit_table import fit
from .info import info
from .predict import predict
from .train import LOSSES

# Plain SGD at the default learning rate approaches the minimum without overshooting it. Momentum m keeps to that only
# below (1 - √m)² of this rate, which makes it slower by (1 - √m) / (1 + √m), and at this rate it oscillates.
_MOMENTUM = 0.0
_EPOCHS = 200  # within 4e-4 of the R² of least squares on the nearly collinear diabetes table, seeds 0 to 5


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; `.command(args)` runs what they ask for."""
    parser = _Parser(
        prog="python -m linreg_ext",
        description="Fit a linear regression to a table of numbers, and predict with it.",
        epilog="`python -m linreg_ext fit` alone fits a small table that comes with the package.",
    )
    commands = parser.add_subparsers(required=True, title="commands", metavar="COMMAND")
    _add_fit(commands)
    _add_predict(commands)
    _add_command(commands, "info", info, "Print versions and what the compiled part was built with.", "info")
    return parser.parse_args(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(print_error(f"{message} (see {self.prog} --help)"))


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example:\n  python -m linreg_ext {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def _add_fit(commands: Any) -> None:
    whole = _ranged(int, lambda n: 0 < n < 2**31, "a whole number > 0 and < 2^31")
    positive = _ranged(float, lambda v: 0 < v < math.inf, "a number > 0")
    not_negative = _ranged(float, lambda v: 0 <= v < math.inf, "a number >= 0")
    natural = _ranged(int, lambda n: 0 <= n < 2**63, "a whole number >= 0 and < 2^63")
    below_one = _ranged(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")
    summary = "Fit a linear model to a table by SGD; write its weights, history and plot."
    add = _add_command(commands, "fit", fit, summary, "fit houses.csv --target price --out runs/houses").add_argument
    # fmt: off
    add("table", nargs="?", type=Path, metavar="TABLE",
        help="a .csv, .tsv, .parquet, .npy or .npz file of numbers (default: the shipped apples_and_oranges.csv)")
    add("--target", nargs="+", action="extend", metavar="COLUMN",
        help="columns to predict from all the others (default: the last; without TABLE apples and oranges)")
    add("--epochs", type=whole, default=_EPOCHS, metavar="N",
        help="passes over the training rows (default: %(default)s)")
    add("--lr", type=positive, metavar="X",
        help="learning rate of the first epoch; it falls to 0 along a cosine (default: half the largest that is "
             "stable on this table)")
    add("--batch-size", type=whole, default=64, metavar="N", help="rows per step (default: %(default)s)")
    add("--momentum", type=below_one, default=_MOMENTUM, metavar="X", help="SGD's momentum (default: %(default)g)")
    add("--weight-decay", type=not_negative, default=0.0, metavar="X",
        help="SGD's weight decay (default: %(default)g)")
    add("--loss", choices=LOSSES, default="mse",
        help="what to minimise; huber and smooth-l1 turn from squared to absolute error at 1, which is one standard "
             "deviation of the target where standardised (default: %(default)s)")
    add("--val-fraction", type=below_one, default=0.2, metavar="X",
        help="share of the rows, chosen at random, held out of training to validate (default: %(default)s)")
    add("--standardize", action=argparse.BooleanOptionalAction, default=True,
        help="train on columns scaled to mean 0 and standard deviation 1; coefficients are printed and written in "
             "the table's own units all the same; without it SGD may need very many epochs to converge (default: yes)")
    add("--seed", type=natural, default=0, metavar="N",
        help="decides which rows validate and the order of the others (default: %(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to train (default: %(default)s)")
    add("--out", type=Path, metavar="DIR",
        help="folder to write, replacing an earlier fit there (default: runs/NAME for a table NAME.csv)")
    # fmt: on


def _add_predict(commands: Any) -> None:
    summary = "Predict from a table with the model that `fit` wrote."
    example = "predict runs/houses new_houses.csv --out prices.csv"
    add = _add_command(commands, "predict", predict, summary, example).add_argument
    add("dir", type=Path, metavar="DIR", help="the folder that `fit` wrote")
    add("table", type=Path, metavar="TABLE", help="a table that has the model's features, in any order among others")
    add("--out", type=Path, metavar="FILE", help="CSV file to write, a column per target (default: standard output)")


def _ranged(kind: Callable[[str], Any], holds: Callable[[Any], bool], words: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not holds(value):
            raise argparse.ArgumentTypeError(f"expected {words}, got '{text}'")
        return value

    return convert
