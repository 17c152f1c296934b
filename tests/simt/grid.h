// SPDX-License-Identifier: BSD-3-Clause
// A running grid: its threads, the events they wait for, and the scheduler.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "fibers.h"
#include "simt.h"

namespace linreg::simt {

struct Store {
  double* to;
  double value;
};

// An asynchronous copy, of the commit with this number.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int commit;
};

struct Thread;
struct Block;
struct Warp;

struct Thread {
  Position position;
  Fiber fiber;
  Warp* warp;
  Block* block;
  const char* call = "start";  // its latest synchronising call
  Place place;
  std::vector<Store> pending;  // stores that no other thread sees yet
  const double* polled = nullptr;
  std::vector<Copy> copies;  // those not yet waited for
  int commits = 0;
};

struct Warp {
  Thread* lanes;  // 32 of them
  // A lane in none of these sets is running.
  uint32_t ready = 0, shuffling = 0, at_barrier = 0, ended = 0;
  bool listed = false;  // in the grid's list of warps with ready lanes, or running
  // The lanes' values in a shuffle; double-buffered, since some lanes may reach the next one before all have read.
  double values[2][32];
  int turn = 0;
};

struct Block {
  int index;
  std::unique_ptr<char[]> shared;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  int running, arrived = 0, ended = 0;  // threads
  Thread* first_arrival = nullptr;
  std::vector<Thread*> publishers;  // threads with pending stores
  std::vector<Store> known;         // stores before a barrier, which the block sees
};

// The maximum number of resident blocks of this shape.
int resident_blocks(const Shape& shape);

inline uint32_t lane_bit(const Thread& thread) { return 1u << (thread.position.thread & 31); }

// xorshift64*
struct Random {
  uint64_t state;
  uint32_t next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return uint32_t(state * 0x2545f4914f6cdd1du >> 32);
  }
  int below(int bound) { return int(uint64_t(next()) * uint32_t(bound) >> 32); }
};

class Grid {
 public:
  Grid(const Shape& shape, const std::function<void()>& body, uint64_t seed);
  std::string run();

  // Called when the current thread is among those that wait or are ready; returns when it runs again.
  void pause();
  void yield(bool polling = false);
  void sometimes_yield() {
    if (random_.next() & 1) yield();
  }
  void make_ready(Warp& warp, uint32_t lanes);
  void progress() { polls_ = 0; }
  [[noreturn]] void fail(std::string message);

  Thread* current = nullptr;
  const Shape shape;
  const std::function<void()>& body;

 private:
  void start_block();
  void retire_blocks();
  void become(Thread* next, bool done);
  Thread* choose(bool stay);
  [[noreturn]] void end_thread();
  static void thread_main();
  std::string where_they_wait() const;

  Random random_;
  uint32_t leave_mask_;    // how rarely a warp with ready lanes yields to another
  uint32_t recent_mask_;   // how rarely the other warp is not the latest to become ready
  std::vector<int> todo_;  // blocks that have not started, the next one last
  int capacity_, wanted_;  // the limit on resident blocks, and the number wanted now
  std::vector<std::unique_ptr<Block>> resident_;
  std::vector<Warp*> ready_;  // warps with ready lanes, except the running one
  Warp* running_ = nullptr;
  Fiber host_;
  std::vector<Store> final_;  // of blocks that have ended
  int64_t polls_ = 0;         // since the last progress
  std::string error_;
};

extern Grid* grid;

inline Thread& current_thread() { return *grid->current; }
std::string text(const Place& place);
std::string describe(const Thread& thread);

// Fails if other threads of the warp or block wait for this one, which is about to end.
void check_end(Thread& thread);

}  // namespace linreg::simt
