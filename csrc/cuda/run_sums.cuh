// SPDX-License-Identifier: BSD-3-Clause
// A step of a run, as its kernels have it in common: the sums of a thread over rows that it holds, those of a warp, and
// what becomes of the sums of all. Sums are in double and combined in fixed order.
#pragma once

#include "../math/reduction.h"
#include "../math/sgd.h"
#include "reduce.cuh"
#include "residual.cuh"
#include "run_batches.cuh"

namespace linreg::cuda {

// A row lies over some lanes of a warp, of which each has kColumns.
template <Dtype kX_, Dtype kW_, int kColumns_>
struct RunShape {
  static constexpr Dtype kX = kX_, kW = kW_;
  static constexpr int kColumns = kColumns_;  // of a thread
  static constexpr int kRows = rows_in_flight(kColumns);
  static constexpr int kSums = kColumns + 3;                                     // and the loss, Σ v ℓ' and Σ v
  static constexpr int kScattered = kColumns == 1 ? 4 : kColumns == 8 ? 16 : 8;  // kSums as a power of two
};

constexpr int kAbsent = -1;   // in place of a row: the batch has none there
constexpr int kMissing = -2;  // the order names a row that there is not, which is nan

// Adds some rows of a batch, each a number or one of the above, to the sums of a thread. `read` fills in a row's
// columns, `target` and `weight` are of a row; they are asked for rows that are there.
template <class S, Loss kLoss, class Read, class Target, class Weight>
LINREG_DEVICE void add_rows(const int (&rows)[S::kRows], const Read& read, const Target& target, const Weight& weight,
                            const double (&w)[S::kColumns], double b, int lanes, double delta,
                            double (&sums)[S::kScattered]) {
  double x[S::kRows][S::kColumns], dot[S::kRows];
#pragma unroll
  for (int u = 0; u < S::kRows; ++u) {
    dot[u] = 0;
    read(u, x[u]);
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) dot[u] += x[u][c] * w[c];
    dot[u] = sum_lanes(dot[u], 1, lanes);
  }
#pragma unroll
  for (int u = 0; u < S::kRows; ++u) {
    if (rows[u] == kAbsent) continue;
    const bool there = rows[u] >= 0;
    const double y = there ? target(u) : NAN, v = there ? weight(u) : 1;
    const Residual of = residual<kLoss>(dot[u] + b - y, v, delta);
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) sums[c] += x[u][c] * of.dloss;
    sums[S::kColumns] += of.loss;
    sums[S::kColumns + 1] += of.dloss;
    sums[S::kColumns + 2] += v;
  }
}

// Leaves a warp's sums at `line`, those over the lanes that have other rows of the same columns: column c of lane i at
// c · lanes + i, then those of the losses, their derivatives and the weights.
template <class S>
LINREG_DEVICE void leave_sums(double (&sums)[S::kScattered], int lanes, double* line) {
  const int in_warp = thread_index() % kWarp;
  if (lanes == 1) {
    const double mine = scatter_sums(sums, kWarp);
    constexpr int kShare = kWarp / S::kScattered;
    const int number = in_warp / kShare;
    if (in_warp % kShare == 0 && number < S::kSums) line[number] = mine;
    return;
  }
  const int group = in_warp / lanes, lane = in_warp & (lanes - 1);
#pragma unroll
  for (int s = 0; s < S::kSums; ++s) {
    const double sum = sum_lanes(sums[s], lanes, kWarp);
    if (group != 0) continue;
    if (s < S::kColumns) line[s * lanes + lane] = sum;
    if (s >= S::kColumns && lane == 0) line[S::kColumns * lanes + s - S::kColumns] = sum;
  }
}

// `count` numbers, `stride` apart, in fixed order; four sums, since an addition waits for the one before.
LINREG_DEVICE double sum_apart(const double* numbers, int count, int stride) {
  double sums[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4)
#pragma unroll
    for (int s = 0; s < 4; ++s) sums[s] += numbers[(i + s) * stride];
#pragma unroll
  for (int s = 0; s < 3; ++s)
    if (i + s < count) sums[s] += numbers[(i + s) * stride];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// Sums that are to be added: `count` of each, `stride` apart.
struct Lines {
  const double* at;
  int count, stride;

  LINREG_DEVICE double sum(int i) const { return sum_apart(at + i, count, stride); }
};

// Writes the loss of a step, whose sums are at `at` of `of_all`; true if the run ends with it.
LINREG_DEVICE bool ends_run(const ResidentRun& call, Dtype dtype, int64_t step, double scale, const Lines& of_all,
                            int at) {
  const bool writes = thread_index() == 0;
  if (!call.stop_nonfinite && !writes) return false;
  const double loss = round_to(scale * of_all.sum(at), dtype);
  if (writes) store_number(call.losses, dtype, step - call.run.begin, loss);
  return call.stop_nonfinite && !is_finite(loss);
}

// The momentum of a parameter's number (i, j) before the first step of a launch.
LINREG_DEVICE double load_buffer(const ResidentRun& call, const Parameter& of, Dtype dtype, int64_t i, int64_t j) {
  const Rows& from = of.momentum_buffer;
  const bool stored = call.sgd.momentum != 0 && from.data && !of.first_step;
  return stored ? load_number(from.data, dtype, i * from.row_stride + j) : 0;
}

// The rule. Numbers are rounded to their dtype after every step: steps in two launches are the steps of one.
LINREG_DEVICE void step_number(double& p, double& buffer, double gradient, const Sgd& sgd, bool first, Dtype dtype) {
  const SgdNumber<double> next = sgd_update(p, buffer, gradient, sgd, first);
  p = round_to(next.p, dtype);
  buffer = round_to(next.buffer, dtype);
}

LINREG_DEVICE void store_parameter(const ResidentRun& call, const Parameter& of, Dtype dtype, int64_t i, int64_t j,
                                   double p, double buffer) {
  const auto put = [&](const Rows& to, double number) {
    if (to.data) store_number(to.data, dtype, i * to.row_stride + j, number);
  };
  put(of.value, p);
  if (call.sgd.momentum != 0) put(of.momentum_buffer, buffer);
}

}  // namespace linreg::cuda
