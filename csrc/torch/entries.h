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

// The loss of train_step(plan, model, loss_fn, optimizer, x, y, skip_nonfinite), a step of
// linreg_ext/training/train_step.py; NotImplemented where the plan does not cover it.
PyObject* train_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// unchanged(watched): whether all of a tuple of Watched (linreg_ext/training/evidence.py) are.
PyObject* unchanged_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// find_overlap(tensors, written) of check.h: a pair of places, or None.
PyObject* find_overlap_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// has_gradient_hooks(parameter): whether its gradient is seen by more than its .grad.
PyObject* has_gradient_hooks_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

}  // namespace linreg::torch_ops
