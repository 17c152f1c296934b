// SPDX-License-Identifier: BSD-3-Clause
// The loss and the gradients that are wanted: one pass, whose last block scales the sums.
#include "../math/losses.h"
#include "pass.h"

namespace linreg::cuda {
namespace {

Pass pass_for(const Problem& problem, const Gradients& gradients, void* loss) {
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
  return pass_workspace(pass_for(problem, gradients, nullptr), bytes);
}

const char* linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace, void* stream) {
  return run_pass(pass_for(problem, gradients, loss), workspace, stream);
}

}  // namespace linreg::cuda
