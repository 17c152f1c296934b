// SPDX-License-Identifier: BSD-3-Clause
// What is asked of the CUDA runtime beside launching: the device's limits, and counters for its launches.
#include <map>
#include <mutex>
#include <tuple>

#include "device.cuh"

namespace linreg::cuda {
namespace {

constexpr int kSlots = 1024;
constexpr int kMaxDevices = 64;

// Zero from the moment the module is loaded, so that no launch has to clear them.
__device__ unsigned counter_slots[kSlots][kCounters];

__global__ void occupant() {}

// As many as fit with so much shared memory that two blocks never share a multiprocessor.
int resident_clusters(int size, int shared_bytes) {
  Launch l{size, kMaxThreads, size, shared_bytes, nullptr};
  cudaLaunchAttribute cluster = {};
  const cudaLaunchConfig_t config = config_of(l, cluster);
  int count = 0;
  if (allow_cluster(occupant, size) != cudaSuccess ||
      cudaFuncSetAttribute(occupant, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&count, occupant, &config) != cudaSuccess) {
    cudaGetLastError();  // answered with 0 here, not left for the next launch
    return 0;
  }
  return count;
}

const char* find_limits(int device, Limits& limits) {
  int major = 0, shared = 0;
  if (const char* error = message(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)))
    return error;
  if (const char* error =
          message(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device)))
    return error;
  if (const char* error = message(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)))
    return error;
  limits.clusters[0] = limits.multiprocessors;
  for (int i = 1; major >= 9 && i < kClusterSizes; ++i) limits.clusters[i] = resident_clusters(1 << i, shared);
  return nullptr;
}

}  // namespace

const char* limits(Limits& limits) {
  static std::mutex mutex;
  static Limits known[kMaxDevices];
  int device = 0;
  if (const char* error = message(cudaGetDevice(&device))) return error;
  if (device >= kMaxDevices) return "more devices than linreg_ext counts on";
  const std::lock_guard<std::mutex> lock(mutex);
  if (known[device].multiprocessors == 0) {
    Limits found;
    if (const char* error = find_limits(device, found)) return error;
    known[device] = found;
  }
  limits = known[device];
  return nullptr;
}

// Launches on one stream follow each other, so they share a slot; so do those that one capture records of a stream,
// which follow each other in every replay of its graph, beside whatever else runs then.
const char* counters(void* stream, unsigned*& counters) {
  using Owner = std::tuple<int, void*, unsigned long long>;  // the device, the stream, the capture or 0
  static std::mutex mutex;
  static int used[kMaxDevices] = {};
  static std::map<Owner, unsigned*> known;
  int device = 0;
  if (const char* error = message(cudaGetDevice(&device))) return error;
  cudaStreamCaptureStatus status;
  unsigned long long capture = 0;
  if (const char* error = message(cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &status, &capture)))
    return error;
  if (status != cudaStreamCaptureStatusActive) capture = 0;

  const std::lock_guard<std::mutex> lock(mutex);
  unsigned*& slot = known[{device, stream, capture}];
  if (!slot) {
    if (used[device] == kSlots) return "too many streams and CUDA graphs have used linreg_ext (1024 in all)";
    void* slots = nullptr;
    if (const char* error = message(cudaGetSymbolAddress(&slots, counter_slots))) return error;
    slot = static_cast<unsigned*>(slots) + int64_t(used[device]++) * kCounters;
  }
  counters = slot;
  return nullptr;
}

}  // namespace linreg::cuda
