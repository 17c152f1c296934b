// SPDX-License-Identifier: BSD-3-Clause
// The parts of the CUDA runtime interface beside launching: the device's limits, and counters for launches.
#include <deque>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "device.cuh"

namespace linreg::cuda {
namespace {

constexpr int kSlots = 16384;
constexpr int kMaxDevices = 64;

// Zero when the module is loaded, and again after every launch, so that no launch has to clear them.
__device__ unsigned counter_slots[kSlots][kCounters];

// The owner of a slot: the device, the stream, the thread if the stream is its default stream, and the capture or 0.
using Owner = std::tuple<int, cudaStream_t, const void*, unsigned long long>;

// The free and the owned slots. Never destroyed, because a graph may outlive it.
struct Slots {
  std::mutex mutex;
  std::map<Owner, int> owned;
  void* base[kMaxDevices] = {};       // counter_slots
  std::deque<int> free[kMaxDevices];  // the slot free for longest comes first: its last launch ended long ago
  int used[kMaxDevices] = {};
};
Slots& slots() {
  static Slots& slots = *new Slots;
  return slots;
}

void give_back(const Owner& owner) {
  Slots& all = slots();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.owned.find(owner);
  if (found == all.owned.end()) return;
  all.free[std::get<0>(owner)].push_back(found->second);
  all.owned.erase(found);
}

// Returns a thread's slots when the thread ends, and with it its default streams.
struct ThreadSlots {
  std::vector<Owner> owners;
  ~ThreadSlots() {
    for (const Owner& owner : owners) give_back(owner);
  }
};
thread_local ThreadSlots thread_slots;

// Returns the slot when the graph and everything instantiated from it are destroyed.
const char* follow(cudaGraph_t graph, const Owner& owner) {
  const auto destroy = [](void* owner) {
    give_back(*static_cast<Owner*>(owner));
    delete static_cast<Owner*>(owner);
  };
  auto* const kept = new Owner(owner);
  cudaUserObject_t object;
  if (const char* error = message(cudaUserObjectCreate(&object, kept, destroy, 1, cudaUserObjectNoDestructorSync))) {
    delete kept;
    return error;
  }
  return message(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove));
}

// Allows calls that a stream capture of this thread would refuse. That is safe for the calls below: they enqueue no
// work that a graph would have to record.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace

const char* limits(Limits& limits) {
  int device = 0;
  if (const char* error = message(cudaGetDevice(&device))) return error;
  for (const cudaError_t error :
       {cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device),
        cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        cudaDeviceGetAttribute(&limits.cache_bytes, cudaDevAttrL2CacheSize, device)})
    if (error != cudaSuccess) return message(error);
  return nullptr;
}

// Launches on one stream run in order, so they share a slot. Launches that a capture records from one stream run in
// order in every replay, but concurrently with other work, so each capture has its own slot. A graph's slot is returned
// when the graph is destroyed. The slot of a destroyed stream passes to the stream that reuses its handle.
const char* counters(void* stream, unsigned*& counters) {
  const auto queue = static_cast<cudaStream_t>(stream);
  int device = 0;
  if (const char* error = message(cudaGetDevice(&device))) return error;
  if (device >= kMaxDevices) return "more devices than linreg_ext counts on";
  cudaStreamCaptureStatus status;
  unsigned long long capture = 0;
  cudaGraph_t graph = nullptr;
  if (const char* error = message(cudaStreamGetCaptureInfo(queue, &status, &capture, &graph))) return error;
  const bool captured = status == cudaStreamCaptureStatusActive, of_thread = queue == cudaStreamPerThread && !captured;
  const Owner owner{device, queue, of_thread ? &thread_slots : nullptr, captured ? capture : 0};

  Slots& all = slots();
  std::unique_lock<std::mutex> lock(all.mutex);
  if (!all.base[device]) {
    const RelaxedCapture relaxed;
    if (const char* error = message(cudaGetSymbolAddress(&all.base[device], counter_slots))) return error;
  }
  counters = static_cast<unsigned*>(all.base[device]);
  const auto found = all.owned.find(owner);
  int slot = found == all.owned.end() ? -1 : found->second;
  if (slot < 0) {
    auto& free = all.free[device];
    if (free.empty() && all.used[device] == kSlots) return "linreg_ext has 16384 CUDA graphs and streams at a time";
    slot = free.empty() ? all.used[device]++ : free.front();
    if (!free.empty()) free.pop_front();
    all.owned[owner] = slot;
    if (of_thread) thread_slots.owners.push_back(owner);
    if (captured) {
      lock.unlock();  // a graph destroyed during this call returns its slot, for which it takes the lock
      if (const char* error = follow(graph, owner)) {
        give_back(owner);
        return error;
      }
    }
  }
  counters += int64_t(slot) * kCounters;
  return nullptr;
}

}  // namespace linreg::cuda
