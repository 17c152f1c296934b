// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext::sgd_run_: many steps in one call. A call takes the steps [begin, end) of the run, so that whoever calls
// can do a run in stretches, to be interrupted or to show progress between them.
#include "sgd_run.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include "backend.h"
#include "plain.h"
#include "sgd_step.h"
#include "updated.h"

namespace linreg::torch_ops {
namespace {

constexpr std::string_view kOp = "sgd_run_";
constexpr std::string_view kValidation = "sgd_run_: validation";

// The learning rates of the steps [begin, end) as doubles, where `lr` is: [steps].
at::Tensor rates_of(const at::Tensor& lr, const Run& run) {
  if (!lr.is_cpu()) return lr.narrow(0, run.begin, run.end - run.begin).to(at::kDouble).contiguous();
  at::Tensor rates = backend_of(at::kCPU)->empty({run.end - run.begin}, at::kDouble, at::kCPU);
  double* const to = rates.mutable_data_ptr<double>();
  for (int64_t i = 0; i < rates.numel(); ++i) {
    const int64_t offset = (run.begin + i) * lr.stride(0);
    to[i] = lr.scalar_type() == at::kDouble ? lr.const_data_ptr<double>()[offset] : lr.const_data_ptr<float>()[offset];
  }
  return rates;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> sgd_run_op(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, const OptionalTensor& weight_momentum_buffer,
    const OptionalTensor& bias_momentum_buffer, const OptionalTensor& order, const OptionalTensor& validation_input,
    const OptionalTensor& validation_target, int64_t batch_size, bool drop_last, int64_t epochs, int64_t begin,
    int64_t end, std::string_view loss, double delta, std::string_view reduction, const OptionalTensor& lr_tensor,
    double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
    bool weight_first_step, bool bias_first_step, bool weight_frozen, bool bias_frozen, bool stop_nonfinite) {
  refuse_transforms(kOp.data());
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // for the copies of what cannot be used in place
  const Operands operands{input, linear_weight, target, given(linear_bias), given(weight)};
  Checked checked = check_problem(kOp, operands, loss, delta, reduction);
  TORCH_CHECK(input.dim() == 2, kOp, ": input must have shape [rows, in_features], got ", input.sizes());
  Run run =
      check_run(kOp, {given(order), batch_size, drop_last, epochs, begin, end}, checked.problem.n, input.device());
  const SgdArguments arguments{given(weight_momentum_buffer),
                               given(bias_momentum_buffer),
                               given(lr_tensor),
                               lr,
                               momentum,
                               dampening,
                               weight_decay,
                               nesterov,
                               maximize,
                               weight_first_step,
                               bias_first_step,
                               weight_frozen,
                               bias_frozen,
                               stop_nonfinite,
                               run.epoch_steps * epochs};
  check_sgd(kOp, operands, reduction, arguments,
            {{"order", given(order)},
             {"validation_input", given(validation_input)},
             {"validation_target", given(validation_target)}});
  TORCH_CHECK_VALUE(validation_input.has_value() == validation_target.has_value(), kOp,
                    ": validation_input and validation_target must be given together");
  Checked validation;
  if (validation_input)
    validation =
        check_problem(kValidation, {*validation_input, linear_weight, *validation_target, given(linear_bias), nullptr},
                      loss, delta, reduction);

  const c10::Device device = input.device();
  const Backend& backend = *backend_of(device.type());
  const int64_t epochs_ended = run.epoch_steps == 0 ? 0 : end / run.epoch_steps - begin / run.epoch_steps;
  RunCall call{kOp.data(), device, checked.problem, run, {}, {}, {}, {}, {}, stop_nonfinite, nullptr, {}, {}, {}};
  const auto dtype = scalar_type_of(loss_dtype(checked.problem));
  const auto validation_dtype = validation_input ? scalar_type_of(loss_dtype(validation.problem)) : dtype;
  call.losses = backend.empty({end - begin}, dtype, device);
  call.validation_losses = backend.empty({validation_input ? epochs_ended : 0}, validation_dtype, device);
  call.done = backend.empty({}, at::kLong, device);
  if (order) call.order = *order;
  if (validation_input) call.validation = &validation.problem;
  call.sgd = {lr, momentum, dampening, weight_decay, nesterov, maximize};
  if (lr_tensor && lr_tensor->numel() == 1) {
    backend_of(lr_tensor->device().type())->set_lr(call.sgd, *lr_tensor);
  } else if (lr_tensor) {
    call.rates = rates_of(*lr_tensor, run);
  }
  if (begin == end) {
    call.done.zero_();
    return {std::move(call.losses), std::move(call.validation_losses), std::move(call.done)};
  }
  const bool has_momentum = momentum != 0;
  Updated w(&linear_weight, has_momentum ? arguments.weight_momentum_buffer : nullptr, weight_first_step,
            weight_frozen);
  Updated b(operands.linear_bias, has_momentum ? arguments.bias_momentum_buffer : nullptr, bias_first_step,
            bias_frozen);
  call.weight = w.parameter;
  call.bias = b.parameter;
  backend.sgd_run(call);
  w.finish();
  b.finish();
  return {std::move(call.losses), std::move(call.validation_losses), std::move(call.done)};
}

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "sgd_run_(Tensor input, Tensor(a!) linear_weight, Tensor target, Tensor(b!)? linear_bias, Tensor? weight, "
      "Tensor(c!)? weight_momentum_buffer, Tensor(d!)? bias_momentum_buffer, Tensor? order, Tensor? validation_input, "
      "Tensor? validation_target, SymInt batch_size, bool drop_last, SymInt epochs, SymInt begin, SymInt end, "
      "str loss, float delta, str reduction, Tensor? lr_tensor, float lr, float momentum, float dampening, "
      "float weight_decay, bool nesterov, bool maximize, bool weight_first_step, bool bias_first_step, "
      "bool weight_frozen, bool bias_frozen, bool stop_nonfinite) -> (Tensor, Tensor, Tensor)");
}

}  // namespace linreg::torch_ops
