// SPDX-License-Identifier: BSD-3-Clause
// Steps on so few numbers that setting a pass up takes longer than the pass: a batch that fits the first-level cache as
// doubles, parameters that fit registers. sgd_step and sgd_run both come here, so that their bits are the same.
#pragma once

#include "../linreg.h"

namespace linreg::cpu {

constexpr int64_t kSmallFeatures = 8;
constexpr int64_t kSmallTargets = 8;
constexpr int64_t kSmallNumbers = 2048;  // of X and Y, 16 KB as doubles
constexpr int64_t kSmallPadding = 4;     // lanes of the widest instruction set

// Whether steps on batches of `rows` rows of a problem are small.
inline bool is_small(const Problem& problem, int64_t rows) {
  if (problem.v.data || problem.d < 1 || problem.d > kSmallFeatures) return false;
  if (problem.k < 1 || problem.k > kSmallTargets || rows < 1 || rows > kSmallNumbers) return false;
  const int64_t padded = (rows + kSmallPadding - 1) / kSmallPadding * kSmallPadding;
  return (problem.d + problem.k) * padded <= kSmallNumbers;
}

// The steps of a run, as cpu::sgd_run takes them: writes losses [end - begin], returns how many steps were taken.
using SmallSteps = int64_t(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                           const Parameter& bias, bool stop_nonfinite, void* losses);

SmallSteps small_steps;  // by the best instruction set that there is
SmallSteps small_steps_portable, small_steps_avx2;

}  // namespace linreg::cpu
