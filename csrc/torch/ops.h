// SPDX-License-Identifier: BSD-3-Clause
// The operators for callers in C++; ops.cpp registers them.
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

// Takes a step and returns the loss before it.
at::Tensor sgd_step(const Operands& operands, const Objective& objective, const SgdArguments& sgd);

// The rows on which a run computes the loss after every epoch; without an input there are none.
struct Validation {
  const at::Tensor *input = nullptr, *target = nullptr, *weight = nullptr;
};

// The losses, the validation losses and the number of steps taken.
using RunResults = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Takes the steps [begin, end) of a run. Callers split a run into chunks to handle interrupts and show progress.
RunResults sgd_run(const Operands& operands, const Objective& objective, SgdArguments sgd, const RunArguments& order,
                   const Validation& validation);

// Takes the runs of the problems [begin, end); returns the losses of their epochs, [end - begin, epochs].
at::Tensor sgd_run_many(const Operands& operands, const Objective& objective, SgdArguments sgd,
                        const ManyArguments& many);

// The loss, recorded by autograd.
at::Tensor differentiable_loss(const Operands& operands, const Objective& objective);

// linear_loss and sgd_step on a checked problem, by matrix products or the device's kernel.
void compute_loss(const char* op, const Backend& backend, c10::Device device, Problem& problem, Gradients gradients,
                  void* loss);
void take_step(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Sgd& sgd,
               const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss);

// A function of linreg_ext._C by CPython's fast call: pybind11's unpacking of the arguments takes a third of the time
// of a small step.
inline PyMethodDef method(const char* name, PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t),
                          const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

// The operator linear_loss, recorded by autograd if needed; NotImplemented for all but plain tensors, and for what
// linreg_ext/autograd.py rejects.
PyObject* linear_loss_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// The operators sgd_step_, sgd_run_ and sgd_run_many_, with positional arguments.
PyObject* sgd_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);
PyObject* sgd_run_entry(PyObject*, PyObject* const* items, Py_ssize_t count);
PyObject* sgd_run_many_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

// A BoundStep for a match from linreg_ext/training/match.py; bound_step.cpp has the arguments.
PyObject* bind_step_entry(PyObject*, PyObject* const* items, Py_ssize_t count);

}  // namespace linreg::torch_ops
