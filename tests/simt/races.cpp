// SPDX-License-Identifier: BSD-3-Clause
#include "races.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <unordered_map>

#include "grid.h"

namespace linreg::simt {
namespace {

constexpr int kMany = -1;   // several threads of a block
constexpr int kHalves = 8;  // of a chunk

// The progress of a block. An epoch lies between two of its barriers.
struct Clock {
  int epoch = 0;
  int fence_epoch = -1;       // the latest in which any thread called fence
  int full_fence_epoch = -1;  // the latest in which all threads did
  int fences = 0;             // in fence_epoch
  std::vector<int> fences_of_thread;
};

struct Access {
  int block = -1, thread, epoch, fences;
  Place after;  // the thread's latest synchronising call
};

// The accesses to some bytes that matter to later ones.
struct Cell {
  Access write, read;           // the latest write, and the latest read of the block that read last
  std::vector<Access> earlier;  // the other blocks' latest reads since the write
};

// 16 bytes of memory, as one cell until an access is narrower, then as cells of `grain` times 2 bytes, which is the
// smallest number that kernels write.
struct Chunk {
  int grain = kHalves;
  Cell whole;
  std::unique_ptr<Cell[]> parts;

  Cell& cell(int half) { return grain == kHalves ? whole : parts[half]; }

  void split(int into) {
    if (!parts) parts = std::make_unique<Cell[]>(kHalves);
    for (int half = kHalves - into; half >= 0; half -= into) parts[half] = cell(half / grain * grain);
    grain = into;
  }
};

bool instrumented = false;
struct Stack {
  const char* begin = nullptr;
  size_t bytes = 0;
};

// Cached, because the system reads a file to find it.
const Stack& stack_of_this_thread() {
  static thread_local const Stack stack = [] {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
      pthread_attr_getstack(&attributes, &begin, &bytes);
      pthread_attr_destroy(&attributes);
    }
    return Stack{static_cast<const char*>(begin), bytes};
  }();
  return stack;
}

std::unordered_map<uintptr_t, Chunk> chunks;
struct {
  uintptr_t key = 0;
  Chunk* chunk = nullptr;
} recent[1 << 12];          // chunks, by the last bits of their keys
Stack host_stack;           // of the thread that runs the grid; it holds the kernel's parameters, which are constant
std::vector<Clock> clocks;  // of blocks

// Whether the thread's present access is ordered after an earlier one.
bool ordered(const Access& a, const Thread& t) {
  const Clock& clock = clocks[size_t(a.block)];
  if (a.block == t.position.block) return a.thread == t.position.thread || a.epoch < clock.epoch;
  if (a.epoch < clock.fence_epoch) return true;
  return a.thread == kMany ? a.epoch <= clock.full_fence_epoch : a.fences < clock.fences_of_thread[size_t(a.thread)];
}

[[noreturn]] void race(const void* address, const Access& a, bool wrote, const Thread& t, bool writes) {
  const Block& block = *t.block;
  const int64_t offset = static_cast<const char*>(address) - block.shared.get();
  const bool shared = offset >= 0 && offset < grid->shape.shared_bytes;
  const std::string who = a.thread == kMany ? "several threads" : "thread " + std::to_string(a.thread);
  grid->fail("race: " + describe(t) + " after " + t.call + " at " + text(t.place) + (writes ? " writes" : " reads") +
             (shared ? " shared memory from byte " + std::to_string(offset) + " on" : "") + " what " + who +
             " of block " + std::to_string(a.block) + " after " + text(a.after) + (wrote ? " wrote" : " read") +
             (a.block == t.position.block ? ", with no barrier in between" : ", and nothing orders the two blocks"));
}

void note(Cell& cell, const void* address, bool write, const Access& now, const Thread& t) {
  if (cell.write.block >= 0 && !ordered(cell.write, t)) race(address, cell.write, true, t, write);
  if (write) {
    if (cell.read.block >= 0 && !ordered(cell.read, t)) race(address, cell.read, false, t, true);
    for (const Access& read : cell.earlier)
      if (!ordered(read, t)) race(address, read, false, t, true);
    cell.write = now, cell.read = {};
    cell.earlier.clear();
    return;
  }
  if (cell.read.block >= 0 && cell.read.block != now.block) {
    // A recent reader is likely to read again: many other blocks have ended.
    const auto own = std::find_if(cell.earlier.rbegin(), cell.earlier.rend(),
                                  [&](const Access& read) { return read.block == now.block; });
    if (own == cell.earlier.rend()) {
      cell.earlier.push_back(cell.read);
      cell.read = {};
    } else {
      std::swap(cell.read, *own);
    }
  }
  const bool many = cell.read.block >= 0 && cell.read.epoch == now.epoch && cell.read.thread != now.thread;
  cell.read = now;
  if (many) cell.read.thread = kMany;
}

Chunk& chunk_of(uintptr_t key) {
  auto& [known, chunk] = recent[key % std::size(recent)];
  if (!chunk || known != key) known = key, chunk = &chunks[key];
  return *chunk;
}

}  // namespace

bool detects_races() { return instrumented; }

void note_grid(const Shape& shape) {
  if (!instrumented) return;
  chunks.clear();
  std::fill(std::begin(recent), std::end(recent), std::decay_t<decltype(*recent)>{});
  clocks.assign(size_t(shape.blocks), {});
  for (Clock& clock : clocks) clock.fences_of_thread.resize(size_t(shape.threads));
  host_stack = stack_of_this_thread();
}

void note_access(const void* address, size_t bytes, bool write) {
  if (!instrumented || !here) return;  // the same files contain host code
  const Thread& t = current_thread();
  const char* begin = static_cast<const char*>(address);
  if (size_t(begin - t.fiber.stack) < t.fiber.stack_bytes) return;
  if (size_t(begin - host_stack.begin) < host_stack.bytes) return;
  const Clock& clock = clocks[size_t(t.position.block)];
  const Access now = {t.position.block, t.position.thread, clock.epoch,
                      clock.fences_of_thread[size_t(t.position.thread)], t.place};
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / 2;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(begin) + bytes + 1) / 2;
  for (uintptr_t i = first; i < end;) {
    Chunk& chunk = chunk_of(i / kHalves);
    const int from = int(i % kHalves), to = int(std::min<uintptr_t>(kHalves, from + (end - i)));
    const int fits = 1 << __builtin_ctz(unsigned(from | to | kHalves));
    if (fits < chunk.grain) chunk.split(fits);
    for (int half = from; half < to; half += chunk.grain) note(chunk.cell(half), address, write, now, t);
    if (write && from == 0 && to == kHalves && chunk.grain < kHalves)
      chunk.whole = {now, {}, {}}, chunk.grain = kHalves;
    i += uintptr_t(to - from);
  }
}

void note_barrier(const Block& block) {
  if (instrumented) ++clocks[size_t(block.index)].epoch;
}

void note_fence(const Thread& t) {
  if (!instrumented) return;
  Clock& clock = clocks[size_t(t.position.block)];
  if (clock.fence_epoch != clock.epoch) clock.fences = 0;
  clock.fence_epoch = clock.epoch;
  if (++clock.fences == t.position.threads) clock.full_fence_epoch = clock.epoch;
  ++clock.fences_of_thread[size_t(t.position.thread)];
}

void note_freed(const void* address, size_t bytes) {
  if (!instrumented) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t key = begin / 16; key <= (begin + bytes) / 16; ++key) {
    recent[key % std::size(recent)].chunk = nullptr;
    chunks.erase(key);
  }
}

}  // namespace linreg::simt

// The entry points of ThreadSanitizer.
#define SIMT_ACCESSES(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { linreg::simt::note_access(p, bytes, false); }           \
  void __tsan_write##bytes(void* p) { linreg::simt::note_access(p, bytes, true); }           \
  void __tsan_unaligned_read##bytes(void* p) { linreg::simt::note_access(p, bytes, false); } \
  void __tsan_unaligned_write##bytes(void* p) { linreg::simt::note_access(p, bytes, true); }

extern "C" {
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)
void __tsan_read_range(void* p, size_t bytes) { linreg::simt::note_access(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { linreg::simt::note_access(p, bytes, true); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() { linreg::simt::instrumented = true; }
}
