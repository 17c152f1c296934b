// SPDX-License-Identifier: BSD-3-Clause
#include "launch.cuh"

namespace linreg::cuda {

const char* launch_float64(const Plan& plan, const Pass& pass, void* stream) {
  return launch_pass<Dtype::float64, Dtype::float64>(plan, pass, stream);
}

}  // namespace linreg::cuda
