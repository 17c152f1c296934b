// SPDX-License-Identifier: BSD-3-Clause
// The points at which threads wait for each other: the lanes of a warp in a shuffle, the threads of a block at a
// barrier. All of them must make the same call.
#include <cstring>

#include "grid.h"
#include "races.h"

namespace linreg::simt {
namespace {

constexpr uint32_t kAllLanes = ~0u;

bool same(const Place& a, const Place& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

void set_call(Thread& t, const char* call, const Place& place) {
  t.call = call, t.place = place;
  t.polled = nullptr;
}

std::string doing(const Thread& t) {
  if (t.warp->ended & lane_bit(t)) return describe(t) + " has ended";
  return describe(t) + " is in " + t.call + " at " + text(t.place);
}

[[noreturn]] void diverged(const Thread& t, const Thread& other) {
  grid->fail("divergence: " + doing(t) + ", but " + doing(other));
}

const Thread& lane_of(const Warp& warp, uint32_t lanes) { return warp.lanes[__builtin_ctz(lanes)]; }

// A thread of the block that has already ended.
const Thread& ended_thread(const Block& block) {
  size_t i = 0;
  while (!block.warps[i].ended) ++i;
  return lane_of(block.warps[i], block.warps[i].ended);
}

void arrive(Thread& t) {
  Block& b = *t.block;
  if (t.warp->shuffling) diverged(t, lane_of(*t.warp, t.warp->shuffling));
  if (b.ended > 0) diverged(t, ended_thread(b));
  if (b.arrived == 0) b.first_arrival = &t;
  if (!same(t.place, b.first_arrival->place)) diverged(t, *b.first_arrival);
  t.warp->at_barrier |= lane_bit(t);
  ++b.arrived;
}

void release(Block& b) {
  b.arrived = 0;
  note_barrier(b);
  for (Thread* t : b.publishers) {
    b.known.insert(b.known.end(), t->pending.begin(), t->pending.end());
    t->pending.clear();
  }
  b.publishers.clear();
  for (Warp& warp : b.warps) {
    warp.at_barrier = 0;
    grid->make_ready(warp, kAllLanes);
  }
  grid->progress();
}

}  // namespace

double shuffle(double value, int from_lane, const char* name, Place place) {
  Thread& t = current_thread();
  Warp& w = *t.warp;
  set_call(t, name, place);
  if (from_lane < 0 || from_lane > 31) fail("a shuffle from a lane outside of the warp", place);
  if (w.at_barrier | w.ended) diverged(t, lane_of(w, w.at_barrier | w.ended));
  if (w.shuffling) {
    const Thread& other = lane_of(w, w.shuffling);
    if (!same(place, other.place)) diverged(t, other);
  }
  const int lane = t.position.thread & 31;
  const double* values = w.values[w.turn];
  w.values[w.turn][lane] = value;
  w.shuffling |= lane_bit(t);
  if (w.shuffling == kAllLanes) {
    w.shuffling = 0;
    w.turn ^= 1;
    grid->make_ready(w, kAllLanes);
  }
  grid->pause();
  return values[from_lane];
}

void sync_block(Place place) {
  Thread& t = current_thread();
  set_call(t, "sync_block", place);
  arrive(t);
  if (t.block->arrived == grid->shape.threads) release(*t.block);
  grid->pause();
}

void check_end(Thread& t) {
  Block& b = *t.block;
  t.warp->ended |= lane_bit(t);
  if (t.warp->shuffling) diverged(t, lane_of(*t.warp, t.warp->shuffling));
  if (b.arrived > 0) diverged(t, *b.first_arrival);
  ++b.ended;
}

}  // namespace linreg::simt
