// SPDX-License-Identifier: BSD-3-Clause
#include "instruction_set.h"

#include <cstdlib>
#include <string_view>

namespace linreg::cpu {

InstructionSet instruction_set() {
  static const InstructionSet chosen = [] {
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view cap = variable ? variable : "";
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (cap == "default" || !avx2) return InstructionSet::portable;
    return cap == "avx2" || !avx512 ? InstructionSet::avx2 : InstructionSet::avx512;
  }();
  return chosen;
}

}  // namespace linreg::cpu
