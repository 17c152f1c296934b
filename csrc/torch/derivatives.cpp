// SPDX-License-Identifier: BSD-3-Clause
// What the operators do where a derivative or a batch may be asked for, which the backends know nothing of: the losses
// go to linreg_ext/autograd.py, steps in place have no derivative and say so.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <algorithm>

#include "check.h"
#include "plain.h"

namespace linreg::torch_ops {
namespace {

// Whether autograd records, or a transform is at work, inside of which requires_grad does not say what it will
// differentiate.
bool differentiated(std::initializer_list<const at::Tensor*> tensors) {
  if (transforming()) return true;
  if (!at::GradMode::is_enabled()) return false;
  return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor* t) { return t && t->requires_grad(); });
}

template <class Signature>
auto find_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// A function of linreg_ext/autograd.py, or an operator below autograd.
template <class Operator, class... Arguments>
auto call(bool by_python, const char* function, const Operator& op, const Arguments&... arguments) {
  if (by_python) {
    const pybind11::gil_scoped_acquire gil;
    const auto called = pybind11::module_::import("linreg_ext.autograd").attr(function);
    return called(arguments...).template cast<decltype(op.call(arguments...))>();
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(arguments...);
}

at::Tensor linear_loss_above(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                             const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss,
                             double delta, std::string_view reduction) {
  static const auto op = find_operator<decltype(linear_loss_above)>("linreg_ext::linear_loss");
  return call(differentiated({&input, &linear_weight, &target, given(linear_bias), given(weight)}), "recorded_loss", op,
              input, linear_weight, target, linear_bias, weight, loss, delta, reduction);
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads_above(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss, double delta,
    std::string_view reduction, std::array<bool, 4> wanted) {
  static const auto op = find_operator<decltype(linear_loss_grads_above)>("linreg_ext::linear_loss_grads");
  return call(differentiated({&input, &linear_weight, &target, given(linear_bias), given(weight)}),
              "recorded_loss_grads", op, input, linear_weight, target, linear_bias, weight, loss, delta, reduction,
              wanted);
}

void implement_above(torch::Library& m) {
  m.impl("linear_loss", &linear_loss_above);
  m.impl("linear_loss_grads", &linear_loss_grads_above);
}

void refuse_step(const c10::OperatorHandle& op, torch::jit::Stack*) {
  const std::string& name = op.operator_name().name;
  refuse_transforms(name.substr(name.find("::") + 2).c_str());
}

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, FuncTorchBatchedDecomposition, m) { implement_above(m); }  // vmap
TORCH_LIBRARY_IMPL(linreg_ext, Autograd, m) {
  implement_above(m);
  // Their parameters may require grad as they do for an optimizer, and nothing is recorded.
  m.impl("sgd_step_", torch::CppFunction::makeFallthrough());
  m.impl("sgd_run_", torch::CppFunction::makeFallthrough());
}

// Where a call arrives first when a transform is at work.
TORCH_LIBRARY_IMPL(linreg_ext, FuncTorchDynamicLayerFrontMode, m) {
  m.impl("sgd_step_", torch::CppFunction::makeFromBoxedFunction<&refuse_step>());
  m.impl("sgd_run_", torch::CppFunction::makeFromBoxedFunction<&refuse_step>());
}

}  // namespace linreg::torch_ops
