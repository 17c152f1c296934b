# SPDX-License-Identifier: BSD-3-Clause
"""The command line: `linreg-ext fit | predict | info` or `python -m linreg_ext …`.

`fit` trains a linear model on a table and writes a folder with its weights, history and plot. `predict` applies the
model in that folder to another table. An error in the input prints one line on stderr and exits with code 2.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch

from ..tables import TableError
from .arguments import parse
from .errors import CommandError, print_error

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments; None uses those of the process.

    Returns:
        The exit code: 0; 2 after an error in the input; 130 after Ctrl-C; 141 if stdout was closed.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # R² must not fail on an ASCII terminal
    try:
        args = parse(argv)
        args.command(args)
        sys.stdout.flush()
    except (CommandError, TableError) as error:
        return print_error(str(error))
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
        return 141
    except OSError as error:
        return print_error(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except (MemoryError, torch.OutOfMemoryError):
        return print_error("not enough memory for this table")
    return 0
