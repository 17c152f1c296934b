// SPDX-License-Identifier: BSD-3-Clause
#include "launch.cuh"

namespace linreg::cuda {

const char* launch_bfloat16(const Plan& plan, const Pass& pass, void* stream) {
  return launch_pass<Dtype::bfloat16, Dtype::bfloat16>(plan, pass, stream);
}

}  // namespace linreg::cuda
