// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext._C: build information, and the direct entries for small problems.
#include <pybind11/pybind11.h>

#include "ops.h"

namespace linreg::torch_ops {
namespace {

// Stays in the binary, so that a failed import can still tell which torch the file was built for.
__attribute__((used)) const char kStamp[] = "linreg_ext built for torch " LINREG_EXT_TORCH_VERSION;

PyMethodDef methods[] = {
    method("sgd_step_", &sgd_step_entry, "The operator linreg_ext::sgd_step_, with positional arguments."),
    method("sgd_run_", &sgd_run_entry, "The operator linreg_ext::sgd_run_, with positional arguments."),
    method("sgd_run_many_", &sgd_run_many_entry, "The operator linreg_ext::sgd_run_many_, with positional arguments."),
    method("bind_step", &bind_step_entry, "The training step of a Match from linreg_ext/training/match.py."),
    method("linear_loss", &linear_loss_entry, "The differentiable loss, or NotImplemented."),
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
