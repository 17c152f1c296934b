// SPDX-License-Identifier: BSD-3-Clause
// Which steps are small: those on so few numbers that setting a pass up takes longer than the pass. The batch fits into
// the first-level cache as doubles and the parameters into registers. sgd_step and sgd_run both ask here, so that their
// bits are the same.
#pragma once

#include "kernels.h"

namespace linreg::cpu {

constexpr int64_t kSmallFeatures = 8;
constexpr int64_t kSmallTargets = 8;
constexpr int64_t kSmallNumbers = 2048;  // of X and Y, 16 KB as doubles
constexpr int64_t kSmallPadding = 4;     // lanes of the widest instruction set that has a kernel for them

// Whether Kernels::small_steps takes steps on batches of `rows` rows.
inline bool is_small(const Problem& problem, int64_t rows) {
  if (problem.v.data || problem.d < 1 || problem.d > kSmallFeatures) return false;
  if (problem.k < 1 || problem.k > kSmallTargets || rows < 1 || rows > kSmallNumbers) return false;
  const int64_t padded = (rows + kSmallPadding - 1) / kSmallPadding * kSmallPadding;
  return (problem.d + problem.k) * padded <= kSmallNumbers && kernels().small_steps;
}

}  // namespace linreg::cpu
