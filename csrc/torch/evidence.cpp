// SPDX-License-Identifier: BSD-3-Clause
#include "evidence.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/object_ptr.h>

#include "entries.h"

namespace linreg::torch_ops {
namespace {

// Whether a dictionary has these (name, value) and no others, in this order.
bool consists_of(PyObject* dict, const Items& pairs) {
  if (!dict || !PyDict_Check(dict) || PyDict_Size(dict) != pairs.count) return false;
  PyObject *name, *value;
  Py_ssize_t position = 0;
  for (Py_ssize_t i = 0; PyDict_Next(dict, &position, &name, &value); ++i) {
    const Items pair(pairs[i]);
    if (name != pair[0] || value != pair[1]) return false;
  }
  return true;
}

// Watched in evidence.py: (object, type, same, absent, contents, attributes, methods).
bool is_unchanged(const Items& watched) {
  PyObject* const object = watched[0];
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != watched[1]) return false;
  const Items methods(watched[6]);
  for (Py_ssize_t i = 0; i < methods.count; ++i) {
    const Items method(methods[i]);
    PyObject* const found =
        _PyType_Lookup(reinterpret_cast<PyTypeObject*>(object), method[0]);  // in CPython's own cache
    if (found != (method[1] == Py_None ? nullptr : method[1])) return false;
  }
  const Items same(watched[2]), absent(watched[3]), contents(watched[4]), attributes(watched[5]);
  if (same.count + absent.count + contents.count + attributes.count == 0) return true;
  THPObjectPtr dict(PyDict_CheckExact(object) ? Py_NewRef(object) : PyObject_GenericGetDict(object, nullptr));
  if (!dict) throw python_error();
  for (Py_ssize_t i = 0; i < same.count; ++i)
    if (entry(dict, Items(same[i])[0]) != Items(same[i])[1]) return false;
  for (Py_ssize_t i = 0; i < absent.count; ++i)
    if (entry(dict, absent[i])) return false;
  for (Py_ssize_t i = 0; i < contents.count; ++i)
    if (!consists_of(entry(dict, Items(contents[i])[0]), Items(Items(contents[i])[1]))) return false;
  for (Py_ssize_t i = 0; i < attributes.count; ++i) {
    THPObjectPtr value(PyObject_GetAttr(object, Items(attributes[i])[0]));
    if (!value) throw python_error();
    if (value.get() != Items(attributes[i])[1]) return false;
  }
  return true;
}

}  // namespace

PyObject* entry(PyObject* dict, PyObject* name) {
  PyObject* const value = PyDict_GetItemWithError(dict, name);
  if (!value && PyErr_Occurred()) throw python_error();
  return value;
}

bool is_empty(PyObject* dict) { return dict && PyDict_Check(dict) && PyDict_Size(dict) == 0; }

bool unchanged(const Items& watched) {
  for (Py_ssize_t i = 0; i < watched.count; ++i)
    if (!is_unchanged(Items(watched[i]))) return false;
  return true;
}

PyObject* unchanged_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 1 && PyTuple_Check(items[0]), "_C.unchanged: expected a tuple");
  return PyBool_FromLong(unchanged(Items(items[0])));
  END_HANDLE_TH_ERRORS
}

}  // namespace linreg::torch_ops
