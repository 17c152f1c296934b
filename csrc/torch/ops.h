// SPDX-License-Identifier: BSD-3-Clause
// The operators as C++ calls them; ops.cpp registers them.
#pragma once

#include <Python.h>

#include <array>
#include <string_view>
#include <tuple>
#include <vector>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

at::Tensor linear_loss(const Operands& operands, const Objective& objective);

// `wanted` and the gradients are in the order of linreg_ext.autograd.OPERANDS: input, weight, bias, target.
std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(const Operands& operands, const Objective& objective,
                                                                  std::array<bool, 4> wanted);

// Takes one step and returns the loss before it.
at::Tensor sgd_step(const Operands& operands, const Objective& objective, const SgdArguments& sgd);

// The rows on which a run computes the loss after every epoch; without an input there are none.
struct Validation {
  const at::Tensor *input = nullptr, *target = nullptr, *weight = nullptr;
};

// The losses, the validation losses and how many steps were taken.
using RunResults = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Takes the steps [begin, end) of a run, so that whoever calls can do a run in stretches, to be interrupted or to show
// progress between them.
RunResults sgd_run(const Operands& operands, const Objective& objective, SgdArguments sgd, const RunArguments& order,
                   const Validation& validation);

// The loss with its derivative, recorded by autograd.
at::Tensor differentiable_loss(const Operands& operands, const Objective& objective);

// linear_loss and sgd_step on a checked problem, by matrix products or by the device's own kernel.
void compute_loss(const char* op, const Backend& backend, c10::Device device, Problem& problem,
                  const Gradients& gradients, void* loss);
void take_step(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Sgd& sgd,
               const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss);

// The functions of linreg_ext._C, which take Python's arguments as they come, without the dispatcher. Not pybind11's
// own calling convention: unpacking the arguments through it takes a third of the time of a small step.
inline PyMethodDef method(const char* name, PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t),
                          const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

// linear_loss, the operator, with its derivative where one is needed; NotImplemented for all but plain tensors, and for
// what linreg_ext/autograd.py has to refuse.
PyObject* linear_loss_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// sgd_step_ and sgd_run_: the operators, their arguments positionally.
PyObject* sgd_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);
PyObject* sgd_run_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// bind_step(...): a BoundStep, of what linreg_ext/training/match.py found; its arguments are in bound_step.cpp.
PyObject* bind_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

}  // namespace linreg::torch_ops
