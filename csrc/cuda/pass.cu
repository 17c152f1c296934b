// SPDX-License-Identifier: BSD-3-Clause
// A pass is one launch, and one more before it where it writes gradients row by row that a weighted mean divides.
#include "../math/reduction.h"
#include "launch.cuh"
#include "pass.h"
#include "weights.cuh"

namespace linreg::cuda {
namespace {

Plan plan_for(const Pass& pass, const Limits& limits) {
  const Problem& p = pass.problem;
  // Elements by the reduction: when workspace is asked for, there is no place for them yet.
  const Wishes wishes{pass.input_gradient != nullptr, p.reduction == Reduction::none || pass.target_gradient};
  return plan_of(p, reinterpret_cast<uintptr_t>(p.x.data), wishes, limits);
}

bool needs_weighted_scale(const Pass& pass) {
  const Problem& p = pass.problem;
  return p.v.data && p.reduction == Reduction::mean && (pass.input_gradient || pass.target_gradient);
}

int weights_blocks(const Problem& p, const Limits& limits) {
  const int64_t tiles = ceil_div(p.n, kWeightsThreads);
  return int(tiles < 1 ? 1 : tiles < limits.multiprocessors ? tiles : limits.multiprocessors);
}

LaunchPass* launch_for(Dtype x, Dtype w) {
  switch (x) {
    case Dtype::float32:
      return launch_float32;
    case Dtype::float64:
      return launch_float64;
    case Dtype::bfloat16:
      return w == Dtype::float32 ? launch_bfloat16_with_float32 : launch_bfloat16;
    default:
      return w == Dtype::float32 ? launch_float16_with_float32 : launch_float16;
  }
}

}  // namespace

const char* pass_workspace(const Pass& pass, size_t& bytes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  const Plan plan = plan_for(pass, device);
  const int64_t weights = needs_weighted_scale(pass) ? weights_blocks(pass.problem, device) : 0;
  bytes = sizeof(double) * size_t(plan.partials + plan.scratch + weights);
  return nullptr;
}

const char* run_pass(Pass pass, void* workspace, void* stream) {
  const Problem& p = pass.problem;
  Limits device;
  if (const char* error = limits(device)) return error;
  if (const char* error = counters(stream, pass.counters)) return error;
  const Plan plan = plan_for(pass, device);
  pass.layout = plan.layout;
  pass.partials = static_cast<double*>(workspace);
  pass.line_stride = plan.line_stride;
  pass.scratch = pass.partials + plan.partials;
  pass.scale = reduction_scale(p, 0);
  if (needs_weighted_scale(pass)) {
    double* const totals = pass.scratch + plan.scratch;
    const Launch how{weights_blocks(p, device), kWeightsThreads, int(sizeof(double)) * kWeightsThreads / kWarp, stream};
    if (const char* error = launch(weights_kernel, how, p, totals, pass.counters)) return error;
    pass.weighted_scale = totals;
  }
  return launch_for(p.x.dtype, p.w.dtype)(plan, pass, stream);
}

}  // namespace linreg::cuda
