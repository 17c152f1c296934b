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

bool needs_weighted_scale(const Pass& pass) {
  const Problem& p = pass.problem;
  return p.v.data && p.reduction == Reduction::mean && (pass.input_gradient || pass.target_gradient);
}

LaunchPass* launch_for(Dtype x) {
  switch (x) {
    case Dtype::float32:
      return launch_float32;
    case Dtype::float64:
      return launch_float64;
    case Dtype::bfloat16:
      return launch_bfloat16;
    default:
      return launch_float16;
  }
}

// Completes the pass (all that is wanted is set, its memory is not) and launches it on the stream.
const char* run_pass(Pass pass, const Plan& plan, void* workspace, void* stream) {
  const Problem& p = pass.problem;
  const bool weighted_scale = needs_weighted_scale(pass);
  if (plan.blocks > 1 || weighted_scale)
    if (const char* error = counters(stream, pass.counters)) return error;
  pass.layout = plan.layout;
  pass.partials = static_cast<double*>(workspace);
  pass.line_stride = plan.line_stride;
  pass.scale = reduction_scale(p, 0);
  if (weighted_scale) {
    Limits device;
    if (const char* error = limits(device)) return error;
    double* const totals = pass.partials + plan.partials;
    const Launch how{weights_blocks(p, device), kWeightsThreads, int(sizeof(double)) * kWeightsThreads / kWarp, stream};
    if (const char* error = launch(weights_kernel, how, p, totals, pass.counters)) return error;
    pass.weighted_scale = totals;
  }
  return launch_for(p.x.dtype)(plan, pass, stream);
}

}  // namespace

const char* plan(const Problem& problem, Plan& plan) {
  Limits device;
  if (const char* error = limits(device)) return error;
  plan = plan_of(problem, device);
  return nullptr;
}

// The loss, and the gradients that are wanted.
const char* linear_loss(const Problem& problem, const Plan& plan, const Gradients& gradients, void* loss,
                        void* workspace, void* stream) {
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
  return run_pass(pass, plan, workspace, stream);
}

// One SGD step: the last block applies the rule in double, and rounds once.
const char* sgd_step(const Problem& problem, const Plan& plan, const Sgd& sgd, const Parameter& weight,
                     const Parameter& bias, const Skip& skip, void* loss, void* workspace, void* stream) {
  Pass pass;
  pass.problem = problem;
  pass.weight_sum = true;
  pass.finish.step = true;
  pass.finish.loss = loss;
  pass.finish.sgd = sgd;
  pass.finish.weight = weight;
  pass.finish.bias = bias;
  pass.finish.skip = skip;
  return run_pass(pass, plan, workspace, stream);
}

}  // namespace linreg::cuda
