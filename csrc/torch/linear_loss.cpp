// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext::linear_loss and linear_loss_grads: the functional operators.
#include "linear_loss.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <string>

#include "products.h"
#include "sgd_run.h"
#include "sgd_step.h"

namespace linreg::torch_ops {
namespace {

std::string op_name(std::string_view loss) { return "linear_" + std::string(loss) + "_loss"; }

}  // namespace

void compute_loss(const char* op, const Backend& backend, c10::Device device, Problem& problem,
                  const Gradients& gradients, void* loss) {
  if (!Products::suit(op, backend, device, problem, gradients))
    return backend.linear_loss(op, device, problem, gradients, loss);
  const bool elements = problem.reduction == Reduction::none;
  const Products products(op, backend, device, problem, gradients, elements ? loss : nullptr);
  if (!elements) backend.finish_linear_loss(op, device, problem, products.sums(), gradients, loss);
}

at::Tensor linear_loss(const Operands& operands, std::string_view loss, double delta, std::string_view reduction) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // for the copies of what cannot be used in place
  const std::string op = op_name(loss);
  Checked checked = check_problem(op, operands, loss, delta, reduction);
  const bool elements = checked.problem.reduction == Reduction::none;
  const c10::Device device = operands.input.device();
  const Backend& backend = *backend_of(device.type());
  at::Tensor value = backend.empty(elements ? operands.target.sizes() : at::IntArrayRef(),
                                   scalar_type_of(loss_dtype(checked.problem)), device);
  compute_loss(op.c_str(), backend, device, checked.problem, {}, value.data_ptr());
  return value;
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(const Operands& operands, std::string_view loss,
                                                                  double delta, std::string_view reduction,
                                                                  std::array<bool, 4> wanted) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const std::string op = op_name(loss);
  Checked checked = check_problem(op, operands, loss, delta, reduction);
  TORCH_CHECK_VALUE(reduction != "none", op, ": reduction must be 'mean' or 'sum', got 'none'");
  TORCH_CHECK_VALUE(!wanted[2] || operands.linear_bias, op,
                    ": linear_bias must be given when its gradient is asked for, got None");

  const c10::Device device = operands.input.device();
  const Backend& backend = *backend_of(device.type());
  at::Tensor value = backend.empty({}, scalar_type_of(loss_dtype(checked.problem)), device);
  std::vector<at::Tensor> grads;
  const auto add = [&](bool asked, const at::Tensor* of) -> void* {
    if (!asked) return nullptr;
    const auto dtype = of->scalar_type() == at::kHalf ? at::kFloat : of->scalar_type();  // as gradient_dtype has it
    grads.push_back(backend.empty(of->sizes(), dtype, device));
    return grads.back().data_ptr();
  };
  Gradients gradients;
  gradients.input = add(wanted[0], &operands.input);
  gradients.weight = add(wanted[1], &operands.linear_weight);
  gradients.bias = add(wanted[2], operands.linear_bias);
  gradients.target = add(wanted[3], &operands.target);
  compute_loss(op.c_str(), backend, device, checked.problem, gradients, value.data_ptr());
  return {std::move(value), std::move(grads)};
}

namespace {

// The operators' signatures, as their schemas have them.
at::Tensor linear_loss_op(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                          const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss,
                          double delta, std::string_view reduction) {
  return linear_loss({input, linear_weight, target, given(linear_bias), given(weight)}, loss, delta, reduction);
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads_op(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss, double delta,
    std::string_view reduction, std::array<bool, 4> wanted) {
  return linear_loss_grads({input, linear_weight, target, given(linear_bias), given(weight)}, loss, delta, reduction,
                           wanted);
}

}  // namespace

void implement(torch::Library& m) {
  m.impl("linear_loss", &linear_loss_op);
  m.impl("linear_loss_grads", &linear_loss_grads_op);
  m.impl("sgd_step_", &sgd_step_op);
  m.impl("sgd_run_", &sgd_run_op);
}

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "linear_loss(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str loss, "
      "float delta, str reduction) -> Tensor");
  m.def(
      "linear_loss_grads(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str "
      "loss, float delta, str reduction, bool[4] wanted) -> (Tensor, Tensor[])");
}

}  // namespace linreg::torch_ops
