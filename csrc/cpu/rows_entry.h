// SPDX-License-Identifier: BSD-3-Clause
// The ways into rows.h, one for each instruction set that it is compiled for.
#pragma once

#include "plan.h"

namespace linreg::cpu {

using RunRows = void(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale,
                     char* workspace, int64_t thread, int64_t begin, int64_t end);

RunRows run_rows_portable, run_rows_avx2, run_rows_avx512;

}  // namespace linreg::cpu
