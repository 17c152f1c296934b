// SPDX-License-Identifier: BSD-3-Clause
// Launches the kernel of a plan. The instances for each dtype of X are compiled on their own (pass_*.cu).
#pragma once

#include "tiles.cuh"

namespace linreg::cuda {

using LaunchPass = const char*(const Plan&, const Pass&, void* stream);

template <Dtype kX>
const char* launch_pass(const Plan& plan, const Pass& pass, void* stream) {
  const Launch how{plan.blocks, plan.threads, plan.shared_bytes, stream};
  const auto kernel = [&]<int kTargets>() {
    if constexpr (vector_columns(kX, kTargets) > 1)
      if (plan.vectors) return launch(tiles_kernel<TileShape<kX, true, kTargets>>, how, pass);
    return launch(tiles_kernel<TileShape<kX, false, kTargets>>, how, pass);
  };
  return pass.problem.k == 1 ? kernel.template operator()<targets_at_once(1)>()
                             : kernel.template operator()<targets_at_once(2)>();
}

LaunchPass launch_float32, launch_float64, launch_bfloat16, launch_float16;

}  // namespace linreg::cuda

// In each of pass_*.cu.
#define LINREG_LAUNCH_PASS(dtype)                                                              \
  const char* linreg::cuda::launch_##dtype(const Plan& plan, const Pass& pass, void* stream) { \
    return launch_pass<Dtype::dtype>(plan, pass, stream);                                      \
  }
