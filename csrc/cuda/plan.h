// SPDX-License-Identifier: BSD-3-Clause
// Which kernel takes a problem, how its rows are laid out, and how much memory it needs. All of it follows from the
// sizes and dtypes of the problem and from the device.
#pragma once

#include "pass.cuh"

namespace linreg::cuda {

constexpr int kStages = 3;                // tiles of the ring: two are on their way while one is computed with
constexpr int kChain = 64;                // rows that a thread adds in float before it goes on in double
constexpr int64_t kTileBytes = 64 << 10;  // of a multiprocessor's blocks: two such tiles are well above the 32 KB that
                                          // must be on their way for 0.95 of an H100's bandwidth
constexpr int64_t kLeastTileBytes = 4 << 10;
constexpr int kFewRows = 4;            // of a tile, that are worth a group of threads
constexpr int64_t kMostTargets = 32;   // of a pass; towards more, matrix products are faster
constexpr int kSharedReserved = 1024;  // of a block, for the system
constexpr int kSharedLeast = kMaxThreads / kWarp * int(sizeof(double));  // for finish.cuh
// Of matrix products. Towards many targets they are bound by arithmetic: rows that fill a GPU, and whose predictions do
// not take more memory than this; towards few, the second product should find its rows in the second-level cache.
constexpr int64_t kProductRows = 16384, kProductBytes = 64 << 20;

// What an instance of tiles.cuh is made for. Registers decide: a thread has thread_sums() gradients in its own type and
// in double, and kRowsAtOnce rows times some targets of dot products.
constexpr int thread_sums(Dtype x) { return x == Dtype::float64 ? 8 : 16; }
constexpr int kRowsAtOnce = 2;
constexpr int targets_at_once(int64_t k) { return k == 1 ? 1 : 4; }
// Of shared memory: what all threads read, and the sums of a thread's residuals.
LINREG_MATH constexpr int residual_bytes(int threads) { return 32 + 48 * threads; }
constexpr int vector_columns(Dtype x,
                             int targets) {  // read at once; 1: one by one, for there are no registers for more
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

// The tiles after which the sums of residuals go on in double: a thread has every (threads / targets)-th row.
LINREG_MATH constexpr int residual_tiles(const Layout& l, int threads) {
  return kChain / int(((l.rows << l.targets_log) + threads - 1) / threads);
}

// Lays tiles of so many rows over a block; false if they do not fit in `bytes`.
constexpr bool lay_out(Plan& plan, const Problem& p, int64_t rows, int64_t bytes) {
  Layout& l = plan.layout;
  const int targets = targets_at_once(p.k), warps = plan.threads / kWarp;
  const int columns = plan.vectors ? vector_columns(p.x.dtype, targets) : 1;
  const int64_t vectors = p.d / columns, size = p.x.dtype == Dtype::float64 ? 8 : 4;
  l.rows = int(rows);
  l.targets_log = log_from(p.k > targets ? p.k : targets);
  // Up to eight lanes, with four turns or more each, which pay for the exchanges; more where rows are few.
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
  const int64_t groups = ceil_div(rows < p.n ? rows : p.n, kFewRows), most = plan.threads / l.span;
  l.groups = int(groups < 1 ? 1 : groups < most ? groups : most);
  const int64_t chain = ceil_div(rows, l.groups), of_target = ceil_div(rows * padded, plan.threads);  // of a thread
  const auto wastes = [](int64_t rows) { return rows > kChain || kChain % rows > kChain / 8; };       // of a chain
  if (wastes(chain) || wastes(of_target)) return false;
  l.chain_tiles = int(kChain / chain);

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

// The rows of a tile, before it is seen whether they fit: as many as a tile may have, or fewer so that every
// multiprocessor has a tile.
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
  plan.threads = sets > kMaxThreads / 2 ? kMaxThreads : kMaxThreads / 2;
  const int resident = kMaxThreads / plan.threads;  // blocks of a multiprocessor, by their registers
  const int64_t bytes = (limits.shared_bytes + kSharedReserved) / resident - kSharedReserved;
  const bool fits = p.k <= kMostTargets && sets * columns * targets <= int64_t(thread_sums(p.x.dtype)) * plan.threads;
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

// How the steps of a run are taken: many in one launch where all rows fit in the shared memory of one block, else
// launched one by one. The layout follows from the problem and the device, not from how many steps a call takes:
// steps in two calls are the steps of one.

constexpr int kRunThreads = 256;        // at most: what a thread keeps takes more than the 128 registers of 512
constexpr int kMostColumns = 8;         // of a thread
constexpr int kFewestLanes = 8;         // that share a row of more columns: then few exchanges add up the lanes' sums
constexpr int kRowsOfNarrowThread = 8;  // that a thread should have before there are more warps
constexpr int kRowsOfWideThread = 4;    // where a row takes exchanges
constexpr int kMostRows = 64;           // of a thread, which sums them in its own type
constexpr int64_t kOneWarpNumbers = 1 << 10;  // of x: up to here two barriers cost more than the other warps save
// Numbers of a batch times targets. Each takes some 6 instructions of the 128 that a multiprocessor does a clock: 2 µs.
// A step that is launched alone, with its rows gathered before, takes some 5 µs.
constexpr int64_t kMostProducts = 1 << 16;
// A launch must end within 100 ms. A step is estimated to take 0.5 µs, and 40 ps a product (as above); a GPU of two
// multiprocessors at half of the clock takes twice as long.
constexpr double kStepSeconds = 0.5e-6, kProductSeconds = 40e-12, kLaunchSeconds = 4e-3;

// Rows that a thread has in flight where each is so many of its columns: more of them would spill.
constexpr int rows_in_flight(int columns) { return columns >= 4 ? 2 : 4; }

struct ResidentLayout {
  int rows = 0;
  int columns_of_thread = 1, lanes = 1;  // that a row lies over
  int workers = 1, warps = 1;            // of a target, and of all
  bool one_warp = false;                 // whose lanes have whole rows, of one target
  int stride = 0;                        // from a column of x to the next, in rows
  int columns = 0;                       // lanes · columns_of_thread, d or a few more
  int line = 0;                          // doubles of a warp's sums
  int weight_columns = 0;                // of v: 1 or k
  int shared_bytes = 0;
};

// Lays all rows over a block; false if they do not fit.
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
  // Lanes of a row read a column each, at the same row: with this stride from banks of their own.
  l.stride = l.rows;
  while (l.lanes > 1 && l.stride % kWarp != kWarp / l.lanes) ++l.stride;
  l.weight_columns = !p.v.data ? 0 : p.v.col_stride == 0 ? 1 : int(p.k);
  const int64_t bytes =
      8 * l.warps * int64_t(l.line) + size * (p.d * l.stride + (p.k + l.weight_columns) * rows + 2 * p.k * (p.d + 1));
  l.shared_bytes = int(bytes < limits.shared_bytes ? bytes : limits.shared_bytes);
  return bytes <= limits.shared_bytes;
}

// Of one launch, at most.
constexpr int64_t launch_steps(const Problem& p, const Run& run) {
  const double products = double(batch_rows(run, 0) * p.d * p.k);
  return int64_t(kLaunchSeconds / (kStepSeconds + kProductSeconds * products));
}

}  // namespace linreg::cuda
