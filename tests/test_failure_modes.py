# SPDX-License-Identifier: BSD-3-Clause
"""Every row in the table of failure modes, tests/README.md, names an existing test or a reason for having none."""

import ast
import functools
import re
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def _functions_of(file):
    return {node.name for node in ast.parse((HERE / file).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_of_the_table_names_tests_that_exist():
    text = (HERE / "README.md").read_text().partition("## How libraries like this one have failed")[2]
    rows = re.findall(r"^\| (.*) \| *(.*?) *\|$", text, re.M)
    rows = [row for row in rows if row[0] not in ("failure", ":--")]
    assert len(rows) > 80
    for mode, answer in rows:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", answer)
        assert named or re.match("does not apply: .{20}", answer), f"nothing answers to: {mode}"
        assert answer.count("::") == len(named), f"not the name of a test: {answer}"
        for file, test in named:
            assert test in _functions_of(file), f"{file}::{test}"
