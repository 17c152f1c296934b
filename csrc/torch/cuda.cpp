// SPDX-License-Identifier: BSD-3-Clause
// The operators' backend for CUDA: the device of the tensors, its current stream, and torch's caching allocator.
#include <ATen/EmptyTensor.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {
namespace {

// Freed when the call ends; the allocator reuses memory in stream order.
c10::DataPtr workspace(size_t bytes) { return c10::cuda::CUDACachingAllocator::get()->allocate(bytes); }

void check(const char* op, const char* error) { TORCH_CHECK(!error, op, ": CUDA error: ", error); }

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype, c10::Device device) {
  const c10::cuda::CUDAGuard guard(device);
  return at::detail::empty_generic(sizes, c10::cuda::CUDACachingAllocator::get(),
                                   c10::DispatchKeySet(c10::DispatchKey::CUDA), dtype, std::nullopt);
}

void set_lr(Sgd& sgd, const at::Tensor& lr) {
  sgd.lr_on_device = lr.const_data_ptr();
  sgd.lr_dtype = dtype_of(lr);
}

Plan plan(const char* op, c10::Device device, const Problem& problem) {
  const c10::cuda::CUDAGuard guard(device);
  Plan plan;
  check(op, cuda::plan(problem, plan));
  return plan;
}

void linear_loss(const char* op, c10::Device device, Problem& problem, const Plan& plan, const Gradients& gradients,
                 void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  const c10::DataPtr memory = workspace(plan.workspace);
  check(op, cuda::linear_loss(problem, plan, gradients, loss, memory.get(), c10::cuda::getCurrentCUDAStream()));
}

void sgd_step(const char* op, c10::Device device, Problem& problem, const Plan& plan, const Sgd& sgd,
              const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  const c10::DataPtr memory = workspace(plan.workspace);
  check(op,
        cuda::sgd_step(problem, plan, sgd, weight, bias, skip, loss, memory.get(), c10::cuda::getCurrentCUDAStream()));
}

void residuals(const char* op, c10::Device device, const Problem& rows, const Residuals& wanted) {
  const c10::cuda::CUDAGuard guard(device);
  size_t bytes = 0;
  check(op, cuda::residuals_workspace(rows, bytes));
  const c10::DataPtr memory = workspace(bytes);
  check(op, cuda::residuals(rows, wanted, memory.get(), c10::cuda::getCurrentCUDAStream()));
}

void finish_linear_loss(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                        const Gradients& gradients, void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  check(op, cuda::finish_linear_loss(problem, sums, gradients, loss, c10::cuda::getCurrentCUDAStream()));
}

void finish_sgd_step(const char* op, c10::Device device, const Problem& problem, const ProductSums& sums,
                     const Sgd& sgd, const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  check(op, cuda::finish_sgd_step(problem, sums, sgd, weight, bias, skip, loss, c10::cuda::getCurrentCUDAStream()));
}

void end_run(const RunCall& call) {
  const c10::cuda::CUDAGuard guard(call.device);
  check(call.op, cuda::end_run(call.run, call.stop_nonfinite, {call.losses.data_ptr(), dtype_of(call.losses)},
                               {call.validation_losses.data_ptr(), dtype_of(call.validation_losses)},
                               call.done.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()));
}

bool takes_many_steps(const RunCall& call) {
  const c10::cuda::CUDAGuard guard(call.device);
  bool yes = false;
  check(call.op, cuda::takes_many_steps(call.problem, call.run, yes));
  return yes;
}

void take_many_steps(const RunCall& call, const Run& run, const void* before, void* losses) {
  const c10::cuda::CUDAGuard guard(call.device);
  check(call.op, cuda::take_many_steps(call.problem, run, call.sgd, call.weight, call.bias, call.stop_nonfinite, before,
                                       losses, c10::cuda::getCurrentCUDAStream()));
}

void take_many_runs(const ManyCall& call, const SingleRun& largest, const Many& many) {
  const c10::cuda::CUDAGuard guard(call.device);
  check(call.op, cuda::take_many_runs(largest, many, call.losses.data_ptr(), c10::cuda::getCurrentCUDAStream()));
}

void add_moments(const char* op, c10::Device device, MomentRows& rows, const Moments& moments) {
  const c10::cuda::CUDAGuard guard(device);
  size_t bytes = 0;
  check(op, cuda::moments_workspace(rows, moments.groups, bytes));
  const c10::DataPtr memory = workspace(bytes);
  check(op, cuda::add_moments(rows, moments, memory.get(), c10::cuda::getCurrentCUDAStream()));
}

void residual_moments(const char* op, c10::Device device, MomentRows& rows, const double* w, const double* offset,
                      const double* center, double* sums) {
  const c10::cuda::CUDAGuard guard(device);
  size_t bytes = 0;
  check(op, cuda::residual_moments_workspace(rows, bytes));
  const c10::DataPtr memory = workspace(bytes);
  check(op, cuda::residual_moments(rows, w, offset, center, sums, memory.get(), c10::cuda::getCurrentCUDAStream()));
}

void sgd_run(RunCall& call);
void sgd_run_many(ManyCall& call);

constexpr Backend kBackend = {
    empty, set_lr,    linear_loss,        sgd_step,        sgd_run, sgd_run_many,     add_moments,     residual_moments,
    plan,  residuals, finish_linear_loss, finish_sgd_step, end_run, takes_many_steps, take_many_steps, take_many_runs};

void sgd_run(RunCall& call) {
  const c10::cuda::CUDAGuard guard(call.device);
  take_steps(kBackend, call);
}

void sgd_run_many(ManyCall& call) {
  const c10::cuda::CUDAGuard guard(call.device);
  take_runs(kBackend, call);
}

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, CUDA, m) {
  set_backend(c10::DeviceType::CUDA, kBackend);
  implement(m);
}

}  // namespace linreg::torch_ops
