# SPDX-License-Identifier: BSD-3-Clause
"""Errors that are the user's to mend: one line on stderr."""

from __future__ import annotations

import sys


class CommandError(Exception):
    """Something that the user can mend; the message is one line."""


def print_error(message: str) -> int:
    """Print the message as one line on stderr; returns the exit code."""
    print("linreg_ext: error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2
