// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext._C: what it was built with, and what is hot in small problems without the dispatcher, whose cost is
// several times the arithmetic of a small step.
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "entries.h"
#include "plain.h"
#include "sgd_step.h"

namespace linreg::torch_ops {
namespace {

// Kept whole in the binary, so that an import that fails can still tell what the file was built for.
__attribute__((used)) const char kStamp[] = "linreg_ext built for torch " LINREG_EXT_TORCH_VERSION;

// The positional arguments of a call, in the order of the operator's schema.
class Arguments {
 public:
  Arguments(PyObject* const* items, Py_ssize_t count) : item_(items) {
    TORCH_CHECK_TYPE(count == kCount, "_C.sgd_step_: expected ", kCount, " positional arguments, got ", count);
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

  bool flag(const char* name) {
    const int value = PyObject_IsTrue(*item_);
    if (value < 0) PyErr_Clear();
    check(value >= 0, name, "a bool");
    ++item_;
    return value;
  }

 private:
  void check(bool fits, const char* name, const char* expected) {
    TORCH_CHECK_TYPE(fits, "sgd_step_: ", name, " must be ", expected, ", got ", Py_TYPE(*item_)->tp_name);
  }

  static constexpr Py_ssize_t kCount = 22;
  PyObject* const* item_;
};

PyObject* sgd_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a(items, count);
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
  at::Tensor value;
  {
    std::optional<pybind11::gil_scoped_release> released;
    if (!direct || takes_long(operands)) released.emplace();
    value = (direct ? torch_ops::sgd_step : sgd_step_dispatched)(operands, loss, delta, reduction, sgd);
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

// Not pybind11's own calling convention: unpacking 22 arguments through it takes a third of the time of a small step.
using Entry = PyObject*(PyObject*, PyObject* const*, Py_ssize_t);

PyMethodDef method(const char* name, Entry* entry, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(entry)), METH_FASTCALL, doc};
}

PyMethodDef methods[] = {
    method("sgd_step_", &sgd_step_entry, "The operator linreg_ext::sgd_step_, its arguments positionally."),
    method("train_step", &train_step_entry, "A step that is as planned, or NotImplemented."),
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
