// SPDX-License-Identifier: BSD-3-Clause
// Σ v on its own, for gradients that a pass writes row by row and that a weighted mean divides by it. One reading of v.
// Deterministic: fixed rows a thread, sums in fixed order.
#pragma once

#include "number.cuh"
#include "pass.cuh"
#include "reduce.cuh"

namespace linreg::cuda {

constexpr int kWeightsThreads = 256;

// Adds `mine` over the threads of the block into shared[0], in fixed order, for thread 0.
LINREG_DEVICE void sum_block(double mine, double* shared) {
  const double sum = sum_lanes(mine, 1, kWarp);
  if (thread_index() % kWarp == 0) shared[thread_index() / kWarp] = sum;
  sync_block();  // every warp's sum is there
  if (thread_index() == 0)
    for (int warp = 1; warp < thread_count() / kWarp; ++warp) shared[0] += shared[warp];
}

// Leaves 1 / Σ v at partials[0].
LINREG_KERNEL(kWeightsThreads, 1)
weights_kernel(LINREG_PARAMETER Problem p, double* const partials, unsigned* const counters) {
  double* const shared = static_cast<double*>(shared_memory());
  double sum = 0;
  const int64_t step = int64_t(block_count()) * thread_count();
  for (int64_t i = int64_t(block_index()) * thread_count() + thread_index(); i < p.n; i += step)
    for (int64_t t = 0; t < p.k; ++t) sum += load_number(p.v, i, t);
  sum_block(sum, shared);
  if (thread_index() == 0) store_cg(partials + block_index(), shared[0]);
  if (reduce_blocks(partials, 1, 1, counters, reinterpret_cast<int*>(shared)) && thread_index() == 0)
    store_cg(partials, 1 / load_cg(partials));
}

}  // namespace linreg::cuda
