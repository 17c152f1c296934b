// SPDX-License-Identifier: BSD-3-Clause
// Compensated and pairwise summation, whose error does not grow with the number of addends.
// Equal addends make equal rounding errors, which accumulate along a chain of plain additions.
#pragma once

#include <cstdint>

#include "inline.h"

namespace linreg {

// Adds a number or a vector to sum + compensation; the compensation collects the rounding errors.
template <class T>
LINREG_MATH void two_sum(T value, T& sum, T& compensation) {
  const T total = sum + value, added = total - sum;
  compensation += (sum - (total - added)) + (value - added);
  sum = total;
}

// sum + compensation, or after an overflow the sum alone, because the compensation is nan.
LINREG_MATH double total_of(double sum, double compensation) { return sum - sum == 0 ? sum + compensation : sum; }

// Adds `parts` rows of `count` numbers pairwise into the first row.
LINREG_MATH void pairwise_sum(double* rows, int64_t parts, int64_t stride, int64_t count) {
  for (int64_t apart = 1; apart < parts; apart *= 2)
    for (int64_t part = 0; part + apart < parts; part += 2 * apart) {
      double* const to = rows + part * stride;
      const double* const from = to + apart * stride;
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
}

// Adds the compensated sums of a line's places into its first `count` places; place i belongs to sum i % count. The
// addition is pairwise: a chain over 16 places in float64 had 1.3 times PyTorch's error.
LINREG_MATH void sum_places(double* sums, const double* compensations, int64_t places, int64_t count) {
  for (int64_t i = 0; i < places; ++i) sums[i] = total_of(sums[i], compensations[i]);
  if (count > 0) pairwise_sum(sums, places / count, count, count);
}

}  // namespace linreg
