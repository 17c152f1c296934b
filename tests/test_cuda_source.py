# SPDX-License-Identifier: BSD-3-Clause
"""Are the CUDA kernels right? Their own source, run on the CPU by tests/simt in place of the CPU kernels, has to pass the
tests that judge those: with AddressSanitizer and UBSan, with and without clusters, and with a detector of races.

And would these runs have noticed? Each sabotaged copy of a kernel has to fail them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from simt.build import ROOT, sanitizer_environment
from simt.module import build_module

pytestmark = pytest.mark.skipif("LINREG_EXT_SIMT" in os.environ, reason="runs inside of itself")


def module_of(sanitize, replace):
    return build_module(sanitize=sanitize, races=not sanitize, replace=replace)


def run_tests(*arguments, sanitize=False, replace=None, **settings):
    """The outcome of a pytest process whose linreg_ext computes with the kernels' source."""
    module = module_of(sanitize, replace)
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


def test_values_and_parity_with_sanitizers():
    passed(run_tests("tests/test_values.py", "tests/test_parity.py", "-k", f"not ({WIDE})", sanitize=True))


def test_parity_without_races():
    chosen = f"test_shapes and float32 or (test_shapes or million) and bfloat16 and ({WIDE})"
    passed(run_tests("tests/test_parity.py", "-k", chosen, SIMT_SEED="1", SIMT_MULTIPROCESSORS="5"))


def test_parity_on_a_device_without_clusters():
    settings = {"SIMT_MAX_CLUSTER": "1", "SIMT_MULTIPROCESSORS": "7", "SIMT_SEED": "2"}
    passed(run_tests("tests/test_parity.py", "-k", "test_shapes and (float32 or float64)", **settings))


def test_every_option_of_sgd():
    passed(run_tests("tests/test_training.py", "-k", "every_step and (float32 or bfloat16) or many_targets"))


# Every kernel of a run: a block's, and those of steps that are launched one by one.
RUNS = "not ctrl_c and not allocated and not stretch and not (single_step and (dampening or plain or data))"


def test_runs_without_races():
    passed(run_tests("tests/test_run.py", "-k", RUNS, SIMT_SEED="3", SIMT_MULTIPROCESSORS="3"))
    passed(run_tests("tests/test_loader_order.py", "-k", "every_loader and float64"))


def test_runs_with_sanitizers():
    passed(run_tests("tests/test_run.py", "-k", "parts or weights or times or otherwise or stops", sanitize=True))


SABOTAGE = {
    "a barrier": ("csrc/cuda/rows.cuh", "    sync_block();  // every warp's part is there\n", "    ;\n", "race"),
    "a fence": ("csrc/cuda/reduce.cuh", "  fence();       // this thread's sums", "  //", "race|allowed"),
    "a bounds check": ("csrc/cuda/rows.cuh", "valid && j < columns_ ?", "valid ?", "AddressSanitizer"),
    "a barrier of a run": ("csrc/cuda/run_resident.cuh", "sync_block();  // every warp's sums are there", ";", "race"),
    "a second place for sums": ("csrc/cuda/run_resident.cuh", "(step & 1) * (l.warps", "0 * (l.warps", "race"),
    "a place of all blocks' sums": ("csrc/cuda/run_resident.cuh", "(step & 1) * blocks * line", "0", "race|allowed"),
    "a wait for blocks": ("csrc/cuda/run_resident.cuh", "signalled(call.signals + block) < turn", "false", "race"),
    "a bound of a run": ("csrc/cuda/run_rows.cuh", "rows[u] >= 0 && column(c) < p_.d", "true", "AddressSanitizer"),
}


@pytest.fixture(scope="module")
def sabotaged():
    """Builds them two at a time: of each only one or two files are new, for which a compiler takes a minute."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda sabotage: module_of(*how(*sabotage)), SABOTAGE.values()):
            pass


def how(file, text, instead, word):
    return word == "AddressSanitizer", {file: (text, instead)}


@pytest.mark.parametrize("removed", SABOTAGE)
def test_a_kernel_without(removed, sabotaged):
    file, *_, word = SABOTAGE[removed]
    sanitize, replace = how(*SABOTAGE[removed])
    chosen = (
        ("tests/test_run.py", "-k", "parts or several")
        if "run_" in file
        else ("tests/test_parity.py", "-k", "test_shapes")
    )
    run = run_tests(*chosen, sanitize=sanitize, replace=replace)
    assert run.returncode != 0, f"{removed} was removed from {file}, and nothing noticed"
    assert any(w in run.stdout + run.stderr for w in word.split("|")), run.stdout[-4000:] + run.stderr[-4000:]
