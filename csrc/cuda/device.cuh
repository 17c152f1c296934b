// SPDX-License-Identifier: BSD-3-Clause
// The machine as the kernels see it: thread indices, memory, barriers and launches. No other file for the kernels names
// a hardware instruction or the CUDA runtime; tests/simt provides the same functions on a CPU.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#define LINREG_DEVICE __device__ __forceinline__
#define LINREG_DEVICE_CALL static __device__ __noinline__  // runs once: its registers do not add to the loop's
#define LINREG_KERNEL(max_threads, min_blocks) __global__ void __launch_bounds__(max_threads, min_blocks)
#define LINREG_PARAMETER const __grid_constant__

namespace linreg::cuda {

LINREG_DEVICE int thread_index() { return int(threadIdx.x); }
LINREG_DEVICE int thread_count() { return int(blockDim.x); }
LINREG_DEVICE int block_index() { return int(blockIdx.x); }
LINREG_DEVICE int block_count() { return int(gridDim.x); }

// The value of the lane whose index is this one's XOR `mask`. All 32 lanes must call it.
LINREG_DEVICE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
LINREG_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// The value of lane `lane`. All 32 lanes must call it.
LINREG_DEVICE double shuffle(double value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
LINREG_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// The block's dynamic shared memory, 16-byte aligned, uninitialised.
LINREG_DEVICE void* shared_memory() {
  extern __shared__ uint4 linreg_shared[];
  return linreg_shared;
}

LINREG_DEVICE void sync_block() { __syncthreads(); }

template <int kBytes>
struct Words {
  std::conditional_t<kBytes == 16, uint4,
                     std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>
      bits;
};

// Starts an asynchronous copy of 4, 8 or 16 bytes to shared memory. Both addresses must be aligned to that size. Copies
// of 16 bytes bypass the first-level cache. After copy_commit and copy_wait, the thread that started them sees the
// data. Before sm_80, a copy goes through a register and is complete at once.
template <int kBytes>
LINREG_DEVICE void copy_async(void* to, const void* from) {
#if __CUDA_ARCH__ >= 800
  const auto shared = unsigned(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared), "l"(from), "n"(kBytes) : "memory");
  }
#else
  *static_cast<Words<kBytes>*>(to) = *static_cast<const Words<kBytes>*>(from);
#endif
}

LINREG_DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all commit groups except the latest kPending.
template <int kPending>
LINREG_DEVICE void copy_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Communication between blocks bypasses the first-level caches, which are not coherent.
LINREG_DEVICE void store_cg(double* to, double value) { __stcg(to, value); }
LINREG_DEVICE double load_cg(const double* from) { return __ldcg(from); }

// Cumulative acquire-release fence: a thread that observes a later write of this thread also observes every write of
// this thread, and of threads it has synchronised with, before the fence.
LINREG_DEVICE void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Counts an arrival. True for the last of `count`, which resets the counter to 0.
LINREG_DEVICE bool arrive_last(unsigned* counter, unsigned count) { return atomicInc(counter, count - 1) == count - 1; }

LINREG_DEVICE float half_bits_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// The limits of the current device that plan.h needs.
struct Limits {
  int multiprocessors = 0;
  int shared_bytes = 0;  // the most that a block may have
  int cache_bytes = 0;   // the second-level cache
};

constexpr int kCounters = 64;
constexpr int kMaxThreads = 512;  // the largest block of these kernels

// The limits of the current device. Returns nullptr or the CUDA runtime's error message.
const char* limits(Limits& limits);

// kCounters counters at 0 that no concurrent launch uses. arrive_last leaves them at 0.
const char* counters(void* stream, unsigned*& counters);

struct Launch {
  int blocks, threads;
  int shared_bytes;  // at most Limits::shared_bytes
  void* stream;
};

// nullptr or the CUDA runtime's error message.
inline const char* message(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // clears the error, so that the next launch does not report it again
  return cudaGetErrorString(error);
}

constexpr int kSharedUnasked = 48 << 10;

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const Launch& l, const Parameters&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(l.blocks));
  config.blockDim = dim3(unsigned(l.threads));
  config.dynamicSmemBytes = size_t(l.shared_bytes);
  config.stream = static_cast<cudaStream_t>(l.stream);
  // More than the default needs an opt-in, which stays with the kernel and holds for every thread. Opting in for the
  // device's maximum keeps this thread from lowering the limit while another is about to launch the same kernel.
  if (l.shared_bytes > kSharedUnasked) {
    Limits device;
    if (const char* error = limits(device)) return error;
    const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
    if (const char* error = message(cudaFuncSetAttribute(kernel, attribute, device.shared_bytes))) return error;
  }
  return message(cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace linreg::cuda
