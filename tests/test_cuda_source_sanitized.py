# SPDX-License-Identifier: BSD-3-Clause
"""The source of the CUDA kernels stays in bounds: run on the CPU by tests/simt with AddressSanitizer and UBSan. A
separate file from test_cuda_source.py, since each takes minutes."""

import os

import pytest
from test_cuda_source import LONG, VALUES, WIDE, passed, run_tests

pytestmark = pytest.mark.skipif("LINREG_EXT_SIMT" in os.environ, reason="runs inside of itself")


def test_values_and_parity():
    chosen = f"not ({WIDE})" if LONG else f"not ({WIDE} or {VALUES} or test_shapes and bfloat16)"
    passed(run_tests("tests/test_values.py", "tests/test_parity.py", "-k", chosen, sanitize=True))


def test_runs():
    chosen = "parts or weights or times or otherwise or stops or no_block"
    passed(run_tests("tests/test_run.py", "-k", chosen, sanitize=True))
