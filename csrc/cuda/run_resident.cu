// SPDX-License-Identifier: BSD-3-Clause
// Launches of the steps of a run whose rows stay in shared memory: as many steps at a time as end soon.
#include "../math/loss.h"
#include "run_resident.cuh"

namespace linreg::cuda {
namespace {

template <Dtype kX, Dtype kW>
const char* launch_steps(const ResidentRun& call, void* stream) {
  const ResidentLayout& l = call.layout;
  const Launch how{l.blocks, l.warps * kWarp, 1, l.shared_bytes, stream, l.blocks > 1};
  switch (l.columns_of_thread) {
    case 1:
      return launch(resident_kernel<ResidentShape<kX, kW, 1>>, how, call);
    case 2:
      return launch(resident_kernel<ResidentShape<kX, kW, 2>>, how, call);
    case 4:
      return launch(resident_kernel<ResidentShape<kX, kW, 4>>, how, call);
    default:
      return launch(resident_kernel<ResidentShape<kX, kW, 8>>, how, call);
  }
}

const char* launch_steps(const ResidentRun& call, void* stream) {
  const Dtype x = call.problem.x.dtype;
  const bool same = call.problem.w.dtype == x;
  switch (x) {
    case Dtype::float32:
      return launch_steps<Dtype::float32, Dtype::float32>(call, stream);
    case Dtype::float64:
      return launch_steps<Dtype::float64, Dtype::float64>(call, stream);
    case Dtype::bfloat16:
      return same ? launch_steps<Dtype::bfloat16, Dtype::bfloat16>(call, stream)
                  : launch_steps<Dtype::bfloat16, Dtype::float32>(call, stream);
    default:
      return same ? launch_steps<Dtype::float16, Dtype::float16>(call, stream)
                  : launch_steps<Dtype::float16, Dtype::float32>(call, stream);
  }
}

}  // namespace

const char* resident_workspace(const Problem& problem, const Run& run, bool& yes, size_t& bytes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentLayout layout;
  yes = lay_out_run(layout, problem, run, device);
  bytes = layout.blocks > 1 ? sizeof(double) * size_t(layout.blocks) * size_t(2 * layout.line + 1) : 0;
  return nullptr;
}

const char* resident_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                           const Parameter& bias, bool stop_nonfinite, const void* before, void* losses,
                           void* workspace, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentRun call{problem, run, sgd, weight, bias, stop_nonfinite, before, losses, {}, nullptr, nullptr};
  call.problem.loss = effective_loss(problem.loss, problem.delta);
  const ResidentLayout& l = call.layout;
  if (!lay_out_run(call.layout, problem, run, device)) return "a run whose rows do not fit into shared memory";
  if (l.blocks > 1) {
    call.signals = static_cast<double*>(workspace);
    call.lines = call.signals + l.blocks;
    const Launch how{1, kRunThreads, 1, 0, stream};
    if (const char* error = launch(clear_signals_kernel, how, call.signals, l.blocks)) return error;
  }
  const int64_t most = launch_steps(l, problem, run), size = int64_t(size_of(problem.w.dtype));
  for (int64_t begin = run.begin; begin < run.end; begin = call.run.end) {
    call.run.begin = begin;
    call.run.end = run.end - begin < most ? run.end : begin + most;
    if (run.lr) call.run.lr = run.lr + (begin - run.begin);
    call.losses = static_cast<char*>(losses) + (begin - run.begin) * size;
    if (const char* error = launch_steps(call, stream)) return error;
    call.weight.first_step = call.bias.first_step = false;
    call.before = static_cast<const char*>(losses) + (call.run.end - 1 - run.begin) * size;
  }
  return nullptr;
}

}  // namespace linreg::cuda
