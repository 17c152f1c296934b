// SPDX-License-Identifier: BSD-3-Clause
// The operators of linreg_ext: their schemas and their implementations, on devices and under autograd and transforms.
// The mutating ones have no autograd formula: parameters that require grad are updated in any grad mode, as by an
// optimizer.
#include "ops.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <initializer_list>
#include <string>

#include "direct.h"
#include "products.h"

namespace linreg::torch_ops {
namespace {

std::string op_name(std::string_view loss) { return "linear_" + std::string(loss) + "_loss"; }

Plan plan_of(const char* op, const Backend& backend, c10::Device device, const Problem& problem) {
  return backend.plan ? backend.plan(op, device, problem) : Plan{};
}

}  // namespace

void compute_loss(const char* op, const Backend& backend, c10::Device device, Problem& problem, Gradients gradients,
                  void* loss) {
  const Plan plan = plan_of(op, backend, device, problem);
  at::Tensor scale;
  if (backend.plan) scale = weighted_scale(problem, gradients, device);
  if (scale.defined()) gradients.weighted_scale = scale.const_data_ptr<double>();
  if (plan.product_rows == 0) return backend.linear_loss(op, device, problem, plan, gradients, loss);
  const bool elements = problem.reduction == Reduction::none;
  const Products products(op, backend, device, problem, plan, gradients, elements ? loss : nullptr);
  if (!elements) backend.finish_linear_loss(op, device, problem, products.sums(), gradients, loss);
}

at::Tensor linear_loss(const Operands& operands, const Objective& objective) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;  // for the copies that check_problem makes
  const std::string op = op_name(objective.loss);
  Checked checked = check_problem(op, operands, objective);
  const bool elements = checked.problem.reduction == Reduction::none;
  const c10::Device device = operands.input.device();
  const Backend& backend = *backend_of(device.type());
  at::Tensor value = backend.empty(elements ? operands.target.sizes() : at::IntArrayRef(),
                                   scalar_type_of(loss_dtype(checked.problem)), device);
  compute_loss(op.c_str(), backend, device, checked.problem, {}, value.data_ptr());
  return value;
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(const Operands& operands, const Objective& objective,
                                                                  std::array<bool, 4> wanted) {
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const std::string op = op_name(objective.loss);
  Checked checked = check_problem(op, operands, objective);
  TORCH_CHECK_VALUE(objective.reduction != "none", op, ": reduction must be 'mean' or 'sum', got 'none'");
  TORCH_CHECK_VALUE(!wanted[2] || operands.linear_bias, op,
                    ": linear_bias must be a tensor when its gradient is wanted, got None");

  const c10::Device device = operands.input.device();
  const Backend& backend = *backend_of(device.type());
  at::Tensor value = backend.empty({}, scalar_type_of(loss_dtype(checked.problem)), device);
  std::vector<at::Tensor> grads;
  const auto add = [&](bool asked, const at::Tensor* of) -> void* {
    if (!asked) return nullptr;
    const auto dtype = of->scalar_type() == at::kHalf ? at::kFloat : of->scalar_type();  // gradient_dtype
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

void take_step(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Sgd& sgd,
               const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss) {
  const Plan plan = plan_of(op, backend, device, problem);
  if (plan.product_rows == 0) return backend.sgd_step(op, device, problem, plan, sgd, weight, bias, skip, loss);
  const Products products(op, backend, device, problem, plan, sgd, weight, skip.nonfinite);
  Parameter rest = weight;
  rest.frozen |= products.weight_updated();
  backend.finish_sgd_step(op, device, problem, products.sums(), sgd, rest, bias, skip, loss);
}

namespace {

// A parameter and its momentum buffer for the kernel; finish() copies back what could not be updated in place, and
// bumps both version counters.
class InPlaceParam {
 public:
  InPlaceParam(const at::Tensor* value, const SgdArguments& sgd, size_t i)
      : value_(sgd.frozen[i] ? nullptr : value),
        buffer_(!value_ || sgd.rule.momentum == 0 ? nullptr : sgd.momentum_buffers[i]) {
    parameter.first_step = sgd.first_step[i];
    parameter.frozen = sgd.frozen[i];
    if (value_) parameter.value = rows_of(*value_, value_copy_);
    if (buffer_) parameter.momentum_buffer = rows_of(*buffer_, buffer_copy_);
  }

  void finish() const {
    finish(value_, value_copy_);
    finish(buffer_, buffer_copy_);
  }

  // The bytes from one of many problems to the next, of the parameter and of its buffer.
  int64_t stride() const { return stride(value_, value_copy_); }
  int64_t buffer_stride() const { return stride(buffer_, buffer_copy_); }

  Parameter parameter;

 private:
  static int64_t stride(const at::Tensor* tensor, const at::Tensor& copy) {
    if (!tensor) return 0;
    return (copy.defined() ? copy : *tensor).stride(0) * int64_t(tensor->element_size());
  }

  static void finish(const at::Tensor* tensor, const at::Tensor& copy) {
    if (!tensor) return;
    if (copy.defined()) tensor->copy_(copy);
    if (!tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();
  }

  const at::Tensor *value_, *buffer_;
  at::Tensor value_copy_, buffer_copy_;
};

}  // namespace

at::Tensor sgd_step(const Operands& operands, const Objective& objective, const SgdArguments& sgd) {
  constexpr std::string_view op = "sgd_step_";
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Checked checked = check_problem(op, operands, objective);
  check_sgd(op, operands, objective, sgd);

  const c10::Device device = operands.input.device();
  const Backend& backend = *backend_of(device.type());
  Sgd rule = sgd.rule;
  if (sgd.lr_tensor) backend_of(sgd.lr_tensor->device().type())->set_lr(rule, *sgd.lr_tensor);
  const InPlaceParam w(&operands.linear_weight, sgd, 0), b(operands.linear_bias, sgd, 1);
  at::Tensor value = backend.empty({}, scalar_type_of(loss_dtype(checked.problem)), device);
  take_step(op.data(), backend, device, checked.problem, rule, w.parameter, b.parameter, {sgd.skip_nonfinite, nullptr},
            value.data_ptr());
  w.finish();
  b.finish();
  return value;
}

namespace {

// The numbers [begin, end) of `lr` as doubles, on its device: the learning rates of steps.
at::Tensor rates_of(const at::Tensor& lr, int64_t begin, int64_t end) {
  if (!lr.is_cpu()) return lr.narrow(0, begin, end - begin).to(at::kDouble).contiguous();
  at::Tensor rates = backend_of(at::kCPU)->empty({end - begin}, at::kDouble, at::kCPU);
  double* const to = rates.mutable_data_ptr<double>();
  for (int64_t i = 0; i < rates.numel(); ++i) {
    const int64_t offset = (begin + i) * lr.stride(0);
    to[i] = lr.scalar_type() == at::kDouble ? lr.const_data_ptr<double>()[offset] : lr.const_data_ptr<float>()[offset];
  }
  return rates;
}

}  // namespace

RunResults sgd_run(const Operands& operands, const Objective& objective, SgdArguments sgd, const RunArguments& order,
                   const Validation& validation) {
  constexpr std::string_view op = "sgd_run_";
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  Checked checked = check_problem(op, operands, objective);
  TORCH_CHECK(operands.input.dim() == 2, op, ": input must have shape [rows, in_features], got ",
              operands.input.sizes());
  const c10::Device device = operands.input.device();
  Run run = check_run(op, order, checked.problem.n, device);
  sgd.steps = run.epoch_steps * order.epochs;
  check_sgd(op, operands, objective, sgd,
            {{"order", order.order},
             {"validation_input", validation.input},
             {"validation_target", validation.target},
             {"validation_weight", validation.weight}});
  const bool validates = validation.input;
  TORCH_CHECK_VALUE(validates == (validation.target != nullptr) && (validates || !validation.weight), op,
                    ": validation_input and validation_target must both be tensors or both be None");
  Checked validated;
  if (validates)
    validated = check_problem(
        "sgd_run_: validation",
        {*validation.input, operands.linear_weight, *validation.target, operands.linear_bias, validation.weight},
        objective);

  const Backend& backend = *backend_of(device.type());
  const int64_t epochs_ended = run.epoch_steps == 0 ? 0 : run.end / run.epoch_steps - run.begin / run.epoch_steps;
  RunCall call{op.data(), device, checked.problem, run, {}, {}, {}, {}, {}, sgd.skip_nonfinite, nullptr, {}, {}, {}};
  const auto dtype = scalar_type_of(loss_dtype(checked.problem));
  call.losses = backend.empty({run.end - run.begin}, dtype, device);
  call.validation_losses = validates
                               ? backend.empty({epochs_ended}, scalar_type_of(loss_dtype(validated.problem)), device)
                               : backend.empty({0}, dtype, device);
  call.done = backend.empty({}, at::kLong, device);
  if (order.order) call.order = *order.order;
  if (validates) call.validation = &validated.problem;
  call.sgd = sgd.rule;
  if (sgd.lr_tensor && sgd.lr_tensor->numel() == 1) {
    backend_of(sgd.lr_tensor->device().type())->set_lr(call.sgd, *sgd.lr_tensor);
  } else if (sgd.lr_tensor) {
    call.rates = rates_of(*sgd.lr_tensor, run.begin, run.end);
  }
  if (run.begin == run.end) {
    call.done.zero_();
  } else {
    const InPlaceParam w(&operands.linear_weight, sgd, 0), b(operands.linear_bias, sgd, 1);
    call.weight = w.parameter;
    call.bias = b.parameter;
    backend.sgd_run(call);
    w.finish();
    b.finish();
  }
  return {std::move(call.losses), std::move(call.validation_losses), std::move(call.done)};
}

namespace {

// A hyper-parameter of many problems: one for all, or a tensor of doubles that the caller keeps.
void set_numbers(const at::Tensor* tensor, int64_t problems, double& number, const double*& numbers, at::Tensor& kept) {
  if (!tensor) return;
  kept = rates_of(tensor->cpu().flatten(), 0, tensor->numel());
  numbers = kept.const_data_ptr<double>();
  if (kept.numel() == problems) return;
  number = *numbers;
  numbers = nullptr;
}

}  // namespace

at::Tensor sgd_run_many(const Operands& operands, const Objective& objective, SgdArguments sgd,
                        const ManyArguments& arguments) {
  constexpr std::string_view op = "sgd_run_many_";
  at::AutoDispatchBelowADInplaceOrView below_autograd;
  const FirstProblem first = first_problem(op, operands, arguments.offsets);
  Checked checked = check_problem(op, first.operands(), objective);
  const c10::Device device = operands.input.device();
  const int64_t problems = operands.linear_weight.size(0);
  ManyCall call{op.data(), device, {}, {}, {}, {}};
  SingleRun& run = call.first;
  run.problem = checked.problem;
  run.run = check_run(op, arguments.run, checked.problem.n, device);
  Many& many = call.many;
  many = check_many(op, arguments, run.run, problems, run.problem.n);
  many.x = first.strides.x;
  many.y = first.strides.y;
  many.v = first.strides.v;
  sgd.steps = problems;
  if (sgd.momentum_tensor) sgd.rule.momentum = 1;  // there are buffers
  check_sgd(op, operands, objective, sgd, {{"offsets", arguments.offsets}, {"order", arguments.run.order}});
  run.sgd = sgd.rule;
  at::Tensor kept[3];
  set_numbers(sgd.lr_tensor, problems, run.sgd.lr, many.lr, kept[0]);
  set_numbers(sgd.momentum_tensor, problems, run.sgd.momentum, many.momentum, kept[1]);
  set_numbers(sgd.weight_decay_tensor, problems, run.sgd.weight_decay, many.weight_decay, kept[2]);
  for (int64_t p = many.begin; p < (many.begin == 0 ? problems : many.end); ++p)
    check_rule(op, rule_of(many, run.sgd, p));

  const Backend& backend = *backend_of(device.type());
  const auto dtype = scalar_type_of(loss_dtype(run.problem));
  call.losses = backend.empty({many.end - many.begin, many.epochs}, dtype, device);
  if (call.losses.numel() == 0) return call.losses;
  if (arguments.run.order) call.order = *arguments.run.order;
  const InPlaceParam w(&operands.linear_weight, sgd, 0), b(operands.linear_bias, sgd, 1);
  run.weight = w.parameter;
  run.bias = b.parameter;
  many.w = w.stride();
  many.b = b.stride();
  many.w_buffer = w.buffer_stride();
  many.b_buffer = b.buffer_stride();
  backend.sgd_run_many(call);
  w.finish();
  b.finish();
  return std::move(call.losses);
}

namespace {

// The arguments of a mutating operator as Operands and SgdArguments.
struct StepArguments {
  StepArguments(const char* op, const at::Tensor& input, const at::Tensor& target, at::TensorList parameters,
                at::TensorList buffers, at::ArrayRef<double> rule, const OptionalTensor& weight,
                const OptionalTensor& lr)
      : operands{input, first(op, parameters), target, parameters.size() == 2 ? &parameters[1] : nullptr,
                 given(weight)} {
    refuse_transforms(op);
    TORCH_CHECK_VALUE(
        1 <= rule.size() && rule.size() <= 6, op,
        ": rule must be [lr, momentum, dampening, weight_decay, nesterov, maximize] or the first of them, "
        "got ",
        rule.size(), " numbers");
    double numbers[6] = {};
    std::copy(rule.begin(), rule.end(), numbers);
    sgd.rule = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] != 0, numbers[5] != 0};
    sgd.lr_tensor = given(lr);
    for (size_t i = 0; i < std::min<size_t>(buffers.size(), 2); ++i) sgd.momentum_buffers[i] = &buffers[i];
  }

  void set(int64_t first_step, int64_t frozen, bool skip_nonfinite) {
    for (size_t i = 0; i < 2; ++i) {
      sgd.first_step[i] = first_step >> i & 1;
      sgd.frozen[i] = frozen >> i & 1;
    }
    sgd.skip_nonfinite = skip_nonfinite;
  }

  static const at::Tensor& first(const char* op, at::TensorList parameters) {
    TORCH_CHECK_VALUE(parameters.size() == 1 || parameters.size() == 2, op,
                      ": parameters must be [linear_weight] or [linear_weight, linear_bias], got ", parameters.size(),
                      " tensors");
    return parameters[0];
  }

  Operands operands;
  SgdArguments sgd;
};

// The operators with the signatures of their schemas.
at::Tensor linear_loss_op(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                          const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss,
                          double delta, std::string_view reduction) {
  return linear_loss({input, linear_weight, target, given(linear_bias), given(weight)}, {loss, delta, reduction});
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads_op(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss, double delta,
    std::string_view reduction, std::array<bool, 4> wanted) {
  return linear_loss_grads({input, linear_weight, target, given(linear_bias), given(weight)}, {loss, delta, reduction},
                           wanted);
}

at::Tensor sgd_step_op(const at::Tensor& input, const at::Tensor& target, at::TensorList parameters,
                       at::TensorList momentum_buffers, at::ArrayRef<double> rule, std::string_view loss, double delta,
                       const OptionalTensor& weight, const OptionalTensor& lr, std::string_view reduction,
                       int64_t first_step, int64_t frozen, bool skip_nonfinite) {
  StepArguments a("sgd_step_", input, target, parameters, momentum_buffers, rule, weight, lr);
  a.set(first_step, frozen, skip_nonfinite);
  return sgd_step(a.operands, {loss, delta, reduction}, a.sgd);
}

RunResults sgd_run_op(const at::Tensor& input, const at::Tensor& target, at::TensorList parameters,
                      at::TensorList momentum_buffers, at::ArrayRef<double> rule, std::string_view loss, double delta,
                      const OptionalTensor& weight, const OptionalTensor& lr, std::string_view reduction,
                      int64_t first_step, int64_t frozen, bool stop_nonfinite, const OptionalTensor& order,
                      const OptionalTensor& validation_input, const OptionalTensor& validation_target,
                      const OptionalTensor& validation_weight, int64_t batch_size, bool drop_last, int64_t epochs,
                      int64_t begin, int64_t end) {
  StepArguments a("sgd_run_", input, target, parameters, momentum_buffers, rule, weight, lr);
  a.set(first_step, frozen, stop_nonfinite);
  return sgd_run(a.operands, {loss, delta, reduction}, a.sgd, {given(order), batch_size, drop_last, epochs, begin, end},
                 {given(validation_input), given(validation_target), given(validation_weight)});
}

at::Tensor sgd_run_many_op(const at::Tensor& input, const at::Tensor& target, at::TensorList parameters,
                           at::TensorList momentum_buffers, at::ArrayRef<double> rule, std::string_view loss,
                           double delta, const OptionalTensor& weight, const OptionalTensor& lr,
                           const OptionalTensor& momentum, const OptionalTensor& weight_decay, int64_t first_step,
                           const OptionalTensor& offsets, const OptionalTensor& order, int64_t batch_size,
                           bool drop_last, int64_t epochs, int64_t begin, int64_t end) {
  StepArguments a("sgd_run_many_", input, target, parameters, momentum_buffers, rule, weight, lr);
  a.set(first_step, 0, false);
  a.sgd.momentum_tensor = given(momentum);
  a.sgd.weight_decay_tensor = given(weight_decay);
  return sgd_run_many(a.operands, {loss, delta, "mean"}, a.sgd,
                      {{given(order), batch_size, drop_last, epochs, 0, 0}, given(offsets), begin, end});
}

const Backend*& slot(c10::DeviceType type) {
  static const Backend* backends[c10::COMPILE_TIME_MAX_DEVICE_TYPES] = {};
  return backends[size_t(type)];
}

}  // namespace

const Backend* backend_of(c10::DeviceType type) { return slot(type); }
void set_backend(c10::DeviceType type, const Backend& backend) { slot(type) = &backend; }

void implement(torch::Library& m) {
  m.impl("linear_loss", &linear_loss_op);
  m.impl("linear_loss_grads", &linear_loss_grads_op);
  m.impl("sgd_step_", &sgd_step_op);
  m.impl("sgd_run_", &sgd_run_op);
  m.impl("sgd_run_many_", &sgd_run_many_op);
  implement_least_squares(m);
}

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "linear_loss(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str loss, "
      "float delta, str reduction) -> Tensor");
  m.def(
      "linear_loss_grads(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str "
      "loss, float delta, str reduction, bool[4] wanted) -> (Tensor, Tensor[])");
  // `parameters` is [linear_weight] or [linear_weight, linear_bias]; `momentum_buffers` has one for each, or none
  // without momentum; `rule` is [lr, momentum, dampening, weight_decay, nesterov, maximize], where trailing numbers
  // default to 0 and the tensor `lr` replaces the first. `first_step` and `frozen` have a bit for each parameter.
  m.def(
      "sgd_step_(Tensor input, Tensor target, Tensor(a!)[] parameters, Tensor(b!)[] momentum_buffers, float[] rule, "
      "str loss=\"mse\", float delta=1.0, Tensor? weight=None, Tensor? lr=None, str reduction=\"mean\", "
      "int first_step=0, int frozen=0, bool skip_nonfinite=False) -> Tensor");
  m.def(
      "sgd_run_(Tensor input, Tensor target, Tensor(a!)[] parameters, Tensor(b!)[] momentum_buffers, float[] rule, "
      "str loss, float delta, Tensor? weight, Tensor? lr, str reduction, int first_step, int frozen, "
      "bool stop_nonfinite, Tensor? order, Tensor? validation_input, Tensor? validation_target, "
      "Tensor? validation_weight, SymInt batch_size, bool drop_last, SymInt epochs, SymInt begin, SymInt end) -> "
      "(Tensor, Tensor, Tensor)");
  // `lr`, `momentum` and `weight_decay` replace numbers of `rule`; `begin` and `end` are problems.
  m.def(
      "sgd_run_many_(Tensor input, Tensor target, Tensor(a!)[] parameters, Tensor(b!)[] momentum_buffers, "
      "float[] rule, str loss, float delta, Tensor? weight, Tensor? lr, Tensor? momentum, Tensor? weight_decay, "
      "int first_step, Tensor? offsets, Tensor? order, SymInt batch_size, bool drop_last, SymInt epochs, SymInt begin, "
      "SymInt end) -> Tensor");
}

PyObject* sgd_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  const auto takes_long = [](const at::Tensor& input, const at::Tensor&, at::TensorList parameters, const auto&...) {
    return parameters.empty() || torch_ops::takes_long(input, parameters[0]);
  };
  return call_directly("linreg_ext::sgd_step_", &sgd_step_op, takes_long, items, count);
  END_HANDLE_TH_ERRORS
}

PyObject* sgd_run_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return call_directly("linreg_ext::sgd_run_", &sgd_run_op, [](const auto&...) { return true; }, items, count);
  END_HANDLE_TH_ERRORS
}

PyObject* sgd_run_many_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  return call_directly(
      "linreg_ext::sgd_run_many_", &sgd_run_many_op, [](const auto&...) { return true; }, items, count);
  END_HANDLE_TH_ERRORS
}

namespace {

// Whether a derivative may be needed: autograd records, or a transform is active, which disregards requires_grad.
bool differentiated(std::initializer_list<const at::Tensor*> tensors) {
  if (transforming()) return true;
  if (!at::GradMode::is_enabled()) return false;
  return std::any_of(tensors.begin(), tensors.end(), [](const at::Tensor* t) { return t && t->requires_grad(); });
}

// Calls an operator below autograd or, if a derivative may be needed, a function of linreg_ext/autograd.py.
template <class Operator, class... A>
auto call(bool by_python, const char* function, const Operator& op, const A&... arguments) {
  if (by_python) {
    const pybind11::gil_scoped_acquire gil;
    const auto called = pybind11::module_::import("linreg_ext.autograd").attr(function);
    return called(arguments...).template cast<decltype(op.call(arguments...))>();
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  return op.call(arguments...);
}

at::Tensor linear_loss_autograd(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                                const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss,
                                double delta, std::string_view reduction) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("linreg_ext::linear_loss", "").typed<decltype(linear_loss_op)>();
  return call(differentiated({&input, &linear_weight, &target, given(linear_bias), given(weight)}), "recorded_loss", op,
              input, linear_weight, target, linear_bias, weight, loss, delta, reduction);
}

std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads_autograd(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, std::string_view loss, double delta,
    std::string_view reduction, std::array<bool, 4> wanted) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("linreg_ext::linear_loss_grads", "")
                             .typed<decltype(linear_loss_grads_op)>();
  return call(differentiated({&input, &linear_weight, &target, given(linear_bias), given(weight)}),
              "recorded_loss_grads", op, input, linear_weight, target, linear_bias, weight, loss, delta, reduction,
              wanted);
}

void implement_autograd(torch::Library& m) {
  m.impl("linear_loss", &linear_loss_autograd);
  m.impl("linear_loss_grads", &linear_loss_grads_autograd);
}

const char* name_of(const c10::OperatorHandle& op) {
  const std::string& name = op.operator_name().name;
  return name.c_str() + name.find("::") + 2;
}

void refuse_step(const c10::OperatorHandle& op, torch::jit::Stack*) { refuse_transforms(name_of(op)); }

// The memory of z.conj().imag holds its numbers times -1. PyTorch's fallback fails an internal assert for operators
// that return anything but what they write.
void refuse_negative(const c10::OperatorHandle& op, torch::jit::Stack*) {
  TORCH_CHECK(false, name_of(op), ": tensors must not have the negative bit; pass their resolve_neg()");
}

template <auto kRefuse>
void refuse_steps(torch::Library& m) {
  m.impl("sgd_step_", torch::CppFunction::makeFromBoxedFunction<kRefuse>());
  m.impl("sgd_run_", torch::CppFunction::makeFromBoxedFunction<kRefuse>());
  m.impl("sgd_run_many_", torch::CppFunction::makeFromBoxedFunction<kRefuse>());
}

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, FuncTorchBatchedDecomposition, m) { implement_autograd(m); }  // vmap
TORCH_LIBRARY_IMPL(linreg_ext, Autograd, m) {
  implement_autograd(m);
  // As for an optimizer, parameters may require grad, and nothing is recorded.
  m.impl("sgd_step_", torch::CppFunction::makeFallthrough());
  m.impl("sgd_run_", torch::CppFunction::makeFallthrough());
  m.impl("sgd_run_many_", torch::CppFunction::makeFallthrough());
}
TORCH_LIBRARY_IMPL(linreg_ext, FuncTorchDynamicLayerFrontMode, m) { refuse_steps<&refuse_step>(m); }  // transforms
TORCH_LIBRARY_IMPL(linreg_ext, Negative, m) { refuse_steps<&refuse_negative>(m); }

}  // namespace linreg::torch_ops
