// SPDX-License-Identifier: BSD-3-Clause
// Compensated sums over many rows in memory: kMaxLanes numbers, one per lane, then their compensations (math/sum.h).
//
// The losses and derivatives of a few rows are summed in registers, then added to these: PyTorch also sums them in
// short chains. Gᵀ X is summed in longer chains, as in a matrix product.
#pragma once

#include "../math/sum.h"
#include "plan.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

LINREG_INLINE void add_to(double* sum, Wide value) {
  Wide lanes = load_vec<Wide>(sum), compensation = load_vec<Wide>(sum + kMaxLanes);
  two_sum(value, lanes, compensation);
  store_vec<Wide>(sum, lanes);
  store_vec<Wide>(sum + kMaxLanes, compensation);
}

// To the first lane.
LINREG_INLINE void add_to(double* sum, double value) { two_sum(value, sum[0], sum[kMaxLanes]); }

LINREG_INLINE double total_of(const double* sum) {
  return linreg::total_of(sum_lanes(load_vec<Wide>(sum)), sum_lanes(load_vec<Wide>(sum + kMaxLanes)));
}

}  // namespace
}  // namespace linreg::cpu
