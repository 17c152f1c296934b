// SPDX-License-Identifier: BSD-3-Clause
// A pass is one launch, and one more before it where it writes gradients row by row that a weighted mean divides.
#include "../math/losses.h"
#include "../math/reduction.h"
#include "launch.cuh"
#include "number.cuh"
#include "pass.cuh"
#include "reduce.cuh"

namespace linreg::cuda {

// ---- The sum of the weights -----------------------------------------------------------------------------------------
//
// Σ v on its own, for gradients that a pass writes row by row and that a weighted mean divides by it. One reading of v.
// Deterministic: fixed rows a thread, sums in fixed order.

constexpr int kWeightsThreads = 256;

// Adds `mine` over the threads of the block into shared[0], in fixed order, for thread 0.
LINREG_DEVICE void sum_block(double mine, double* shared) {
  const double sum = sum_lanes(mine, 1, kWarp);
  if (thread_index() % kWarp == 0) shared[thread_index() / kWarp] = sum;
  sync_block();  // every warp's sum is there
  if (thread_index() == 0)
    for (int warp = 1; warp < thread_count() / kWarp; ++warp) shared[0] += shared[warp];
}

// Leaves 1 / Σ v at partials[0].
LINREG_KERNEL(kWeightsThreads, 1)
weights_kernel(LINREG_PARAMETER Problem p, double* const partials, unsigned* const counters) {
  double* const shared = static_cast<double*>(shared_memory());
  double sum = 0;
  const int64_t step = int64_t(block_count()) * thread_count();
  for (int64_t i = int64_t(block_index()) * thread_count() + thread_index(); i < p.n; i += step)
    for (int64_t t = 0; t < p.k; ++t) sum += load_number(p.v, i, t);
  sum_block(sum, shared);
  if (thread_index() == 0) store_cg(partials + block_index(), shared[0]);
  if (reduce_blocks(partials, 1, 1, counters, reinterpret_cast<int*>(shared)) && thread_index() == 0)
    store_cg(partials, 1 / load_cg(partials));
}
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

// ---- The loss, and the gradients that are wanted -------------------------------------------------------------------

namespace {

Pass loss_pass(const Problem& problem, const Gradients& gradients, void* loss) {
  Pass pass;
  pass.problem = problem;
  pass.weight_sum = gradients.weight != nullptr;
  pass.input_gradient = gradients.input;
  pass.target_gradient = gradients.target;
  const bool elements = problem.reduction == Reduction::none;
  pass.elements = elements ? loss : nullptr;
  pass.elements_dtype = loss_dtype(problem);
  pass.finish.loss = elements ? nullptr : loss;
  pass.finish.gradients = gradients;
  return pass;
}

}  // namespace

const char* loss_workspace(const Problem& problem, const Gradients& gradients, size_t& bytes) {
  return pass_workspace(loss_pass(problem, gradients, nullptr), bytes);
}

const char* linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace, void* stream) {
  return run_pass(loss_pass(problem, gradients, loss), workspace, stream);
}

// ---- One SGD step: the last block applies the rule to every number of the parameters, in double, rounded once
// --------

namespace {

Pass step_pass(const Problem& problem) {
  Pass pass;
  pass.problem = problem;
  pass.weight_sum = true;
  pass.finish.step = true;
  return pass;
}

}  // namespace

const char* sgd_workspace(const Problem& problem, size_t& bytes) { return pass_workspace(step_pass(problem), bytes); }

const char* sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                     const Skip& skip, void* loss, void* workspace, void* stream) {
  Pass pass = step_pass(problem);
  pass.finish.loss = loss;
  pass.finish.sgd = sgd;
  pass.finish.weight = weight;
  pass.finish.bias = bias;
  pass.finish.skip = skip;
  return run_pass(pass, workspace, stream);
}

}  // namespace linreg::cuda
