# SPDX-License-Identifier: BSD-3-Clause
"""Mutants, and how they are written into a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SPDX = "// SPDX-License-Identifier: BSD-3-Clause\n"
VARIABLE = "LINREG_MUTANT"  # the environment variable with the number of the mutant to run
DEFINITION = f"""#include <cstdlib>
extern const int linreg_mutant;
const int linreg_mutant = std::getenv("{VARIABLE}") ? std::atoi(std::getenv("{VARIABLE}")) : 0;
"""
DEFINED_IN = "csrc/torch/module.cpp"


@dataclass(frozen=True)
class Mutant:
    """A fault: `new` in place of `old` in `file`.

    Attributes:
        name: the fault.
        file: relative to the root of the repository.
        old, new: in C++ a whole statement with its `;`, or an expression, selected as the program runs.
        tests: the tests that should detect it, likeliest first, as arguments of pytest.
        within: if `old` occurs several times in the file, text that occurs once and contains it once.
        says: words, one of which the failing tests must print.
        every: whether all of `tests`, rather than any, must detect it.
        build: "python"; for C++ "cpu" or, in the interpreter of tests/simt, "races" (with its race detector) or
            "addresses" (with AddressSanitizer and UBSan).
        processor: a word of /proc/cpuinfo, without which the fault changes nothing.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    within: str = ""
    says: tuple[str, ...] = ()
    every: bool = False
    build: str = "cpu"
    processor: str = ""

    def place(self, text: str) -> tuple[int, int]:
        """The begin and end of `old` in the file's text.

        Raises:
            ValueError: it does not occur exactly once.
        """
        within = self.within or self.old
        for what, where in ((within, text), (self.old, within)):
            if where.count(what) != 1:
                raise ValueError(f"{self.name}: {self.file} must have it once, got {where.count(what)} times: {what!r}")
        begin = text.index(within) + within.index(self.old)
        return begin, begin + len(self.old)


def planted(mutant: Mutant, text: str) -> str:
    """The text with the fault."""
    begin, end = mutant.place(text)
    return text[:begin] + mutant.new + text[end:]


def with_choices(file: str, text: str, mutants: Mapping[int, Mutant]) -> str:
    """A C++ source that has the fault selected by the environment when the program starts, or none.

    Raises:
        ValueError: two mutants overlap.
    """
    places = sorted((*mutant.place(text), number, mutant) for number, mutant in mutants.items() if mutant.file == file)
    parts, at = [], 0
    for begin, end, number, mutant in places:
        if begin < at:
            raise ValueError(f"{mutant.name}: {file} must not have another mutant in the same place")
        is_chosen = f"linreg_mutant == {number}"
        if mutant.old.endswith(";"):
            choice = f"{{ if ({is_chosen}) {{ {mutant.new} }} else {{ {mutant.old} }} }}"
        else:
            choice = f"({is_chosen} ? ({mutant.new}) : ({mutant.old}))"
        parts += [text[at:begin], choice]
        at = end
    chosen = "".join([*parts, text[at:]])
    if file == DEFINED_IN:
        chosen = chosen.replace(SPDX, DEFINITION + SPDX, 1)
    elif parts:  # before any namespace, and on an existing line, so that line numbers stay the same
        chosen = chosen.replace(SPDX, f"extern const int linreg_mutant;  {SPDX}", 1)
    return chosen
