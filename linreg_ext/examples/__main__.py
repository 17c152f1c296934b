# SPDX-License-Identifier: BSD-3-Clause
"""``python -m linreg_ext.examples [A B ...] [--device cpu|cuda] [--plot FILE]``"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from . import a_two_features, b_one_feature, c_apples_and_oranges, d_three_rows, e_absolute_error
from .figures import table

PROGRAMS = {
    "A": a_two_features,
    "B": b_one_feature,
    "C": c_apples_and_oranges,
    "D": d_three_rows,
    "E": e_absolute_error,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named programs, print the table; 1 when a figure is off."""
    parser = _parser()
    options = parser.parse_args(arguments)
    names = sorted(set(options.programs)) or list(PROGRAMS)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")
    if options.plot is not None:
        if len(options.programs) != 1:
            parser.error("--plot draws one program: name exactly one")
        if not options.plot.parent.is_dir():
            parser.error(f"--plot: there is no folder {options.plot.parent}")
        if importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib (`pip install matplotlib`)")

    device = torch.device(options.device)
    rows = [row for name in names for row in PROGRAMS[name].check(device)]
    print(table(rows))
    off = sum(not row.ok for row in rows)
    print(f"\n{off} of {len(rows)} figures off" if off else f"\nall {len(rows)} figures as expected")

    if options.plot is not None:
        try:
            _plot(PROGRAMS[names[0]], options.plot, device)
        except ValueError as error:  # matplotlib's word on a suffix it does not know
            parser.error(f"--plot: {error}")
        print(f"wrote {options.plot}")
    return 1 if off else 0


def _parser() -> argparse.ArgumentParser:
    programs = "\n".join(f"  {name}  {module.TITLE}" for name, module in PROGRAMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m linreg_ext.examples",
        description="Runs the five tutorial programs with plain PyTorch (eager) and with linreg_ext (fused)\n"
        f"and prints every figure beside the expected one.\n\nprograms:\n{programs}",
        epilog="~ marks a figure with a tolerance; the others must print exactly so.\nExit status 1: a figure is off.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("programs", nargs="*", type=_program, metavar="PROGRAM", help="A to E; all unless named")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: %(default)s)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the named program's plots into FILE")
    return parser


def _program(name: str) -> str:
    if name.upper() not in PROGRAMS:
        raise argparse.ArgumentTypeError(f"there is no program '{name}'; choose from {', '.join(PROGRAMS)}")
    return name.upper()


def _plot(program: ModuleType, path: Path, device: torch.device) -> None:
    from matplotlib.figure import Figure  # needed for --plot only

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    program.draw(figure, device)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
