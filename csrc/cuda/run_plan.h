// SPDX-License-Identifier: BSD-3-Clause
// How the steps of a run are taken: many in one launch where all rows fit in the shared memory of one block, else
// launched one by one. The layout follows from the problem and the device, not from how many steps a call takes:
// steps in two calls are the steps of one.
#pragma once

#include "../math/convert.h"
#include "plan.h"

namespace linreg::cuda {

constexpr int kRunThreads = 256;        // at most: what a thread keeps takes more than the 128 registers of 512
constexpr int kMostColumns = 8;         // of a thread
constexpr int kFewestLanes = 8;         // that share a row of more columns: then few exchanges add up the lanes' sums
constexpr int kRowsOfNarrowThread = 8;  // that a thread should have before there are more warps
constexpr int kRowsOfWideThread = 4;    // where a row takes exchanges
// Numbers of a batch times targets. Each is widened to double, of which an H100's multiprocessor does 16 a
// clock: 2.3 µs. A step that is launched alone, with its rows gathered before, takes some 5 µs.
constexpr int64_t kMostProducts = 1 << 16;
// A launch must end within 100 ms. On an H100 a step is estimated to take 0.5 µs, and 40 ps a product (as above); where
// double is 64 times slower than float32, a product takes 20 times as long.
constexpr double kStepSeconds = 0.5e-6, kProductSeconds = 40e-12, kLaunchSeconds = 4e-3;

// Rows that a thread has in flight where each is so many of its columns: more of them would spill.
constexpr int rows_in_flight(int columns) { return columns >= 4 ? 2 : 4; }

struct ResidentLayout {
  int rows = 0;
  int columns_of_thread = 1, lanes = 1;  // that a row lies over
  int workers = 1, warps = 1;            // of a target, and of all
  int stride = 0;                        // from a column of x to the next, in rows
  int columns = 0;                       // lanes · columns_of_thread, d or a few more
  int line = 0;                          // doubles of a warp's sums
  int weight_columns = 0;                // of v: 1 or k
  int shared_bytes = 0;
};

// Lays all rows over a block; false if they do not fit.
constexpr bool lay_out(ResidentLayout& l, const Problem& p, const Run& run, const Limits& limits) {
  const int64_t rows = p.n, batch = batch_rows(run, 0), size = int64_t(size_of(p.x.dtype));
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
  l.warps = l.workers * int(p.k);
  l.line = l.columns + 3;
  // Lanes of a row read a column each, at the same row: with this stride from banks of their own.
  l.stride = l.rows;
  while (l.lanes > 1 && l.stride % kWarp != kWarp / l.lanes) ++l.stride;
  l.weight_columns = !p.v.data ? 0 : p.v.col_stride == 0 ? 1 : int(p.k);
  const int64_t bytes =
      8 * 2 * l.warps * int64_t(l.line) + size * (p.d * int64_t(l.stride) + (p.k + l.weight_columns) * int64_t(l.rows));
  l.shared_bytes = int(bytes < limits.shared_bytes ? bytes : limits.shared_bytes);
  return bytes <= limits.shared_bytes;
}

// Of one launch, at most.
constexpr int64_t launch_steps(const Problem& p, const Run& run) {
  const double products = double(batch_rows(run, 0) * p.d * p.k);
  return int64_t(kLaunchSeconds / (kStepSeconds + kProductSeconds * products));
}

}  // namespace linreg::cuda
