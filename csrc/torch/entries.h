// SPDX-License-Identifier: BSD-3-Clause
// The functions of linreg_ext._C that take Python's arguments as they come, without the dispatcher.
#pragma once

#include <Python.h>

namespace linreg::torch_ops {

// The loss of linear_loss(loss, delta, input, linear_weight, target, linear_bias, weight, reduction) in
// linreg_ext/functional.py, with its derivative where one is needed; NotImplemented for all but plain tensors, and for
// what that function has to refuse.
PyObject* linear_loss_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// The loss of train_step(plan, model, loss_fn, optimizer, x, y, skip_nonfinite), a step of
// linreg_ext/training/train_step.py; NotImplemented where the plan does not cover it.
PyObject* train_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// unchanged(watched): whether all of a tuple of Watched (linreg_ext/training/evidence.py) are.
PyObject* unchanged_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// has_gradient_hooks(parameter): whether its gradient is seen by more than its .grad.
PyObject* has_gradient_hooks_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

}  // namespace linreg::torch_ops
