// SPDX-License-Identifier: BSD-3-Clause
// Replaces csrc/torch/cuda.cpp: on CPU tensors, the operators run the CUDA kernels in the interpreter. The resulting
// module replaces linreg_ext._C for a whole test run.
#include "csrc/torch/backend.h"

#include <ATen/EmptyTensor.h>

#include <cstring>
#include <memory>

#include "csrc/torch/check.h"

namespace linreg::torch_ops {
namespace {

constexpr int kPoison = 0xff;  // as a number of any type, nan

void check(const char* op, const char* error) { TORCH_CHECK(!error, op, ": ", error); }

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype, c10::Device) {
  at::Tensor tensor = at::detail::empty_cpu(sizes, dtype);
  if (tensor.nbytes() > 0) std::memset(tensor.data_ptr(), kPoison, tensor.nbytes());
  return tensor;
}

// A separate allocation of exactly this size, so that AddressSanitizer sees accesses beyond it.
std::unique_ptr<char[]> workspace(size_t bytes) {
  std::unique_ptr<char[]> memory(new char[bytes]);
  std::memset(memory.get(), kPoison, bytes);
  return memory;
}

void set_lr(Sgd& sgd, const at::Tensor& lr) {
  sgd.lr_on_device = lr.const_data_ptr();
  sgd.lr_dtype = dtype_of(lr);
}

Plan plan(const char* op, c10::Device, const Problem& problem) {
  Plan plan;
  check(op, cuda::plan(problem, plan));
  return plan;
}

void linear_loss(const char* op, c10::Device, Problem& problem, const Plan& plan, const Gradients& gradients,
                 void* loss) {
  check(op, cuda::linear_loss(problem, plan, gradients, loss, workspace(plan.workspace).get(), nullptr));
}

void sgd_step(const char* op, c10::Device, Problem& problem, const Plan& plan, const Sgd& sgd, const Parameter& weight,
              const Parameter& bias, const Skip& skip, void* loss) {
  check(op, cuda::sgd_step(problem, plan, sgd, weight, bias, skip, loss, workspace(plan.workspace).get(), nullptr));
}

void residuals(const char* op, c10::Device, const Problem& rows, const Residuals& wanted) {
  size_t bytes = 0;
  check(op, cuda::residuals_workspace(rows, bytes));
  const auto memory = workspace(bytes);
  check(op, cuda::residuals(rows, wanted, memory.get(), nullptr));
}

void finish_linear_loss(const char* op, c10::Device, const Problem& problem, const ProductSums& sums,
                        const Gradients& gradients, void* loss) {
  check(op, cuda::finish_linear_loss(problem, sums, gradients, loss, nullptr));
}

void finish_sgd_step(const char* op, c10::Device, const Problem& problem, const ProductSums& sums, const Sgd& sgd,
                     const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss) {
  check(op, cuda::finish_sgd_step(problem, sums, sgd, weight, bias, skip, loss, nullptr));
}

void end_run(const RunCall& call) {
  check(call.op, cuda::end_run(call.run, call.stop_nonfinite, {call.losses.data_ptr(), dtype_of(call.losses)},
                               {call.validation_losses.data_ptr(), dtype_of(call.validation_losses)},
                               call.done.mutable_data_ptr<int64_t>(), nullptr));
}

bool takes_many_steps(const RunCall& call) {
  bool yes = false;
  check(call.op, cuda::takes_many_steps(call.problem, call.run, yes));
  return yes;
}

void take_many_steps(const RunCall& call, const Run& run, const void* before, void* losses) {
  check(call.op, cuda::take_many_steps(call.problem, run, call.sgd, call.weight, call.bias, call.stop_nonfinite, before,
                                       losses, nullptr));
}

void take_many_runs(const ManyCall& call, const SingleRun& largest, const Many& many) {
  check(call.op, cuda::take_many_runs(largest, many, call.losses.data_ptr(), nullptr));
}

void add_moments(const char* op, c10::Device, MomentRows& rows, const Moments& moments) {
  size_t bytes = 0;
  check(op, cuda::moments_workspace(rows, moments.groups, bytes));
  const auto memory = workspace(bytes);
  check(op, cuda::add_moments(rows, moments, memory.get(), nullptr));
}

void residual_moments(const char* op, c10::Device, MomentRows& rows, const double* w, const double* offset,
                      const double* center, double* sums) {
  size_t bytes = 0;
  check(op, cuda::residual_moments_workspace(rows, bytes));
  const auto memory = workspace(bytes);
  check(op, cuda::residual_moments(rows, w, offset, center, sums, memory.get(), nullptr));
}

void sgd_run(RunCall& call);
void sgd_run_many(ManyCall& call);

constexpr Backend kBackend = {
    empty, set_lr,    linear_loss,        sgd_step,        sgd_run, sgd_run_many,     add_moments,     residual_moments,
    plan,  residuals, finish_linear_loss, finish_sgd_step, end_run, takes_many_steps, take_many_steps, take_many_runs};

void sgd_run(RunCall& call) { take_steps(kBackend, call); }
void sgd_run_many(ManyCall& call) { take_runs(kBackend, call); }

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, CPU, m) {
  set_backend(c10::DeviceType::CPU, kBackend);
  implement(m);
}

}  // namespace linreg::torch_ops
