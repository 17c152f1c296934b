# SPDX-License-Identifier: BSD-3-Clause
"""`make cuda-compile` detects faulty kernels."""

import subprocess
import sys

import cuda_compile
import pytest

from benchmarks import probe

SPILLS = """
__global__ void __launch_bounds__(1024) spills(double* p, int n) {
  double sum[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) sum[i] = p[i];
  for (int j = 0; j < n; ++j)
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] += sum[(i + 17) % 64] * p[64 + j];
#pragma unroll
  for (int i = 0; i < 64; ++i) p[i] = sum[i];
}
"""
NARROW = """
template <int, int, bool, int> struct RowsShape {};
template <class S> __global__ void rows_kernel(float* p) { p[0] += p[1]; }
template __global__ void rows_kernel<RowsShape<0, 0, true, 0>>(float*);
"""
WRONG = "int x = ;"
RIGHT = "__global__ void twice(float* p) { *p *= 2; }"


@pytest.mark.extended
@pytest.mark.skipif(cuda_compile.find_nvcc() is None, reason="needs nvcc")
@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (SPILLS, 1, "spills spills "),
        (NARROW, 1, "rows_kernel<RowsShape<0, 0, true, 0> > has no 16-byte loads on sm_90"),
        (WRONG, 1, "expected an expression"),
        (RIGHT, 0, "twice  [kernel.cu]"),
        (probe.SOURCE, 0, "ring<4, 4>  [kernel.cu]"),
    ],
    ids=["spills", "narrow", "wrong", "right", "probe"],
)
def test_it_fails_for_what_is_wrong(source, code, says, tmp_path):
    file = tmp_path / "kernel.cu"
    file.write_text(source)
    command = [sys.executable, cuda_compile.__file__, "--arch", "90", file]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == code, run.stdout + run.stderr
    assert says in run.stdout


def test_nvccs_flags_are_those_of_the_build():
    assert "-O3" in cuda_compile.flags()


def test_enumerators_are_named():
    words = cuda_compile.enumerators()
    assert words["Dtype"][:2] == ["float32", "float64"]
    name = "void linreg::cuda::rows_kernel<linreg::RowsShape<(linreg::Dtype)1, true> >(linreg::cuda::Pass)"
    assert cuda_compile._shortened(name, words) == "rows_kernel<RowsShape<float64, true> >"
