# SPDX-License-Identifier: BSD-3-Clause
"""The source of the CUDA kernels, run on the CPU by tests/simt with a race detector or with AddressSanitizer and UBSan, must
pass the tests of the CPU kernels. tests/mutants/cuda.py has the faults that these runs must detect."""

import os
import subprocess
import sys

import pytest
from simt.build import ROOT, sanitizer_environment
from simt.module import build_module

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif("LINREG_EXT_SIMT" in os.environ, reason="runs inside of itself"),
]


def run_tests(*arguments, sanitize=False, **settings):
    """The outcome of a pytest process in which linreg_ext runs the kernels' source."""
    module = build_module(sanitize=sanitize, races=not sanitize)
    environment = {**os.environ, **(sanitizer_environment() if sanitize else {}), **settings}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", "-s", *arguments],
        cwd=ROOT,
        env={**environment, "LINREG_EXT_SIMT": str(module)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def passed(run):
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-8000:]


WIDE = "131072 or 70001 or 40000 or million"  # a sanitizer takes minutes over these; the others see them
VALUES = "near_convergence or far_from_zero or float32_targets"  # of many rows, for their rounding


def test_parity_without_races():
    """Every instance of the pass for float32 and 16-bit rows; those for float64 are in the next test. Tiles that go round
    the ring and that do not, of one group of threads and several, of whole and divided rows; loss, gradients of each kind
    and steps; matrix products. Rows in an order are in the runs."""
    chosen = f"(test_shapes or far_apart) and float32 or (test_shapes or million) and bfloat16 and ({WIDE})"
    values = "far_from_zero or 0.0001 and bfloat16 or float32_targets and None"  # others see conversions
    tests = ("tests/test_parity.py", "tests/test_size.py", "-k", f"{chosen} or {values}")
    passed(run_tests(*tests, SIMT_SEED="1", SIMT_MULTIPROCESSORS="5"))


def test_parity_on_a_device_of_another_size():
    """Each shape once, with one of the dtypes."""
    settings = {"SIMT_MULTIPROCESSORS": "7", "SIMT_SEED": "2"}
    passed(run_tests("tests/test_parity.py", "-m", "not extended", "-k", "test_shapes", **settings))


def test_every_option_of_sgd():
    passed(run_tests("tests/test_training.py", "-k", "every_step and float32 or many_targets"))


# Every kernel of a run: in one block, and of steps launched one by one.
RUNS = "not ctrl_c and not allocated and not stretch and not (single_step and (dampening or plain or data))"


def test_runs_without_races():
    passed(run_tests("tests/test_run.py", "-k", RUNS, SIMT_SEED="3", SIMT_MULTIPROCESSORS="3"))
    passed(run_tests("tests/test_batches.py", "-k", "every_loader and float64"))


def test_many_runs():
    """A block for each, and of rows that no block holds one after another."""
    chosen = "not (ctrl_c or threads or is_a_run_alone or in_lanes or share_a_reading or bfloat16 or float16)"
    passed(run_tests("tests/test_run_many.py", "-k", chosen, SIMT_MULTIPROCESSORS="3"))


SMALL = "not extended"  # of the tests of least squares


def test_least_squares_without_races():
    chosen = "not (9000 or 20000 or lapack or few_and_many)"
    passed(run_tests("tests/test_least_squares.py", "-m", SMALL, "-k", chosen, SIMT_SEED="4", SIMT_MULTIPROCESSORS="3"))


def test_least_squares_within_bounds():
    chosen = "(shape and (float32 or bfloat16) or statistics or group or operators) and not (9000 or 20000)"
    passed(run_tests("tests/test_least_squares.py", "-m", SMALL, "-k", chosen, sanitize=True))


def test_values_and_parity_within_bounds():
    tests = ("tests/test_values.py", "tests/test_parity.py")
    passed(run_tests(*tests, "-m", "not extended", "-k", f"not ({WIDE} or {VALUES})", sanitize=True))


def test_shapes_within_bounds():
    chosen = f"test_shapes and (float32 or float64) and not ({WIDE})"
    passed(run_tests("tests/test_parity.py", "-m", "extended", "-k", chosen, sanitize=True))


def test_runs_within_bounds():
    chosen = "parts or weights or times or otherwise or stops or no_block"
    passed(run_tests("tests/test_run.py", "-k", chosen, sanitize=True))
