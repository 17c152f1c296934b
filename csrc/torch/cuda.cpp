// SPDX-License-Identifier: BSD-3-Clause
// CUDA devices for the operators: the tensors' device and its current stream, memory from torch's caching allocator,
// and what the runtime says of a launch.
#include <ATen/EmptyTensor.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {
namespace {

// Given back when the call ends; the allocator hands it out again in the order of the stream.
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

void linear_loss(const char* op, c10::Device device, Problem& problem, const Gradients& gradients, void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  size_t bytes = 0;
  check(op, cuda::loss_workspace(problem, gradients, bytes));
  const c10::DataPtr memory = workspace(bytes);
  check(op, cuda::linear_loss(problem, gradients, loss, memory.get(), c10::cuda::getCurrentCUDAStream()));
}

void sgd_step(const char* op, c10::Device device, Problem& problem, const Sgd& sgd, const Parameter& weight,
              const Parameter& bias, bool skip_nonfinite, void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  size_t bytes = 0;
  check(op, cuda::sgd_workspace(problem, bytes));
  const c10::DataPtr memory = workspace(bytes);
  check(op, cuda::sgd_step(problem, sgd, weight, bias, skip_nonfinite, loss, memory.get(),
                           c10::cuda::getCurrentCUDAStream()));
}

bool by_products(const char* op, c10::Device device, const Problem& problem, const Gradients& gradients) {
  const c10::cuda::CUDAGuard guard(device);
  bool yes = false;
  check(op, cuda::by_products(problem, gradients, yes));
  return yes;
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
                     const Sgd& sgd, const Parameter& weight, const Parameter& bias, bool skip_nonfinite, void* loss) {
  const c10::cuda::CUDAGuard guard(device);
  check(op, cuda::finish_sgd_step(problem, sums, sgd, weight, bias, skip_nonfinite, loss,
                                  c10::cuda::getCurrentCUDAStream()));
}

constexpr Backend kBackend = {empty,       set_lr,    linear_loss,        sgd_step,
                              by_products, residuals, finish_linear_loss, finish_sgd_step};

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, CUDA, m) {
  set_backend(c10::DeviceType::CUDA, kBackend);
  implement(m);
}

}  // namespace linreg::torch_ops
