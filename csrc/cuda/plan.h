// SPDX-License-Identifier: BSD-3-Clause
// Chooses the kernel for a problem, the layout of its rows, and the memory it needs. The choice depends only on the
// problem's sizes and dtypes and on the device.
#pragma once

#include "pass.cuh"

namespace linreg::cuda {

constexpr int kStages = 2;                // of the ring: one tile is in flight while another is processed
constexpr int kChain = 64;                // rows that a thread adds in float before the sum moves to double
constexpr int64_t kTileBytes = 96 << 10;  // one tile of all blocks of a multiprocessor: far above the 32 KB that must
                                          // be in flight for 0.95 of an H100's bandwidth, and half of its instructions
                                          // do not depend on its rows
constexpr int64_t kLeastTileBytes = 4 << 10;
constexpr int kFewRows = 4;            // the rows of a tile that are worth another group of threads
constexpr int64_t kMostTargets = 32;   // of a pass; with more, matrix products are faster
constexpr int kSharedReserved = 1024;  // bytes per block, for the system
constexpr int kSharedLeast = kMaxThreads / kWarp * int(sizeof(double));  // for finish.cuh
// The size of matrix products. With many targets they are bound by arithmetic, and take enough rows to fill a GPU, or
// more while the predictions fit in kProductBytes. With few targets, the second product should find its rows in the
// second-level cache.
constexpr int64_t kProductRows = 16384, kProductBytes = 64 << 20;

// The sizes of an instance of tiles.cuh, which registers limit. A thread keeps thread_sums() gradient sums, both in its
// type and in double, and the dot products of kRowsAtOnce rows with some targets.
constexpr int thread_sums(Dtype x) { return x == Dtype::float64 ? 8 : 16; }
constexpr int kRowsAtOnce = 2;
constexpr int targets_at_once(int64_t k) { return k == 1 ? 1 : 4; }
// Shared memory for the values that all threads read, and for the sums of each thread's residuals.
LINREG_MATH constexpr int residual_bytes(int threads) { return 32 + 48 * threads; }
// The columns that a thread reads at once. With several targets, only float32 leaves registers for more than one.
constexpr int vector_columns(Dtype x, int targets) {
  return targets == 1 || x == Dtype::float32 ? 16 / int(size_of(x)) : 1;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t aligned(int64_t bytes) { return ceil_div(bytes, 16) * 16; }
constexpr int log_from(int64_t at_least) {
  int log = 0;
  while (int64_t(1) << log < at_least) ++log;
  return log;
}
constexpr int power_of_two_from(int64_t at_least) { return 1 << log_from(at_least); }

// Lays out tiles of `rows` rows for a block. False if they do not fit in `bytes`.
constexpr bool lay_out(Plan& plan, const Problem& p, int64_t rows, int64_t bytes) {
  Layout& l = plan.layout;
  const int targets = targets_at_once(p.k), warps = plan.threads / kWarp;
  const int columns = plan.vectors ? vector_columns(p.x.dtype, targets) : 1;
  const int64_t vectors = p.d / columns, size = p.x.dtype == Dtype::float64 ? 8 : 4;
  l.rows = int(rows);
  l.targets_log = log_from(p.k > targets ? p.k : targets);
  // Up to eight lanes share a row if each has at least four vectors, which pays for the exchanges. More lanes share it
  // if there are too few rows for the warp.
  while (l.lanes_log < 5 && 2 << l.lanes_log <= vectors &&
         ((l.lanes_log < 3 && 8 << l.lanes_log <= vectors) || kRowsAtOnce * (kWarp >> l.lanes_log) > rows))
    ++l.lanes_log;
  const int64_t lanes = int64_t(1) << l.lanes_log, padded = int64_t(1) << l.targets_log;
  const int64_t units = ceil_div(rows, kRowsAtOnce * (kWarp / lanes)) * (padded / targets);
  while ((2 * lanes << l.parts_log) <= vectors &&
         (units << l.parts_log < warps || ceil_div(vectors, lanes << l.parts_log) * columns > kChain))
    ++l.parts_log;
  l.part_columns = int(ceil_div(vectors, int64_t(1) << l.parts_log)) * columns;
  l.owned = int(vectors * ceil_div(p.k, targets));
  l.span = l.owned < 1 ? 1 : l.owned < plan.threads ? l.owned : plan.threads;
  // The sums are fewest in double if a thread's rows of a tile are a power of two, of which whole chains consist. A
  // quarter of the threads may stay idle for that. The sums of residuals are fewer, and may waste an eighth of a chain.
  const int64_t tile_rows = rows < p.n ? rows : p.n, most = plan.threads / l.span;
  const int64_t useful = ceil_div(tile_rows, kFewRows) < most ? ceil_div(tile_rows, kFewRows) : most;
  const int64_t chain = power_of_two_from(ceil_div(tile_rows, useful < 1 ? 1 : useful));
  l.groups = int(tile_rows < 1 ? 1 : ceil_div(tile_rows, chain));
  const bool wastes = 4 * l.groups < 3 * useful || 8 * l.groups * chain > 9 * rows;
  const int64_t of_target = ceil_div(rows * padded, plan.threads);  // of a thread
  if (chain > kChain || (rows < p.n && wastes) || of_target > kChain || kChain % of_target > kChain / 8) return false;
  l.chain_tiles = int(kChain / chain);
  l.residual_tiles = int(kChain / of_target);

  const int64_t weight_columns = !p.v.data ? 0 : p.v.col_stride == 0 ? 1 : p.k;
  const int64_t dots_at = aligned(padded * p.d * size);
  const int64_t ring_at = dots_at + aligned((rows << l.parts_log) * padded * size);
  const int64_t y_at = aligned(rows * p.d * int64_t(size_of(p.x.dtype))) + 16;
  const int64_t v_at = y_at + aligned(rows * p.k * int64_t(size_of(p.y.dtype))) + 16;
  const int64_t weights = p.v.data ? aligned(rows * weight_columns * int64_t(size_of(p.v.dtype))) + 16 : 0;
  const int64_t totals = residual_bytes(plan.threads), needed = totals + ring_at + kStages * (v_at + weights);
  const int64_t sums = totals + 8 * (warps * 3 * padded + (l.groups > 1 ? l.groups * p.k * p.d : 0));
  if (needed > bytes || sums > bytes) return false;
  l.dots_at = int(dots_at), l.ring_at = int(ring_at), l.y_at = int(y_at), l.v_at = int(v_at);
  l.stage_bytes = int(v_at + weights);
  plan.shared_bytes = int(needed > sums ? needed : sums);
  return true;
}

constexpr int64_t product_rows(const Problem& p, const Limits& limits) {
  const int64_t few = limits.cache_bytes / 2 / (p.d * int64_t(size_of(p.x.dtype)) + 1) + 1;
  const int64_t many = kProductBytes / (p.k * 4) > kProductRows ? kProductBytes / (p.k * 4) : kProductRows;
  return p.k > kMostTargets ? many : few;
}

// The rows of a tile, whether or not they fit in shared memory: the most that a tile may have, or fewer so that every
// multiprocessor gets a tile.
constexpr int64_t wanted_rows(const Problem& p, int resident, const Limits& limits) {
  const int64_t row_bytes = p.d * int64_t(size_of(p.x.dtype)) + p.k * int64_t(size_of(p.y.dtype));
  const auto rows_of = [&](int64_t bytes) { return row_bytes > 0 ? ceil_div(bytes, row_bytes) : kChain; };
  const int64_t share = ceil_div(p.n, int64_t(limits.multiprocessors) * resident), least = rows_of(kLeastTileBytes);
  int64_t rows = rows_of(kTileBytes / resident);
  if (rows > share) rows = share > least ? share : least < rows ? least : rows;
  return rows > 8 ? ceil_div(rows, 8) * 8 : rows;
}

constexpr Plan plan_of(const Problem& p, const Limits& limits) {
  Plan plan;
  const int targets = targets_at_once(p.k);
  plan.vectors = vector_columns(p.x.dtype, targets) > 1 && p.d % vector_columns(p.x.dtype, targets) == 0;
  const int columns = plan.vectors ? vector_columns(p.x.dtype, targets) : 1;
  const int64_t sets = p.d / columns * ceil_div(p.k, targets);
  const int64_t sums = sets * columns * targets, few = kMaxThreads / 2;
  plan.threads = sums > thread_sums(p.x.dtype) * few ? kMaxThreads : int(few);
  const int resident = kMaxThreads / plan.threads;  // blocks per multiprocessor, limited by registers
  const int64_t bytes = (limits.shared_bytes + kSharedReserved) / resident - kSharedReserved;
  const bool fits = p.k <= kMostTargets && sums <= int64_t(thread_sums(p.x.dtype)) * plan.threads;
  int64_t rows = fits ? wanted_rows(p, resident, limits) : 0;
  for (; rows > 0; rows -= rows > 64 ? rows / 64 * 8 : rows > 8 ? 8 : 1) {
    Plan laid = plan;
    if (!lay_out(laid, p, rows, bytes)) continue;
    const int64_t tiles = ceil_div(p.n, rows), at_once = int64_t(limits.multiprocessors) * resident;
    laid.layout.tiles = int(tiles);
    laid.blocks = int(tiles < 1 ? 1 : tiles < at_once ? tiles : at_once);
    laid.line_stride = sum_count(p, true);
    laid.workspace = sizeof(double) * size_t(laid.blocks * laid.line_stride);
    return laid;
  }
  plan.product_rows = product_rows(p, limits);
  return plan;
}

// The steps of a run. If all rows fit in the shared memory of one block, one launch takes many steps; else each step is
// launched alone. The layout depends on the problem and the device, not on the number of steps in a call, so that a run
// split into several calls has the same bits.

constexpr int kRunThreads = 256;        // the largest block: with 512 threads, the 128 registers of each do not suffice
constexpr int kMostColumns = 8;         // of a thread
constexpr int kFewestLanes = 8;         // that share a wider row, so that few exchanges add the lanes' sums
constexpr int kRowsOfNarrowThread = 8;  // the rows that a thread should have before a block gets more warps
constexpr int kRowsOfWideThread = 4;    // the same if lanes share a row
constexpr int kMostRows = 64;           // of a thread, which sums them in its own type
constexpr int64_t kOneWarpNumbers = 1 << 10;  // numbers of x up to which two barriers cost more than more warps save
// Numbers of a batch times targets. Each takes some 6 of the 128 instructions that a multiprocessor executes per clock:
// 2 µs in all. A step launched alone takes some 5 µs.
constexpr int64_t kMostProducts = 1 << 16;
// A launch takes the steps that an estimated 4 ms allow, at 0.5 µs plus 40 ps per product. It has to end within 100 ms,
// even on a GPU that is many times slower.
constexpr double kStepSeconds = 0.5e-6, kProductSeconds = 40e-12, kLaunchSeconds = 4e-3;

// The rows that a thread processes at once, given the columns it has of each. More would spill.
constexpr int rows_in_flight(int columns) { return columns >= 4 ? 2 : 4; }

struct ResidentLayout {
  int rows = 0;
  int columns_of_thread = 1, lanes = 1;  // columns of a thread, and the lanes that share a row
  int workers = 1, warps = 1;            // warps per target, and in all
  bool one_warp = false;                 // a single warp, whose lanes take whole rows of one target
  int stride = 0;                        // between the columns of x, in rows
  int columns = 0;                       // lanes · columns_of_thread: d, padded
  int line = 0;                          // doubles in a warp's line of sums
  int weight_columns = 0;                // columns of v: 0, 1 or k
  int shared_bytes = 0;
};

// Lays out all rows for one block. False if they do not fit.
constexpr bool lay_out(ResidentLayout& l, const Problem& p, const Run& run, const Limits& limits) {
  const int64_t rows = p.n, batch = batch_rows(run, 0), size = p.x.dtype == Dtype::float64 ? 8 : 4;
  if (p.d < 1 || p.d > kMostColumns * kWarp || p.k < 1 || p.k > kRunThreads / kWarp || rows < 1) return false;
  if (rows > limits.shared_bytes || batch * p.d * p.k > kMostProducts) return false;
  l.rows = int(rows);
  const int lanes = power_of_two_from(ceil_div(p.d, kMostColumns));
  l.lanes = lanes == 1 ? 1 : lanes < kFewestLanes ? kFewestLanes : lanes;
  l.columns_of_thread = power_of_two_from(ceil_div(p.d, l.lanes));
  l.columns = l.lanes * l.columns_of_thread;
  const bool few = p.k == 1 && l.lanes == 1 && batch * p.d <= kOneWarpNumbers;
  const int64_t of_thread = l.lanes == 1 ? kRowsOfNarrowThread : kRowsOfWideThread;
  const int64_t wanted = few ? 1 : ceil_div(batch * l.lanes, kWarp * of_thread), most = kRunThreads / kWarp / p.k;
  l.workers = int(wanted < 1 ? 1 : wanted < most ? wanted : most);
  if (batch * l.lanes > int64_t(l.workers) * kWarp * kMostRows) return false;
  l.warps = l.workers * int(p.k);
  l.one_warp = l.warps == 1 && l.lanes == 1;
  l.line = l.columns + 3;
  // The lanes of a row each read their own column at the same row. This stride puts these reads in different banks.
  l.stride = l.rows;
  while (l.lanes > 1 && l.stride % kWarp != kWarp / l.lanes) ++l.stride;
  l.weight_columns = !p.v.data ? 0 : p.v.col_stride == 0 ? 1 : int(p.k);
  const int64_t bytes =
      8 * l.warps * int64_t(l.line) + size * (p.d * l.stride + (p.k + l.weight_columns) * rows + 2 * p.k * (p.d + 1));
  l.shared_bytes = int(bytes < limits.shared_bytes ? bytes : limits.shared_bytes);
  return bytes <= limits.shared_bytes;
}

// The most steps of one launch.
constexpr int64_t launch_steps(const Problem& p, const Run& run) {
  const double products = double(batch_rows(run, 0) * p.d * p.k);
  return int64_t(kLaunchSeconds / (kStepSeconds + kProductSeconds * products));
}

}  // namespace linreg::cuda
