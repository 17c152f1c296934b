// SPDX-License-Identifier: BSD-3-Clause
// One pass over the rows: predictions, residuals, losses and gradient sums while the rows are in cache. This file
// distributes the rows to threads; rows.cpp processes a thread's rows.
//
// Fused: X (n·d elements), Y (n·k) and v are read from memory once; a weighted mean reads v once more for its divisor.
// Rows are processed in small groups, so that the gradient finds them in cache. Only requested outputs of size n are
// written.
//
// Accuracy: float32 and 16-bit rows are computed in float32. No chain of float additions is longer than kChain; longer
// sums continue in double. float64 rows are computed in float64.
//
// Deterministic: the problem's sizes alone determine the chunks of rows. Each chunk has its own sums, a thread takes
// whole chunks, and the chunks' sums are added in a fixed order.
#include "pass.h"

#include <algorithm>
#include <cmath>

#include "../math/reduction.h"
#include "../math/sum.h"
#include "convert.h"
#include "kernels.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

Scale scale_of(double divisor) {
  if (!std::isnormal(divisor)) return {1 / divisor, 1};
  // The kernels multiply in float32. Beyond its range every gradient is 0 or not finite.
  const double power = std::exp2(std::clamp(-std::ilogb(divisor), -120, 120));
  return {power, divisor * power};
}

// Four chains hide the latency of an addition.
double sum(const double* values, int64_t count) {
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += values[i + lane];
  for (; i < count; ++i) lanes[i & 3] += values[i];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// Σ v, in an order that depends on the sizes alone. A single column is read as a row.
double weight_sum(const Problem& p) {
  const int64_t rows = p.k == 1 ? 1 : p.n, columns = p.k == 1 ? p.n : p.k;
  const int64_t stride = p.k == 1 ? p.v.row_stride : p.v.col_stride;
  double total = 0, compensation = 0, part[kBlockRows];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += kBlockRows) {
      const int64_t count = std::min(kBlockRows, columns - j);
      load(p.k == 1 ? at(p.v, j) : at(p.v, i, j), stride, p.v.dtype, count, part);
      two_sum(sum(part, count), total, compensation);
    }
  return total_of(total, compensation);
}

}  // namespace

size_t pass_workspace(const Problem& problem, int64_t problems, const PassOutputs& outputs) {
  if (by_products(problem, outputs)) return products_workspace(problem, outputs);
  return size_t(Plan(problem, problems, outputs, kernels().vector_bytes).bytes);
}

void run_pass(const Problem* problems, int64_t count, const PassOutputs& outputs, const double* divisors,
              PassSums* sums, void* workspace) {
  Scale scales[kMostTogether];
  for (int64_t i = 0; i < count; ++i) scales[i] = scale_of(divisors[i]);
  if (by_products(*problems, outputs)) {
    *sums = run_products(*problems, outputs, *scales, workspace);
    return;
  }
  const Plan plan(*problems, count, outputs, kernels().vector_bytes);
  char* const bytes = static_cast<char*>(workspace);
  run_threaded(plan.threads, [&](int64_t thread, int64_t threads) {
    kernels().run_rows(problems, scales, count, outputs, plan, bytes, thread, plan.chunks * thread / threads,
                       plan.chunks * (thread + 1) / threads);
  });

  const int64_t numbers = Plan::sum_count(*problems, outputs);
  for (int64_t i = 0; i < count; ++i) {
    double* const total = reinterpret_cast<double*>(bytes + i * plan.chunks * plan.sums_stride);
    pairwise_sum(total, plan.chunks, plan.sums_stride / int64_t(sizeof(double)), numbers);
    for (int64_t j = 1; j < numbers; ++j) total[j] /= scales[i].rest;
    sums[i] = {total[0], total + 1 + problems->k, total + 1};
  }
}

double reduction_divisor(const Problem& problem) {
  if (problem.reduction != Reduction::mean || !problem.v.data) return reduction_divisor(problem, 0);
  return reduction_divisor(problem, weight_sum(problem));
}

}  // namespace linreg::cpu
