# SPDX-License-Identifier: BSD-3-Clause
"""The mutants of `make mutants` are valid, and its tool recognises survivors."""

import functools
import re
from collections import Counter

import mutation
import pytest
from mutants import MUTANTS, Mutant
from mutants.mutant import planted, with_choices

ROOT = mutation.ROOT


@functools.cache
def text_of(file):
    return (ROOT / file).read_text()


@functools.cache
def names_of_tests_in(file):
    return set(re.findall(r"^def (\w+)", text_of(file), re.MULTILINE))


def test_every_mutant_is_another_program():
    assert len(MUTANTS) >= 40
    assert not [name for name, count in Counter(mutant.name for mutant in MUTANTS).items() if count > 1]
    for mutant in MUTANTS:
        text = planted(mutant, text_of(mutant.file))
        assert text != text_of(mutant.file), mutant.name
        assert (mutant.build == "python") == mutant.file.endswith(".py"), mutant.name
        if mutant.build == "python":
            compile(text, mutant.file, "exec")


def test_mutants_name_tests_that_there_are():
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for name in mutant.tests:
            file, _, test = name.partition("::")
            assert (ROOT / file).exists(), mutant.name
            assert not test or test.partition("[")[0] in names_of_tests_in(file), f"{mutant.name}: there is no {name}"


@pytest.mark.parametrize("build", ["cpu", "races", "addresses"])
def test_every_choice_of_a_build_is_written_once(build):
    sources = "".join(mutation.sources(build).values())
    numbers = [mutation.number_of(mutant) for mutant in MUTANTS if mutant.build == build]
    assert numbers == list(range(1, len(numbers) + 1))  # 0 selects none
    for number in numbers:
        assert sources.count(f"(linreg_mutant == {number})") + sources.count(f"(linreg_mutant == {number} ?") == 1


def test_choices_of_statements_and_expressions():
    file, text = "a.h", "// SPDX-License-Identifier: BSD-3-Clause\nif (a < b) c = a;\nd = a;\n"
    statement = Mutant("statement", file, "c = a;", "c = b;", ())
    expression = Mutant("expression", file, "a", "b", (), within="d = a")
    chosen = with_choices(file, text, {3: statement, 4: expression})
    assert chosen == (
        "extern const int linreg_mutant;  // SPDX-License-Identifier: BSD-3-Clause\n"
        "if (a < b) { if (linreg_mutant == 3) { c = b; } else { c = a; } }\nd = (linreg_mutant == 4 ? (b) : (a));\n"
    )
    assert with_choices("b.h", text, {3: statement}) == text
    with pytest.raises(ValueError, match=r"expression: a\.h must have it once, got 0 times: 'd = a'"):
        planted(expression, "")
    with pytest.raises(ValueError, match="got 2 times: 'a'"):
        planted(Mutant("twice", file, "a", "b", (), within="a + a"), "a + a")
    with pytest.raises(ValueError, match=r"part: a\.h must not have another mutant in the same place"):
        with_choices(file, text, {3: statement, 4: Mutant("part", file, "a", "b", (), within="c = a")})


def test_what_notices_a_mutant():
    plain = Mutant("plain", "a.h", "a", "b", ())
    picky = Mutant("picky", "a.h", "a", "b", (), says=("race", "allowed"))
    failed = "...F\nFAILED tests/test_x.py::test_y[1] - a race\n"
    assert mutation.killer(0, "", plain) == ""
    assert mutation.killer(1, failed, plain) == mutation.killer(1, failed, picky) == "test_x.py::test_y[1]"
    assert mutation.killer(1, failed.replace("race", "number"), picky) == ""
    begun = "tests/test_x.py::test_x PASSED\ntests/test_x.py::test_y[1] "
    assert mutation.killer(-11, begun, plain) == "test_x.py::test_y ended with status -11"
    assert mutation.killer(None, begun, plain) == "test_x.py::test_y hung"
    with pytest.raises(SystemExit, match="pytest cannot run the tests of 'plain'"):
        mutation.killer(4, "ERROR: not found", plain)


def test_what_each_of_several_tests_notices():
    mutant = Mutant("wide", "a.h", "a", "b", ("tests/test_x.py::test_y", "tests/test_x.py::test_z"), every=True)
    failed = "FAILED tests/test_x.py::test_y[a b-1] - AssertionError: tests/test_x.py::test_z\n"
    assert mutation.overlooked(failed, mutant) == ["tests/test_x.py::test_z"]
    assert mutation.overlooked(failed + "FAILED tests/test_x.py::test_z\n", mutant) == []
