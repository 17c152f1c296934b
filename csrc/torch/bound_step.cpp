// SPDX-License-Identifier: BSD-3-Clause
// A training step of a recognised model, loss and optimizer, bound once to the match of linreg_ext/training/match.py.
//
// Before every step, all guards are checked here:
//   structure   the modules' parameters and children, the plain attributes that forward reads (a loss's reduction), the
//               optimizer's `step`: if one is replaced, the step returns None, and Python matches and binds again;
//   hooks       of modules, losses, parameters and optimizers, and global ones;
//   parameters  requires_grad, dtype, device, layout and .grad;
//   optimizer   groups, hyper-parameters and state;
//   modes       grad mode, autocast, anomaly detection, function and dispatch modes, saved-tensor hooks, tracing,
//               torch.func and forward-mode AD;
//   the batch   types, shapes, dtypes, layouts, devices, and overlap with what is written.
// A guard that fails makes the step slower, never wrong: it returns the level at which Python should take the step, and
// the reason.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <c10/core/ScalarType.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/object_ptr.h>

#include <array>
#include <cmath>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "direct.h"
#include "ops.h"
#include "plain.h"

namespace linreg::torch_ops {
namespace {

PyObject* interned(const char* name) { return PyUnicode_InternFromString(name); }

// The keys are interned strings, so that looking them up runs no Python code, and borrowed references stay valid.
struct Names {
  PyObject *params = interned("params"), *foreach = interned("foreach"), *differentiable = interned("differentiable"),
           *param_groups = interned("param_groups"), *state = interned("state"), *training = interned("training"),
           *momentum_buffer = interned("momentum_buffer"), *opt_called = interned("_opt_called"),
           *step = interned("step"), *grad_scale = interned("grad_scale"), *found_inf = interned("found_inf");
  std::array<PyObject*, 6> rule = {interned("lr"),           interned("momentum"), interned("dampening"),
                                   interned("weight_decay"), interned("nesterov"), interned("maximize")};
};

const Names& names() {
  static const Names all;
  return all;
}

// The value of an interned key, borrowed; nullptr if there is none.
PyObject* entry(PyObject* dict, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(dict, name);
  if (!value && PyErr_Occurred()) throw python_error();
  return value;
}

std::string word(at::ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }
std::string text(PyObject* object) { return std::string(pybind11::str(pybind11::handle(object))); }

// Whether a parameter has hooks, or the node that accumulates its gradient has, beyond the `expected` ones: those of
// DistributedDataParallel.
bool has_hooks(THPVariable* variable, size_t expected) {
  namespace impl = torch::autograd::impl;
  const at::Tensor& tensor = THPVariable_Unpack(variable);
  const auto none = [](PyObject* hooks) {
    return !hooks || hooks == Py_None || (PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0);
  };
  if (!none(variable->backward_hooks) || !none(variable->post_accumulate_grad_hooks)) return true;
  if (!impl::get_autograd_meta(tensor)) return false;
  const size_t python_hook = variable->backward_hooks && variable->backward_hooks != Py_None;  // one calls them all
  if (impl::hooks(tensor).size() > python_hook) return true;
  const auto node = impl::try_get_grad_accumulator(tensor);
  return node && !(node->pre_hooks().empty() && node->post_hooks().size() <= expected);
}

// A dictionary, and a copy of it from when the step was bound.
struct DictGuard {
  PyObject *dict, *bound;

  bool holds() const {
    if (PyDict_GET_SIZE(dict) != PyDict_GET_SIZE(bound)) return false;
    PyObject *name, *value, *bound_name, *bound_value;
    Py_ssize_t position = 0, bound_position = 0;
    while (PyDict_Next(dict, &position, &name, &value) &&
           PyDict_Next(bound, &bound_position, &bound_name, &bound_value))
      if (name != bound_name || value != bound_value) return false;
    return true;
  }
};

// A name in a dictionary, and its value when the step was bound; nullptr: none.
struct EntryGuard {
  PyObject *dict, *name, *bound;
};

struct Hooks {
  PyObject* dict;
  const char* reason;
};

enum class Layout : long { rows, vector, columns, scalar };  // in the order of match.py's LAYOUTS

// The objects that a step is bound to. Python objects are borrowed from a tuple that the step holds.
struct Binding {
  PyObject *model, *optimizer, *optimizer_dict, *harmless_mode;
  PyObject* parameters[2];         // weight, bias or nullptr
  std::vector<PyObject*> modules;  // their __dict__s
  std::vector<DictGuard> dict_guards;
  std::vector<EntryGuard> entry_guards;
  std::vector<Hooks> module_hooks, optimizer_hooks;
  Layout layout;
  bool flat, flattens;
  size_t expected_hooks;  // of each parameter
  std::string op, loss, reduction, not_sgd;
  double delta;

  const at::Tensor* tensor(size_t i) const { return parameters[i] ? &THPVariable_Unpack(parameters[i]) : nullptr; }
  Objective objective() const { return {loss, delta, reduction}; }

  bool is_outdated() const {
    for (const DictGuard& guard : dict_guards)
      if (!guard.holds()) return true;
    for (const EntryGuard& guard : entry_guards)
      if (entry(guard.dict, guard.name) != guard.bound) return true;
    return false;
  }
};

// Why forward and backward must run as the user wrote them; empty if they need not.
std::string why_eager(const Binding& b, const at::Tensor* x, const at::Tensor* y, const at::Tensor* v) {
  for (const Hooks& hooks : b.module_hooks)
    if (PyDict_GET_SIZE(hooks.dict) > 0) return hooks.reason;
  const at::Tensor& w = *b.tensor(0);
  for (size_t i = 0; i < 2 && b.tensor(i); ++i) {
    const at::Tensor& parameter = *b.tensor(i);
    const auto dtype = parameter.scalar_type();
    const bool known = dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
    if (!backend_of(parameter.device().type()))
      return "this build has no kernels for " + c10::DeviceTypeName(parameter.device().type(), true);
    if (!known || parameter.layout() != at::kStrided) return "a parameter is not a dense floating-point tensor";
    if (!parameter.is_leaf()) return "a parameter is the result of an operation";
    if (parameter.is_neg()) return "a parameter has the negative bit";
  }
  if (!at::GradMode::is_enabled() && x) return "grad mode is off";
  if (!x) return "";

  const auto data = x->scalar_type();
  const auto fits = [&](at::ScalarType dtype) {
    return dtype == data || (c10::elementSize(data) == 2 && dtype == at::kFloat);
  };
  for (const at::Tensor* const tensor : {x, y, v}) {
    if (!tensor) continue;
    if (tensor->requires_grad()) return "a batch requires grad";
    if (tensor->layout() != at::kStrided) return "a batch is not dense";
    if (tensor->is_inference()) return "a batch was made in inference mode";
  }
  if (!fits(y->scalar_type()) || !fits(w.scalar_type()))
    return "a batch of " + word(data) + " and " + word(y->scalar_type()) + " does not match parameters of " +
           word(w.scalar_type());
  if (v && v->scalar_type() != y->scalar_type())
    return "a target of " + word(y->scalar_type()) + " meets weights of " + word(v->scalar_type());
  if ((b.flat || b.layout == Layout::scalar) && x->dim() != 2)
    return "the input is " + std::to_string(x->dim()) +
           "-dimensional, but the model is recognised for 2 dimensions only";
  if (b.layout == Layout::scalar && x->size(1) != 1) return "the model multiplies several features by a scalar";

  if (at::autocast::is_autocast_enabled(x->device().type())) return "autocast is on";
  if (torch::autograd::AnomalyMode::is_enabled()) return "anomaly detection is on";
  using Modes = at::impl::PythonTorchFunctionTLS;
  for (int64_t i = Modes::stack_len(); i-- > 0;)
    if (reinterpret_cast<PyObject*>(Py_TYPE(Modes::get_stack_at(i)->ptr(getPyInterpreter()))) != b.harmless_mode)
      return "a TorchFunctionMode is active";
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return "a TorchDispatchMode is active";
  if (!at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return "hooks on saved tensors are active";
  if (transforming()) return "a torch.func transform or forward-mode AD is active";
  if (!plain({x, y, v, b.tensor(0), b.tensor(1)}))
    return "tracing is active, or a tensor is of a subclass or on an unsupported device";
  return "";
}

// The optimizer's rule and momentum buffers before a step.
struct OptimizerState {
  PyObject* groups[2] = {};  // of weight and bias; nullptr: not in the optimizer
  SgdArguments sgd{};
  THPObjectPtr lr, buffers[2];  // owned, since other threads may run
  bool is_trained[2] = {};
};

std::string find_groups(const Binding& b, OptimizerState& found) {
  PyObject* const groups = entry(b.optimizer_dict, names().param_groups);
  if (!groups || !PyList_Check(groups)) return "the optimizer's param_groups is not a list";
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    PyObject* const group = PyList_GET_ITEM(groups, i);
    PyObject* const params = PyDict_Check(group) ? entry(group, names().params) : nullptr;
    if (!params || !PyList_Check(params)) return "a group of the optimizer has no list of parameters";
    for (Py_ssize_t j = 0; j < PyList_GET_SIZE(params); ++j) {
      PyObject* const parameter = PyList_GET_ITEM(params, j);
      const bool is_bias = parameter == b.parameters[1];
      if (parameter == b.parameters[0] || is_bias) {
        if (found.groups[is_bias]) return "the optimizer lists a parameter twice";
        found.groups[is_bias] = group;
      } else if (!THPVariable_Check(parameter) ||
                 THPVariable_Unpack(parameter).unsafeGetTensorImpl()->grad().defined()) {
        return "another parameter of the optimizer already has a gradient";
      }
    }
  }
  return "";
}

// A hyper-parameter of the rule; nullopt if it is not a plain number.
std::optional<double> number(PyObject* value) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  if (THPVariable_Check(value)) return std::nullopt;
  const double converted = PyFloat_AsDouble(value);
  if (converted == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    return std::nullopt;
  }
  return converted;
}

std::string read_rule(const Binding& b, PyObject* group, OptimizerState& found) {
  const Names& n = names();
  double numbers[6] = {};
  for (size_t i = 0; i < 6; ++i) {
    PyObject* const value = entry(group, n.rule[i]);
    if (!value) return "a group of the optimizer has no '" + text(n.rule[i]) + "'";  // the optimizer's step raises
    if (i == 0 && THPVariable_Check(value)) {
      found.lr = THPObjectPtr(Py_NewRef(value));
      found.sgd.lr_tensor = &THPVariable_Unpack(value);
      const auto dtype = found.sgd.lr_tensor->scalar_type();
      if (dtype != at::kFloat && dtype != at::kDouble) return "the learning rate is a tensor of " + word(dtype);
      if (!found.sgd.lr_tensor->is_cpu() && found.sgd.lr_tensor->device() != b.tensor(0)->device())
        return "the learning rate is on another device";
      continue;
    }
    const auto read = number(value);
    if (!read) return "the optimizer is differentiable or has a setting that is not a plain number";
    numbers[i] = *read;
  }
  for (PyObject* const name : {n.foreach, n.differentiable})
    if (!entry(group, name)) return "a group of the optimizer has no '" + text(name) + "'";
  if (PyObject_IsTrue(entry(group, n.differentiable)) != 0)
    return "the optimizer is differentiable or has a setting that is not a plain number";
  Sgd& rule = found.sgd.rule;
  rule = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4] != 0, numbers[5] != 0};
  const bool in_range = rule.lr >= 0 && rule.momentum >= 0 && rule.weight_decay >= 0 && !std::isnan(rule.dampening);
  if (!in_range || (rule.nesterov && !(rule.momentum > 0 && rule.dampening == 0)))
    return "the optimizer has settings that torch.optim.SGD's constructor rejects";
  return "";
}

// Compares tensors by identity: comparing values may run other threads, which may free the objects borrowed here.
bool same_rule(PyObject* group, PyObject* other) {
  for (PyObject* const name : names().rule) {
    PyObject *const one = entry(group, name), *const two = entry(other, name);
    if (one == two) continue;
    const auto a = one ? number(one) : std::nullopt, b = two ? number(two) : std::nullopt;
    if (!a || !b || *a != *b) return false;
  }
  return true;
}

// Compares the state's keys by identity, since hashing them would run Python code.
std::string find_buffers(const Binding& b, OptimizerState& found) {
  PyObject* const state = entry(b.optimizer_dict, names().state);
  if (!state || !PyDict_Check(state)) return "the optimizer's state is not a dictionary";
  bool has_entry[2] = {};
  PyObject *parameter, *values;
  Py_ssize_t position = 0;
  while (PyDict_Next(state, &position, &parameter, &values)) {
    if (parameter != b.parameters[0] && parameter != b.parameters[1]) continue;
    const size_t i = parameter != b.parameters[0];
    if (!found.is_trained[i] || !PyDict_Check(values)) continue;
    has_entry[i] = true;
    PyObject* const buffer = entry(values, names().momentum_buffer);
    if (!buffer || buffer == Py_None) continue;
    const at::Tensor* const tensor = THPVariable_CheckExact(buffer) ? &THPVariable_Unpack(buffer) : nullptr;
    if (!tensor || tensor->scalar_type() != b.tensor(i)->scalar_type() || tensor->device() != b.tensor(i)->device())
      return "a momentum buffer differs from its parameter in dtype or device";
    found.buffers[i] = THPObjectPtr(Py_NewRef(buffer));
  }
  static PyObject* const defaultdict =
      pybind11::object(pybind11::module_::import("collections").attr("defaultdict")).release().ptr();
  for (size_t i = 0; i < 2 && found.sgd.rule.momentum != 0; ++i)
    if (found.is_trained[i] && !has_entry[i] &&
        !PyObject_TypeCheck(state, reinterpret_cast<PyTypeObject*>(defaultdict)))
      return "the optimizer's state has no entry for a parameter and is not a defaultdict";
  return "";
}

// Why the optimizer must step itself; empty if it need not.
std::string why_gradients(const Binding& b, OptimizerState& found) {
  if (!b.not_sgd.empty()) return b.not_sgd;
  for (const Hooks& hooks : b.optimizer_hooks)
    if (PyDict_GET_SIZE(hooks.dict) > 0) return hooks.reason;
  for (PyObject* const name : {names().grad_scale, names().found_inf}) {
    PyObject* const value = entry(b.optimizer_dict, name);
    if (value && value != Py_None) return "the optimizer has been given a gradient scale";
  }
  std::string reason = find_groups(b, found);
  if (!reason.empty()) return reason;
  PyObject* group = nullptr;
  for (size_t i = 0; i < 2 && b.parameters[i]; ++i) {
    found.is_trained[i] = b.tensor(i)->requires_grad();
    if (!found.is_trained[i]) continue;
    if (!found.groups[i]) return "a parameter of the model is not in the optimizer";
    if (group && group != found.groups[i] && !same_rule(group, found.groups[i]))
      return "weight and bias have different settings in the optimizer";
    group = found.groups[i];
  }
  if (!group) return "no parameter requires grad";
  reason = read_rule(b, group, found);
  if (reason.empty()) reason = find_buffers(b, found);
  if (!reason.empty()) return reason;
  for (size_t i = 0; i < 2 && b.parameters[i]; ++i) {
    if (found.is_trained[i] && has_hooks(reinterpret_cast<THPVariable*>(b.parameters[i]), b.expected_hooks))
      return "a parameter has hooks";
    // SGD would apply it even to a frozen parameter.
    if (found.groups[i] && b.tensor(i)->unsafeGetTensorImpl()->grad().defined())
      return "a parameter already has a gradient";
  }
  if (found.sgd.lr_tensor && !plain({found.sgd.lr_tensor}))
    return "the learning rate is a tensor of a subclass or on an unsupported device";
  return "";
}

// Views for the kernels: W as [K, D] or [D], b as [K], and the target in the shape of the kernels' predictions.
const at::Tensor& as_rows(Layout layout, const at::Tensor& tensor, at::Tensor& view) {
  if (layout == Layout::rows || layout == Layout::vector) return tensor;
  return view = layout == Layout::columns ? tensor.t() : tensor.reshape({1, 1});
}

const at::Tensor& as_bias(const at::Tensor& tensor, at::Tensor& view) {
  return tensor.dim() == 1 ? tensor : view = tensor.reshape({1});
}

// Checks the batch in the user's terms: the operators' own checks speak of linear_weight.
const at::Tensor& as_target(const Binding& b, const at::Tensor& x, const at::Tensor& y, const at::Tensor& w,
                            at::Tensor& view) {
  const int64_t features = w.size(-1);
  TORCH_CHECK(x.dim() >= 1 && x.size(-1) == features, b.op, ": input must have ", features,
              features == 1 ? " feature" : " features", ", as the model has, got shape ", x.sizes());
  const auto rows = x.sizes().slice(0, size_t(x.dim() - 1)), outputs = w.sizes().slice(0, size_t(w.dim() - 1));
  if (b.flattens) {
    std::vector<int64_t> shape(rows.begin(), rows.end());
    shape.insert(shape.end(), outputs.begin(), outputs.end());
    return view = y.reshape(shape);
  }
  check_target(b.op, rows, b.flat ? at::IntArrayRef() : outputs, y);
  return b.flat && b.layout != Layout::vector ? view = y.unsqueeze(-1) : y;
}

// Weights of the shape of y, or one for each row, in a shape that fits the target.
const at::Tensor* as_weight(const Binding& b, const at::Tensor& x, const at::Tensor& y, const at::Tensor* v,
                            const at::Tensor& target, at::Tensor& view) {
  if (!v) return v;
  const auto rows = x.sizes().slice(0, size_t(x.dim() - 1));
  if (v->sizes() == y.sizes()) return y.dim() == target.dim() ? v : &(view = v->reshape(target.sizes()));
  if (v->sizes() == rows) return v;
  const bool is_column = v->dim() == x.dim() && v->sizes().slice(0, rows.size()) == rows && v->size(-1) == 1;
  TORCH_CHECK(is_column, b.op, ": weight must have shape ", y.sizes(), ", or one value a row, got ", v->sizes());
  return target.dim() == x.dim() ? v : &(view = v->reshape(rows));
}

// The operands of the operators. The caller's grad mode decides whether autograd records the views.
struct Views {
  Views(const Binding& b, const at::Tensor& x, const at::Tensor& y, const at::Tensor* v)
      : w(as_rows(b.layout, *b.tensor(0), copies[0])),
        bias(b.tensor(1) ? &as_bias(*b.tensor(1), copies[1]) : nullptr),
        target(as_target(b, x, y, w, copies[2])),
        operands{x, w, target, bias, as_weight(b, x, y, v, target, copies[3])} {}

  at::Tensor copies[4];
  const at::Tensor& w;
  const at::Tensor* bias;
  const at::Tensor& target;
  Operands operands;
};

// The momentum buffers for a call: the optimizer's, or new ones that it gets afterwards.
struct Buffers {
  Buffers(const Binding& b, OptimizerState& found) : b_(b), found_(found) {
    for (size_t i = 0; i < 2; ++i) {
      found.sgd.frozen[i] = !found.is_trained[i];
      if (found.sgd.rule.momentum == 0 || !found.is_trained[i]) continue;
      if (!found.buffers[i]) fresh_[i] = at::empty_like(*b.tensor(i));
      const at::Tensor& buffer = of(i);
      found.sgd.first_step[i] = fresh_[i].defined();
      found.sgd.momentum_buffers[i] = i == 0 ? &as_rows(b.layout, buffer, views_[i]) : &as_bias(buffer, views_[i]);
    }
  }

  const at::Tensor& of(size_t i) const {
    return found_.buffers[i] ? THPVariable_Unpack(found_.buffers[i].get()) : fresh_[i];
  }

  // Gives new buffers to the optimizer, unless `loss`, of the first step, shows that it was skipped.
  void keep(const at::Tensor& loss, bool skip_nonfinite) {
    if (!fresh_[0].defined() && !fresh_[1].defined()) return;
    if (skip_nonfinite && !std::isfinite(loss.item<double>())) return;
    THPObjectPtr state(Py_NewRef(entry(b_.optimizer_dict, names().state)));  // owned: other threads may replace it
    for (size_t i = 0; i < 2; ++i) {
      if (!fresh_[i].defined()) continue;
      THPObjectPtr of_parameter(PyObject_GetItem(state.get(), b_.parameters[i])), buffer(THPVariable_Wrap(fresh_[i]));
      if (!of_parameter || PyDict_SetItem(of_parameter.get(), names().momentum_buffer, buffer.get()) != 0)
        throw python_error();
    }
  }

 private:
  const Binding& b_;
  OptimizerState& found_;
  at::Tensor fresh_[2], views_[2];
};

// Puts the model in training mode unless every module is.
void set_training(const Binding& b) {
  for (PyObject* const module : b.modules) {
    if (entry(module, names().training) == Py_True) continue;
    pybind11::handle(b.model).attr("train")();
    return;
  }
}

// Sets the flag by which a scheduler knows that the optimizer has stepped.
void mark_step(const Binding& b) {
  if (entry(b.optimizer_dict, names().step)) pybind11::setattr(b.optimizer, names().opt_called, Py_True);
}

struct BoundStep {
  PyObject_HEAD PyObject* held;
  Binding* binding;
};

// An object of a batch as a tensor; nullptr if it is of another type or a subclass.
const at::Tensor* plain_tensor(PyObject* object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object)) == THPVariableClass ? &THPVariable_Unpack(object) : nullptr;
}

// Checks all guards: the level of a step on a batch or, if it `may_be_none`, on any batch; nullptr if the step is
// outdated.
struct Decision {
  Decision(const Binding& b, PyObject* input, PyObject* target, PyObject* weight, bool may_be_none = false) {
    if (b.is_outdated()) return;
    level = "eager";
    if (!may_be_none || input != Py_None) {
      x = plain_tensor(input);
      y = plain_tensor(target);
      v = plain_tensor(weight);
      if (!x || !y || (!v && weight != Py_None)) {
        PyObject* const wrong = !x ? input : !y ? target : weight;
        reason = std::string("a batch contains ") + Py_TYPE(wrong)->tp_name + ", not tensors alone";
        return;
      }
    }
    reason = why_eager(b, x, y, v);
    if (!reason.empty()) return;
    level = "gradients";
    reason = why_gradients(b, found);
    if (!reason.empty()) return;
    level = "fused";
  }

  // Given a batch: whether no parameter overlaps anything else.
  bool may_write(const Operands& operands) {
    const auto overlap = find_overlap(operands, found.sgd);
    if (!overlap) return true;
    level = "gradients";
    reason = std::string(overlap->first) + " overlaps " + overlap->second + " in memory";
    return false;
  }

  bool is_fused() const { return level && *level == 'f'; }

  PyObject* result(const Binding& b) const {
    if (!level) Py_RETURN_NONE;
    const std::string fused = "an affine model under " + b.loss + " with SGD, pass and update in one kernel";
    return Py_BuildValue("ss", level, is_fused() ? fused.c_str() : reason.c_str());
  }

  const at::Tensor *x = nullptr, *y = nullptr, *v = nullptr;
  const char* level = nullptr;
  std::string reason;
  OptimizerState found;
};

const Binding& binding_of(PyObject* self) { return *reinterpret_cast<BoundStep*>(self)->binding; }

void expect(Py_ssize_t count, Py_ssize_t expected) {
  TORCH_CHECK_TYPE(count == expected, "BoundStep: expected ", expected, " positional arguments, got ", count);
}

PyObject* bound_step(PyObject* self, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect(count, 4);
  const Binding& b = binding_of(self);
  Decision decision(b, items[0], items[1], items[2]);
  if (!decision.is_fused()) return decision.result(b);
  const bool skip_nonfinite = items[3] == Py_True;
  at::Tensor value;
  {
    const at::NoGradGuard no_grad;
    const Views views(b, *decision.x, *decision.y, decision.v);
    Buffers buffers(b, decision.found);
    if (!decision.may_write(views.operands)) return decision.result(b);
    decision.found.sgd.skip_nonfinite = skip_nonfinite;
    set_training(b);
    {
      std::optional<pybind11::gil_scoped_release> released;
      if (takes_long(*decision.x, views.w)) released.emplace();
      value = recorded("linreg_ext::sgd_step_",
                       [&] { return sgd_step(views.operands, b.objective(), decision.found.sgd); });
    }
    buffers.keep(value, skip_nonfinite);
    mark_step(b);
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

PyObject* bound_level(PyObject* self, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect(count, 3);
  const Binding& b = binding_of(self);
  Decision decision(b, items[0], items[1], items[2], true);
  if (decision.is_fused() && decision.x) {
    const at::NoGradGuard no_grad;
    const Views views(b, *decision.x, *decision.y, decision.v);
    const Buffers buffers(b, decision.found);
    decision.may_write(views.operands);
  }
  return decision.result(b);
  END_HANDLE_TH_ERRORS
}

PyObject* bound_loss(PyObject* self, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect(count, 3);
  const Binding& b = binding_of(self);
  const Views views(b, THPVariable_Unpack(items[0]), THPVariable_Unpack(items[1]), plain_tensor(items[2]));
  set_training(b);
  std::optional<pybind11::gil_scoped_release> released;
  if (takes_long(views.operands.input, views.w)) released.emplace();
  at::Tensor value =
      recorded("linreg_ext::linear_loss_grads", [&] { return differentiable_loss(views.operands, b.objective()); });
  released.reset();
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

// Steps with hooks on a parameter are eager here: only a backward pass runs them.
PyObject* bound_sums(PyObject* self, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect(count, 5);
  const Binding& b = binding_of(self);
  Decision decision(b, items[0], items[1], items[2]);
  for (size_t i = 0; i < 2 && b.tensor(i) && decision.level && *decision.level == 'g'; ++i)
    if (has_hooks(reinterpret_cast<THPVariable*>(b.parameters[i]), b.expected_hooks)) decision.level = "eager";
  if (!decision.level || *decision.level == 'e') return decision.result(b);
  const bool adds_up = items[4] == Py_True;
  const at::NoGradGuard no_grad;
  const at::Tensor& sums = THPVariable_Unpack(items[3]);
  Views views(b, *decision.x, *decision.y, decision.v);
  const bool half = c10::elementSize(views.w.scalar_type()) == 2;  // a sum may leave the range of 16 bits
  const at::Tensor w = half ? views.w.to(at::kFloat) : views.w;
  const at::Tensor bias = half && views.bias ? views.bias->to(at::kFloat) : views.bias ? *views.bias : at::Tensor();
  const Operands operands{views.operands.input, w, views.operands.target, views.bias ? &bias : nullptr,
                          views.operands.weight};
  set_training(b);
  std::tuple<at::Tensor, std::vector<at::Tensor>> pass;
  {
    std::optional<pybind11::gil_scoped_release> released;
    if (takes_long(operands.input, w)) released.emplace();
    pass = recorded("linreg_ext::linear_loss_grads", [&] {
      return linear_loss_grads(operands, {b.loss, b.delta, adds_up ? "sum" : b.reduction},
                               {false, true, views.bias != nullptr, false});
    });
  }
  auto& [loss, grads] = pass;
  int64_t begin = 0;
  for (size_t i = 0; i < grads.size(); ++i) {
    const at::Tensor grad = i == 0 && b.layout == Layout::columns ? grads[i].t() : grads[i];
    sums.narrow(0, begin, grad.numel()).view(grad.sizes()).copy_(grad);
    begin += grad.numel();
  }
  sums.select(0, begin).copy_(loss);
  const int64_t targets = w.dim() == 2 ? w.size(0) : 1;
  if (adds_up && targets > 1 && b.reduction == "mean") sums.narrow(0, 0, begin + 1).div_(targets);
  return decision.result(b);
  END_HANDLE_TH_ERRORS
}

// torch.optim.SGD's rule, by the operations of its loop over single tensors.
PyObject* bound_update(PyObject* self, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect(count, 1);
  const Binding& b = binding_of(self);
  Decision decision(b, Py_None, Py_None, Py_None, true);
  if (!decision.is_fused()) return decision.result(b);
  const at::NoGradGuard no_grad;
  const at::Tensor& mean = THPVariable_Unpack(items[0]);
  const Sgd& rule = decision.found.sgd.rule;
  Buffers buffers(b, decision.found);
  int64_t begin = 0;
  for (size_t i = 0; i < 2 && b.tensor(i); ++i) {
    const at::Tensor& parameter = *b.tensor(i);
    const at::Tensor part = mean.narrow(0, begin, parameter.numel());
    begin += parameter.numel();
    if (!decision.found.is_trained[i]) continue;
    at::Tensor g = part.view(parameter.sizes()).to(parameter.scalar_type());
    if (rule.maximize) g = -g;
    if (rule.weight_decay != 0) g = g.add(parameter, rule.weight_decay);
    if (rule.momentum != 0) {
      const at::Tensor& buffer = buffers.of(i);
      if (decision.found.sgd.first_step[i])
        buffer.copy_(g);
      else
        buffer.mul_(rule.momentum).add_(g, 1 - rule.dampening);
      g = rule.nesterov ? g.add(buffer, rule.momentum) : buffer;
    }
    if (const at::Tensor* const lr = decision.found.sgd.lr_tensor)
      parameter.sub_(g * *lr);
    else
      parameter.add_(g, -rule.lr);
  }
  buffers.keep({}, false);
  mark_step(b);
  return decision.result(b);
  END_HANDLE_TH_ERRORS
}

PyObject* bound_run(PyObject* self, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  expect(count, 14);
  const Binding& b = binding_of(self);
  Decision decision(b, items[0], items[1], items[2]);
  TORCH_CHECK(decision.is_fused(), b.op,
              ": steps are no longer fused: ", decision.level ? decision.reason : "the model has changed");
  const auto tensor = [&](Py_ssize_t i) { return items[i] == Py_None ? nullptr : &THPVariable_Unpack(items[i]); };
  const auto integer = [&](Py_ssize_t i) { return pybind11::handle(items[i]).cast<int64_t>(); };
  const RunArguments order{tensor(3), integer(8), items[9] == Py_True, integer(10), integer(11), integer(12)};
  const bool stop_nonfinite = items[13] == Py_True;
  RunResults results;
  {
    const at::NoGradGuard no_grad;
    const Views views(b, *decision.x, *decision.y, decision.v);
    std::optional<Views> validation;
    if (const at::Tensor* const input = tensor(4)) validation.emplace(b, *input, *tensor(5), tensor(6));
    Buffers buffers(b, decision.found);
    decision.found.sgd.skip_nonfinite = stop_nonfinite;
    if (const at::Tensor* const rates = tensor(7)) decision.found.sgd.lr_tensor = rates;
    set_training(b);
    {
      const pybind11::gil_scoped_release released;
      results = recorded("linreg_ext::sgd_run_", [&] {
        const Operands* const v = validation ? &validation->operands : nullptr;
        return sgd_run(views.operands, b.objective(), decision.found.sgd, order,
                       v ? Validation{&v->input, &v->target, v->weight} : Validation{});
      });
    }
    // If the run took no step, its first loss shows it.
    const at::Tensor& losses = std::get<0>(results);
    if (losses.numel() > 0) buffers.keep(losses[0], stop_nonfinite);
    mark_step(b);
  }
  return to_python(std::move(results));
  END_HANDLE_TH_ERRORS
}

int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  Py_VISIT(reinterpret_cast<BoundStep*>(self)->held);
  return 0;
}

void deallocate(PyObject* self) {
  PyObject_GC_UnTrack(self);
  delete reinterpret_cast<BoundStep*>(self)->binding;
  Py_XDECREF(reinterpret_cast<BoundStep*>(self)->held);
  PyTypeObject* const type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* bound_step_type() {
  static PyMethodDef methods[] = {
      method("step", &bound_step, "step(x, y, weight, skip_nonfinite): the loss of a fused step, else as level."),
      method("level", &bound_level, "level(x, y, weight): (level, reason) of a step; None: bind again."),
      method("loss", &bound_loss, "loss(x, y, weight): the model's loss in one pass, recorded by autograd."),
      method(
          "sums", &bound_sums,
          "sums(x, y, weight, sums, adds_up): level, after writing the gradients and the loss of a pass to the float64 "
          "tensor `sums`: if it `adds_up`, the sums over rows of a mean over targets; nothing if eager."),
      method("update", &bound_update,
             "update(gradients): level, after the update if fused; with the gradients in one row."),
      method("run", &bound_run,
             "run(x, y, weight, order, validation_input, validation_target, validation_weight, rates, batch_size, "
             "drop_last, epochs, begin, end, stop_nonfinite): sgd_run_ of fused steps."),
      {nullptr, nullptr, 0, nullptr}};
  static PyType_Slot slots[] = {{Py_tp_methods, methods},
                                {Py_tp_traverse, reinterpret_cast<void*>(&traverse)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(&deallocate)},
                                {0, nullptr}};
  static PyType_Spec spec = {"linreg_ext._C.BoundStep", sizeof(BoundStep), 0,
                             Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  static PyObject* const type = PyType_FromSpec(&spec);
  return type;
}

}  // namespace

// bind_step(op, *match), with the fields of match.py's Match; messages begin with `op`.
PyObject* bind_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  namespace py = pybind11;
  expect(count, 14);
  const auto item = [&](Py_ssize_t i) { return py::reinterpret_borrow<py::object>(items[i + 1]); };
  py::list held;
  const auto hold = [&](const py::object& object) {
    held.append(object);
    return object.ptr();
  };
  const auto dict_of = [&](const py::handle& object) { return hold(object.attr("__dict__")); };
  auto b = std::make_unique<Binding>();
  b->op = py::str(py::handle(items[0]));
  b->model = hold(item(0));
  b->optimizer = hold(item(2));
  b->optimizer_dict = dict_of(item(2));
  b->harmless_mode = hold(py::module_::import("torch.utils._device").attr("DeviceContext"));
  b->parameters[0] = hold(item(4));
  b->parameters[1] = item(5).is_none() ? nullptr : hold(item(5));
  b->layout = Layout(item(6).cast<long>());
  b->flat = item(7).cast<bool>();
  b->flattens = item(8).cast<bool>();
  const py::tuple objective = item(9);
  b->loss = objective[0].cast<std::string>();
  b->delta = objective[1].cast<double>();
  b->reduction = objective[2].cast<std::string>();
  b->not_sgd = item(10).cast<std::string>();
  b->expected_hooks = item(12).cast<size_t>();

  constexpr const char* kHooks[] = {"forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks"};
  const auto watch_hooks = [&](std::vector<Hooks>& list, const py::object& owner, const std::string& name,
                               const char* reason) { list.push_back({hold(owner.attr(name.c_str())), reason}); };
  const auto watch_entry = [&](PyObject* dict, const py::object& name) {
    PyObject* const value = entry(dict, name.ptr());
    b->entry_guards.push_back({dict, hold(name), value ? hold(py::reinterpret_borrow<py::object>(value)) : nullptr});
  };
  for (const py::handle& handle : py::tuple(item(3))) {
    const auto module = py::reinterpret_borrow<py::object>(handle);
    b->modules.push_back(dict_of(module));
    for (const char* name : kHooks)
      watch_hooks(b->module_hooks, module, std::string("_") + name, "the model has hooks");
    for (const char* name : {"_parameters", "_modules"}) {
      const py::dict dict = module.attr(name);
      b->dict_guards.push_back({hold(dict), hold(dict.attr("copy")())});
      watch_entry(b->modules.back(), py::reinterpret_steal<py::object>(interned(name)));
    }
  }
  const py::object globals = py::module_::import("torch.nn.modules.module");
  for (const char* name : kHooks)
    watch_hooks(b->module_hooks, globals, std::string("_global_") + name, "the model has hooks");
  for (const py::handle& attribute : py::tuple(item(11))) {
    const py::tuple pair = py::reinterpret_borrow<py::tuple>(attribute);
    watch_entry(dict_of(pair[0]), pair[1]);
  }
  if (py::isinstance(item(1), py::module_::import("torch.nn").attr("Module")))
    for (const char* name : kHooks)
      watch_hooks(b->module_hooks, item(1), std::string("_") + name, "the loss has hooks");
  watch_entry(b->optimizer_dict, py::reinterpret_borrow<py::object>(names().step));
  const py::object optimizers = py::module_::import("torch.optim.optimizer");
  for (const std::string when : {"pre", "post"}) {
    const std::string hooks = "optimizer_step_" + when + "_hooks", global = "_global_optimizer_" + when + "_hooks";
    if (b->not_sgd.empty()) watch_hooks(b->optimizer_hooks, item(2), "_" + hooks, "the optimizer has hooks");
    watch_hooks(b->optimizer_hooks, optimizers, global, "optimizers have global hooks");
  }

  auto* const type = reinterpret_cast<PyTypeObject*>(bound_step_type());
  if (!type) throw python_error();
  auto* const step = reinterpret_cast<BoundStep*>(type->tp_alloc(type, 0));
  if (!step) throw python_error();
  step->held = py::tuple(held).release().ptr();
  step->binding = b.release();
  return reinterpret_cast<PyObject*>(step);
  END_HANDLE_TH_ERRORS
}

}  // namespace linreg::torch_ops
