// SPDX-License-Identifier: BSD-3-Clause
// What threads of different blocks leave for each other, in global memory and in the shared memory of a cluster.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

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

// Where `mine`, of this thread's block, lies in block `rank` of the cluster.
double* remote(double* mine, int rank, const Place& place) {
  Thread& t = current_thread();
  Cluster& c = *t.block->cluster;
  const auto fail_with = [&](const char* why) { fail((std::string("store_remote ") + why).c_str(), place); };
  if (rank < 0 || rank >= grid->shape.cluster) fail_with("to a block outside of the cluster");
  const char* shared = t.block->shared.get();
  const int64_t offset = int64_t(reinterpret_cast<uintptr_t>(mine) - reinterpret_cast<uintptr_t>(shared));
  if (offset < 0 || offset + 8 > grid->shape.shared_bytes || offset % 8 != 0)
    fail_with("to a place that is not in shared memory");
  if (c.phase == 0) fail_with("before a sync_cluster: the other block may not have started");
  Block& target = c.blocks[size_t(rank)];
  if (target.ended == grid->shape.threads) fail_with("into a block that has ended");
  set_call(t, "store_remote", place);
  return reinterpret_cast<double*>(target.shared.get() + offset);
}

}  // namespace

void fail(const char* what, Place place) {
  grid->fail(describe(current_thread()) + ": " + what + " at " + text(place));
}

void* shared_memory() { return current_thread().block->shared.get(); }

void store_remote(double* mine, int rank, double value, Place place) {
  Cluster& c = *current_thread().block->cluster;
  if (rank == current_thread().block->rank) {
    note_access(mine, sizeof(double), true);
    *mine = value;
    return;
  }
  double* to = remote(mine, rank, place);
  note_access(to, sizeof(double), true);
  c.remote.push_back({to, value});
  *to = kUndefined;
}

void copy_async(void* to, const void* from, int bytes, Place place) {
  Thread& t = current_thread();
  const auto aligned = [&](const void* at) { return reinterpret_cast<uintptr_t>(at) % uintptr_t(bytes) == 0; };
  if (!aligned(to) || !aligned(from)) fail("misaligned copy_async", place);
  Copy copy = {static_cast<char*>(to), {}, bytes, t.copy_group};
  std::memcpy(copy.bytes, from, size_t(bytes));
  t.copies.push_back(copy);
  note_access(to, size_t(bytes), true);
  std::memset(to, 0xff, size_t(bytes));  // numbers of all sizes are nan
}

void end_copies() { ++current_thread().copy_group; }

void wait_copies(int latest) {
  Thread& t = current_thread();
  std::erase_if(t.copies, [&](const Copy& copy) {
    if (copy.group >= t.copy_group - latest) return false;
    note_access(copy.to, size_t(copy.size), true);
    std::memcpy(copy.to, copy.bytes, size_t(copy.size));
    return true;
  });
}

void store_cg(double* to, double value) {
  Thread& t = current_thread();
  note_access(to, sizeof(double), true);
  if (t.pending.empty()) t.block->publishers.push_back(&t);
  t.pending.push_back({to, value});
  *to = kUndefined;
}

double load_cg(const double* from, Place place) {
  Thread& t = current_thread();
  for (const auto* stores : {&t.pending, &t.block->known, &t.block->cluster->known})
    if (const Store* store = find_latest(*stores, from)) return store->value;
  if (t.polled == from) {
    set_call(t, "load_cg", place);
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
