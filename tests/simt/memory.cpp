// SPDX-License-Identifier: BSD-3-Clause
// What threads of different blocks leave for each other, in global memory and in the shared memory of a cluster.
#include <algorithm>
#include <limits>

#include "grid.h"
#include "races.h"

namespace linreg::simt {
namespace {

constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

void settle(std::vector<Store>& stores) {
  if (stores.empty()) return;
  for (const Store& store : stores) *store.to = store.value;
  stores.clear();
  grid->progress();
}

const Store* find_latest(const std::vector<Store>& stores, const double* at) {
  for (size_t i = stores.size(); i-- > 0;)
    if (stores[i].to == at) return &stores[i];
  return nullptr;
}

void set_call(Thread& t, const char* call, const Place& place) { t.call = call, t.place = place; }

}  // namespace

void fail(const char* what, Place place) {
  grid->fail(describe(current_thread()) + ": " + what + " at " + text(place));
}

void* shared_memory() { return current_thread().block->shared.get(); }

void store_remote(double* mine, int rank, double value, Place place) {
  Thread& t = current_thread();
  Block& b = *t.block;
  Cluster& c = *b.cluster;
  if (rank < 0 || rank >= grid->shape.cluster) fail("store_remote to a block outside of the cluster", place);
  const int64_t offset = int64_t(reinterpret_cast<uintptr_t>(mine) - reinterpret_cast<uintptr_t>(b.shared.get()));
  if (offset < 0 || offset + 8 > grid->shape.shared_bytes || offset % 8 != 0)
    fail("store_remote to a place that is not in shared memory", place);
  set_call(t, "store_remote", place);
  if (rank == b.rank) {
    note_access(mine, sizeof(double), true);
    *mine = value;
    return;
  }
  Block& target = c.blocks[size_t(rank)];
  if (c.phase == 0) fail("store_remote before a sync_cluster: the other block may not have started", place);
  if (target.ended == grid->shape.threads) fail("store_remote into a block that has ended", place);
  double* to = reinterpret_cast<double*>(target.shared.get() + offset);
  note_access(to, sizeof(double), true);
  c.remote.push_back({to, value});
  *to = kUndefined;
}

void publish(double* to, double value) {
  Thread& t = current_thread();
  note_access(to, sizeof(double), true);
  if (t.pending.empty()) t.block->publishers.push_back(&t);
  t.pending.push_back({to, value});
  *to = kUndefined;
}

double published(const double* from, Place place) {
  Thread& t = current_thread();
  for (const auto* stores : {&t.pending, &t.block->known, &t.block->cluster->known})
    if (const Store* store = find_latest(*stores, from)) return store->value;
  if (t.polled == from) {
    set_call(t, "published", place);
    grid->yield(true);
  }
  t.polled = from;
  note_access(from, sizeof(double), false);
  return *from;
}

void fence(Place place) {
  Thread& t = current_thread();
  set_call(t, "fence", place);
  grid->sometimes_yield();
  note_fence(t);
  settle(t.block->cluster->known);
  settle(t.block->known);
  if (t.pending.empty()) return;
  settle(t.pending);
  std::erase(t.block->publishers, &t);
}

void signal(double* to, double value, Place place) {
  fence(place);
  *to = value;
  grid->progress();
}

double signalled(const double* from, Place place) {
  set_call(current_thread(), "signalled", place);
  grid->yield(true);
  return *from;
}

bool arrive_last(unsigned* counter, unsigned count, Place place) {
  set_call(current_thread(), "arrive_last", place);
  grid->sometimes_yield();
  const unsigned before = *counter;
  *counter = before >= count - 1 ? 0 : before + 1;
  grid->progress();
  grid->sometimes_yield();
  return before == count - 1;
}

}  // namespace linreg::simt
