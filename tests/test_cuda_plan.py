# SPDX-License-Identifier: BSD-3-Clause
"""What the plan of csrc/cuda/plan.h promises of an H100's passes, by counting."""

import ctypes
from dataclasses import dataclass

import pytest
from simt.build import HERE, build

pytestmark = pytest.mark.extended  # compiles for ten seconds

H100 = (132, 227 << 10, 50 << 20)  # multiprocessors, shared memory of a block, second-level cache
SMALL = (48, 99 << 10, 40 << 20)  # an RTX 4070's kind, with slow float64
DTYPES = {"float32": (0, 4), "float64": (1, 8), "bfloat16": (2, 2)}
MULTIPROCESSOR_THREADS = 512  # that the registers of a pass allow
CHAIN = 64  # rows

ONE_TARGET = [("float32", d, 1) for d in (1, 2, 4, 8, 13, 32, 101, 128, 512, 1001, 1024, 4096)]
ONE_TARGET += [(dtype, d, 1) for dtype in ("bfloat16", "float64") for d in (128, 1024)]
SEVERAL = [("float32", d, k) for d in (128, 512) for k in (2, 4, 8, 16)]


@dataclass
class Plan:
    product_rows: int
    threads: int
    blocks: int
    shared_bytes: int
    rows: int
    chain_tiles: int
    residual_tiles: int
    groups: int
    stages: int


@pytest.fixture(scope="module")
def plan_of():
    library = ctypes.CDLL(str(build([HERE / "plan.cpp"], kernels=False)))
    library.plan_of.argtypes = [ctypes.c_int, *[ctypes.c_int64] * 3, *[ctypes.c_int] * 3, ctypes.c_void_p]

    def plan(dtype, n, d, k, device=H100):
        out = (ctypes.c_int64 * 9)()
        library.plan_of(DTYPES[dtype][0], n, d, k, *device, out)
        return Plan(*out)

    return plan


@pytest.mark.parametrize(("dtype", "d", "k"), ONE_TARGET + SEVERAL)
def test_enough_bytes_are_on_their_way(plan_of, dtype, d, k):
    """32 KB a multiprocessor read at 0.95 of an H100's bandwidth."""
    row_bytes = DTYPES[dtype][1] * (d + k)
    plan = plan_of(dtype, (2 << 30) // row_bytes, d, k)
    assert plan.product_rows == 0
    resident = min(MULTIPROCESSOR_THREADS // plan.threads, H100[1] // plan.shared_bytes)
    assert plan.blocks == H100[0] * resident
    assert (plan.stages - 1) * plan.rows * row_bytes * resident >= 32 << 10


@pytest.mark.parametrize("device", [H100, SMALL], ids=["H100", "small"])
@pytest.mark.parametrize(
    ("dtype", "d", "k"), [case for case in ONE_TARGET + SEVERAL if case[0] != "float64" and case[2] != 2]
)
def test_additions_in_double_are_few(plan_of, dtype, d, k, device):
    """As many as sums, every CHAIN rows, but for chains that are not whole: tests/cuda_compile.py sees that there are no
    others."""
    plan = plan_of(dtype, 1 << 24, d, k, device)
    if plan.product_rows:
        pytest.skip("by matrix products")
    targets = 1 << (k - 1).bit_length()
    of_gradients = plan.groups * k * d / (plan.rows * plan.chain_tiles)
    of_residuals = 2 * min(plan.threads, plan.rows * targets) / (plan.rows * plan.residual_tiles)
    assert of_gradients + of_residuals <= 1.25 * k * (d + 2) / CHAIN


@pytest.mark.parametrize(("d", "k"), [(16384, 1), (65536, 1), (131072, 1)])
def test_wide_rows_are_found_in_the_cache_again(plan_of, d, k):
    plan = plan_of("float32", 1 << 15, d, k)
    assert plan.product_rows > 0
    assert plan.product_rows * d * 4 <= H100[2] // 2 + d * 4


@pytest.mark.parametrize("k", [33, 64, 1024, 4096])
def test_many_targets_fill_the_device(plan_of, k):
    assert plan_of("bfloat16", 1 << 20, 1024, k).product_rows >= 16384
