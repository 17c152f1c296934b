// SPDX-License-Identifier: BSD-3-Clause
// Communication between threads through memory.
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

}  // namespace

void fail(const char* what, Place place) {
  grid->fail(describe(current_thread()) + ": " + what + " at " + text(place));
}

void* shared_memory() { return current_thread().block->shared.get(); }

void copy_async(void* to, const void* from, int bytes, Place place) {
  Thread& t = current_thread();
  if (reinterpret_cast<uintptr_t>(to) % unsigned(bytes) != 0 || reinterpret_cast<uintptr_t>(from) % unsigned(bytes) != 0)
    fail("misaligned copy_async", place);
  note_access(to, size_t(bytes), true);
  std::memset(to, 0xff, size_t(bytes));  // nan in every floating-point type
  t.copies.push_back({to, from, size_t(bytes), t.commits});
}

void copy_commit() { ++current_thread().commits; }

void copy_wait(int pending) {
  Thread& t = current_thread();
  std::erase_if(t.copies, [&](const Copy& copy) {
    if (copy.commit >= t.commits - pending) return false;
    note_access(copy.from, copy.bytes, false);
    note_access(copy.to, copy.bytes, true);
    std::memcpy(copy.to, copy.from, copy.bytes);
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
  for (const auto* stores : {&t.pending, &t.block->known})
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
  settle(t.block->known);
  if (t.pending.empty()) return;
  settle(t.pending);
  std::erase(t.block->publishers, &t);
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
