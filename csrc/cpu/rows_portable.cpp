// SPDX-License-Identifier: BSD-3-Clause
// rows.h for any processor.
#define LINREG_LANES 2
#include "rows.h"

namespace linreg::cpu {

void run_rows_portable(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale,
                       char* workspace, int64_t thread, int64_t begin, int64_t end) {
  run_rows(problem, outputs, plan, scale, workspace, thread, begin, end);
}

}  // namespace linreg::cpu
