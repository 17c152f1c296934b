// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext::sgd_step_: the mutating operator. It has no autograd formula, and parameters that require grad are
// updated in any grad mode, as an optimizer updates them.
#include "sgd_step.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "plain.h"
#include "products.h"
#include "updated.h"

namespace linreg::torch_ops {
at::Tensor sgd_step_op(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                       const OptionalTensor& linear_bias, const OptionalTensor& weight,
                       const OptionalTensor& weight_momentum_buffer, const OptionalTensor& bias_momentum_buffer,
                       std::string_view loss, double delta, std::string_view reduction, const OptionalTensor& lr_tensor,
                       double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                       bool weight_first_step, bool bias_first_step, bool weight_frozen, bool bias_frozen,
                       bool skip_nonfinite) {
  refuse_transforms("sgd_step_");
  return sgd_step({input, linear_weight, target, given(linear_bias), given(weight)}, loss, delta, reduction,
                  {given(weight_momentum_buffer), given(bias_momentum_buffer), given(lr_tensor), lr, momentum,
                   dampening, weight_decay, nesterov, maximize, weight_first_step, bias_first_step, weight_frozen,
                   bias_frozen, skip_nonfinite});
}

void take_step(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Sgd& sgd,
               const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss) {
  Gradients gradients;
  gradients.weight = loss;  // wanted
  if (!Products::suit(op, backend, device, problem, gradients))
    return backend.sgd_step(op, device, problem, sgd, weight, bias, skip, loss);
  const Products products(op, backend, device, problem, sgd, weight, skip.nonfinite);
  Parameter rest = weight;
  rest.frozen |= products.weight_updated();
  backend.finish_sgd_step(op, device, problem, products.sums(), sgd, rest, bias, skip, loss);
}

at::Tensor sgd_step(const Operands& operands, std::string_view loss, double delta, std::string_view reduction,
                    const SgdArguments& arguments) {
  constexpr std::string_view op = "sgd_step_";
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // for the copies of what cannot be used in place
  Checked checked = check_problem(op, operands, loss, delta, reduction);
  check_sgd(op, operands, reduction, arguments);

  const auto& a = arguments;
  const c10::Device device = operands.input.device();
  const Backend& backend = *backend_of(device.type());
  Sgd sgd{a.lr, a.momentum, a.dampening, a.weight_decay, a.nesterov, a.maximize};
  if (a.lr_tensor) backend_of(a.lr_tensor->device().type())->set_lr(sgd, *a.lr_tensor);
  const bool has_momentum = a.momentum != 0;
  Updated w(&operands.linear_weight, has_momentum ? a.weight_momentum_buffer : nullptr, a.weight_first_step,
            a.weight_frozen);
  Updated b(operands.linear_bias, has_momentum ? a.bias_momentum_buffer : nullptr, a.bias_first_step, a.bias_frozen);
  at::Tensor value = backend.empty({}, scalar_type_of(loss_dtype(checked.problem)), device);
  take_step(op.data(), backend, device, checked.problem, sgd, w.parameter, b.parameter, {a.skip_nonfinite, nullptr},
            value.data_ptr());
  w.finish();
  b.finish();
  return value;
}

at::Tensor sgd_step_dispatched(const Operands& o, std::string_view loss, double delta, std::string_view reduction,
                               const SgdArguments& a) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("linreg_ext::sgd_step_", "").typed<decltype(sgd_step_op)>();
  const auto optional = [](const at::Tensor* tensor) { return tensor ? OptionalTensor(*tensor) : OptionalTensor(); };
  return op.call(o.input, o.linear_weight, o.target, optional(o.linear_bias), optional(o.weight),
                 optional(a.weight_momentum_buffer), optional(a.bias_momentum_buffer), loss, delta, reduction,
                 optional(a.lr_tensor), a.lr, a.momentum, a.dampening, a.weight_decay, a.nesterov, a.maximize,
                 a.weight_first_step, a.bias_first_step, a.weight_frozen, a.bias_frozen, a.skip_nonfinite);
}

namespace {

const Backend*& slot(c10::DeviceType type) {
  static const Backend* backends[c10::COMPILE_TIME_MAX_DEVICE_TYPES] = {};
  return backends[size_t(type)];
}

}  // namespace

const Backend* backend_of(c10::DeviceType type) { return slot(type); }
void set_backend(c10::DeviceType type, const Backend& backend) { slot(type) = &backend; }

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  // Parsing and boxing an argument takes 0.1 µs, so those with a default are best left out. No lr is an error.
  m.def(
      "sgd_step_(Tensor input, Tensor(a!) linear_weight, Tensor target, Tensor(b!)? linear_bias=None, "
      "Tensor? weight=None, Tensor(c!)? weight_momentum_buffer=None, Tensor(d!)? bias_momentum_buffer=None, "
      "str loss=\"mse\", float delta=1.0, str reduction=\"mean\", Tensor? lr_tensor=None, float lr=-1.0, "
      "float momentum=0.0, float dampening=0.0, float weight_decay=0.0, bool nesterov=False, bool maximize=False, "
      "bool weight_first_step=False, bool bias_first_step=False, bool weight_frozen=False, bool bias_frozen=False, "
      "bool skip_nonfinite=False) -> Tensor");
}

}  // namespace linreg::torch_ops
