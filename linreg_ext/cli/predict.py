# SPDX-License-Identifier: BSD-3-Clause
"""``predict``: apply the weights of an earlier `fit` to another table."""

from __future__ import annotations

import argparse
import sys

from ..tables import read_table
from .coefficients import load_weights
from .errors import CommandError
from .run_folder import atomic_write, write_csv


def predict(args: argparse.Namespace) -> None:
    """Write the predictions as CSV, one column per target."""
    model = load_weights(args.dir)
    predicted = model.predict(read_table(args.table).select(model.features)).tolist()
    if args.out is None:
        write_csv(sys.stdout, model.targets, predicted)
        return
    if args.out.exists() and args.out.samefile(args.table):
        raise CommandError(f"--out {args.out}: is the table itself")
    try:
        with atomic_write(args.out) as file:
            write_csv(file, model.targets, predicted)
    except OSError as error:
        raise CommandError(f"--out {args.out}: {error.strerror or error}") from None
    print(f"wrote {args.out}: {len(predicted):,} rows")
