# SPDX-License-Identifier: BSD-3-Clause
"""The project's performance targets, and whether rows of results meet them.

Every figure is a time, or a ratio of medians from one run. `BWread` is the bandwidth at which the same threads read the
same array.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .names import BARE_REDUCE, HALF_PRODUCT, ONE_BY_ONE, PRODUCTS, READING, RUN_EPOCHS
from .results import Row, duration

Case = dict[str, Row]  # the rows of one case, by variant


@dataclass(frozen=True)
class Target:
    """A condition on our variant in every case of one id.

    quantity: "of BWread"; "speed-up over", "time over" or "memory over" another variant; "seconds"; "MB of memory";
    "value"; "exactly"; "same bits".
    """

    id: str
    quantity: str
    must: float
    than: str = ""
    variant: str = ""  # one of ours; empty: the fastest of them
    where: Callable[[Row], bool] = lambda row: True

    @property
    def at_least(self) -> bool:
        return self.quantity in ("of BWread", "speed-up over", "same bits")

    @property
    def sign(self) -> str:
        return "=" if self.quantity == "exactly" else "≥" if self.at_least else "≤"

    def met(self, value: float) -> bool:
        if self.quantity == "exactly":
            return value == self.must
        return value >= self.must if self.at_least else value <= self.must

    @property
    def words(self) -> str:
        words = [] if self.quantity in ("value", "exactly", "same bits") and self.variant else [self.quantity]
        return ", ".join(filter(None, (" ".join([*words, self.than]).strip(), self.variant)))

    def measured(self, case: Case) -> tuple[Row, float] | None:
        """Our row and the figure; None if the case lacks what the target needs."""
        candidates = [row for row in case.values() if row["role"] == "ours" and self.where(row)]
        candidates = [row for row in candidates if row["variant"].endswith(self.variant)]
        other = case.get(self.than)
        if not candidates or (self.than and other is None):
            return None
        row = min(candidates, key=lambda row: float(row["seconds"] or "inf"))
        column, inverse = {
            "of BWread": ("of_bwread", False),
            "speed-up over": ("seconds", True),
            "time over": ("seconds", False),
            "seconds": ("seconds", False),
            "memory over": ("memory_bytes", False),
            "MB of memory": ("memory_bytes", False),
            "value": ("value", False),
            "exactly": ("value", False),
            "same bits": ("value", False),
        }[self.quantity]
        if not row[column]:
            return None
        value = float(row[column]) / (float(other[column]) if other else 1e6 if column == "memory_bytes" else 1)
        return row, 1 / value if inverse else value


def _wide(least: int, most: int = 2**62) -> Callable[[Row], bool]:
    return lambda row: least <= int(row["d"]) <= most


def _on(isa: str) -> Callable[[Row], bool]:
    return lambda row: row["isa"] == isa


def _deep(k: int) -> Callable[[Row], bool]:
    return lambda row: int(row["k"]) == k


def _of(dtype: str, odd: bool = False) -> Callable[[Row], bool]:
    return lambda row: row["dtype"] == dtype and int(row["d"]) > 8 and (int(row["d"]) % 2 == 1) == odd


TARGETS = (
    Target("C1", "of BWread", 0.92),
    Target("C1", "speed-up over", 1.8, "eager"),
    Target("C2", "of BWread", 0.80),
    Target("C2", "speed-up over", 4.0, "eager", where=_wide(1, 1)),
    Target("C2", "speed-up over", 2.3, "eager", where=_wide(8, 8)),
    Target("C3", "of BWread", 0.50, where=_wide(16, 63)),
    Target("C3", "of BWread", 0.60, where=_wide(64)),
    Target("C4", "seconds", 30e-6, where=_on("AVX512")),
    Target("C4", "seconds", 45e-6, where=_on("AVX2")),
    Target("C4", "speed-up over", 1000, "eager"),
    Target("C4", "speed-up over", 15, "JAX scan"),
    Target("C5", "seconds", 1.5e-6, variant="_C.sgd_step_"),
    Target("C5", "seconds", 4e-6, variant="torch.ops"),
    Target("C5", "seconds", 3e-6, variant="TrainStep"),
    Target("C5", "speed-up over", 25, "eager", variant="TrainStep"),
    Target("C6", "of BWread", 0.80, where=_on("AVX512")),
    Target("C6", "of BWread", 0.60, where=_on("AVX2")),
    Target("C6", "speed-up over", 3, "eager"),
    Target("C7", "time over", 1.10, PRODUCTS),
    Target("C7", "speed-up over", 1.1, "eager"),
    Target("C8", "speed-up over", 150, "eager"),
    Target("C9", "time over", 0.45, "eager"),
    Target("C10", "memory over", 1 / 32, "eager"),
    Target("C11", "same bits", 1),
    Target("C12", "speed-up over", 15, "bmm by hand", variant="sgd_run_many_"),
    Target("C12", "speed-up over", 25, "JAX vmap", variant="sgd_run_many_"),
    Target("C12", "seconds", 4e-3, variant="moments"),
    Target("C13", "time over", 0.6, ONE_BY_ONE, variant="sgd_run_many_"),
    Target("C13", "time over", 0.05, ONE_BY_ONE, variant="moments"),
    Target("C14", "time over", 1.2, HALF_PRODUCT),
    Target("C14", "speed-up over", 25, "scikit-learn", where=lambda row: int(row["n"]) >= 2**22),
    Target("C14", "MB of memory", 64),
    Target("C14b", "of BWread", 0.8),
    Target("C15", "time over", 1 / 0.9, READING),
    Target("C16", "time over", 1.15, BARE_REDUCE),
    Target("C16", "speed-up over", 2, "plain DDP"),
    Target("S1", "speed-up over", 20, "scikit-learn LinearRegression"),
    Target("S2", "speed-up over", 5, "scikit-learn SGDRegressor", variant="one epoch"),
    Target("G1", "of BWread", 0.94),
    Target("G2", "of BWread", 0.92, where=_of("bfloat16")),
    Target("G2", "of BWread", 0.94, where=_of("float64")),
    Target("G2", "of BWread", 0.90, where=_wide(1, 8)),
    Target("G2", "of BWread", 0.85, where=_of("float32", odd=True)),
    Target("G3", "speed-up over", 1.85, "eager"),
    Target("G3", "speed-up over", 1.6, "compiled"),
    Target("G4", "of BWread", 0.60),
    Target("G5", "of BWread", 0.90, where=_deep(2)),
    Target("G5", "of BWread", 0.88, where=_deep(4)),
    Target("G5", "of BWread", 0.80, where=_deep(8)),
    Target("G5", "of BWread", 0.60, where=_deep(16)),
    Target("G6", "time over", 1.12, PRODUCTS),
    Target("G6", "speed-up over", 1.5, "eager", where=_deep(1024)),
    Target("G6", "speed-up over", 1.15, "eager", where=_deep(4096)),
    Target("G8", "seconds", 0.6e-6 * RUN_EPOCHS, variant="sgd_run_"),
    Target("G8", "speed-up over", 25, "eager", variant="sgd_run_"),
    Target("G9", "seconds", 0.25e-3, variant="sgd_run_"),
    Target("G9", "speed-up over", 500, "eager", variant="sgd_run_"),
    Target("G11", "exactly", 1, variant="kernels a step"),
    Target("G11", "exactly", 0, variant="copies and fills a step"),
    Target("G11", "exactly", 0, variant="allocations from the driver"),
    Target("G11", "exactly", 0, variant="synchronisations"),
    Target("G11", "seconds", 3.5e-6, variant="TrainStep"),
    Target("G12", "same bits", 1, variant="same bits 100 times"),
    Target("G12", "value", 1.03, variant="fixed order over atomics"),
    Target("G13", "of BWread", 0.94),
)


def cases(rows: Iterable[Row]) -> list[Case]:
    """The rows that were measured side by side."""
    found: dict[tuple[str, ...], Case] = defaultdict(dict)
    for row in rows:
        key = tuple(row[c] for c in ("workload", "id", "case", "dtype", "device", "machine", "threads", "isa"))
        found[key][row["variant"]] = row
    return list(found.values())


def judge(rows: Iterable[Row]) -> list[tuple[str, str, str, str, str, str]]:
    """One line per target and case: id, case, quantity, measured, must, met."""
    lines = []
    for case in cases(rows):
        first = next(iter(case.values()))
        for target in TARGETS:
            if target.id != first["id"] or not (found := target.measured(case)):
                continue
            row, value = found
            shown, must = (_figure(number, target.quantity) for number in (value, target.must))
            name = f"{first['case']} {row['dtype']}" if row["dtype"] not in ("", "float32") else first["case"]
            lines.append(
                (target.id, name, target.words, shown, f"{target.sign} {must}", "yes" if target.met(value) else "NO")
            )
    return sorted(lines, key=lambda line: (line[0][0], int(line[0][1:].rstrip("b"))))


def _figure(number: float, quantity: str) -> str:
    return duration(number) if quantity == "seconds" else f"{number:.3g}"
