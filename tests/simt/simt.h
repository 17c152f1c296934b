// SPDX-License-Identifier: BSD-3-Clause
// The implementation of device.cuh on a CPU: run_grid runs a grid to its end. Each thread is a fiber that runs until it
// must wait, in an order that depends on the seed.
//
// The memory model is as weak as permitted. A store_cg becomes visible to its block after a barrier. It becomes visible
// to all threads after a fence by a thread that sees it, or at the end of the grid. Until then, others read nan. An
// asynchronous copy takes place when its thread waits for it; until then, all threads read nan.
//
// Not modelled: plain stores to global memory, which all threads see at once (races.h detects unordered ones); reads
// that are too early because a fence after an arrival is missing; the bounds in LINREG_KERNEL; registers and time.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

namespace linreg::simt {

using Place = std::source_location;

struct Shape {
  int blocks, threads, shared_bytes;
};

// Null or an error, valid until this thread's next launch.
const char* run_grid(const Shape& shape, const std::function<void()>& thread);

constexpr int kSharedBytes = 96 << 10;  // for a block, and for all blocks of a multiprocessor
constexpr int kCacheBytes = 1 << 20;    // of the second level: small, so that products take several blocks of rows

struct Settings {
  uint64_t seed;        // SIMT_SEED; with the number of launches since, it determines everything random
  int multiprocessors;  // SIMT_MULTIPROCESSORS
};
Settings& settings();

// `count` zeros for this stream, which must be zero again at the end of every grid.
unsigned* counters(void* stream, int count);

// ---- For the running thread -----------------------------------------------------------------------------------------

struct Position {
  int thread, threads, block, blocks;
};
extern const Position* here;
[[gnu::const]] Position position();  // a call: accesses to `here` would be noted as the kernel's

double shuffle(double value, int from_lane, const char* name, Place place);
void sync_block(Place place);
void* shared_memory();
void copy_async(void* to, const void* from, int bytes, Place place);
void copy_commit();
void copy_wait(int pending);
void store_cg(double* to, double value);
double load_cg(const double* from, Place place);
void fence(Place place);
bool arrive_last(unsigned* counter, unsigned count, Place place);

// Ends the grid with this message.
[[noreturn]] void fail(const char* what, Place place);

}  // namespace linreg::simt
