// SPDX-License-Identifier: BSD-3-Clause
// Sums whose rounding errors do not grow with the number of addends. Those of equal addends are equal, and add up along
// a chain of additions: so chains are short, and what is lost when their sums are added is added up beside the total.
#pragma once

#include <cstdint>

#include "inline.h"

namespace linreg {

constexpr int64_t kChain = 32;  // additions at most

// Adds a number, or a vector of them, to sum + lost.
template <class T>
LINREG_MATH void add_keeping(T value, T& sum, T& lost) {
  const T total = sum + value, added = total - sum;
  lost += (sum - (total - added)) + (value - added);
  sum = total;
}

// sum + lost; what a sum beyond the range has lost is not a number.
LINREG_MATH double total_of(double sum, double lost) { return sum - sum == 0 ? sum + lost : sum; }

// Adds `parts` rows of `count` numbers to the first of them, in pairs.
LINREG_MATH void add_in_pairs(double* rows, int64_t parts, int64_t stride, int64_t count) {
  for (int64_t apart = 1; apart < parts; apart *= 2)
    for (int64_t part = 0; part + apart < parts; part += 2 * apart) {
      double* const to = rows + part * stride;
      const double* const from = to + apart * stride;
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    }
}

}  // namespace linreg
