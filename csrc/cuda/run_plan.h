// SPDX-License-Identifier: BSD-3-Clause
// How the steps of a run are taken: by a kernel that keeps all rows in shared memory, of one block or of all, by one
// through whose shared memory the batches stream, or launched one by one; and how rows are laid out there. All of it
// follows from the problem and the device, none from how many steps a call takes: steps in two calls are the steps of
// one.
#pragma once

#include "../math/convert.h"
#include "plan.h"

namespace linreg::cuda {

constexpr int kRunThreads = 256;        // at most: what a thread keeps takes more than the 128 registers of 512
constexpr int kMostColumns = 8;         // of a thread
constexpr int kFewestLanes = 8;         // that share a row of more columns: then few exchanges add up the lanes' sums
constexpr int kRowsOfNarrowThread = 8;  // that a thread should have before there are more warps
constexpr int kRowsOfWideThread = 4;    // where a row takes exchanges
// Numbers of a block's batch times targets. Each is widened to double, of which an H100's multiprocessor does 16 a
// clock: 2.3 µs. A step that is launched alone, with its rows gathered before, takes some 5 µs.
constexpr int64_t kMostProducts = 1 << 16;
constexpr int64_t kFewestProducts = 1 << 11;  // of each of several blocks: fewer blocks leave fewer sums to be added
// Columns of a run on several blocks. Each of them reads the sums of all: 132 · 67 doubles each are 9 MB from the
// second-level cache, 1.7 µs, where a step that is launched alone takes 3 µs and more.
constexpr int kMostShared = 64;
// A launch must end within 100 ms. On an H100 a step is estimated to take 0.5 µs, 4 µs on several blocks, and 40 ps a
// product (as above); where double is 64 times slower than float32, a product takes 20 times as long.
constexpr double kStepSeconds = 0.5e-6, kGridStepSeconds = 4e-6, kProductSeconds = 40e-12, kLaunchSeconds = 4e-3;

// Rows that a thread has in flight where each is so many of its columns: more of them would spill.
constexpr int rows_in_flight(int columns) { return columns >= 4 ? 2 : 4; }

struct ResidentLayout {
  int blocks = 1, rows = 0;              // that each holds at most
  int columns_of_thread = 1, lanes = 1;  // that a row lies over
  int workers = 1, warps = 1;            // of a target, and of all
  int stride = 0;                        // from a column of x to the next, in rows
  int columns = 0;                       // lanes · columns_of_thread, d or a few more
  int line = 0;                          // doubles of a warp's sums
  int parts = 0;                         // in which the sums of several blocks are added
  int weight_columns = 0;                // of v: 1 or k
  int shared_bytes = 0;
};

// Lays `rows` rows over a block, of which a batch has at most `batch`.
constexpr bool lay_out_rows(ResidentLayout& l, const Problem& p, int64_t rows, int64_t batch, const Limits& limits) {
  const int64_t size = int64_t(size_of(p.x.dtype));
  if (p.d < 1 || p.d > kMostColumns * kWarp || p.k < 1 || p.k > kRunThreads / kWarp || rows < 1) return false;
  if (p.y.dtype != p.x.dtype || (p.v.data && p.v.dtype != p.x.dtype)) return false;
  if (rows * size * (p.d + p.k) > limits.shared_bytes || batch * p.d * p.k > kMostProducts) return false;
  l.rows = int(rows);
  const int lanes = power_of_two_from(ceil_div(p.d, kMostColumns));
  l.lanes = lanes == 1 ? 1 : lanes < kFewestLanes ? kFewestLanes : lanes;
  l.columns_of_thread = power_of_two_from(ceil_div(p.d, l.lanes));
  l.columns = l.lanes * l.columns_of_thread;
  const int64_t of_thread = l.lanes == 1 ? kRowsOfNarrowThread : kRowsOfWideThread;
  const int64_t wanted = ceil_div(batch * l.lanes, kWarp * of_thread), most = kRunThreads / kWarp / p.k;
  l.workers = int(wanted < 1 ? 1 : wanted < most ? wanted : most);
  if (l.blocks > 1) l.workers = int(most);  // for the sums of all blocks
  l.warps = l.workers * int(p.k);
  l.line = l.columns + 3;
  l.parts = l.blocks > 1 ? l.warps * kWarp / l.line : 0;
  // Lanes of a row read a column each, at the same row: with this stride from banks of their own.
  l.stride = l.rows;
  while (l.lanes > 1 && l.stride % kWarp != kWarp / l.lanes) ++l.stride;
  l.weight_columns = !p.v.data ? 0 : p.v.col_stride == 0 ? 1 : int(p.k);
  const int64_t bytes = 8 * (2 * l.warps + l.parts) * int64_t(l.line) +
                        size * (p.d * int64_t(l.stride) + (p.k + l.weight_columns) * int64_t(l.rows));
  l.shared_bytes = int(bytes < limits.shared_bytes ? bytes : limits.shared_bytes);
  return bytes <= limits.shared_bytes;
}

constexpr bool lay_out_resident(ResidentLayout& l, const Problem& p, const Run& run, const Limits& limits) {
  l.blocks = 1;
  if (lay_out_rows(l, p, p.n, batch_rows(run, 0), limits)) return true;
  const bool full_batch = run.epoch_steps == 1 && !run.order && run.rows == p.n;
  if (!limits.cooperative || !full_batch || p.k != 1 || p.d > kMostShared) return false;
  const int64_t wanted = ceil_div(p.n * p.d, kFewestProducts);
  l.blocks = int(wanted < limits.multiprocessors ? wanted : limits.multiprocessors);
  const int64_t rows = ceil_div(p.n, l.blocks);
  return l.blocks > 1 && lay_out_rows(l, p, rows, rows, limits);
}

// Batches that have a place in shared memory: what a step asks for is waited for two steps later, some 2 µs, and used
// in the step after that. Memory answers within 1 µs, and a little later where it has to find the page of a row first.
constexpr int kStages = 3;
constexpr int kPlaces = 2 * kStages - 1;  // for the orders of batches, which are asked for before their rows
// Numbers of a block's part of a batch, where a cluster of more blocks would have less: widening them takes 0.15 µs,
// and what a cluster's blocks send each other is half a microsecond (estimated).
constexpr int64_t kStreamedProducts = 1 << 12;
constexpr double kStreamedStepSeconds = 1.5e-6;

// Rows of a batch lie over the blocks of one cluster, each of which keeps the weights of all columns and updates its
// share of them. Towards one target, and for rows of up to 256 columns: a warp has a row, eight columns a thread.
struct StreamedLayout {
  int cluster = 1;                       // blocks
  int columns_of_thread = 1, lanes = 1;  // that a row lies over
  int columns = 0;                       // lanes · columns_of_thread, d or more
  int copy_bytes = 0;                    // of neighbours, copied at once
  int warps = 1;                         // of a block
  int turns = 1;                         // rows of a batch that a thread has, at most
  int own = 1;                           // columns that a block updates, at most
  int line = 0;                          // doubles of a warp's sums
  int shared_bytes = 0;
};

// Of x, at once to shared memory.
constexpr int copy_bytes(const Problem& p, uintptr_t x_address) {
  const int size = int(size_of(p.x.dtype));
  if (in_words(p, x_address)) return 16;
  if (size > 2) return size;
  return p.d % 2 == 0 && x_address % 4 == 0 && p.x.row_stride % 2 == 0 ? 4 : 2;
}

constexpr int kSlot = 4;  // bytes for a target or a weight, or 8 of float64
constexpr int slot_bytes(Dtype dtype) { return dtype == Dtype::float64 ? 8 : kSlot; }
constexpr int kBoxBytes = 32;  // three of them, and 16-byte words after them

constexpr int64_t streamed_bytes(const StreamedLayout& l, const Problem& p, bool order) {
  const int64_t rows = int64_t(l.turns) * (l.warps * kWarp / l.lanes), threads = l.warps * kWarp;
  const int64_t numbers = l.columns + 2 * l.cluster * (l.own + 3) + 2 * l.warps * l.line;
  return kBoxBytes + kStages * l.turns * threads * l.columns_of_thread * int64_t(size_of(p.x.dtype)) +
         (order ? kPlaces * rows * 8 : 0) + 8 * numbers + kStages * rows * slot_bytes(p.x.dtype) * (p.v.data ? 2 : 1);
}

constexpr bool lay_out_streamed(StreamedLayout& l, const Problem& p, const Run& run, uintptr_t x_address,
                                const Limits& limits) {
  const int64_t batch = batch_rows(run, 0);
  const bool clusters = limits.clusters[1] > 0;  // the device knows them, and what their blocks send each other
  if (!clusters || p.k != 1 || p.d < 1 || p.d > kMostColumns * kWarp) return false;
  if (batch > limits.shared_bytes) return false;  // that of 16 blocks would hold fewer, and less than an int counts
  if (p.y.dtype != p.x.dtype || (p.v.data && p.v.dtype != p.x.dtype)) return false;
  l.copy_bytes = copy_bytes(p, x_address);
  if (l.copy_bytes < 4) return false;  // cannot be copied without waiting for it
  const int at_once = l.copy_bytes / int(size_of(p.x.dtype)), wanted = power_of_two_from(ceil_div(p.d, kWarp));
  l.columns_of_thread = at_once > wanted ? at_once : wanted;
  l.lanes = power_of_two_from(ceil_div(p.d, l.columns_of_thread));
  l.columns = l.lanes * l.columns_of_thread;
  l.line = l.columns + 3;
  for (int i = 0; i < kClusterSizes && limits.clusters[i] > 0; ++i) {
    l.cluster = 1 << i;
    const bool larger = i + 1 < kClusterSizes && limits.clusters[i + 1] > 0;
    if (larger && batch * p.d > l.cluster * kStreamedProducts) continue;
    l.own = int(ceil_div(l.columns, l.cluster));
    const int64_t fewest = ceil_div(l.own, kWarp), most = kRunThreads / kWarp;
    const int64_t by_rows = ceil_div(batch * l.lanes, l.cluster * kWarp * rows_in_flight(l.columns_of_thread));
    const int64_t warps = by_rows > fewest ? by_rows : fewest;
    l.warps = int(warps < most ? warps : most);
    l.turns = int(ceil_div(batch * l.lanes, l.cluster * l.warps * kWarp));
    const int64_t bytes = streamed_bytes(l, p, run.order);
    l.shared_bytes = int(bytes < limits.shared_bytes ? bytes : limits.shared_bytes);
    if (bytes <= limits.shared_bytes) return true;
  }
  return false;
}

enum class RunWay : int8_t { one_by_one, resident, streamed };

struct RunPlan {
  RunWay way = RunWay::one_by_one;
  ResidentLayout resident;
  StreamedLayout streamed;
  int64_t launch_steps = 0;  // of one launch, at most
};

constexpr RunPlan plan_of(const Problem& p, const Run& run, uintptr_t x_address, const Limits& limits) {
  RunPlan plan;
  double step = 0;
  int64_t rows = 0;  // of a block in a step
  if (lay_out_resident(plan.resident, p, run, limits)) {
    const bool one = plan.resident.blocks == 1;
    plan.way = RunWay::resident;
    step = one ? kStepSeconds : kGridStepSeconds;
    rows = one ? batch_rows(run, 0) : plan.resident.rows;
  } else if (lay_out_streamed(plan.streamed, p, run, x_address, limits)) {
    plan.way = RunWay::streamed;
    step = kStreamedStepSeconds;
    rows = ceil_div(batch_rows(run, 0), plan.streamed.cluster);
  } else {
    return plan;
  }
  plan.launch_steps = int64_t(kLaunchSeconds / (step + kProductSeconds * double(rows * p.d * p.k)));
  return plan;
}

}  // namespace linreg::cuda
