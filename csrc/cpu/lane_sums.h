// SPDX-License-Identifier: BSD-3-Clause
// Sums over many rows in memory: kMaxLanes numbers, one for each lane, and as many that these have lost (math/sum.h).
//
// What a few rows come to is summed in registers and then added to one of these: losses and slopes, which PyTorch sums
// in short chains, too. Gᵀ X is summed in longer ones, as in a matrix product.
#pragma once

#include "../math/sum.h"
#include "plan.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

LINREG_INLINE void add_to(double* sum, Wide value) {
  Wide lanes = load_vec<Wide>(sum), lost = load_vec<Wide>(sum + kMaxLanes);
  add_keeping(value, lanes, lost);
  store_vec<Wide>(sum, lanes);
  store_vec<Wide>(sum + kMaxLanes, lost);
}

// To the first lane.
LINREG_INLINE void add_to(double* sum, double value) { add_keeping(value, sum[0], sum[kMaxLanes]); }

LINREG_INLINE double total_of(const double* sum) {
  return linreg::total_of(sum_lanes(load_vec<Wide>(sum)), sum_lanes(load_vec<Wide>(sum + kMaxLanes)));
}

}  // namespace
}  // namespace linreg::cpu
