// SPDX-License-Identifier: BSD-3-Clause
// Which kernel takes a problem, how its rows are laid out, and how much memory it needs. All of it follows from the
// problem, the wishes and the device.
#pragma once

#include "../math/convert.h"
#include "pass.cuh"
#include "reduce.cuh"

namespace linreg::cuda {

// The instances of rows.cuh. Their registers decide their sizes: a thread keeps its gradient sums (two registers each),
// its weights and the rows in flight.
enum class Width : int8_t {
  narrow,   // one load a row: few columns, many rows at once; without weights, and writes nothing but sums
  deep,     // 32 bytes a row: fewer lanes share a row, so fewer shuffles an element
  wide,     // 64 bytes a row, and one row at a time: rows that need many warps
  targets,  // several targets share a reading of X and its conversion
  writing,  // one target, and the gradient of X is written
};

struct Tier {
  int bytes;             // of a load
  int loads;             // of a thread for one row
  int targets;           // of a warp
  int rows;              // in flight; with 16-byte loads, 64 bytes a thread or more
  int threads;           // of a block, at most
  int resident_threads;  // of a multiprocessor, which the registers must allow: 65536 / resident_threads each
};

constexpr Tier tier(Dtype x, bool words, Width width) {
  const int size = int(size_of(x));
  const int bytes = words ? 16 : size;
  switch (width) {
    case Width::narrow:
      return {bytes, 1, 1, !words ? 8 : size == 2 ? 4 : 6, 256, 512};
    case Width::deep:
      return {bytes, words ? (size == 2 ? 1 : 2) : 4, 1, 4, 512, 512};
    case Width::wide:
      if (words) return size == 2 ? Tier{bytes, 1, 1, 2, 512, 512} : Tier{bytes, 4, 1, 1, 512, 512};
      return {bytes, 8, 1, 1, 512, 512};
    case Width::writing:
      return {bytes, words ? 1 : 4, 1, 2, 512, 512};
    default:
      if (words && size == 4) return {bytes, 1, 4, 4, 384, 384};  // 512 threads would spill with more than two rows
      if (words) return {bytes, 1, size == 2 ? 2 : 4, 2, 512, 512};
      return {bytes, size == 8 ? 2 : 4, 2, size == 8 ? 2 : 4, 512, 512};
  }
}

constexpr int kStreamedThreads = 256, kStreamedBlocks = 2;  // of a multiprocessor
constexpr int kStreamedRows = 4;  // share a reading and writing of the sums: 16 bytes of them for 16 of float32 rows
constexpr int64_t kStreamedLineBytes = 64 << 20;  // of all blocks' sums; wider problems get one block's
// A few targets are summed in double even where that takes longer than PyTorch's products in float32, whose rounding is
// as large as that of the plain code and only as often smaller; over more targets it averages out.
constexpr int64_t kFewTargets = 32;
constexpr int kSharedBytes = 48 << 10;
constexpr int kSharedLeast = kMaxThreads / kWarp * int(sizeof(double));  // for finish.cuh

struct Plan {
  bool fits_registers = false;  // rows.cuh, else streamed.cuh
  bool by_products = false;     // better than streamed.cuh, which reads rows again for each target
  bool words = false;           // 16-byte loads
  Width width = Width::narrow;
  Layout layout;
  int threads = 0, blocks = 0, shared_bytes = kSharedLeast;
  // Of the workspace, in doubles.
  int64_t line_stride = 0, partials = 0, scratch = 0;
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int power_of_two_from(int64_t at_least) {
  int power = 1;
  while (power < at_least) power *= 2;
  return power;
}

// Whether all rows can be read in 16-byte words.
constexpr bool in_words(const Problem& p, uintptr_t address) {
  const int64_t size = int64_t(size_of(p.x.dtype));
  return p.d > 0 && p.d * size % 16 == 0 && address % 16 == 0 && (p.n <= 1 || p.x.row_stride * size % 16 == 0);
}

// Lays a row over lanes and warps; false if it does not fit a block.
constexpr bool lay_out(Plan& plan, const Problem& p, const Limits& limits) {
  const Tier t = tier(p.x.dtype, plan.words, plan.width);
  const int columns = t.bytes / int(size_of(p.x.dtype)) * t.loads;
  const int64_t lanes = ceil_div(p.d, columns), groups = ceil_div(p.k, t.targets);
  if (lanes > int64_t(1) << 20 || groups > t.threads / kWarp) return false;
  Layout& l = plan.layout;
  l.groups = int(groups > 1 ? groups : 1);
  // Fewer lanes than these would read less than the 64 bytes that come together from memory.
  const int fewest = plan.width != Width::narrow && plan.width != Width::targets ? 8
                     : plan.width == Width::targets                              ? kWarp
                                                                                 : 1;
  const int wanted = power_of_two_from(lanes);
  l.lanes = wanted > kWarp ? kWarp : wanted < fewest ? fewest : wanted;
  l.warp_rows = kWarp / l.lanes;
  l.row_warps = lanes > l.lanes ? int(ceil_div(lanes, l.lanes)) : 1;
  const int warps = l.row_warps * l.groups;
  if (warps * kWarp > t.threads) return false;
  // Half of a multiprocessor's threads, where a row does not need more; all of them where they do not divide.
  const int block_warps = t.resident_threads % 256 == 0 ? 8 : t.threads / kWarp;
  l.workers = warps < block_warps ? block_warps / warps : 1;
  plan.threads = warps * l.workers * kWarp;
  plan.line_stride = sum_count(p, true);
  const int64_t slots = l.row_warps > 1 ? 2 * plan.threads / kWarp * t.rows * t.targets : 0;
  const int64_t shared = 8 * (l.workers > 1 && plan.line_stride > slots ? plan.line_stride : slots);
  if (shared > kSharedBytes) return false;
  if (shared > plan.shared_bytes) plan.shared_bytes = int(shared);
  const int64_t tiles = ceil_div(p.n, int64_t(t.rows) * l.workers * l.warp_rows);
  const int at_once = limits.multiprocessors * (t.resident_threads / plan.threads);
  plan.blocks = int(tiles < 1 ? 1 : tiles < at_once ? tiles : at_once);
  return counters_for(plan.blocks) <= kCounters;
}

// What is written row by row.
struct Wishes {
  bool input_gradient, residuals;
};

constexpr Plan plan_of(const Problem& p, uintptr_t x_address, Wishes wishes, const Limits& limits) {
  Plan plan;
  plan.words = in_words(p, x_address);
  const Tier narrow = tier(p.x.dtype, plan.words, Width::narrow), shared = tier(p.x.dtype, plan.words, Width::targets);
  const int64_t narrow_columns = narrow.bytes / int64_t(size_of(p.x.dtype));
  const int64_t shared_columns = shared.bytes / int64_t(size_of(p.x.dtype)) * shared.loads;
  const bool fills_half_a_warp = p.d > kWarp / 2 * shared_columns;
  plan.width = p.d <= narrow_columns * (plan.words ? 8 : kWarp) ? Width::narrow : Width::deep;
  if (p.k >= shared.targets && fills_half_a_warp) plan.width = Width::targets;
  if ((wishes.residuals || p.v.data) && plan.width == Width::narrow) plan.width = Width::deep;
  if (wishes.input_gradient) plan.width = Width::writing;
  plan.fits_registers = !(wishes.input_gradient && p.k != 1) && lay_out(plan, p, limits);
  if (!plan.fits_registers && plan.width == Width::deep) {
    plan.width = Width::wide;
    plan.fits_registers = lay_out(plan, p, limits);
  }
  if (!plan.fits_registers) {
    plan.by_products = p.k > kFewTargets && p.n > 0 && p.d > 0;
    plan.layout = {};
    plan.threads = kStreamedThreads;
    plan.shared_bytes = kSharedLeast;
    plan.line_stride = sum_count(p, true);
    const int64_t by_memory = kStreamedLineBytes / (8 * (plan.line_stride + 1));
    int64_t blocks = ceil_div(p.n, kStreamedRows);
    if (blocks > limits.multiprocessors * kStreamedBlocks) blocks = limits.multiprocessors * kStreamedBlocks;
    if (blocks > by_memory) blocks = by_memory;
    plan.blocks = int(blocks < 1 ? 1 : blocks);
  }
  plan.partials = plan.blocks * plan.line_stride;
  plan.scratch = plan.fits_registers ? 0 : plan.blocks * kStreamedRows * p.k;
  return plan;
}

// ---- Runs -----------------------------------------------------------------------------------------------------------
//
// How the steps of a run are taken: many in one launch where all rows fit in the shared memory of one block, else
// launched one by one. The layout follows from the problem and the device, not from how many steps a call takes:
// steps in two calls are the steps of one.

constexpr int kRunThreads = 256;         // at most: what a thread keeps takes more than the 128 registers of 512
constexpr int kMostColumns = 8;          // of a thread
constexpr int kFewestLanes = 8;          // that share a row of more columns: then few exchanges add up the lanes' sums
constexpr int kRowsOfNarrowThread = 8;   // that a thread should have before there are more warps
constexpr int kRowsOfWideThread = 4;     // where a row takes exchanges
constexpr int kMostRows = 64;            // of a thread, which sums them in its own type
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
  const int64_t bytes = 8 * l.warps * int64_t(l.line) +
                        size * (p.d * l.stride + (p.k + l.weight_columns) * rows + 2 * p.k * (p.d + 1));
  l.shared_bytes = int(bytes < limits.shared_bytes ? bytes : limits.shared_bytes);
  return bytes <= limits.shared_bytes;
}

// Of one launch, at most.
constexpr int64_t launch_steps(const Problem& p, const Run& run) {
  const double products = double(batch_rows(run, 0) * p.d * p.k);
  return int64_t(kLaunchSeconds / (kStepSeconds + kProductSeconds * products));
}

}  // namespace linreg::cuda
