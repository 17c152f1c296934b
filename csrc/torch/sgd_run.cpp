// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext::sgd_run_: many steps in one call. A call takes the steps [begin, end) of the run, so that whoever calls
// can do a run in stretches, to be interrupted or to show progress between them.
#include "sgd_run.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend.h"
#include "products.h"
#include "sgd_step.h"
#include "updated.h"

namespace linreg::torch_ops {
namespace {

constexpr std::string_view kOp = "sgd_run_";
constexpr std::string_view kValidation = "sgd_run_: validation";

// Learning rates as doubles, one for each step.
at::Tensor rates_of(const at::Tensor& lr, const Run& run, const Backend& cpu) {
  at::Tensor rates = cpu.empty({run.end - run.begin}, at::kDouble, at::kCPU);
  double* const to = rates.data_ptr<double>();
  for (int64_t i = 0; i < rates.numel(); ++i) {
    const int64_t offset = (run.begin + i) * lr.stride(0);
    to[i] = lr.scalar_type() == at::kDouble ? lr.const_data_ptr<double>()[offset] : lr.const_data_ptr<float>()[offset];
  }
  return rates;
}

// What a run is checked to be, and where its losses go.
struct Steps {
  const Operands& operands;
  std::string_view loss;
  double delta;
  std::string_view reduction;
  const SgdArguments& sgd;
  const Run& run;
  const at::Tensor *order, *validation_input, *validation_target;
  at::Tensor losses, validation_losses;
};

at::Tensor validation_loss(const Steps& s) {
  using LinearLoss = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                const OptionalTensor&, std::string_view, double, std::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("linreg_ext::linear_loss", "").typed<LinearLoss>();
  const OptionalTensor bias = s.operands.linear_bias ? OptionalTensor(*s.operands.linear_bias) : std::nullopt;
  return op.call(*s.validation_input, s.operands.linear_weight, *s.validation_target, bias, std::nullopt, s.loss,
                 s.delta, s.reduction);
}

// Steps of so much work that sgd_step_ takes them by matrix products are taken by it, one by one. Returns how many.
int64_t take_one_by_one(Steps& s) {
  const Run& run = s.run;
  const Operands& all = s.operands;
  SgdArguments sgd = s.sgd;
  sgd.steps = 1;
  int64_t validated = 0;
  for (int64_t step = run.begin; step < run.end; ++step) {
    const int64_t epoch = step / run.epoch_steps, first = step % run.epoch_steps * run.batch_size;
    const int64_t count = std::min(run.batch_size, run.rows - first);
    at::Tensor rows;
    if (s.order) rows = (s.order->dim() == 2 ? s.order->select(0, epoch) : *s.order).narrow(0, first, count);
    const auto batch = [&](const at::Tensor& of) {
      return rows.defined() ? of.index_select(0, rows) : of.narrow(0, first, count);
    };
    const at::Tensor input = batch(all.input), target = batch(all.target);
    const OptionalTensor weight = all.weight ? OptionalTensor(batch(*all.weight)) : std::nullopt;
    if (run.lr) sgd.lr_tensor = nullptr, sgd.lr = run.lr[step - run.begin];
    const at::Tensor value =
        sgd_step({input, all.linear_weight, target, all.linear_bias, given(weight)}, s.loss, s.delta, s.reduction, sgd);
    s.losses.select(0, step - run.begin).copy_(value);
    if (sgd.skip_nonfinite && !std::isfinite(value.item<double>())) return step - run.begin;
    sgd.weight_first_step = sgd.bias_first_step = false;
    if (s.validation_input && (step + 1) % run.epoch_steps == 0)
      s.validation_losses.select(0, validated++).copy_(validation_loss(s));
  }
  return run.end - run.begin;
}

bool go_by_products(const Backend& backend, c10::Device device, Problem batch, const Run& run, void* losses) {
  batch.n = std::min(run.batch_size, run.rows);
  Gradients wanted;
  wanted.weight = losses;
  return Products::suit(kOp.data(), backend, device, batch, wanted);
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
  TORCH_CHECK_NOT_IMPLEMENTED(backend.sgd_run, kOp, ": there is no kernel for ", device.type(),
                              " yet; take the steps with sgd_step_");
  const int64_t epochs_ended = run.epoch_steps == 0 ? 0 : end / run.epoch_steps - begin / run.epoch_steps;
  at::Tensor losses = backend.empty({end - begin}, linear_weight.scalar_type(), device);
  at::Tensor validation_losses =
      backend.empty({validation_input ? epochs_ended : 0}, linear_weight.scalar_type(), device);
  at::Tensor done = backend.empty({}, at::kLong, device);
  int64_t taken = 0;
  if (begin < end) {
    Sgd sgd{lr, momentum, dampening, weight_decay, nesterov, maximize};
    at::Tensor rates;
    if (lr_tensor && lr_tensor->numel() == 1) {
      backend_of(lr_tensor->device().type())->set_lr(sgd, *lr_tensor);
    } else if (lr_tensor) {
      rates = rates_of(*lr_tensor, run, *backend_of(at::kCPU));
      run.lr = rates.const_data_ptr<double>();
    }
    if (go_by_products(backend, device, checked.problem, run, losses.data_ptr())) {
      Steps steps{operands,
                  loss,
                  delta,
                  reduction,
                  arguments,
                  run,
                  given(order),
                  given(validation_input),
                  given(validation_target),
                  losses,
                  validation_losses};
      taken = take_one_by_one(steps);
    } else {
      const bool has_momentum = momentum != 0;
      Updated w(&linear_weight, has_momentum ? arguments.weight_momentum_buffer : nullptr, weight_first_step,
                weight_frozen);
      Updated b(operands.linear_bias, has_momentum ? arguments.bias_momentum_buffer : nullptr, bias_first_step,
                bias_frozen);
      taken = backend.sgd_run(checked.problem, run, sgd, w.parameter, b.parameter, stop_nonfinite, losses.data_ptr(),
                              validation_input ? &validation.problem : nullptr, validation_losses.data_ptr());
      w.finish();
      b.finish();
    }
  }
  if (taken < end - begin) {  // what was not reached has no loss
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    losses.narrow(0, taken + 1, end - begin - taken - 1).fill_(kNan);
    const int64_t validated =
        validation_losses.numel() == 0 ? 0 : (begin + taken) / run.epoch_steps - begin / run.epoch_steps;
    validation_losses.narrow(0, validated, validation_losses.numel() - validated).fill_(kNan);
  }
  *done.data_ptr<int64_t>() = taken;
  return {std::move(losses), std::move(validation_losses), std::move(done)};
}

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "sgd_run_(Tensor input, Tensor(a!) linear_weight, Tensor target, Tensor(b!)? linear_bias, Tensor? weight, "
      "Tensor(c!)? weight_momentum_buffer, Tensor(d!)? bias_momentum_buffer, Tensor? order, Tensor? validation_input, "
      "Tensor? validation_target, int batch_size, bool drop_last, int epochs, int begin, int end, str loss, "
      "float delta, str reduction, Tensor? lr_tensor, float lr, float momentum, float dampening, float weight_decay, "
      "bool nesterov, bool maximize, bool weight_first_step, bool bias_first_step, bool weight_frozen, "
      "bool bias_frozen, bool stop_nonfinite) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(linreg_ext, Autograd, m) { m.impl("sgd_run_", torch::CppFunction::makeFallthrough()); }

}  // namespace linreg::torch_ops
