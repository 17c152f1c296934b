# SPDX-License-Identifier: BSD-3-Clause
"""Says what is wrong in a subinterpreter, where importing torch hangs or crashes: before anything imports it."""

from __future__ import annotations

import importlib


def _is_main() -> bool:
    for name in ("_interpreters", "_xxsubinterpreters"):  # of Python 3.13, and before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return interpreters.get_current() == interpreters.get_main()
    return True


if not _is_main():
    message = "linreg_ext: torch works in a process's main interpreter alone; this is a subinterpreter"
    raise ImportError(message, name=__package__)
