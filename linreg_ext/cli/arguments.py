# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of each command, with their defaults and help texts."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .._version import __version__
from ..losses import LOSSES
from ..tables import BLANKS
from .errors import print_error
from .fit_table import fit
from .info import info
from .predict import predict

_SGD_OPTIONS = {
    "--epochs": None, "--batch-size": None, "--lr": None, "--momentum": 0.0, "--weight-decay": 0.0, "--device": "cpu",
}  # fmt: skip
_DELIMITERS = {"tab": "\t", "\\t": "\t", "blanks": BLANKS}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; `.command(args)` then runs the command."""
    parser = _Parser(
        prog="linreg-ext",
        description="Fit a linear regression to a table, and predict with it.",
        epilog="`linreg-ext fit` without arguments fits a small example table.",
    )
    parser.add_argument("--version", action="version", version=f"linreg_ext {__version__}")
    commands = parser.add_subparsers(required=True, title="commands", metavar="COMMAND")
    _add_fit(commands)
    _add_predict(commands)
    _add_command(commands, "info", info, "Print versions and the build configuration.", "info")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error_about(unknown, args.parser)
    if args.command is fit:
        _settle_loss(args)
        _settle_solver(args)
        _settle_groups(args)
    args.command_line = ["linreg-ext", *map(str, sys.argv[1:] if argv is None else argv)]
    args.bar = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    return args


def _settle_loss(args: argparse.Namespace) -> None:
    args.loss = args.loss or ("mse" if args.quantile is None else "quantile")
    if args.quantile is not None and args.loss != "quantile":
        args.parser.error(f"argument --quantile: requires --loss quantile, got --loss {args.loss}")
    args.quantile = 0.5 if args.quantile is None else args.quantile


def _settle_solver(args: argparse.Namespace) -> None:
    given = [
        option for option, default in _SGD_OPTIONS.items() if getattr(args, option[2:].replace("-", "_")) != default
    ]
    given += [] if args.standardize else ["--no-standardize"]
    if args.loss != "mse":
        given.insert(0, f"--loss {args.loss}")
    if args.solver == "exact" and given:
        args.parser.error(f"argument --solver: exact solves the squared error and has no {given[0]}; use --solver sgd")
    if args.solver == "auto":
        args.solver = "sgd" if given else "exact"
    if args.solver == "sgd" and args.l2:
        why = "" if not given else f" ({given[0]} chooses sgd)"
        args.parser.error(f"argument --l2: requires --solver exact{why}; SGD has --weight-decay")


def _settle_groups(args: argparse.Namespace) -> None:
    if args.by and args.solver == "sgd":
        args.parser.error("argument --by: fits each group exactly; leave out --loss and the options of SGD")
    if args.val_fraction is None:
        args.val_fraction = 0.0 if args.by else 0.2


class _Help(argparse.HelpFormatter):
    """One line per option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=100)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        return f"{action.metavar} …" if action.nargs == "+" else super()._format_args(action, default_metavar)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(print_error(f"{message} (see {self.prog} --help)"))

    def error_about(self, unknown: Sequence[str], command: argparse.ArgumentParser) -> NoReturn:
        """Reject an unknown option, suggesting a similar one."""
        option = next((text for text in unknown if text.startswith("-")), unknown[0])
        known = list(command._option_string_actions)
        near = difflib.get_close_matches(option.partition("=")[0], known, 1)
        command.error(f"unrecognized argument: {option}" + (f"; did you mean {near[0]}?" if near else ""))


def _add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str, usage: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        usage=f"linreg-ext {name} {usage}".rstrip(),
        description=summary,
        epilog=f"example: linreg-ext {example}",
        formatter_class=_Help,
    )
    parser.set_defaults(command=run, parser=parser)
    return parser


def _add_fit(commands: Any) -> None:
    whole = _ranged(int, lambda n: 0 < n < 2**31, "a whole number > 0 and < 2^31")
    positive = _ranged(float, lambda v: 0 < v < math.inf, "a number > 0")
    not_negative = _ranged(float, lambda v: 0 <= v < math.inf, "a number >= 0")
    natural = _ranged(int, lambda n: 0 <= n < 2**63, "a whole number >= 0 and < 2^63")
    below_one = _ranged(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")
    inside = _ranged(float, lambda v: 0 < v < 1, "a number between 0 and 1")
    losses = [name.replace("_", "-") for name in LOSSES]
    summary = "Fit a linear model to a table, exactly or by SGD; write its weights and a plot."
    parser = _add_command(
        commands, "fit", fit, summary, "fit houses.csv --target price --out runs/houses", "[TABLE] [options]"
    )
    # fmt: off
    add = parser.add_argument_group("data").add_argument
    add("table", nargs="?", type=Path, metavar="TABLE", help="CSV, Parquet or NumPy file (default: an example table)")
    columns = {"nargs": "+", "action": "extend", "metavar": "COLUMN"}
    add("--target", **columns, help="columns to predict (default: the last column of numbers)")
    add("--features", **columns, help="columns to predict from (default: all other columns)")
    add("--drop", **columns, help="columns to leave out")
    add("--categories", **columns, help="columns to encode as categories, even if numeric")
    add("--weight", metavar="COLUMN", help="weights of the rows")
    add("--by", metavar="COLUMN", help="fit a regression for each value of this column")
    add("--missing", choices=["drop", "mean", "error"], default="drop", metavar="HOW",
        help="if a feature is missing: drop the row, fill in the mean, or error (default: %(default)s)")
    add("--val-fraction", type=below_one, metavar="X",
        help="share of rows held out for validation (default: 0.2; 0 with --by)")
    add("--stream", action=argparse.BooleanOptionalAction, help="read in blocks (default: if it exceeds the memory)")
    _add_reading(parser)
    add = parser.add_argument_group("model").add_argument
    add("--loss", choices=losses, metavar="NAME", help=f"{', '.join(losses)} (default: mse)")
    add("--quantile", type=inside, metavar="Q", help="the quantile to fit; implies --loss quantile (default: 0.5)")
    add("--solver", choices=["auto", "exact", "sgd"], default="auto", metavar="NAME",
        help="exact (least squares), sgd, or auto: exact unless a loss or option needs sgd (default: auto)")
    add("--l2", type=not_negative, default=0.0, metavar="X", help="ridge penalty of the exact solver, X · Σ weight²")
    add = parser.add_argument_group("SGD").add_argument
    add("--epochs", type=whole, metavar="N", help="passes over the rows (default: 200, fewer for many rows)")
    add("--batch-size", type=whole, metavar="N", help="rows per step (default: 64, or all for small tables)")
    add("--lr", type=positive, metavar="X", help="initial learning rate; falls to 0 (default: half the largest stable)")
    # Plain SGD at the default rate approaches the minimum without overshooting. With momentum m, it oscillates at this
    # rate; below (1 - √m)² of the rate it does not, but converges slower by (1 - √m) / (1 + √m).
    add("--momentum", type=below_one, default=0.0, metavar="X", help="(default: %(default)g)")
    add("--weight-decay", type=not_negative, default=0.0, metavar="X", help="on scaled columns (default: 0)")
    add("--no-standardize", dest="standardize", action="store_false",
        help="train on the columns without scaling or decorrelating them")
    add("--seed", type=natural, default=0, metavar="N", help="seed of row order and split (default: %(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="where to train (default: %(default)s)")
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, metavar="DIR", help="folder to write or replace (default: runs/NAME for NAME.csv)")
    add("-v", "--verbose", action="store_true", help="print the time of each phase")
    # fmt: on


def _add_predict(commands: Any) -> None:
    summary = "Predict from a table with the model that `fit` wrote."
    example = "predict runs/houses new_houses.csv --id house --out prices.csv"
    parser = _add_command(commands, "predict", predict, summary, example, "DIR TABLE [options]")
    add = parser.add_argument
    add("dir", type=Path, metavar="DIR", help="the folder that `fit` wrote")
    add("table", type=Path, metavar="TABLE", help="a table with the model's features; other columns are not read")
    add("--id", metavar="COLUMN", help="a column of the table to write beside the predictions")
    add("--unseen", choices=["error", "base"], default="error",
        help="levels unknown to the model: raise an error, or treat as the base (default: error)")  # fmt: skip
    add("--out", type=Path, metavar="FILE", help="CSV or .parquet file to write (default: CSV to standard output)")
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options for text files."""
    add = parser.add_argument_group("text files (detected by default)").add_argument
    add("--delimiter", type=_delimiter, metavar="CHAR", help="a character, tab or blanks")
    add("--decimal", choices=[".", ","], metavar="MARK", help="the decimal mark, . or ,")
    add("--encoding", metavar="NAME", help="such as utf-8, utf-16 or cp1252")
    add("--header", action=argparse.BooleanOptionalAction, help="whether the first row holds names")
    add("--na", nargs="+", action="extend", metavar="TEXT", help="additional marks of missing cells, such as -999")


def _delimiter(text: str) -> str:
    character = _DELIMITERS.get(text, text)
    if len(character) != 1 or character in '"\r\n':
        raise argparse.ArgumentTypeError(f"expected one character, tab or blanks, got '{text}'")
    return character


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
