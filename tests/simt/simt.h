// SPDX-License-Identifier: BSD-3-Clause
// What device.cuh is made of on a CPU: a grid runs to its end inside run_grid, each of its threads as a fiber that runs
// until it has to wait, in an order that the seed decides.
//
// The memory is as weak as it may be. What a thread publishes is in its block's hands after a barrier, and in memory
// after a fence by a thread in whose hands it is, or at the end of the grid; until then others read a nan.
//
// Not modelled: plain stores to global memory are seen by all at once, though races.h finds those that are not ordered;
// nobody reads too early for want of a fence after an arrival; the bounds that LINREG_KERNEL states; registers and
// time.
#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

namespace linreg::simt {

using Place = std::source_location;

struct Shape {
  int blocks, threads, shared_bytes;
};

// Null, or what went wrong; valid until this thread's next launch.
const char* run_grid(const Shape& shape, const std::function<void()>& thread);

constexpr int kSharedBytes = 96 << 10;  // of a block, and of all blocks of a multiprocessor

struct Settings {
  uint64_t seed;        // SIMT_SEED: all else that is random follows from it and the number of launches since
  int multiprocessors;  // SIMT_MULTIPROCESSORS
};
Settings& settings();

// `count` zeros that belong to this stream, and must be zeros again at the end of every grid.
unsigned* counters(void* stream, int count);

// ---- For the running thread -----------------------------------------------------------------------------------------

struct Position {
  int thread, threads, block, blocks;
};
extern const Position* here;

double shuffle(double value, int from_lane, const char* name, Place place);
void sync_block(Place place);
void* shared_memory();
void store_cg(double* to, double value);
double load_cg(const double* from, Place place);
void fence(Place place);
bool arrive_last(unsigned* counter, unsigned count, Place place);

// Ends the grid with this message.
[[noreturn]] void fail(const char* what, Place place);

}  // namespace linreg::simt
