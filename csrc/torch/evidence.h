// SPDX-License-Identifier: BSD-3-Clause
// Whether what a decision was made from is as it was: linreg_ext/training/evidence.py, as often as a step is taken.
#pragma once

#include <Python.h>

namespace linreg::torch_ops {

// The items of a tuple, borrowed.
struct Items {
  explicit Items(PyObject* tuple) : tuple(tuple), count(PyTuple_GET_SIZE(tuple)) {}
  PyObject* operator[](Py_ssize_t i) const { return PyTuple_GET_ITEM(tuple, i); }

  PyObject* tuple;
  Py_ssize_t count;
};

// What a dictionary has under an interned string; borrowed, nullptr if nothing.
PyObject* entry(PyObject* dict, PyObject* name);

// Whether something is a dictionary with nothing in it.
bool is_empty(PyObject* dict);

// Whether all of a tuple of Watched are unchanged.
bool unchanged(const Items& watched);

}  // namespace linreg::torch_ops
