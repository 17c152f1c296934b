// SPDX-License-Identifier: BSD-3-Clause
#include "races.h"

#include <array>
#include <unordered_map>

#include "grid.h"

namespace linreg::simt {
namespace {

constexpr int kMany = -1;  // threads of a block

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

// 2 bytes of memory, the smallest number that kernels write.
struct Cell {
  Access write;
  std::vector<Access> reads;  // the latest of each block
};
using Chunk = std::array<Cell, 8>;

bool instrumented = false;
std::unordered_map<uintptr_t, Chunk> chunks;
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

void note(Cell& cell, const void* address, bool write, const Thread& t) {
  const Clock& clock = clocks[size_t(t.position.block)];
  const Access now = {t.position.block, t.position.thread, clock.epoch,
                      clock.fences_of_thread[size_t(t.position.thread)], t.place};
  if (cell.write.block >= 0 && !ordered(cell.write, t)) race(address, cell.write, true, t, write);
  if (write) {
    for (const Access& read : cell.reads)
      if (!ordered(read, t)) race(address, read, false, t, true);
    cell.reads.clear();
    cell.write = now;
    return;
  }
  for (Access& read : cell.reads) {
    if (read.block != now.block) continue;
    const bool many = read.epoch == now.epoch && read.thread != now.thread;
    read = now;
    if (many) read.thread = kMany;
    return;
  }
  cell.reads.push_back(now);
}

}  // namespace

bool detects_races() { return instrumented; }

void note_grid(const Shape& shape) {
  if (!instrumented) return;
  chunks.clear();
  clocks.assign(size_t(shape.blocks), {});
  for (Clock& clock : clocks) clock.fences_of_thread.resize(size_t(shape.threads));
}

void note_access(const void* address, size_t bytes, bool write) {
  if (!instrumented || !here) return;  // the same files contain host code
  const Thread& t = current_thread();
  const char* begin = static_cast<const char*>(address);
  if (size_t(begin - t.fiber.stack) < t.fiber.stack_bytes) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(begin) / 2;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes - 1) / 2;
  Chunk* chunk = nullptr;
  for (uintptr_t i = first; i <= last; ++i) {
    if (!chunk || i % 8 == 0) chunk = &chunks[i / 8];
    note((*chunk)[i % 8], address, write, t);
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
  for (uintptr_t i = begin / 16; i <= (begin + bytes) / 16; ++i) chunks.erase(i);
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
