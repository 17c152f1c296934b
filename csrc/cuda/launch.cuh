// SPDX-License-Identifier: BSD-3-Clause
// Launches the kernel of a plan. The instances for each dtype of X and W are compiled on their own (pass_*.cu).
#pragma once

#include "rows.cuh"
#include "streamed.cuh"

namespace linreg::cuda {

using LaunchPass = const char*(const Plan&, const Pass&, void* stream);

template <Dtype kX, Dtype kW>
const char* launch_pass(const Plan& plan, const Pass& pass, void* stream) {
  const Launch how{plan.blocks, plan.threads, plan.shared_bytes, stream};
  if (!plan.fits_registers) return launch(streamed_kernel<kX, kW>, how, pass);
  const auto rows = [&]<bool kWordLoads>() {
    switch (plan.width) {
      case Width::narrow:
        return launch(rows_kernel<RowsShape<kX, kW, kWordLoads, Width::narrow>>, how, pass);
      case Width::deep:
        return launch(rows_kernel<RowsShape<kX, kW, kWordLoads, Width::deep>>, how, pass);
      case Width::wide:
        return launch(rows_kernel<RowsShape<kX, kW, kWordLoads, Width::wide>>, how, pass);
      case Width::writing:
        return launch(rows_kernel<RowsShape<kX, kW, kWordLoads, Width::writing>>, how, pass);
      default:
        return launch(rows_kernel<RowsShape<kX, kW, kWordLoads, Width::targets>>, how, pass);
    }
  };
  return plan.words ? rows.template operator()<true>() : rows.template operator()<false>();
}

LaunchPass launch_float32, launch_float64, launch_bfloat16, launch_float16;
LaunchPass launch_bfloat16_with_float32, launch_float16_with_float32;  // parameters

}  // namespace linreg::cuda

// In each of pass_*.cu.
#define LINREG_LAUNCH_PASS(name, x, w)                                                        \
  const char* linreg::cuda::launch_##name(const Plan& plan, const Pass& pass, void* stream) { \
    return launch_pass<Dtype::x, Dtype::w>(plan, pass, stream);                               \
  }
