// SPDX-License-Identifier: BSD-3-Clause
// The direct entry: calls an operator from Python without the dispatcher, whose parsing and boxing take several times
// as long as a small step. The arguments' types come from the C++ function, their names from the schema.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <tuple>

#include "check.h"
#include "plain.h"

namespace linreg::torch_ops {

using Borrow = c10::MaybeOwnedTraits<at::Tensor>;  // leaves reference counts alone

// An argument of type T during a call. Tensors are borrowed from the Python objects that the caller holds.
template <class T>
struct Held {
  T value{};
  const T& get() const { return value; }
};
template <>
struct Held<const at::Tensor&> {
  const at::Tensor* value;
  const at::Tensor& get() const { return *value; }
};
template <>
struct Held<const OptionalTensor&> {
  OptionalTensor value;
  const OptionalTensor& get() const { return value; }
  ~Held() {
    if (value) Borrow::destroyBorrow(*value);
  }
};
template <class T>
struct Held<at::ArrayRef<T>> {
  c10::SmallVector<T, 6> value;
  at::ArrayRef<T> get() const { return value; }
};
template <>
struct Held<at::TensorList> {
  c10::SmallVector<at::Tensor, 2> value;
  at::TensorList get() const { return value; }
  ~Held() {
    for (at::Tensor& tensor : value) Borrow::destroyBorrow(tensor);
  }
};

// Reads the positional arguments of an operator in order.
class Arguments {
 public:
  // `schema` is the operator's full name.
  Arguments(const char* schema, PyObject* const* items, Py_ssize_t count, Py_ssize_t expected)
      : schema_(schema), item_(items), first_(items) {
    TORCH_CHECK_TYPE(count == expected, schema, ": expected ", expected, " positional arguments, got ", count);
  }

  template <class... T>
  void read(Held<T>&... held) {
    ((read(*item_, -1, held.value), ++item_), ...);
  }

 private:
  // `i` is the index of an element of a list, or -1 for an argument itself.
  void read(PyObject* item, Py_ssize_t i, const at::Tensor*& to) {
    require(THPVariable_Check(item), item, i, "a Tensor");
    to = &THPVariable_Unpack(item);
  }
  void read(PyObject* item, Py_ssize_t i, at::Tensor& to) {
    require(THPVariable_Check(item), item, i, "a Tensor");
    Borrow::assignBorrow(to, THPVariable_Unpack(item));
  }
  void read(PyObject* item, Py_ssize_t i, OptionalTensor& to) {
    if (item == Py_None) return;
    require(THPVariable_Check(item), item, i, "a Tensor or None");
    to.emplace(Borrow::createBorrow(THPVariable_Unpack(item)));
  }
  void read(PyObject* item, Py_ssize_t i, std::string_view& to) {
    require(PyUnicode_Check(item), item, i, "a str");
    Py_ssize_t length = 0;
    const char* const characters = PyUnicode_AsUTF8AndSize(item, &length);
    if (!characters) throw python_error();
    to = {characters, size_t(length)};
  }
  void read(PyObject* item, Py_ssize_t i, double& to) {
    to = PyFloat_AsDouble(item);
    if (to == -1.0 && PyErr_Occurred()) {
      PyErr_Clear();
      require(false, item, i, "a number");
    }
  }
  void read(PyObject* item, Py_ssize_t i, int64_t& to) {
    to = PyLong_AsLongLong(item);
    if (to == -1 && PyErr_Occurred()) {
      const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError);
      PyErr_Clear();
      require(false, item, i, too_large ? "an int below 2**63" : "an int");
    }
  }
  void read(PyObject* item, Py_ssize_t i, bool& to) {
    const int value = PyObject_IsTrue(item);
    if (value < 0) PyErr_Clear();
    require(value >= 0, item, i, "a bool");
    to = value;
  }
  template <class T, unsigned kInline>
  void read(PyObject* item, Py_ssize_t, c10::SmallVector<T, kInline>& to) {
    require(PyList_Check(item) || PyTuple_Check(item), item, -1, "a list");
    to.resize(size_t(PySequence_Fast_GET_SIZE(item)));
    for (size_t i = 0; i < to.size(); ++i) read(PySequence_Fast_GET_ITEM(item, i), Py_ssize_t(i), to[i]);
  }

  void require(bool fits, PyObject* item, Py_ssize_t i, const char* expected) const {
    if (!fits) [[unlikely]]
      refuse(item, i, expected);
  }

  [[noreturn]] void refuse(PyObject* item, Py_ssize_t i, const char* expected) const {
    const auto& schema = c10::Dispatcher::singleton().findSchemaOrThrow(schema_, "").schema();
    const std::string& argument = schema.arguments()[size_t(item_ - first_)].name();
    PyObject* const loss = first_[*schema.argumentIndexWithName("loss")];
    const std::string loss_name = PyUnicode_Check(loss) ? std::string(pybind11::str(loss)) : "";
    std::string op = schema.operator_name().name.substr(sizeof("linreg_ext::") - 1);
    if (op == "linear_loss" && !loss_name.empty()) op = "linear_" + loss_name + "_loss";
    const bool optional = argument == "momentum_buffers" || (argument == "parameters" && i == 1);
    TORCH_CHECK_TYPE(false, op, ": ", name_of(argument, i, loss_name), " must be ", expected,
                     optional ? " or None" : "", ", got ", Py_TYPE(item)->tp_name);
  }

  // The public name of an argument or of an element of a list.
  static std::string name_of(const std::string& list, Py_ssize_t i, std::string_view loss) {
    if (list == "delta") return std::string(threshold_of(loss));
    if (i < 0) return list;
    constexpr const char* kRule[] = {"lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"};
    if (list == "parameters" && i < 2) return i == 0 ? "linear_weight" : "linear_bias";
    if (list == "rule" && i < 6) return kRule[i];
    return list + "[" + std::to_string(i) + "]";
  }

  const char* const schema_;
  PyObject* const* item_;
  PyObject* const* const first_;
};

inline PyObject* to_python(at::Tensor&& tensor) { return THPVariable_Wrap(std::move(tensor)); }

template <class... T>
PyObject* to_python(std::tuple<T...>&& results) {
  return std::apply(
      [](auto&... tensors) {
        return pybind11::make_tuple(
                   pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(std::move(tensors)))...)
            .release()
            .ptr();
      },
      results);
}

using Tensors = c10::SmallVector<const at::Tensor*, 12>;

inline void collect(Tensors& tensors, const at::Tensor& tensor) { tensors.push_back(&tensor); }
inline void collect(Tensors& tensors, const OptionalTensor& tensor) {
  if (tensor) tensors.push_back(&*tensor);
}
inline void collect(Tensors& tensors, at::TensorList list) {
  for (const at::Tensor& tensor : list) tensors.push_back(&tensor);
}
template <class T>
void collect(Tensors&, const T&) {}

// Calls `op` directly, or the operator `schema` if the dispatcher has something to decide. `takes_long` decides from
// the arguments whether to release the GIL.
template <class TakesLong, class Result, class... A>
PyObject* call_directly(const char* schema, Result (*op)(A...), const TakesLong& takes_long, PyObject* const* items,
                        Py_ssize_t count) {
  static const auto dispatched = c10::Dispatcher::singleton().findSchemaOrThrow(schema, "").typed<Result(A...)>();
  Arguments arguments(schema, items, count, sizeof...(A));
  std::tuple<Held<A>...> held;
  return std::apply(
      [&](auto&... one) {
        arguments.read(one...);
        Tensors tensors;
        (collect(tensors, one.get()), ...);
        const bool direct = plain(tensors) || mixed(tensors);
        Result result;
        {
          std::optional<pybind11::gil_scoped_release> released;
          if (!direct || takes_long(one.get()...)) released.emplace();
          result = direct ? recorded(schema, [&] { return op(one.get()...); }) : dispatched.call(one.get()...);
        }
        return to_python(std::move(result));
      },
      held);
}

}  // namespace linreg::torch_ops
