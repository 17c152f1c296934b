// SPDX-License-Identifier: BSD-3-Clause
// The interface between the operators and a type of device: memory, and the entry points of linreg.h. Each type has its
// own file in this folder, cpu.cpp or cuda.cpp; a build without CUDA omits the latter.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "../linreg.h"

namespace linreg::torch_ops {

// The steps of a run that one call takes, in linreg.h's terms, and its results.
struct RunCall {
  const char* op;
  c10::Device device;
  Problem problem;
  Run run;           // without lr, and before take_steps without order
  at::Tensor order;  // of the run, on the CPU or the device; undefined: all rows in sequence
  at::Tensor rates;  // [end - begin] double, on the CPU or the device; undefined: the rule's
  Sgd sgd;
  Parameter weight, bias;
  bool stop_nonfinite;
  Problem* validation;           // nullptr: none
  at::Tensor losses;             // [end - begin]; nan where not reached, as are those below
  at::Tensor validation_losses;  // [completed epochs]
  at::Tensor done;               // 0-dim int64: the number of steps taken
};

// Many runs that one call takes, and the losses of their epochs.
struct ManyCall {
  const char* op;
  c10::Device device;
  SingleRun first;   // before take_runs without order
  at::Tensor order;  // as in RunCall
  Many many;
  at::Tensor losses;  // [end - begin, epochs]
};

using cuda::Plan;

struct Backend {
  // A contiguous tensor on the device, uninitialised.
  at::Tensor (*empty)(at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device);
  // Makes the rule read a 1-element tensor on the device.
  void (*set_lr)(Sgd& sgd, const at::Tensor& lr);
  // linear_loss and sgd_step of linreg.h, on the device's current stream, with their workspace.
  void (*linear_loss)(const char* op, c10::Device device, Problem& problem, const Plan& plan,
                      const Gradients& gradients, void* loss);
  void (*sgd_step)(const char* op, c10::Device device, Problem& problem, const Plan& plan, const Sgd& sgd,
                   const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss);
  void (*sgd_run)(RunCall& call);
  void (*sgd_run_many)(ManyCall& call);
  // As in linreg.h.
  void (*add_moments)(const char* op, c10::Device device, MomentRows& rows, const Moments& moments);
  void (*residual_moments)(const char* op, c10::Device device, MomentRows& rows, const double* w, const double* offset,
                           const double* center, double* sums);
  // Computes the plan of a pass; nullptr if the entries above do so themselves.
  Plan (*plan)(const char* op, c10::Device device, const Problem& problem) = nullptr;
  // For products.h, as in linreg.h.
  void (*residuals)(const char* op, c10::Device device, const Problem& rows, const Residuals& wanted) = nullptr;
  void (*finish_linear_loss)(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                             const Gradients& gradients, void* loss) = nullptr;
  void (*finish_sgd_step)(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                          const Sgd& sgd, const Parameter& weight, const Parameter& bias, const Skip& skip,
                          void* loss) = nullptr;
  // For take_steps, as in linreg.h.
  void (*end_run)(const RunCall& call) = nullptr;
  bool (*takes_many_steps)(const RunCall& call) = nullptr;
  void (*take_many_steps)(const RunCall& call, const Run& run, const void* before, void* losses) = nullptr;
  // For take_runs, as in linreg.h.
  void (*take_many_runs)(const ManyCall& call, const SingleRun& largest, const Many& many) = nullptr;
  // As in linreg.h; not on a GPU.
  void (*descend)(Descent& descent) = nullptr;
};

// nullptr if this build has no kernels for the type.
const Backend* backend_of(c10::DeviceType type);
void set_backend(c10::DeviceType type, const Backend& backend);

// Registers the operators' implementations for a device's dispatch key.
void implement(torch::Library& library);
void implement_least_squares(torch::Library& library);  // called by the former

// Launches the steps of a run on an asynchronous device, without waiting for it.
void take_steps(const Backend& backend, RunCall& call);

// The same for many runs: together if each can be one launch, else one after another.
void take_runs(const Backend& backend, ManyCall& call);

// The tensor itself, or a stream-ordered copy on the device.
at::Tensor on_device(const at::Tensor& tensor, c10::Device device);

}  // namespace linreg::torch_ops
