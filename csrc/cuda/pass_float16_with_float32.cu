// SPDX-License-Identifier: BSD-3-Clause
#include "launch.cuh"

namespace linreg::cuda {

const char* launch_float16_with_float32(const Plan& plan, const Pass& pass, void* stream) {
  return launch_pass<Dtype::float16, Dtype::float32>(plan, pass, stream);
}

}  // namespace linreg::cuda
