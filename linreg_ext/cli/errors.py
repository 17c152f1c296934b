# SPDX-License-Identifier: BSD-3-Clause
"""Errors that the user can fix: one line on stderr."""

from __future__ import annotations

import sys


class CommandError(Exception):
    """An error that the user can fix; the message is one line."""


def print_error(message: str) -> int:
    """Print the message as one line on stderr, and return the exit code."""
    print("linreg_ext: error:", " ".join(message.splitlines()), file=sys.stderr)
    return 2
