// SPDX-License-Identifier: BSD-3-Clause
// A pass is one launch. This file sets it up for a loss or a step, and picks the instance for the dtype of X.
#include "../math/reduction.h"
#include "plan.h"

namespace linreg::cuda {
namespace {

// Adds layout and memory to a pass whose requested outputs are set, and launches it.
const char* run_pass(Pass pass, const Plan& plan, void* workspace, void* stream) {
  if (plan.blocks > 1)
    if (const char* error = counters(stream, pass.counters)) return error;
  pass.layout = plan.layout;
  pass.partials = static_cast<double*>(workspace);
  pass.line_stride = plan.line_stride;
  switch (pass.problem.x.dtype) {
    case Dtype::float32:
      return launch_pass<Dtype::float32>(plan, pass, stream);
    case Dtype::float64:
      return launch_pass<Dtype::float64>(plan, pass, stream);
    case Dtype::bfloat16:
      return launch_pass<Dtype::bfloat16>(plan, pass, stream);
    default:
      return launch_pass<Dtype::float16>(plan, pass, stream);
  }
}

}  // namespace

const char* plan(const Problem& problem, Plan& plan) {
  Limits device;
  if (const char* error = limits(device)) return error;
  plan = plan_of(problem, device);
  return nullptr;
}

// The loss and the requested gradients.
const char* linear_loss(const Problem& problem, const Plan& plan, const Gradients& gradients, void* loss,
                        void* workspace, void* stream) {
  Pass pass;
  pass.problem = problem;
  pass.weight_sum = gradients.weight != nullptr;
  pass.input_gradient = gradients.input;
  pass.target_gradient = gradients.target;
  pass.scale = problem.k == 0 ? 0 : reduction_scale(problem, 0);  // without targets, X's gradient is an empty sum
  pass.weighted_scale = problem.k == 0 ? nullptr : gradients.weighted_scale;
  const bool elements = problem.reduction == Reduction::none;
  pass.elements = elements ? loss : nullptr;
  pass.elements_dtype = loss_dtype(problem);
  pass.finish = {elements ? nullptr : loss, false, gradients, {}, {}, {}, {}};
  return run_pass(pass, plan, workspace, stream);
}

// One SGD step: the last block applies the rule in double and rounds once.
const char* sgd_step(const Problem& problem, const Plan& plan, const Sgd& sgd, const Parameter& weight,
                     const Parameter& bias, const Skip& skip, void* loss, void* workspace, void* stream) {
  Pass pass;
  pass.problem = problem;
  pass.weight_sum = true;
  pass.finish = {loss, true, {}, sgd, weight, bias, skip};
  return run_pass(pass, plan, workspace, stream);
}

}  // namespace linreg::cuda
