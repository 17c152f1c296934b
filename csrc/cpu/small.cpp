// SPDX-License-Identifier: BSD-3-Clause
#include "small.h"

#include <cstdlib>
#include <string_view>

namespace linreg::cpu {
namespace {

// By AVX2 where this machine has it and ATEN_CPU_CAPABILITY, as torch reads it, does not forbid it. Vectors of AVX-512
// are no faster for so few rows: 80 × 1 took 37 ns instead of 25, 32 × 8 the same 52.
SmallSteps* steps_of_this_machine() {
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const bool forbidden = variable && std::string_view(variable) == "default";
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return avx2 && !forbidden ? small_steps_avx2 : small_steps_portable;
}

}  // namespace

int64_t small_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                    const Parameter& bias, bool stop_nonfinite, void* losses) {
  static SmallSteps* const chosen = steps_of_this_machine();
  return chosen(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace linreg::cpu
