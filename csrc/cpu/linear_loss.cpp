// SPDX-License-Identifier: BSD-3-Clause
// The loss and the requested gradients: one pass, then each sum is scaled and rounded once.
#include "convert.h"
#include "pass.h"

namespace linreg::cpu {
namespace {

PassOutputs outputs_for(const Problem& problem, const Gradients& gradients, void* loss) {
  PassOutputs outputs;
  outputs.weight_sum = gradients.weight != nullptr;
  outputs.bias_sum = gradients.bias != nullptr;
  outputs.input_gradient = gradients.input;
  outputs.target_gradient = gradients.target;
  outputs.elements = problem.reduction == Reduction::none ? loss : nullptr;
  return outputs;
}

}  // namespace

size_t loss_workspace(const Problem& problem, const Gradients& gradients) {
  return pass_workspace(problem, 1, outputs_for(problem, gradients, nullptr));
}

void linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace) {
  const double divisor = reduction_divisor(problem);
  const PassOutputs outputs = outputs_for(problem, gradients, loss);
  PassSums sums;
  run_pass(&problem, 1, outputs, &divisor, &sums, workspace);
  const double value = sums.loss / divisor;
  const Dtype dtype = gradient_dtype(problem.w.dtype);
  if (problem.reduction != Reduction::none) store(&value, 1, loss_dtype(problem), loss);
  if (gradients.weight) store(sums.weight, problem.k * problem.d, dtype, gradients.weight);
  if (gradients.bias) store(sums.bias, problem.k, dtype, gradients.bias);
}

}  // namespace linreg::cpu
