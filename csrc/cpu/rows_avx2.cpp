// SPDX-License-Identifier: BSD-3-Clause
// rows.h for processors with AVX2, FMA and F16C.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../math/losses.h"
#include "rows_entry.h"

// Behind the pragma only what is compiled for this set alone: the headers above must not be.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LINREG_LANES 4
#include "rows.h"

namespace linreg::cpu {

void run_rows_avx2(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale, char* workspace,
                   int64_t thread, int64_t begin, int64_t end) {
  run_rows(problem, outputs, plan, scale, workspace, thread, begin, end);
}

}  // namespace linreg::cpu

#pragma GCC pop_options
