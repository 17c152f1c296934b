// SPDX-License-Identifier: BSD-3-Clause
// small_steps.h for processors with AVX2, FMA and F16C.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../math/losses.h"
#include "../math/sgd.h"
#include "small.h"

// Behind the pragma only what is compiled for this set alone: the headers above must not be.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LINREG_SMALL_LANES 4
#include "small_steps.h"

namespace linreg::cpu {

int64_t small_steps_avx2(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                         const Parameter& bias, bool stop_nonfinite, void* losses) {
  return take_small_steps(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace linreg::cpu

#pragma GCC pop_options
