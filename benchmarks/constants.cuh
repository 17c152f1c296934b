// SPDX-License-Identifier: BSD-3-Clause
// The kernels of constants.cu: the smallest code that shows what each thing costs.
#pragma once

#include <cooperative_groups.h>

#include <cstdint>

namespace {

__global__ void empty() {}

__global__ void grid_barriers(int count) {
  for (int i = 0; i < count; ++i) cooperative_groups::this_grid().sync();
}

__device__ void cluster_barrier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

__device__ unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ void store_remote(double* mine, unsigned rank, double value) {
#if __CUDA_ARCH__ >= 900
  uint32_t address = uint32_t(__cvta_generic_to_shared(mine));
  asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
  asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(address), "d"(value) : "memory");
#endif
}

// Pushes: every block leaves a number with every block of its cluster, and adds up what was left with it.
template <bool kPush>
__global__ void cluster_barriers(int count, int size, double* out) {
  __shared__ double slots[2][16];
  double sum = threadIdx.x;
  cluster_barrier();  // only a block that runs has shared memory to write to
  for (int i = 0; i < count; ++i) {
    if (kPush && int(threadIdx.x) < size) store_remote(&slots[i % 2][cluster_rank()], threadIdx.x, sum);
    cluster_barrier();
    if (kPush)
      for (int j = 0; j < size; ++j) sum += 1e-9 * slots[i % 2][j];
  }
  cluster_barrier();
  if (sum == 0.5) *out = sum;
}

__global__ void block_reductions(int count, double* out) {
  __shared__ float slots[2][32];
  float value = float(threadIdx.x);
  for (int i = 0; i < count; ++i) {
    for (int mask = 16; mask; mask /= 2) value += __shfl_xor_sync(0xffffffffu, value, mask);
    if (threadIdx.x % 32 == 0) slots[i % 2][threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (unsigned j = 0; j < blockDim.x / 32; ++j) value += 1e-3f * slots[i % 2][j];
  }
  if (value == 0.5f) *out = value;
}

__device__ float4 load_once(const float4* from) {
  float4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(from));
  return v;
}

template <int kInFlight>
__global__ void read(const float4* x, int64_t vectors, double* out) {
  const int64_t threads = int64_t(gridDim.x) * blockDim.x;
  float sum = 0;
  int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  for (; i + (kInFlight - 1) * threads < vectors; i += threads * kInFlight) {
    float4 v[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) v[j] = load_once(x + i + j * threads);
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) sum += v[j].x + v[j].y + v[j].z + v[j].w;
  }
  for (; i < vectors; i += threads) sum += load_once(x + i).x;
  if (sum == 0.5f) *out = sum;
}

__global__ void fill(float* x, int64_t n) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += int64_t(gridDim.x) * blockDim.x) {
    uint64_t bits = (uint64_t(i) + 1) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 31)) * 0xbf58476d1ce4e5b9u;
    x[i] = float(int32_t(bits >> 32)) * 0x1p-31f;
  }
}

// A plain one-pass step for 1024 features, a warp a row, with four ways to add up what the blocks have found.
enum class Finish { none, last_block, cluster, atomics };
constexpr int kD = 1024, kThreads = 256, kWarps = kThreads / 32, kVectors = kD / 128, kCluster = 8;

template <Finish kFinish>
__global__ void __launch_bounds__(kThreads)
    step(const float4* x, int64_t rows, const float4* w, double* partial, unsigned* counter, double* out) {
  __shared__ float of_warp[kWarps][kD];
  __shared__ double of_cluster[kCluster][kD / kCluster];
  __shared__ bool last;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = 4 * threadIdx.x;
  if (kFinish == Finish::cluster) cluster_barrier();  // only a block that runs has shared memory to write to
  float4 weight[kVectors], sum[kVectors] = {}, v[kVectors];
  for (int j = 0; j < kVectors; ++j) weight[j] = w[32 * j + lane];
  for (int64_t row = blockIdx.x * kWarps + warp; row < rows; row += int64_t(gridDim.x) * kWarps) {
    float r = 0;
    for (int j = 0; j < kVectors; ++j) v[j] = load_once(x + row * (kD / 4) + 32 * j + lane);
    for (int j = 0; j < kVectors; ++j)
      r += v[j].x * weight[j].x + v[j].y * weight[j].y + v[j].z * weight[j].z + v[j].w * weight[j].w;
    for (int mask = 16; mask; mask /= 2) r += __shfl_xor_sync(0xffffffffu, r, mask);
    for (int j = 0; j < kVectors; ++j) {
      sum[j].x += r * v[j].x, sum[j].y += r * v[j].y;
      sum[j].z += r * v[j].z, sum[j].w += r * v[j].w;
    }
  }
  for (int j = 0; j < kVectors; ++j) reinterpret_cast<float4*>(of_warp[warp])[32 * j + lane] = sum[j];
  __syncthreads();
  double total[4] = {};
  for (int j = 0; j < kWarps; ++j)
    for (int i = 0; i < 4; ++i) total[i] += of_warp[j][first + i];
  int partials = gridDim.x;
  if (kFinish == Finish::none) {
    if (total[0] == 0.5) out[first] = total[0] + total[1] + total[2] + total[3];
    return;
  } else if (kFinish == Finish::atomics) {
    for (int i = 0; i < 4; ++i) atomicAdd(partial + first + i, total[i]);
    partials = 1;
  } else if (kFinish == Finish::last_block) {
    for (int i = 0; i < 4; ++i) __stcg(partial + blockIdx.x * kD + first + i, total[i]);
  } else {  // each warp's columns belong to one block of the cluster, which adds them up
    for (int i = 0; i < 4; ++i) store_remote(&of_cluster[cluster_rank()][4 * lane + i], warp, total[i]);
    cluster_barrier();
    if (threadIdx.x < kD / kCluster) {
      double of_column = 0;
      for (int j = 0; j < kCluster; ++j) of_column += of_cluster[j][threadIdx.x];
      __stcg(partial + blockIdx.x / kCluster * kD + cluster_rank() * (kD / kCluster) + threadIdx.x, of_column);
    }
    partials = gridDim.x / kCluster;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(counter, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = 0; i < 4; ++i) total[i] = 0;
#pragma unroll 4
  for (int j = 0; j < partials; ++j)
    for (int i = 0; i < 4; ++i) total[i] += __ldcg(partial + j * kD + first + i);
  for (int i = 0; i < 4; ++i) {
    out[first + i] = total[i];
    if (kFinish == Finish::atomics) partial[first + i] = 0;
  }
}

}  // namespace
