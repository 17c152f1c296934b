// SPDX-License-Identifier: BSD-3-Clause
#include "run_launch.cuh"
#include "run_streamed.cuh"

namespace linreg::cuda {

const char* launch_steps(const StreamedRun& call, void* stream) {
  const StreamedLayout& l = call.layout;
  const Launch how{l.cluster, l.warps * kWarp, l.cluster, l.shared_bytes, stream};
  return with_shape(call.problem, l.columns_of_thread,
                    [&]<class S>() { return launch(streamed_run_kernel<S>, how, call); });
}

}  // namespace linreg::cuda
