// SPDX-License-Identifier: BSD-3-Clause
// Between and after the matrix products of a pass over many targets.
//
// residuals_kernel reads P = X Wᵀ, Y and v once, n·k each, and writes v ℓ'(R) once, in P's place where they have its
// dtype. A thread has one target at a time, so neighbours read neighbours, and sums it over the rows of its block.
// finish_kernel scales the second product or applies the rule to it, each block some columns.
// Deterministic: rows and columns of a thread follow from the sizes, and sums are combined in fixed order.
#pragma once

#include "finish.cuh"
#include "reduce.cuh"
#include "residual.cuh"

namespace linreg::cuda {

constexpr int kProductThreads = 256;

// Threads of a block that take neighbouring targets; the others take other rows.
LINREG_MATH constexpr int target_lanes(int64_t k) {
  int lanes = kWarp;
  while (lanes < k && lanes < kProductThreads) lanes *= 2;
  return lanes;
}

LINREG_KERNEL(kProductThreads, 2)
residuals_kernel(LINREG_PARAMETER Pass pass, LINREG_PARAMETER Residuals wanted) {
  const Problem& p = pass.problem;
  double* const shared = static_cast<double*>(shared_memory());  // [3, threads]
  double* const line = pass.partials + block_index() * pass.line_stride;
  const double scale = pass_scale(pass);
  const int lanes = target_lanes(p.k), lane = thread_index() % lanes, worker = thread_index() / lanes;
  const int64_t workers = thread_count() / lanes;
  for (int64_t first = 0; first < p.k; first += lanes) {
    const int64_t t = first + lane;
    ResidualSums sums;
    const double b = p.b.data && t < p.k ? load_number(p.b, 0, t) : 0;
    for (int64_t i = block_index() * workers + worker; i < p.n && t < p.k; i += block_count() * workers) {
      const double product = load_number(wanted.products, wanted.products_dtype, i * p.k + t);
      const double v = p.v.data ? load_number(p.v, i, t) : 1;
      const Residual of = residual(p, product + b - load_number(p.y, i, t), v);
      sums.add(of, v);
      write_residual(pass, scale, i, t, of);
      if (wanted.dlosses) store_number(wanted.dlosses, wanted.dlosses_dtype, i * p.k + t, of.dloss);
    }
    sync_block();  // the sums of the targets before have been added
    const double mine[] = {sums.loss, sums.weight_total, sums.dloss};
    for (int s = 0; s < 3; ++s) shared[s * kProductThreads + thread_index()] = mine[s];
    sync_block();  // all workers' sums are there
    for (int s = worker; s < 3 && t < p.k; s += int(workers)) {
      double sum = 0;
      for (int other = 0; other < workers; ++other) sum += shared[s * kProductThreads + other * lanes + lane];
      store_cg(line + s * p.k + t, sum);
    }
  }
  sync_block();  // nobody reads the sums any more: the flag takes their place
  const int64_t count = weight_sums(p);
  if (!reduce_blocks(pass.partials, pass.line_stride, count, pass.counters, static_cast<int*>(shared_memory()))) return;
  for (int64_t i = thread_index(); i < count; i += thread_count())
    wanted.sums[i] = load_cg(pass.partials + i) + (wanted.add ? wanted.sums[i] : 0);
}

constexpr int kFinishColumns = 8;  // of a block: 32 bytes of float32, which memory reads and writes as one

LINREG_KERNEL(kProductThreads, 2)
finish_kernel(LINREG_PARAMETER Pass pass) {
  const int64_t d = pass.problem.d, first = int64_t(block_index()) * kFinishColumns;
  finish(pass, pass.products.sums, {first, first + kFinishColumns < d ? kFinishColumns : d - first});
}

}  // namespace linreg::cuda
