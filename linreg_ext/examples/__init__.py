# SPDX-License-Identifier: BSD-3-Clause
"""Five tutorial programs: linreg_ext under `if fused:`, and under `else:` the plain PyTorch that it replaces.

`python -m linreg_ext.examples` runs both and compares them with the figures that the tutorials print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# figures(fused, device): rows of (name, expected, numbers) or (name, expected, numbers, tolerance or tolerances)
Figures = Callable[[bool, torch.device], Sequence[tuple[Any, ...]]]


def compare(figures: Figures, device: torch.device | str = "cpu") -> list[list[str]]:
    """Rows of [name, expected, eager, fused, "ok" or "NOT OK"].

    Without a tolerance, numbers must be within half a unit of the last expected digit.
    """
    device, rows = torch.device(device), []
    for eager, fused in zip(figures(False, device), figures(True, device), strict=True):
        name, expected, _, *tolerance = eager
        words = expected.split() if isinstance(expected, str) else [f"{value:.4f}" for value in _column(expected)]
        decimals = [len(word.partition(".")[2]) for word in words]
        wanted = _column([float(word) for word in words] if isinstance(expected, str) else expected)
        allowed = _column(*tolerance or [[0.5 * 10.0**-count for count in decimals]])
        suffix = f" ± {tolerance[0]:g}" if tolerance and len(allowed) == 1 else ""
        row, ok = [name, " ".join(words) + suffix], True
        for numbers in (_column(eager[2]), _column(fused[2])):
            row.append(" ".join(f"{number:.{count}f}" for number, count in zip(numbers, decimals, strict=True)))
            ok &= bool(((numbers - wanted).abs() <= allowed).all())
        rows.append([*row, "ok" if ok else "NOT OK"])
    return rows


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows under a heading, in aligned columns."""
    rows = [["figure", "expected", "eager", "fused", ""], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _column(numbers: Any) -> torch.Tensor:
    """A number, a tensor or a list of either as one float64 vector on the CPU."""
    parts = numbers if isinstance(numbers, list) else [numbers]
    return torch.cat([torch.as_tensor(part, dtype=torch.float64, device="cpu").detach().flatten() for part in parts])
