// SPDX-License-Identifier: BSD-3-Clause
// Sums of what is elementwise.
#pragma once

#include <cstdint>

namespace linreg::cpu {
namespace {

// Four chains, so that an addition need not wait for the one before it.
inline double sum(const double* values, int64_t count) {
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += values[i + lane];
  for (; i < count; ++i) lanes[i & 3] += values[i];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

}  // namespace
}  // namespace linreg::cpu
