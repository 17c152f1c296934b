// SPDX-License-Identifier: BSD-3-Clause
#include "grid.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "races.h"

namespace linreg::simt {

Grid* grid = nullptr;
const Position* here = nullptr;
Position position() { return *here; }

namespace {

constexpr uint32_t kAllLanes = ~0u;
// A polling thread lets others run. This many polls without progress are a deadlock.
constexpr int64_t kMaxPolls = 1 << 17;

}  // namespace

std::string text(const Place& place) {
  if (place.line() == 0) return "the start";
  std::string file = place.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(place.line());
}

std::string describe(const Thread& t) {
  return "thread " + std::to_string(t.position.thread) + " of block " + std::to_string(t.position.block);
}

Grid::Grid(const Shape& shape, const std::function<void()>& body, uint64_t seed)
    : shape(shape), body(body), random_{seed | 1}, todo_(size_t(shape.blocks)) {
  for (int i = 0; i < 8; ++i) random_.next();
  // Schedules in which warps or blocks run far ahead reveal missing barriers; fair ones reveal other mistakes.
  leave_mask_ = random_.below(3) ? 255 : 15;
  recent_mask_ = random_.below(2) ? 15 : 0;
  std::iota(todo_.begin(), todo_.end(), 0);
  for (size_t i = todo_.size(); i > 1; --i) std::swap(todo_[i - 1], todo_[size_t(random_.below(int(i)))]);
  capacity_ = resident_blocks(shape);
  wanted_ = 1 + random_.below(capacity_);
}

std::string Grid::run() {
  grid = this;
  note_grid(shape);
  while (error_.empty()) {
    retire_blocks();
    while (!todo_.empty() && int(resident_.size()) < wanted_ && error_.empty()) {
      start_block();
      if (random_.below(4) == 0) break;
    }
    if (!error_.empty() || resident_.empty()) break;
    Thread* next = choose(false);
    if (next) {
      current = next, here = &next->position;
      switch_fiber(host_, next->fiber);
    } else if (!todo_.empty() && int(resident_.size()) < capacity_) {
      wanted_ = capacity_;  // the others may be waiting for a block that has not started
    } else {
      error_ = "deadlock: no thread can run: " + where_they_wait();
    }
  }
  for (auto& block : resident_)
    for (Thread& thread : block->threads) release_fiber(thread.fiber, true);
  if (error_.empty())
    for (const Store& store : final_) *store.to = store.value;
  grid = nullptr, here = nullptr;
  return error_;
}

void Grid::start_block() {
  resident_.push_back(std::make_unique<Block>());
  Block& b = *resident_.back();
  b.index = todo_.back(), b.running = shape.threads;
  b.shared = std::make_unique<char[]>(size_t(shape.shared_bytes));
  std::fill_n(b.shared.get(), shape.shared_bytes, char(0xff));  // nan in every floating-point type
  b.threads.resize(size_t(shape.threads));
  b.warps.resize(size_t(shape.threads / 32));
  for (int i = 0; i < shape.threads; ++i) {
    Thread& t = b.threads[size_t(i)];
    t.position = {i, shape.threads, b.index, shape.blocks};
    t.block = &b, t.warp = &b.warps[size_t(i / 32)];
    if (!prepare_fiber(t.fiber, thread_main)) error_ = "no memory for the stacks of so many threads";
  }
  for (size_t i = 0; i < b.warps.size(); ++i) {
    b.warps[i].lanes = &b.threads[i * 32];
    make_ready(b.warps[i], kAllLanes);
  }
  todo_.pop_back();
  progress();
}

void Grid::retire_blocks() {
  for (size_t i = 0; i < resident_.size();) {
    Block& block = *resident_[i];
    if (block.running > 0) {
      ++i;
      continue;
    }
    for (Thread& thread : block.threads) release_fiber(thread.fiber, false);
    note_freed(block.shared.get(), size_t(shape.shared_bytes));
    final_.insert(final_.end(), block.known.begin(), block.known.end());
    for (Thread* t : block.publishers) final_.insert(final_.end(), t->pending.begin(), t->pending.end());
    std::swap(resident_[i], resident_.back());
    resident_.pop_back();
  }
}

void Grid::make_ready(Warp& warp, uint32_t lanes) {
  warp.ready |= lanes;
  if (warp.listed) return;
  warp.listed = true;
  ready_.push_back(&warp);
}

// Picks the next thread to run, from the running warp if it may stay. Null: switch to the host.
Thread* Grid::choose(bool stay) {
  if (!running_ || !running_->ready || !stay) {
    if (running_ && running_->ready) {
      ready_.push_back(running_);
    } else if (running_) {
      running_->listed = false;
    }
    running_ = nullptr;
    const bool start_more = !todo_.empty() && int(resident_.size()) < wanted_ && random_.below(64) == 0;
    if (ready_.empty() || (current && start_more)) return nullptr;
    if ((random_.next() & recent_mask_) == 0)
      std::swap(ready_[size_t(random_.below(int(ready_.size())))], ready_.back());
    running_ = ready_.back();
    ready_.pop_back();
  }
  const uint32_t turn = random_.next() & 31;
  const uint32_t ready = running_->ready;
  const uint32_t turned = ready >> turn | ready << (-turn & 31);
  const uint32_t lane = (uint32_t(__builtin_ctz(turned)) + turn) & 31;
  running_->ready &= ~(1u << lane);
  return running_->lanes + lane;
}

void Grid::become(Thread* next, bool done) {
  Thread* from = current;
  if (next == from) return;
  current = next;
  here = next ? &next->position : nullptr;
  switch_fiber(from->fiber, next ? next->fiber : host_, done);
}

void Grid::pause() { become(choose((random_.next() & leave_mask_) != 0), false); }

void Grid::yield(bool polling) {
  if (polling && ++polls_ > kMaxPolls)
    fail("deadlock: threads poll for values that no thread publishes: " + where_they_wait());
  current->warp->ready |= lane_bit(*current);
  if (polling && !todo_.empty() && wanted_ < capacity_ && random_.below(64) == 0) {
    wanted_ = capacity_;
    return become(nullptr, false);
  }
  become(choose(false), false);
}

void Grid::fail(std::string message) {
  error_ = std::move(message);
  become(nullptr, true);
  __builtin_unreachable();
}

void Grid::thread_main() {
  enter_fiber();
  grid->body();
  grid->end_thread();
}

void Grid::end_thread() {
  Thread& t = *current;
  check_end(t);
  t.warp->ended |= lane_bit(t);
  progress();
  if (--t.block->running == 0) {
    running_->listed = false, running_ = nullptr;
    become(nullptr, true);
  }
  become(choose(true), true);
  __builtin_unreachable();
}

std::string Grid::where_they_wait() const {
  std::map<std::string, std::pair<int, const Thread*>> groups;
  for (const auto& block : resident_)
    for (const Thread& thread : block->threads) {
      if (thread.warp->ended & lane_bit(thread)) continue;
      auto& [count, first] = groups[thread.call + (" at " + text(thread.place))];
      if (count++ == 0) first = &thread;
    }
  std::string all;
  for (const auto& [where, group] : groups) {
    all += (all.empty() ? "" : "; ") + std::to_string(group.first) + " in " + where + ", as " + describe(*group.second);
  }
  if (!todo_.empty()) all += "; " + std::to_string(todo_.size()) + " blocks have not started";
  return all;
}

}  // namespace linreg::simt
