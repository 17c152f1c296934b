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
FENCE = """
__global__ void fences(float* p, int n) {
  for (int i = 0; i < n; ++i) {
    p[i] = p[i + 1] + 1;
    __threadfence();
  }
}
"""
NARROW = """
namespace linreg { enum class Dtype : signed char { float32 }; }
template <linreg::Dtype, bool, int> __global__ void tiles_kernel(float* p, int n, double d) {
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < 3; ++j) __syncthreads();
    for (int j = 0; j < n; ++j) p[j] = float(p[i] * d + p[j]);
  }
}
template __global__ void tiles_kernel<linreg::Dtype::float32, true, 1>(float*, int, double);
"""
WRONG = "int x = ;"
RIGHT = "__global__ void twice(float* p) { *p *= 2; }"


@pytest.mark.extended
@pytest.mark.skipif(
    cuda_compile.find_nvcc() is None or cuda_compile.find_nvdisasm() is None, reason="needs nvcc and nvdisasm"
)
@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (SPILLS, 1, "spills spills "),
        (FENCE, 1, "fences has a fence in a loop on sm_90"),
        (NARROW, 1, "> has no asynchronous copies of 16 bytes on sm_90"),
        (NARROW, 1, "> computes in double in a loop over rows on sm_90"),
        (WRONG, 1, "expected an expression"),
        (RIGHT, 0, "twice  [kernel.cu]"),
        (probe.SOURCE, 0, "ring<4, 4>  [kernel.cu]"),
    ],
    ids=["spills", "fence", "narrow", "double", "wrong", "right", "probe"],
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
    name = "void linreg::cuda::tiles_kernel<(linreg::Dtype)1, true, 4>(linreg::cuda::Pass)"
    assert cuda_compile._shortened(name, words) == "tiles_kernel<float64, true, 4>"
