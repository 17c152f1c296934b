// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext::linear_loss and linear_loss_grads: the functional operators.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "backend.h"
#include "check.h"
#include "products.h"
#include "sgd_step.h"

namespace linreg::torch_ops {
namespace {

std::string op_name(std::string_view loss) { return "linear_" + std::string(loss) + "_loss"; }

void run(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Gradients& gradients,
         void* loss) {
  if (!Products::suit(op, backend, device, problem, gradients))
    return backend.linear_loss(op, device, problem, gradients, loss);
  const bool elements = problem.reduction == Reduction::none;
  const Products products(op, backend, device, problem, gradients, elements ? loss : nullptr);
  if (!elements) backend.finish_linear_loss(op, device, problem, products.sums(), gradients, loss);
}

at::Tensor linear_loss(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                       const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss,
                       double delta, std::string_view reduction) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // for the copies of what cannot be used in place
  const std::string op = op_name(loss);
  Checked checked =
      check_problem(op, {input, linear_weight, target, given(linear_bias), given(weight)}, loss, delta, reduction);
  const bool elements = checked.problem.reduction == Reduction::none;
  const Backend& backend = *backend_of(input.device().type());
  at::Tensor value =
      backend.empty(elements ? target.sizes() : at::IntArrayRef(), linear_weight.scalar_type(), input.device());
  run(op.c_str(), backend, input.device(), checked.problem, {}, value.data_ptr());
  return value;
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss, double delta,
    std::string_view reduction, std::array<bool, 4> wanted) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const std::string op = op_name(loss);
  Checked checked =
      check_problem(op, {input, linear_weight, target, given(linear_bias), given(weight)}, loss, delta, reduction);
  TORCH_CHECK_VALUE(reduction != "none", op, ": reduction must be 'mean' or 'sum', got 'none'");
  TORCH_CHECK_VALUE(!wanted[2] || linear_bias, op,
                    ": linear_bias must be given when its gradient is asked for, got None");

  const Backend& backend = *backend_of(input.device().type());
  at::Tensor value = backend.empty({}, linear_weight.scalar_type(), input.device());
  std::vector<at::Tensor> grads;
  const auto add = [&](bool asked, const at::Tensor& of) -> void* {
    if (!asked) return nullptr;
    const auto dtype = of.scalar_type() == at::kHalf ? at::kFloat : of.scalar_type();  // as gradient_dtype has it
    grads.push_back(backend.empty(of.sizes(), dtype, input.device()));
    return grads.back().data_ptr();
  };
  Gradients gradients;  // in the order of linreg_ext.autograd.OPERANDS
  gradients.input = add(wanted[0], input);
  gradients.weight = add(wanted[1], linear_weight);
  gradients.bias = add(wanted[2], linear_bias ? *linear_bias : linear_weight);
  gradients.target = add(wanted[3], target);
  run(op.c_str(), backend, input.device(), checked.problem, gradients, value.data_ptr());
  return {std::move(value), std::move(grads)};
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("linear_loss", &linear_loss);
  m.impl("linear_loss_grads", &linear_loss_grads);
  m.impl("sgd_step_", &sgd_step_op);
}

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "linear_loss(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str loss, "
      "float delta, str reduction) -> Tensor");
  m.def(
      "linear_loss_grads(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str "
      "loss, float delta, str reduction, bool[4] wanted) -> (Tensor, Tensor[])");
}

// LinearLoss (linreg_ext/autograd.py) differentiates; what reaches an operator itself is below autograd.
TORCH_LIBRARY_IMPL(linreg_ext, Autograd, m) {
  m.impl("linear_loss", torch::CppFunction::makeFallthrough());
  m.impl("linear_loss_grads", torch::CppFunction::makeFallthrough());
}

}  // namespace linreg::torch_ops
