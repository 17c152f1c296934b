// SPDX-License-Identifier: BSD-3-Clause
// What the operators need of a kind of device: memory, and the entry points of linreg.h. Each kind has one file in this
// folder (cpu.cpp, cuda.cpp), which is the only one that knows it; a build without CUDA leaves that file out.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../linreg.h"

namespace linreg::torch_ops {

// The steps of a run that one call takes, in linreg.h's words, and where it writes.
struct RunCall {
  const char* op;
  c10::Device device;
  Problem problem;
  Run run;           // without lr; its order is a device's that works by itself
  at::Tensor order;  // of the run, on the CPU or the device; undefined: every row in turn
  at::Tensor rates;  // [end - begin] double, on the CPU or the device; undefined: the rule's
  Sgd sgd;
  Parameter weight, bias;
  bool stop_nonfinite;
  Problem* validation;           // nullptr: none
  at::Tensor losses;             // [end - begin]; what is not reached becomes nan, here and below
  at::Tensor validation_losses;  // [epochs that end]
  at::Tensor done;               // 0-dim int64: how many steps were taken
};

struct Backend {
  // A contiguous tensor on the device, uninitialised.
  at::Tensor (*empty)(at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device);
  // A 1-element tensor of the device itself, for the rule to read.
  void (*set_lr)(Sgd& sgd, const at::Tensor& lr);
  // linear_loss and sgd_step of linreg.h, on the device's current stream, with their workspace.
  void (*linear_loss)(const char* op, c10::Device device, Problem& problem, const Gradients& gradients, void* loss);
  void (*sgd_step)(const char* op, c10::Device device, Problem& problem, const Sgd& sgd, const Parameter& weight,
                   const Parameter& bias, const Skip& skip, void* loss);
  void (*sgd_run)(RunCall& call);
  // For products.h, as linreg.h has them; nullptr where the entries above make their own products.
  bool (*by_products)(const char* op, c10::Device device, const Problem& problem, const Gradients& gradients) = nullptr;
  void (*residuals)(const char* op, c10::Device device, const Problem& rows, const Residuals& wanted) = nullptr;
  void (*finish_linear_loss)(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                             const Gradients& gradients, void* loss) = nullptr;
  void (*finish_sgd_step)(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                          const Sgd& sgd, const Parameter& weight, const Parameter& bias, const Skip& skip,
                          void* loss) = nullptr;
  // For take_steps, as linreg.h has them.
  void (*gather)(const char* op, c10::Device device, const Problem& problem, const int64_t* order,
                 const Problem& batch) = nullptr;
  void (*end_run)(const RunCall& call) = nullptr;
  bool (*takes_many_steps)(const RunCall& call) = nullptr;
  void (*take_many_steps)(const RunCall& call, const Run& run, const void* before, void* losses) = nullptr;
};

// nullptr where this build has no kernels for such a device.
const Backend* backend_of(c10::DeviceType type);
void set_backend(c10::DeviceType type, const Backend& backend);

// Gives the operators their implementation for a device's dispatch key.
void implement(torch::Library& library);

// A run whose steps are launched one by one, for a device that works them off by itself: nothing here waits for it.
void take_steps(const Backend& backend, RunCall& call);

// A tensor on the device: itself, or a copy that comes in the order of the stream.
at::Tensor on_device(const at::Tensor& tensor, c10::Device device);

}  // namespace linreg::torch_ops
