// SPDX-License-Identifier: BSD-3-Clause
// What the operators need of a kind of device: memory, and the entry points of linreg.h. Each kind has one file in this
// folder (cpu.cpp, cuda.cpp), which is the only one that knows it; a build without CUDA leaves that file out.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../linreg.h"

namespace linreg::torch_ops {

struct Backend {
  // A contiguous tensor on the device, undefined.
  at::Tensor (*empty)(at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device);
  // A 1-element tensor of the device itself, for the rule to read.
  void (*set_lr)(Sgd& sgd, const at::Tensor& lr);
  // linear_loss and sgd_step of linreg.h, on the device's current stream, with their workspace.
  void (*linear_loss)(const char* op, c10::Device device, Problem& problem, const Gradients& gradients, void* loss);
  void (*sgd_step)(const char* op, c10::Device device, Problem& problem, const Sgd& sgd, const Parameter& weight,
                   const Parameter& bias, bool skip_nonfinite, void* loss);
  // For products.h, as linreg.h has them; nullptr where the entries above make their own products.
  bool (*by_products)(const char* op, c10::Device device, const Problem& problem, const Gradients& gradients);
  void (*residuals)(const char* op, c10::Device device, const Problem& rows, const Residuals& wanted);
  void (*finish_linear_loss)(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                             const Gradients& gradients, void* loss);
  void (*finish_sgd_step)(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                          const Sgd& sgd, const Parameter& weight, const Parameter& bias, bool skip_nonfinite,
                          void* loss);
  // cpu::sgd_run of linreg.h; nullptr where there is none yet. Returns how many steps were taken.
  int64_t (*sgd_run)(Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                     bool stop_nonfinite, void* losses, Problem* validation, void* validation_losses) = nullptr;
};

// nullptr where this build has no kernels for such a device.
const Backend* backend_of(c10::DeviceType type);
void set_backend(c10::DeviceType type, const Backend& backend);

// Gives the operators their implementation for a device's dispatch key.
void implement(torch::Library& library);

}  // namespace linreg::torch_ops
