# SPDX-License-Identifier: BSD-3-Clause
"""`python -m linreg_ext.examples [A B ...] [--device cpu|cuda]`"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence

import torch

from . import a_two_features, b_one_feature, c_apples_and_oranges, compare, d_three_rows, e_absolute_error, table

SCRIPTS = (a_two_features, b_one_feature, c_apples_and_oranges, d_three_rows, e_absolute_error)
PROGRAMS = dict(zip("ABCDE", SCRIPTS, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named programs and print the table; return 1 when a figure is off."""
    parser = argparse.ArgumentParser(
        prog="python -m linreg_ext.examples",
        description="Run five tutorial programs in plain PyTorch (eager) and with linreg_ext (fused), and print each\n"
        "figure beside the expected one.\n\n" + "\n".join(script.__doc__.partition("\n")[0] for script in SCRIPTS),
        epilog="A figure without ± must be right in every digit shown. The exit status is 1 if a figure is off.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("programs", nargs="*", type=str.upper, metavar="PROGRAM", help="A to E (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    options = parser.parse_args(arguments)
    for name in set(options.programs) - set(PROGRAMS):
        parser.error(f"PROGRAM must be one of {', '.join(PROGRAMS)}, got '{name}'")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no CUDA device here")

    rows = []
    for name in sorted(set(options.programs)) or PROGRAMS:
        with contextlib.redirect_stdout(io.StringIO()):  # the log of program C
            rows += compare(PROGRAMS[name].figures, options.device)
    print(table(rows))
    off = sum(row[-1] != "ok" for row in rows)
    print(f"\n{off} of {len(rows)} figures off" if off else f"\nall {len(rows)} figures as expected")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
