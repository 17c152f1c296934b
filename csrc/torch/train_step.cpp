// SPDX-License-Identifier: BSD-3-Clause
// The step of linreg_ext/training/train_step.py while nothing has changed since Python last found that it is fused.
//
// Python decides, and writes down in a plan what it has looked at (linreg_ext/training/plan.py). Here that is looked at
// again: what the plan says about objects must still hold, and what belongs to one step (the batch, modes, gradients,
// settings, momentum buffers) must be what the fused level takes. At anything else the answer is NotImplemented, and
// Python decides anew.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/utils/object_ptr.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "entries.h"
#include "evidence.h"
#include "ops.h"
#include "plain.h"

namespace linreg::torch_ops {
namespace {

// All that is borrowed from dictionaries below stays valid, since no Python code runs before it is used: every key that
// is looked up is an interned string.
struct Names {
  PyObject* params = PyUnicode_InternFromString("params");
  PyObject* lr = PyUnicode_InternFromString("lr");
  PyObject* momentum = PyUnicode_InternFromString("momentum");
  PyObject* dampening = PyUnicode_InternFromString("dampening");
  PyObject* weight_decay = PyUnicode_InternFromString("weight_decay");
  PyObject* nesterov = PyUnicode_InternFromString("nesterov");
  PyObject* maximize = PyUnicode_InternFromString("maximize");
  PyObject* differentiable = PyUnicode_InternFromString("differentiable");
  PyObject* foreach = PyUnicode_InternFromString("foreach");
  PyObject* param_groups = PyUnicode_InternFromString("param_groups");
  PyObject* state = PyUnicode_InternFromString("state");
  PyObject* momentum_buffer = PyUnicode_InternFromString("momentum_buffer");
  PyObject* opt_called = PyUnicode_InternFromString("_opt_called");
};

const Names& names() {
  static const Names all;
  return all;
}

std::optional<double> number(PyObject* value) {
  if (!value) return std::nullopt;
  if (PyFloat_Check(value)) return PyFloat_AS_DOUBLE(value);
  if (!PyLong_CheckExact(value)) return std::nullopt;
  const double converted = PyLong_AsDouble(value);
  if (converted == -1.0 && PyErr_Occurred()) PyErr_Clear();
  return converted;
}

// Whether the gradient of a parameter goes to more than its .grad: to hooks of the parameter, or of the node that adds
// gradients to it, where DistributedDataParallel has its own.
bool gradient_hooked(THPVariable* variable) {
  namespace impl = torch::autograd::impl;
  const at::Tensor& tensor = THPVariable_Unpack(variable);
  const auto none = [](PyObject* hooks) { return !hooks || hooks == Py_None || is_empty(hooks); };
  if (!none(variable->backward_hooks) || !none(variable->post_accumulate_grad_hooks)) return true;
  if (!impl::get_autograd_meta(tensor)) return false;
  const size_t pythons =
      variable->backward_hooks && variable->backward_hooks != Py_None;  // one for all, if it is empty
  if (impl::hooks(tensor).size() > pythons) return true;
  const auto node = impl::try_get_grad_accumulator(tensor);
  return node && !(node->pre_hooks().empty() && node->post_hooks().empty());
}

// A parameter of the model, and what the optimizer has for it.
struct Trained {
  Trained(PyObject* object, bool required) : object(object), required(required) {
    if (object != Py_None && THPVariable_CheckExact(object)) tensor = &THPVariable_Unpack(object);
  }

  // Whether it is a tensor that the optimizer would step on as the plan says, or leave alone.
  bool as_planned() const {
    if (object == Py_None) return true;
    if (!tensor || tensor->requires_grad() != required || !tensor->is_leaf()) return false;
    if (group && tensor->unsafeGetTensorImpl()->grad().defined()) return false;
    return !required || (group && !gradient_hooked(reinterpret_cast<THPVariable*>(object)));
  }

  PyObject* object;
  bool required;                       // to have a gradient
  const at::Tensor* tensor = nullptr;  // nullptr: there is no such parameter, or it is not a plain one
  PyObject* group = nullptr;           // of optimizer.param_groups
  THPObjectPtr buffer;                 // of momentum, kept while other threads may run
};

// Finds the parameters in the groups; false where one is there twice or another parameter has a gradient.
bool find_groups(PyObject* groups, Trained& weight, Trained& bias) {
  if (!groups || !PyList_Check(groups)) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    PyObject* const group = PyList_GET_ITEM(groups, i);
    PyObject* const params = PyDict_Check(group) ? entry(group, names().params) : nullptr;
    if (!params || !PyList_Check(params)) return false;
    for (Py_ssize_t j = 0; j < PyList_GET_SIZE(params); ++j) {
      PyObject* const parameter = PyList_GET_ITEM(params, j);
      if (parameter == weight.object || parameter == bias.object) {
        Trained& trained = parameter == weight.object ? weight : bias;
        if (trained.group) return false;
        trained.group = group;
      } else if (!THPVariable_CheckExact(parameter) ||
                 THPVariable_Unpack(parameter).unsafeGetTensorImpl()->grad().defined()) {
        return false;
      }
    }
  }
  return true;
}

// Finds the momentum buffers. The state's keys are compared by identity: their hash is Python's code.
bool find_buffers(PyObject* state, Trained& weight, Trained& bias) {
  if (!state || !PyDict_Check(state)) return false;
  PyObject *parameter, *values;
  Py_ssize_t position = 0;
  while (PyDict_Next(state, &position, &parameter, &values)) {
    if (parameter != weight.object && parameter != bias.object) continue;
    Trained& trained = parameter == weight.object ? weight : bias;
    if (!trained.required) continue;
    if (!PyDict_Check(values)) return false;
    PyObject* const buffer = entry(values, names().momentum_buffer);
    if (!buffer || buffer == Py_None) continue;
    if (!THPVariable_CheckExact(buffer)) return false;
    const at::Tensor& tensor = THPVariable_Unpack(buffer);
    if (tensor.scalar_type() != trained.tensor->scalar_type() || tensor.device() != trained.tensor->device())
      return false;
    trained.buffer = THPObjectPtr(Py_NewRef(buffer));
  }
  return true;
}

// level.py's _within_range and what goes before it; false where Python has to look.
bool read_settings(PyObject* group, SgdArguments& sgd, THPObjectPtr& lr_tensor) {
  const Names& n = names();
  PyObject* const lr = entry(group, n.lr);
  if (lr && THPVariable_CheckExact(lr)) {
    lr_tensor = THPObjectPtr(Py_NewRef(lr));
    sgd.lr_tensor = &THPVariable_Unpack(lr);
    const auto dtype = sgd.lr_tensor->scalar_type();
    if (dtype != at::kFloat && dtype != at::kDouble) return false;
  } else {
    const auto value = number(lr);
    if (!value || !(*value >= 0)) return false;
    sgd.rule.lr = *value;
  }
  const auto momentum = number(entry(group, n.momentum)), dampening = number(entry(group, n.dampening)),
             weight_decay = number(entry(group, n.weight_decay));
  PyObject *const nesterov = entry(group, n.nesterov), *const maximize = entry(group, n.maximize);
  if (!momentum || !dampening || !weight_decay || !nesterov || !maximize || !entry(group, n.foreach)) return false;
  if (!PyBool_Check(nesterov) || !PyBool_Check(maximize) || entry(group, n.differentiable) != Py_False) return false;
  if (!(*momentum >= 0) || !(*weight_decay >= 0) || *dampening != *dampening) return false;
  if (nesterov == Py_True && !(*momentum > 0 && *dampening == 0)) return false;
  sgd.rule.momentum = *momentum;
  sgd.rule.dampening = *dampening;
  sgd.rule.weight_decay = *weight_decay;
  sgd.rule.nesterov = nesterov == Py_True;
  sgd.rule.maximize = maximize == Py_True;
  return true;
}

enum class Layout : long { rows, vector, columns, scalar };  // in the order of plan.LAYOUTS

// Plan in plan.py.
struct Plan {
  explicit Plan(const Items& p)
      : harmless_mode(p[4]),
        weight(p[5]),
        bias(p[6]),
        layout(Layout(PyLong_AsLong(p[9]))),
        objective{text(p[12]), PyFloat_AsDouble(p[13]), text(p[14])},
        trains_weight(p[7] == Py_True),
        trains_bias(p[8] == Py_True),
        flat(p[10] == Py_True),
        flattens(p[11] == Py_True),
        scheduled(p[15] == Py_True) {}

  static std::string_view text(PyObject* item) {
    Py_ssize_t length = 0;
    const char* const characters = PyUnicode_AsUTF8AndSize(item, &length);
    if (!characters) throw python_error();
    return {characters, size_t(length)};
  }

  PyObject *harmless_mode, *weight, *bias;
  Layout layout;
  Objective objective;
  bool trains_weight, trains_bias, flat, flattens;
  bool scheduled;  // a scheduler watches the optimizer's step
};

// level.py's _not_plain_data, and what of _not_plain_parameters a tensor can change under its name.
bool fit(const Plan& plan, const at::Tensor& x, const at::Tensor& y, const at::Tensor& w) {
  const auto data = x.scalar_type(), parameter = w.scalar_type();
  const bool two_bytes = data == at::kHalf || data == at::kBFloat16;
  const bool known = two_bytes || data == at::kFloat || data == at::kDouble;
  const auto fits = [&](at::ScalarType dtype) { return dtype == data || (two_bytes && dtype == at::kFloat); };
  if (!known || !fits(y.scalar_type()) || !fits(parameter)) return false;
  if (x.requires_grad() || y.requires_grad() || x.is_inference() || y.is_inference()) return false;
  const bool scalar = plan.layout == Layout::scalar;
  return !((plan.flat || scalar) && x.dim() != 2) && !(scalar && x.size(1) != 1);
}

// level.py's _not_plain_modes; plain() sees the modes that have a dispatch key.
bool plain_modes(const Plan& plan, c10::DeviceType device) {
  if (!at::GradMode::is_enabled() || torch::autograd::AnomalyMode::is_enabled()) return false;
  if (at::autocast::is_autocast_enabled(device)) return false;
  if (transforming() || !at::SavedTensorDefaultHooks::get_tls_state().stack.empty()) return false;
  using Modes = at::impl::PythonTorchFunctionTLS;
  for (int64_t i = Modes::stack_len(); i-- > 0;) {
    PyObject* const mode = Modes::get_stack_at(i)->ptr(getPyInterpreter());
    if (reinterpret_cast<PyObject*>(Py_TYPE(mode)) != plan.harmless_mode) return false;
  }
  return true;
}

// Affine.as_rows and as_bias.
const at::Tensor& as_rows(Layout layout, const at::Tensor& tensor, at::Tensor& view) {
  if (layout == Layout::rows || layout == Layout::vector) return tensor;
  return view = layout == Layout::columns ? tensor.t() : tensor.reshape({1, 1});
}

const at::Tensor& as_bias(const at::Tensor& tensor, at::Tensor& view) {
  return tensor.dim() == 1 ? tensor : view = tensor.reshape({1});
}

// The target in the shape that the kernels give the prediction; nullptr where it has none that fits.
const at::Tensor* target_rows(const Plan& plan, const at::Tensor& x, const at::Tensor& y, const at::Tensor& w,
                              at::Tensor& view) {
  const auto rows = x.sizes().slice(0, size_t(std::max<int64_t>(x.dim() - 1, 0)));
  if (plan.flattens) {
    std::vector<int64_t> shape(rows.begin(), rows.end());
    for (int64_t i = 0; i + 1 < w.dim(); ++i) shape.push_back(w.size(i));
    if (c10::multiply_integers(shape) != y.numel()) return nullptr;
    return &(view = y.reshape(shape));
  }
  if (plan.flat && y.sizes() != rows) return nullptr;
  return plan.flat && plan.layout != Layout::vector ? &(view = y.unsqueeze(-1)) : &y;
}

// The loss, or an undefined tensor where Python has to decide.
at::Tensor planned_step(const Plan& plan, PyObject* optimizer, const at::Tensor& x, const at::Tensor& y,
                        bool skip_nonfinite) {
  Trained weight(plan.weight, plan.trains_weight), bias(plan.bias, plan.trains_bias);
  THPObjectPtr dict(PyObject_GenericGetDict(optimizer, nullptr));
  if (!dict) throw python_error();
  if (!find_groups(entry(dict, names().param_groups), weight, bias)) return {};
  if (!weight.tensor || !weight.as_planned() || !bias.as_planned()) return {};
  if (weight.required && bias.required && weight.group != bias.group) return {};
  SgdArguments sgd{};
  THPObjectPtr lr_tensor;
  if (!read_settings(weight.required ? weight.group : bias.group, sgd, lr_tensor)) return {};
  if (!find_buffers(entry(dict, names().state), weight, bias)) return {};
  const bool momentum = sgd.rule.momentum != 0;
  if (momentum && ((weight.required && !weight.buffer) || (bias.required && !bias.buffer))) return {};  // a first step

  const auto tensor = [](THPObjectPtr& object) { return object ? &THPVariable_Unpack(object.get()) : nullptr; };
  const at::Tensor *const weight_buffer = tensor(weight.buffer), *const bias_buffer = tensor(bias.buffer);
  if (!plain({&x, &y, weight.tensor, bias.tensor, weight_buffer, bias_buffer, sgd.lr_tensor})) return {};
  if (!plain_modes(plan, x.device().type()) || !fit(plan, x, y, *weight.tensor)) return {};

  at::Tensor views[5];
  const at::Tensor* target = nullptr;
  {
    const at::NoGradGuard no_grad;  // the kernels' view of a parameter must not become part of a graph
    const at::Tensor& w = as_rows(plan.layout, *weight.tensor, views[0]);
    target = target_rows(plan, x, y, w, views[1]);
    if (!target) return {};
    const Operands operands{x, w, *target, bias.tensor ? &as_bias(*bias.tensor, views[2]) : nullptr, nullptr};
    if (momentum && weight_buffer) sgd.momentum_buffers[0] = &as_rows(plan.layout, *weight_buffer, views[3]);
    if (momentum && bias_buffer) sgd.momentum_buffers[1] = &as_bias(*bias_buffer, views[4]);
    sgd.frozen = {!weight.required, !bias.required};
    sgd.skip_nonfinite = skip_nonfinite;
    if (has_overlap(operands, sgd)) return {};
    std::optional<pybind11::gil_scoped_release> released;
    if (takes_long(x, w)) released.emplace();
    return recorded("linreg_ext::sgd_step_", [&] { return sgd_step(operands, plan.objective, sgd); });
  }
}

}  // namespace

PyObject* train_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 7, "_C.train_step: expected 7 positional arguments, got ", count);
  if (!PyTuple_Check(items[0])) Py_RETURN_NOTIMPLEMENTED;
  const Items p(items[0]);
  PyObject *const optimizer = items[3], *const x = items[4], *const y = items[5];
  if (items[1] != p[0] || items[2] != p[1] || optimizer != p[2]) Py_RETURN_NOTIMPLEMENTED;
  const auto* const tensor = reinterpret_cast<PyTypeObject*>(THPVariableClass);
  if (Py_TYPE(x) != tensor || Py_TYPE(y) != tensor) Py_RETURN_NOTIMPLEMENTED;
  if (!unchanged(Items(p[3]))) Py_RETURN_NOTIMPLEMENTED;
  const Plan plan(p);
  at::Tensor value = planned_step(plan, optimizer, THPVariable_Unpack(x), THPVariable_Unpack(y), items[6] == Py_True);
  if (!value.defined()) Py_RETURN_NOTIMPLEMENTED;
  if (plan.scheduled && PyObject_SetAttr(optimizer, names().opt_called, Py_True) != 0) throw python_error();
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

PyObject* find_overlap_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 2 && PyList_Check(items[0]), "_C.find_overlap: expected a list of tensors and a number");
  std::vector<const at::Tensor*> tensors;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items[0]); ++i)
    tensors.push_back(&THPVariable_Unpack(PyList_GET_ITEM(items[0], i)));
  const auto found = find_overlap(tensors, size_t(PyLong_AsSize_t(items[1])));
  if (!found) Py_RETURN_NONE;
  return Py_BuildValue("nn", Py_ssize_t(found->first), Py_ssize_t(found->second));
  END_HANDLE_TH_ERRORS
}

PyObject* has_gradient_hooks_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 1 && THPVariable_Check(items[0]), "_C.has_gradient_hooks: expected a tensor");
  return PyBool_FromLong(gradient_hooked(reinterpret_cast<THPVariable*>(items[0])));
  END_HANDLE_TH_ERRORS
}

}  // namespace linreg::torch_ops
