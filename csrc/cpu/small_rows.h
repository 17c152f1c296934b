// SPDX-License-Identifier: BSD-3-Clause
// The arithmetic of a small step's rows, the same in small_steps.cpp, where a lane is a row, and in small_runs.cpp,
// where it is a problem.
#pragma once

#include "vector.h"

namespace linreg::cpu {
namespace {

// The unit in which slopes are summed. The squared loss sums r instead of 2r and doubles the sum, which is exact.
template <Loss kLoss>
constexpr double kSlopeUnit = kLoss == Loss::mse ? 2 : 1;

// With few features, two sets of sums hide the latency of an addition. They also keep float64's chains, which have half
// the lanes, no longer than PyTorch's.
template <class Number, int kD>
constexpr int kSets = kD < 3 || (kD < 5 && sizeof(Number) == 8) ? 2 : 1;

template <int kD, class V>
LINREG_INLINE V residual(const V* x, const V* w, V b, V y) {
  V r = x[0] * w[0];
  for (int j = 1; j < kD; ++j) r += x[j] * w[j];
  return (r + b) - y;
}

// The loss, Σ G and Gᵀ X of some rows, in kSlopeUnit.
template <Loss kLoss, int kD, class V>
struct RowSums {
  LINREG_INLINE void add(const V* x, V r, NumberOf<V> delta) {
    const V g = kLoss == Loss::mse ? r : dloss<kLoss>(r, delta);
    loss += loss_value<kLoss>(r, delta);
    slope += g;
    for (int j = 0; j < kD; ++j) products[j] += x[j] * g;
  }

  LINREG_INLINE void add(const RowSums& other) {
    loss += other.loss;
    slope += other.slope;
    for (int j = 0; j < kD; ++j) products[j] += other.products[j];
  }

  V loss = {}, slope = {}, products[kD] = {};
};

// The number rounded to a dtype, all of whose numbers a Number represents exactly.
template <class Number>
LINREG_INLINE Number rounded(double number, Dtype dtype) {
  switch (dtype) {
    case Dtype::bfloat16:
      return from_bfloat16(to_bfloat16(to_odd(number)));
    case Dtype::float16:
      return from_float16(to_float16(to_odd(number)));
    default:
      return Number(number);
  }
}

}  // namespace
}  // namespace linreg::cpu
