// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext._C: what it was built with, and what is hot in small problems without the dispatcher, whose cost is
// several times the arithmetic of a small step.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "entries.h"
#include "plain.h"
#include "sgd_run.h"
#include "sgd_step.h"

namespace linreg::torch_ops {
namespace {

// Kept whole in the binary, so that an import that fails can still tell what the file was built for.
__attribute__((used)) const char kStamp[] = "linreg_ext built for torch " LINREG_EXT_TORCH_VERSION;

// The positional arguments of a call, in the order of the operator's schema.
class Arguments {
 public:
  Arguments(const char* op, Py_ssize_t expected, PyObject* const* items, Py_ssize_t count) : op_(op), item_(items) {
    TORCH_CHECK_TYPE(count == expected, "_C.", op, ": expected ", expected, " positional arguments, got ", count);
  }

  const at::Tensor& tensor(const char* name, const char* expected = "a Tensor") {
    check(THPVariable_Check(*item_), name, expected);
    return THPVariable_Unpack(*item_++);
  }

  const at::Tensor* optional_tensor(const char* name) {
    if (*item_ != Py_None) return &tensor(name, "a Tensor or None");
    ++item_;
    return nullptr;
  }

  std::string_view text(const char* name) {
    check(PyUnicode_Check(*item_), name, "a str");
    Py_ssize_t length = 0;
    const char* characters = PyUnicode_AsUTF8AndSize(*item_++, &length);
    if (!characters) throw python_error();
    return {characters, size_t(length)};
  }

  double number(const char* name) {
    const double value = PyFloat_AsDouble(*item_);
    if (value == -1.0 && PyErr_Occurred()) {
      PyErr_Clear();
      check(false, name, "a number");
    }
    ++item_;
    return value;
  }

  int64_t integer(const char* name) {
    const long long value = PyLong_AsLongLong(*item_);
    if (value == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      check(false, name, "an int");
    }
    ++item_;
    return value;
  }

  bool flag(const char* name) {
    const int value = PyObject_IsTrue(*item_);
    if (value < 0) PyErr_Clear();
    check(value >= 0, name, "a bool");
    ++item_;
    return value;
  }

 private:
  void check(bool fits, const char* name, const char* expected) {
    TORCH_CHECK_TYPE(fits, op_, ": ", name, " must be ", expected, ", got ", Py_TYPE(*item_)->tp_name);
  }

  const char* const op_;
  PyObject* const* item_;
};

PyObject* sgd_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a("sgd_step_", 22, items, count);
  // Braces evaluate from left to right, so the order here is the schema's.
  const Operands operands{a.tensor("input"), a.tensor("linear_weight"), a.tensor("target"),
                          a.optional_tensor("linear_bias"), a.optional_tensor("weight")};
  const at::Tensor* const weight_buffer = a.optional_tensor("momentum_buffers[0]");
  const at::Tensor* const bias_buffer = a.optional_tensor("momentum_buffers[1]");
  const std::string_view loss = a.text("loss");
  const double delta = a.number("delta");
  const std::string_view reduction = a.text("reduction");
  const SgdArguments sgd{weight_buffer,
                         bias_buffer,
                         a.optional_tensor("lr"),
                         a.number("lr"),
                         a.number("momentum"),
                         a.number("dampening"),
                         a.number("weight_decay"),
                         a.flag("nesterov"),
                         a.flag("maximize"),
                         a.flag("weight_first_step"),
                         a.flag("bias_first_step"),
                         a.flag("weight_frozen"),
                         a.flag("bias_frozen"),
                         a.flag("skip_nonfinite")};

  const bool direct = plain({&operands.input, &operands.linear_weight, &operands.target, operands.linear_bias,
                             operands.weight, weight_buffer, bias_buffer, sgd.lr_tensor});
  if (direct) refuse_transforms("sgd_step_");
  at::Tensor value;
  {
    std::optional<pybind11::gil_scoped_release> released;
    if (!direct || takes_long(operands)) released.emplace();
    const auto step = [&] { return torch_ops::sgd_step(operands, loss, delta, reduction, sgd); };
    value =
        direct ? recorded("linreg_ext::sgd_step_", step) : sgd_step_dispatched(operands, loss, delta, reduction, sgd);
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

PyObject* sgd_run_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a("sgd_run_", 30, items, count);
  const auto optional = [&a](const char* name) {
    const at::Tensor* tensor = a.optional_tensor(name);
    return tensor ? OptionalTensor(*tensor) : OptionalTensor();
  };
  const at::Tensor &input = a.tensor("input"), &linear_weight = a.tensor("linear_weight"), &target = a.tensor("target");
  const OptionalTensor bias = optional("linear_bias"), weight = optional("weight");
  const OptionalTensor weight_buffer = optional("momentum_buffers[0]"), bias_buffer = optional("momentum_buffers[1]");
  const OptionalTensor order = optional("order");
  const OptionalTensor val_input = optional("validation_input"), val_target = optional("validation_target");
  const int64_t batch_size = a.integer("batch_size");
  const bool drop_last = a.flag("drop_last");
  const int64_t epochs = a.integer("epochs"), begin = a.integer("begin"), end = a.integer("end");
  const std::string_view loss = a.text("loss");
  const double delta = a.number("delta");
  const std::string_view reduction = a.text("reduction");
  const OptionalTensor lr_tensor = optional("lr");
  const double lr = a.number("lr"), momentum = a.number("momentum"), dampening = a.number("dampening");
  const double weight_decay = a.number("weight_decay");
  const bool nesterov = a.flag("nesterov"), maximize = a.flag("maximize");
  const bool weight_first = a.flag("weight_first_step"), bias_first = a.flag("bias_first_step");
  const bool weight_frozen = a.flag("weight_frozen"), bias_frozen = a.flag("bias_frozen");
  const bool stop_nonfinite = a.flag("stop_nonfinite");

  const auto call = [&](const auto& run) {
    return run(input, linear_weight, target, bias, weight, weight_buffer, bias_buffer, order, val_input, val_target,
               batch_size, drop_last, epochs, begin, end, loss, delta, reduction, lr_tensor, lr, momentum, dampening,
               weight_decay, nesterov, maximize, weight_first, bias_first, weight_frozen, bias_frozen, stop_nonfinite);
  };
  const bool direct = plain({&input, &linear_weight, &target, given(bias), given(weight), given(weight_buffer),
                             given(bias_buffer), given(order), given(val_input), given(val_target), given(lr_tensor)});
  std::tuple<at::Tensor, at::Tensor, at::Tensor> results;
  {
    const pybind11::gil_scoped_release released;
    if (direct) {
      results = recorded("linreg_ext::sgd_run_", [&] { return call(sgd_run_op); });
    } else {
      static const auto op =
          c10::Dispatcher::singleton().findSchemaOrThrow("linreg_ext::sgd_run_", "").typed<decltype(sgd_run_op)>();
      results = call([](const auto&... arguments) { return op.call(arguments...); });
    }
  }
  const auto wrapped = [](at::Tensor& tensor) {
    return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(tensor)));
  };
  auto& [losses, validation_losses, done] = results;
  return pybind11::make_tuple(wrapped(losses), wrapped(validation_losses), wrapped(done)).release().ptr();
  END_HANDLE_TH_ERRORS
}

// Not pybind11's own calling convention: unpacking 22 arguments through it takes a third of the time of a small step.
using Entry = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

PyMethodDef method(const char* name, Entry* entry, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry)), METH_FASTCALL, doc};
}

PyMethodDef methods[] = {
    method("sgd_step_", &sgd_step_entry, "The operator linreg_ext::sgd_step_, its arguments positionally."),
    method("sgd_run_", &sgd_run_entry, "The operator linreg_ext::sgd_run_, its arguments positionally."),
    method("train_step", &train_step_entry, "A step that is as planned, or NotImplemented."),
    method("unchanged", &unchanged_entry, "Whether what a decision was made from is as it was."),
    method("has_gradient_hooks", &has_gradient_hooks_entry, "Whether hooks see the gradient of a parameter."),
    method("linear_loss", &linear_loss_entry, "A loss with its derivative, or NotImplemented."),
};

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = LINREG_EXT_TORCH_VERSION;
  info["compiler"] = "gcc " __VERSION__;
  const std::string cuda = LINREG_EXT_CUDA_VERSION;
  info["cuda"] = cuda.empty() ? pybind11::object(pybind11::none()) : pybind11::object(pybind11::str(cuda));
  return info;
}

}  // namespace
}  // namespace linreg::torch_ops

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &linreg::torch_ops::build_info);
  for (PyMethodDef& method : linreg::torch_ops::methods)
    m.add_object(method.ml_name, pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&method, nullptr)));
}
