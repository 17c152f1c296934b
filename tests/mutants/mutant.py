# SPDX-License-Identifier: BSD-3-Clause
"""What a mutant is, and how it is written into a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SPDX = "// SPDX-License-Identifier: BSD-3-Clause\n"
VARIABLE = "LINREG_MUTANT"  # of the environment: the number of the mutant that a build with choices is to be
DEFINITION = f"""#include <cstdlib>
extern const int linreg_mutant;
const int linreg_mutant = std::getenv("{VARIABLE}") ? std::atoi(std::getenv("{VARIABLE}")) : 0;
"""
DEFINED_IN = "csrc/torch/module.cpp"


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, `new` instead of `old`.

    Attributes:
        name: what is wrong.
        file: from the root of the repository.
        old, new: of C++ a whole statement, `;` and all, or an expression: each mutant is chosen as the program runs.
        tests: what should notice, likeliest first; files or tests as pytest takes them.
        within: text that is in the file once and has `old` once, where the file has `old` several times.
        says: words of which the failing tests have to print one.
        every: whether each of `tests`, and not any one, has to notice.
        build: "python", and of C++ "cpu" or, in the interpreter of tests/simt, "races" (with the detector of races) or
            "addresses" (with AddressSanitizer and UBSan).
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

    def place(self, text: str) -> tuple[int, int]:
        """Where `old` begins and ends in the file's text.

        Raises:
            ValueError: that is not one place.
        """
        within = self.within or self.old
        for what, where in ((within, text), (self.old, within)):
            if where.count(what) != 1:
                raise ValueError(f"{self.name}: {self.file} must have it once, got {where.count(what)} times: {what!r}")
        begin = text.index(within) + within.index(self.old)
        return begin, begin + len(self.old)


def planted(mutant: Mutant, text: str) -> str:
    """The text with the fault in it."""
    begin, end = mutant.place(text)
    return text[:begin] + mutant.new + text[end:]


def with_choices(file: str, text: str, mutants: Mapping[int, Mutant]) -> str:
    """A C++ source that has the fault of a number, or none, as the environment says when the program starts.

    Raises:
        ValueError: two mutants are in one place.
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
    elif parts:  # before any namespace, and on a line that is there: the others keep their numbers
        chosen = chosen.replace(SPDX, f"extern const int linreg_mutant;  {SPDX}", 1)
    return chosen
