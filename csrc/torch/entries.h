// SPDX-License-Identifier: BSD-3-Clause
// The functions of linreg_ext._C that take Python's arguments as they come, without the dispatcher.
#pragma once

#include <Python.h>

namespace linreg::torch_ops {

// linear_loss, the operator, with its derivative where one is needed; NotImplemented for all but plain tensors, and for
// what linreg_ext/autograd.py has to refuse.
PyObject* linear_loss_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// sgd_step_ and sgd_run_: the operators, their arguments positionally.
PyObject* sgd_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);
PyObject* sgd_run_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// bind_step(...): a BoundStep, of what linreg_ext/training/match.py found; its arguments are in bound_step.cpp.
PyObject* bind_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

}  // namespace linreg::torch_ops
