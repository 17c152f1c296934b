// SPDX-License-Identifier: BSD-3-Clause
// What is asked of the CUDA runtime beside launching: the device's limits, and counters for its launches.
#include <map>
#include <mutex>
#include <tuple>

#include "device.cuh"

namespace linreg::cuda {
namespace {

constexpr int kSlots = 4096;
constexpr int kMaxDevices = 64;

// Zero from the moment the module is loaded, so that no launch has to clear them.
__device__ unsigned counter_slots[kSlots][kCounters];

// While it lives, calls that a stream capture of this thread would refuse are allowed: those below do nothing that a
// graph could miss.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// What never changes of a device.
struct Known {
  Limits limits;
  unsigned* slots = nullptr;  // [kSlots, kCounters]
};

const char* find(int device, Known& found) {
  const RelaxedCapture relaxed;
  Limits& limits = found.limits;
  void* slots = nullptr;
  for (const cudaError_t error :
       {cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device),
        cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        cudaGetSymbolAddress(&slots, counter_slots)})
    if (error != cudaSuccess) return message(error);
  found.slots = static_cast<unsigned*>(slots);
  return nullptr;
}

const char* current_device(int& device, const Known*& known) {
  static std::mutex mutex;
  static Known devices[kMaxDevices];
  if (const char* error = message(cudaGetDevice(&device))) return error;
  if (device >= kMaxDevices) return "more devices than linreg_ext counts on";
  const std::lock_guard<std::mutex> lock(mutex);
  Known& entry = devices[device];
  if (!entry.slots) {
    Known found;
    if (const char* error = find(device, found)) return error;
    entry = found;
  }
  known = &entry;
  return nullptr;
}

}  // namespace

const char* limits(Limits& limits) {
  int device = 0;
  const Known* known = nullptr;
  if (const char* error = current_device(device, known)) return error;
  limits = known->limits;
  return nullptr;
}

// Launches on one stream follow each other, so they share a slot; so do those that one capture records of a stream,
// which follow each other in every replay of its graph, beside whatever else runs then.
const char* counters(void* stream, unsigned*& counters) {
  using Owner = std::tuple<int, void*, unsigned long long>;  // the device, the stream, the capture or 0
  static std::mutex mutex;
  static int used[kMaxDevices] = {};
  static std::map<Owner, unsigned*> owned;
  int device = 0;
  const Known* known = nullptr;
  if (const char* error = current_device(device, known)) return error;
  cudaStreamCaptureStatus status;
  unsigned long long capture = 0;
  if (const char* error = message(cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &status, &capture)))
    return error;
  if (status != cudaStreamCaptureStatusActive) capture = 0;

  const std::lock_guard<std::mutex> lock(mutex);
  unsigned*& slot = owned[{device, stream, capture}];
  if (!slot) {
    if (used[device] == kSlots) return "too many streams and CUDA graphs have used linreg_ext (4096 in all)";
    slot = known->slots + int64_t(used[device]++) * kCounters;
  }
  counters = slot;
  return nullptr;
}

}  // namespace linreg::cuda
