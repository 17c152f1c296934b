// SPDX-License-Identifier: BSD-3-Clause
// One pass over the rows: prediction, residual, loss and gradient sums while the rows are in cache. Here the rows are
// given to threads; what a thread does with its rows is rows.cpp.
//
// Fused: X is read from memory once, n·d elements, and Y, n·k; v too, once more for the sum that a mean is divided by.
// The second use of a row, for the gradient, finds it in cache because rows go through in groups of few bytes. Nothing
// of size n is written unless asked for.
//
// Accuracy: near convergence a residual is the small difference of large numbers. So predictions, residuals, losses and
// the sums of derivatives are in double whatever the data: in float32 the error of a single number would be as large as
// PyTorch's and as often larger. A gradient sums in float the terms of kBlockRows float rows, and the blocks in double.
//
// Deterministic: the rows are cut into chunks by the problem's sizes alone. A chunk has its own sums, a thread takes
// whole chunks, and the chunks' sums are added in their order.
#include "pass.h"

#include <algorithm>

#include "../math/reduction.h"
#include "../math/sum.h"
#include "convert.h"
#include "kernels.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

template <class T>
void load_weights(const Problem& p, int64_t ldw, T* to) {
  for (int64_t t = 0; t < p.k; ++t) {
    load(at(p.w, t), p.w.col_stride, p.w.dtype, p.d, to + t * ldw);
    std::fill_n(to + t * ldw + p.d, ldw - p.d, T(0));
  }
}

// W in rows of whole vectors, of float or double, which hold it exactly.
void load_weights(const Problem& problem, const Plan& plan, void* to) {
  if (problem.x.dtype == Dtype::float64) {
    load_weights(problem, plan.ldw, static_cast<double*>(to));
  } else {
    load_weights(problem, plan.ldw, static_cast<float*>(to));
  }
}

// Four chains, so that an addition need not wait for the one before it.
double sum(const double* values, int64_t count) {
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += values[i + lane];
  for (; i < count; ++i) lanes[i & 3] += values[i];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// Σ v, in an order that the sizes alone decide; a single column is read as a row.
double weight_sum(const Problem& p) {
  const int64_t rows = p.k == 1 ? 1 : p.n, columns = p.k == 1 ? p.n : p.k;
  const int64_t stride = p.k == 1 ? p.v.row_stride : p.v.col_stride;
  double total = 0, compensation = 0, part[kGroupRows];
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; j += kGroupRows) {
      const int64_t count = std::min(kGroupRows, columns - j);
      load(p.k == 1 ? at(p.v, j) : at(p.v, i, j), stride, p.v.dtype, count, part);
      two_sum(sum(part, count), total, compensation);
    }
  return total_of(total, compensation);
}

}  // namespace

size_t pass_workspace(const Problem& problem, const PassOutputs& outputs) {
  if (by_products(problem, outputs)) return products_workspace(problem, outputs);
  return size_t(Plan(problem, outputs).bytes);
}

PassSums run_pass(const Problem& problem, const PassOutputs& outputs, double scale, void* workspace) {
  if (by_products(problem, outputs)) return run_products(problem, outputs, scale, workspace);
  const Plan plan(problem, outputs);
  char* bytes = static_cast<char*>(workspace);
  load_weights(problem, plan, bytes + plan.weights);
  double* biases = reinterpret_cast<double*>(bytes + plan.biases);
  std::fill_n(biases, plan.ldk, 0.0);
  if (problem.b.data) load(at(problem.b, 0), problem.b.col_stride, problem.b.dtype, problem.k, biases);

  run_threaded(plan.threads, [&](int64_t thread, int64_t threads) {
    kernels().run_rows(problem, outputs, plan, scale, bytes, thread, plan.chunks * thread / threads,
                       plan.chunks * (thread + 1) / threads);
  });

  double* sums = reinterpret_cast<double*>(bytes);
  pairwise_sum(sums, plan.chunks, plan.sums_stride / int64_t(sizeof(double)), Plan::sum_count(problem, outputs));
  return {sums[0], sums + 1 + problem.k, sums + 1};
}

double reduction_scale(const Problem& problem) {
  if (problem.reduction != Reduction::mean || !problem.v.data) return reduction_scale(problem, 0);
  return reduction_scale(problem, weight_sum(problem));
}

}  // namespace linreg::cpu
