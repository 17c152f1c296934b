// SPDX-License-Identifier: BSD-3-Clause
// small_steps.h for any processor.
#define LINREG_SMALL_LANES 2
#include "small_steps.h"

namespace linreg::cpu {

int64_t small_steps_portable(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                             const Parameter& bias, bool stop_nonfinite, void* losses) {
  return take_small_steps(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace linreg::cpu
