// SPDX-License-Identifier: BSD-3-Clause
#include "kernels.h"

#include <cstdlib>
#include <string_view>

namespace linreg::cpu {

const Kernels& kernels() {
  static const Kernels chosen = []() -> Kernels {
    const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
    const std::string_view cap = variable ? variable : "";
    const bool has_avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    if (cap == "default" || !has_avx2)
      return {16, portable::run_rows, &portable::product_rows, &portable::moment_kernels, nullptr, nullptr};
    if (cap == "avx2" || !has_avx512)
      return {32, avx2::run_rows, &avx2::product_rows, &avx2::moment_kernels, avx2::small_steps, &avx2::small_runs};
    // AVX-512 does not speed up small steps, which are bound by latency: in float64, 80 × 1 took 37 ns instead of 25,
    // and 32 × 8 took 52 ns with both.
    return {
        64, avx512::run_rows, &avx512::product_rows, &avx512::moment_kernels, avx2::small_steps, &avx512::small_runs};
  }();
  return chosen;
}

}  // namespace linreg::cpu
