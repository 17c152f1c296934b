// SPDX-License-Identifier: BSD-3-Clause
#include "run_launch.cuh"
#include "run_resident.cuh"

namespace linreg::cuda {

const char* launch_steps(const ResidentRun& call, void* stream) {
  const ResidentLayout& l = call.layout;
  const Launch how{l.blocks, l.warps * kWarp, 1, l.shared_bytes, stream, l.blocks > 1};
  return with_shape(call.problem, l.columns_of_thread,
                    [&]<class S>() { return launch(resident_kernel<S>, how, call); });
}

// For the run that begins: no block has signalled anything yet.
const char* clear_signals(const ResidentRun& call, void* stream) {
  const Launch how{1, kRunThreads, 1, 0, stream};
  return launch(clear_signals_kernel, how, call.signals, call.layout.blocks);
}

}  // namespace linreg::cuda
