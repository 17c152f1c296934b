# SPDX-License-Identifier: BSD-3-Clause
"""`python -m benchmarks.probe`: measure the GPU's constants on which the kernels' design is based."""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import math
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from . import clocks, machine
from .results import Results

SOURCE = r"""#include <cuda_pipeline.h>
#include <map>
#include <string>

__global__ void empty() {}
template <class T>
__global__ void block_sum(int count, double* out) {
  __shared__ T of_warp[2][32];  // double-buffered, so that one barrier per sum suffices
  T value = T(threadIdx.x);
  for (int i = 0; i < count; ++i) {
    for (int mask = 16; mask; mask /= 2) value += __shfl_xor_sync(~0u, value, mask);
    if (threadIdx.x % 32 == 0) of_warp[i % 2][threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) value += T(1e-3) * of_warp[i % 2][warp];
  }
  if (value == T(0.5)) *out = value;  // never true, but the compiler cannot know
}
// The last of `members` blocks to arrive adds the lines, in order, into the first. Returns true only in that block.
__device__ bool add_last(unsigned* counter, int members, double* lines, int rows, int stride, int sums) {
  __shared__ bool last;
  __syncthreads();  // the block has stored its sums; thread 0 publishes them
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(counter, members - 1) == members - 1;  // wraps to 0 for the next launch
    __threadfence();
  }
  __syncthreads();
  for (int i = threadIdx.x; i < sums && last; i += 256) {
    double sum = 0;
#pragma unroll 8
    for (int row = 0; row < rows; ++row) sum += __ldcg(lines + row * stride + i);
    __stcg(lines + i, sum);
  }
  return last;
}
// Reads `total` tiles through a ring of stages, cycling over the first `distinct` tiles of x. Then adds `sums` numbers
// of each block: not at all (team 0), by atomics (-1), or in the last block of each team and then the last of those.
template <int kStages, int kWords>
__global__ void __launch_bounds__(256)
    ring(const float4* x, int distinct, int total, int team, int sums, double* lines, unsigned* counters) {
  extern __shared__ float4 tiles[];
  constexpr int kTile = 256 * kWords;
  const int blocks = gridDim.x, block = blockIdx.x, thread = threadIdx.x, mine = (total + blocks - 1 - block) / blocks;
  int prefetched = 0, at = block;
  const auto prefetch = [&] {
    while (at >= distinct) at -= distinct;
#pragma unroll
    for (int j = 0; j < kTile && prefetched < mine; j += 256)
      __pipeline_memcpy_async(&tiles[prefetched % kStages * kTile + j + thread], &x[at * kTile + j + thread], 16);
    __pipeline_commit();
    ++prefetched, at += blocks;
  };
  for (int i = 1; i < kStages; ++i) prefetch();
  float sum = 0;
  for (int i = 0; i < mine; ++i) {
    __pipeline_wait_prior(kStages - 2);  // this thread's words of tile i have arrived
    __syncthreads();                     // all words have, and no thread still reads tile i - 1, overwritten next
    prefetch();
#pragma unroll
    for (int j = 0; j < kTile; j += 256) {
      const float4 v = tiles[i % kStages * kTile + j + (thread ^ 32)];  // copied by another warp
      sum += v.x + v.y + v.z + v.w;
    }
  }
  if (team == 0 && sum != 0.5f) return;
  for (int i = thread; i < sums; i += 256)
    team < 0 ? void(atomicAdd(lines + i, sum)) : __stcg(lines + block * sums + i, double(sum));
  const int size = team > 0 ? team : blocks, teams = (blocks + size - 1) / size, first = block / size * size;
  const int members = min(size, blocks - first), rows = team > 0 ? members : 1;
  if (add_last(counters + 1 + block / size, members, lines + first * sums, rows, sums, sums) && teams > 1)
    add_last(counters, teams, lines, teams, size * sums, sums);
}
// Launches a kernel `times` times. Returns nullptr or the error.
extern "C" const char* launch(const char* name, int times, int blocks, int threads, int shared, void** arguments,
                              cudaStream_t stream) {
#define KERNEL(...) {#__VA_ARGS__, (const void*)__VA_ARGS__}
#define RING(stages) KERNEL(ring<stages, 1>), KERNEL(ring<stages, 2>), KERNEL(ring<stages, 4>)
  static const std::map<std::string, const void*> kernels = {
      KERNEL(empty), KERNEL(block_sum<float>), KERNEL(block_sum<double>), RING(2), RING(3), RING(4)};
  const void* const kernel = kernels.at(name);
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  while (times-- > 0 && error == cudaSuccess)
    error = cudaLaunchKernel(kernel, blocks, threads, arguments, shared, stream);
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
"""


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, compiled for this GPU."""
    from torch.utils.cpp_extension import CUDA_HOME

    arch = "-arch=sm_{}{}".format(*torch.cuda.get_device_capability())
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-O3", "-std=c++20", arch, "-shared", "-Xcompiler=-fPIC", "-x", "cu", "-", "-o", f"{folder}/probe.so"]
        subprocess.run([f"{CUDA_HOME or '/usr/local/cuda'}/bin/nvcc", *flags], input=SOURCE, text=True, check=True)
        loaded = ctypes.CDLL(f"{folder}/probe.so")
    loaded.launch.restype = ctypes.c_char_p
    return loaded


def launch(kernel: str, blocks: int, threads: int, *arguments: int | Tensor, shared: int = 0, times: int = 1) -> None:
    values = [ctypes.c_int(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) for a in arguments]
    pointers = (ctypes.c_void_p * (len(values) + 1))(*map(ctypes.addressof, values))
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    if error := library().launch(kernel.encode(), times, blocks, threads, shared, pointers, stream):
        raise RuntimeError(f"{kernel}: {error.decode()}")


def microseconds(run: Callable[[], object], clock: Callable[..., clocks.Sampler] = clocks.graph) -> float:
    sample = clock(clocks.Variant(run), 0.02)
    return 1e6 * sorted(sample() for _ in range(11))[5]


def iteration(kernel: str, blocks: int, threads: int, *out: Tensor) -> float:
    """Microseconds per iteration of a kernel's loop, from two lengths of it."""
    few, many = (microseconds(lambda n=n: launch(kernel, blocks, threads, n, *out), clocks.events) for n in (500, 2500))
    return (many - few) / 2000


def ring(x: Tensor, blocks: int, of: int, n: int, *, team: int = 0, sums: int = 1, stages: int = 3, kb: int = 16):
    """Microseconds to read n bytes, of which `of` are distinct, and to add `sums` numbers of each block."""
    lines, counters = (x.new_zeros((blocks + 2) * each) for each in (2 * sums, 1))  # doubles and unsigned integers
    tail = ((of >> 10) // kb, (n >> 10) // kb, team, sums, lines, counters)
    return microseconds(lambda: launch(f"ring<{stages}, {kb // 4}>", blocks, 256, x, *tail, shared=stages * kb << 10))


def constants(n: int = 1 << 31) -> Iterator[tuple[str, float, str]]:
    """The name, value and unit of each constant, the most important first."""
    gpu, x = torch.cuda.get_device_properties(0), torch.empty(n // 4, device="cuda").uniform_(-1, 1)
    sms, out = gpu.multi_processor_count, torch.zeros(1, dtype=torch.float64, device="cuda")
    yield "torch.sum", n / microseconds(x.sum) / 1e3, "GB/s"
    yield "torch.clone, read and write", 2 * n / microseconds(x.clone) / 1e3, "GB/s"
    for stages, kb, each in itertools.product((2, 3, 4), (4, 8, 16), (1, 2, 4)):
        if each * (stages * kb + 1) << 10 <= gpu.shared_memory_per_multiprocessor:
            took = ring(x, each * sms, n, n, stages=stages, kb=kb)
            yield f"ring of {stages} tiles of {kb} KB, {each} blocks per SM", n / took / 1e3, "GB/s"
    for eighths in (1, 2, 3, 4, 6, 8, 16):
        took = ring(x, 2 * sms, gpu.L2_cache_size * eighths // 8, n)
        yield f"{eighths}/8 of the second-level cache, read repeatedly", n / took / 1e3, "GB/s"
    for each, sums in itertools.product((1, 2), (32, 1024, 8192)):
        ways = {"atomics": -1, "the last block": each * sms, "the last of teams": math.isqrt(each * sms - 1) + 1}
        took = {team: ring(x, each * sms, n, 0, team=team, sums=sums) for team in (0, *ways.values())}
        for name, team in ways.items():
            yield f"{sums} sums of {each} blocks per SM added by {name}", took[team] - took[0], "us"
    for size in (n // 8, n):
        atomics, ordered = (ring(x, 2 * sms, size, size, team=team, sums=1024) for team in (-1, 2 * sms))
        yield f"1024 sums over {size >> 20} MB, fixed order over atomics", ordered / atomics, "ratio"
    for blocks in (1, sms, 10_000):
        yield f"graph node of {blocks} block(s)", microseconds(lambda blocks=blocks: launch("empty", blocks, 256)), "us"
    yield "launch", microseconds(lambda: launch("empty", 1, 32, times=1000), clocks.events) / 1000, "us"
    yield "launch and wait", microseconds(lambda: (launch("empty", 1, 32), torch.cuda.synchronize()), clocks.wall), "us"
    for kind, threads in itertools.product(("float", "double"), (32, 256, 1024)):
        yield f"sum of {kind}s over a block of {threads}", iteration(f"block_sum<{kind}>", 1, threads, out), "us"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="CSV", help="also write the rows there")
    results = Results(parser.parse_args(arguments).out, machine.describe("cuda"))
    for name, value, unit in constants():
        row = {"workload": "constants", "case": "constants", "device": "cuda", "variant": name, "role": "bound"}
        if unit == "ratio":  # the cost of a fixed order has a target
            row |= {"id": "G12", "case": name, "variant": "fixed order over atomics", "role": "ours"}
        results.add(**row, value=value, unit=unit)
        print(f"{value:>10.4g} {unit:<6} {name}", flush=True)


if __name__ == "__main__":
    main()
