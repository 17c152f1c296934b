# SPDX-License-Identifier: BSD-3-Clause
"""For each case, check every variant's answer, then time the variants in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch

from . import clocks
from .availability import UnavailableError
from .clocks import Sampler, Variant
from .names import BARE_REDUCE, BWREAD, HALF_PRODUCT, NAME, PRODUCTS, READING
from .problem import TOLERANCE, Expected, Problem, WrongAnswerError, verify
from .results import Results, Row, aligned, duration

Maker = Callable[[], Variant]


@dataclass
class Case:
    """A piece of work: the id of its target, its sizes, and the least bytes it must move."""

    workload: str
    id: str
    name: str
    n: int
    d: int
    k: int = 1
    dtype: torch.dtype = torch.float32
    bytes: int = 0

    @staticmethod
    def of(workload: str, id: str, problem: Problem) -> Case:
        name = f"{problem.n:,} × {problem.d:,}" + (f" × {problem.k:,}" if problem.k > 1 else "")
        return Case(workload, id, name, problem.n, problem.d, problem.k, problem.x.dtype, problem.bytes)


@dataclass
class Bench:
    """A benchmark run: its device and thoroughness, and where its rows go."""

    results: Results
    device: str = "cpu"
    quick: bool = False
    peers: frozenset[str] | None = None  # None: all
    failures: list[str] = field(default_factory=list)

    @property
    def large(self) -> int:
        """More bytes than any cache holds."""
        if self.quick:
            return 2**28 if self.device == "cuda" else 2**22
        return 2**31 if self.device == "cuda" else 2**30

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Use, and record in rows, another number of threads."""
        before, about = torch.get_num_threads(), self.results.about
        torch.set_num_threads(count)
        self.results.about = about | {"threads": str(count)}
        try:
            yield
        finally:
            torch.set_num_threads(before)
            self.results.about = about

    def compare(
        self, case: Case, makers: Mapping[str, Maker], expected: dict[str, Expected], tolerance: float | None = None
    ) -> None:
        """Check the variants' answers, time those that are right, and write and print a row for each."""
        print(f"\n{case.id or case.workload}  {case.name}  {_dtype(case.dtype)}", flush=True)
        allowed = TOLERANCE[case.dtype] if tolerance is None else (tolerance, tolerance)
        variants = {
            name: variant
            for name, make in makers.items()
            if self.wanted(name) and (variant := self._checked(name, make, expected, allowed))
        }
        samplers = {name: s for name, variant in variants.items() if (s := self._sampler(name, variant))}
        self._write(case, variants, self._times(variants, samplers))
        samplers.clear()
        variants.clear()
        self.clean()

    def wanted(self, name: str) -> bool:
        """Whether to run a variant. Ours and the bounds always run."""
        bounds = (BWREAD, PRODUCTS, HALF_PRODUCT, READING, BARE_REDUCE)
        return self.peers is None or name.startswith(NAME) or name in bounds or name in self.peers

    def clean(self) -> None:
        """Free what a case held."""
        torch._dynamo.reset()
        if not self.quick:
            gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def fail(self, name: str, why: object) -> None:
        """Record a failure of ours and go on."""
        self.failures.append(f"{name}: {why}")
        print(f"  FAILED: {name}: {why}", flush=True)

    def _checked(
        self, name: str, make: Maker, expected: dict[str, Expected], allowed: tuple[float, float]
    ) -> Variant | None:
        is_ours = name.startswith(NAME)
        try:
            variant = make()
            variant.run()
            variant.finish()
            if variant.answer:
                verify(name, variant.answer(), expected, variant.tolerance or allowed[not is_ours])
        except UnavailableError as reason:
            print(f"  skipped: {reason}")
        except WrongAnswerError as wrong:
            self.fail(name, wrong) if is_ours else print(f"  refused: {wrong}")
        except Exception as error:  # whatever a peer raises, the others go on
            lines = str(error).strip().splitlines() or [""]
            self.fail(name, lines[0]) if is_ours else print(f"  skipped: {name}: {type(error).__name__}: {lines[0]}")
        else:
            return variant
        return None

    def _sampler(self, name: str, variant: Variant) -> Sampler | None:
        at_least = 0.002 if self.quick else 0.02 if self.device == "cuda" else 0.05
        if self.device == "cpu" or variant.clock == "wall":
            variant.clock = "wall"
            return clocks.wall(variant, at_least)
        try:
            return clocks.graph(variant, at_least)
        except Exception as error:  # time without a graph what cannot be captured
            torch.cuda.synchronize()
            why = f"cannot be captured in a graph: {(str(error).splitlines() or [''])[0]}"
            self.fail(name, why) if name.startswith(NAME) else print(f"  {name}: {why}")
            variant.clock = "events"
            return clocks.events(variant, at_least)

    def _times(self, variants: dict[str, Variant], samplers: dict[str, Sampler]) -> dict[str, list[float]]:
        """The times of each variant; they take turns, so that whatever slows the machine slows them all. After half a
        minute of its own, a variant has no more turns."""
        times: dict[str, list[float]] = {name: [] for name in samplers}
        rests = not self.quick and self.device == "cpu"
        until = time.monotonic() + (0 if self.quick else 0.5 if self.device == "cuda" else 2)
        for repeat in range(25):
            if repeat >= (3 if self.quick else 11) and time.monotonic() > until:
                break
            for name, sample in samplers.items():
                if sum(times[name]) > 30:
                    continue
                times[name].append(sample())
                time.sleep(variants[name].rest if rests else 0)
        return times

    def _write(self, case: Case, variants: dict[str, Variant], times: dict[str, list[float]]) -> None:
        medians = {name: median(seconds) for name, seconds in times.items()}
        moved = {name: variants[name].bytes or case.bytes for name in medians}
        rate = {name: moved[name] / seconds / 1e9 for name, seconds in medians.items()}
        lines = [("variant", "time", "±", "GB/s", "of BWread", "× eager")]
        for name, seconds in medians.items():
            low, _, high = quantiles(times[name], n=4) if len(times[name]) > 1 else (0, 0, 0)
            row = self.results.add(
                **self.columns(case, name, variants[name].role, variants[name].clock),
                seconds=seconds, spread=(high - low) / seconds, repeats=len(times[name]), bytes=moved[name] or "",
                gb_per_s=rate[name] or "",
                of_bwread=rate[name] / rate[BWREAD] if BWREAD in rate else "",
                over_eager=medians["eager"] / seconds if "eager" in medians else "",
            )  # fmt: skip
            lines.append(_line(row))
        print("  " + aligned(lines).replace("\n", "\n  "), flush=True)

    def columns(self, case: Case, variant: str, role: str, clock: str = "") -> dict[str, object]:
        """The columns of a row that identify the measurement."""
        return {
            "workload": case.workload, "id": case.id, "case": case.name, "n": case.n, "d": case.d, "k": case.k,
            "dtype": _dtype(case.dtype), "device": self.device, "variant": variant, "role": role, "clock": clock,
        }  # fmt: skip


def _line(row: Row) -> tuple[str, ...]:
    def number(column: str, form: str) -> str:
        return format(float(row[column]), form) if row[column] else ""

    return (
        row["variant"], duration(float(row["seconds"])), number("spread", ".0%"), number("gb_per_s", ".4g"),
        number("of_bwread", ".2f"), number("over_eager", ".3g"),
    )  # fmt: skip


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
