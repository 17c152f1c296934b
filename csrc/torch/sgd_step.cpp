// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext::sgd_step_: the mutating operator. It has no autograd formula, and parameters that require grad are
// updated in any grad mode, as an optimizer updates them.
#include "sgd_step.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "workspace.h"

namespace linreg::torch_ops {
namespace {

// A parameter and its buffer for the kernel; finish() copies back what could not be updated in place and tells
// autograd that both have changed.
class Updated {
 public:
  Updated(const at::Tensor* value, const OptionalTensor& buffer, bool has_momentum, bool first_step, bool frozen)
      : value_(frozen ? nullptr : value), buffer_(has_momentum && !frozen && buffer ? &*buffer : nullptr) {
    parameter.first_step = first_step;
    parameter.frozen = frozen;
    if (value_) parameter.value = rows_of(*value_, value_copy_);
    if (buffer_) parameter.momentum_buffer = rows_of(*buffer_, buffer_copy_);
  }

  void finish() {
    finish(value_, value_copy_);
    finish(buffer_, buffer_copy_);
  }

  Parameter parameter;

 private:
  static void finish(const at::Tensor* tensor, const at::Tensor& copy) {
    if (!tensor) return;
    if (copy.defined()) tensor->copy_(copy);
    if (!tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();
  }

  const at::Tensor *value_, *buffer_;
  at::Tensor value_copy_, buffer_copy_;
};

double value_of(const at::Tensor& lr) {
  return lr.scalar_type() == at::kDouble ? *lr.const_data_ptr<double>() : double(*lr.const_data_ptr<float>());
}

}  // namespace

at::Tensor sgd_step_cpu(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                        const OptionalTensor& linear_bias, const OptionalTensor& weight,
                        const OptionalTensor& weight_momentum_buffer, const OptionalTensor& bias_momentum_buffer,
                        std::string_view loss, double delta, std::string_view reduction,
                        const OptionalTensor& lr_tensor, double lr, double momentum, double dampening,
                        double weight_decay, bool nesterov, bool maximize, bool weight_first_step, bool bias_first_step,
                        bool weight_frozen, bool bias_frozen, bool skip_nonfinite) {
  constexpr std::string_view op = "sgd_step_";
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // for the copies of what cannot be used in place
  const Operands operands{input, linear_weight, target, linear_bias, weight};
  Checked checked = check_problem(op, operands, loss, delta, reduction);
  check_sgd(op, operands, reduction,
            {weight_momentum_buffer, bias_momentum_buffer, lr_tensor, lr, momentum, dampening, weight_decay, nesterov,
             maximize, weight_frozen, bias_frozen});
  checked.problem.threads = at::get_num_threads();

  const Sgd sgd{lr_tensor ? value_of(*lr_tensor) : lr, momentum, dampening, weight_decay, nesterov, maximize};
  const bool has_momentum = momentum != 0;
  Updated w(&linear_weight, weight_momentum_buffer, has_momentum, weight_first_step, weight_frozen);
  Updated b(linear_bias ? &*linear_bias : nullptr, bias_momentum_buffer, has_momentum, bias_first_step, bias_frozen);
  at::Tensor value = at::detail::empty_cpu({}, linear_weight.scalar_type());
  Workspace workspace(cpu::sgd_workspace(checked.problem));
  cpu::sgd_step(checked.problem, sgd, w.parameter, b.parameter, skip_nonfinite, value.data_ptr(), workspace.get());
  w.finish();
  b.finish();
  return value;
}

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "sgd_step_(Tensor input, Tensor(a!) linear_weight, Tensor target, Tensor(b!)? linear_bias, Tensor? weight, "
      "Tensor(c!)? weight_momentum_buffer, Tensor(d!)? bias_momentum_buffer, str loss, float delta, str reduction, "
      "Tensor? lr_tensor, float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
      "bool weight_first_step, bool bias_first_step, bool weight_frozen, bool bias_frozen, bool skip_nonfinite) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(linreg_ext, CPU, m) { m.impl("sgd_step_", &sgd_step_cpu); }

TORCH_LIBRARY_IMPL(linreg_ext, Autograd, m) { m.impl("sgd_step_", torch::CppFunction::makeFallthrough()); }

}  // namespace linreg::torch_ops
