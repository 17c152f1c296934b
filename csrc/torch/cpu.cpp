// SPDX-License-Identifier: BSD-3-Clause
// The CPU for the operators.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <cstddef>

#include "backend.h"

namespace linreg::torch_ops {
namespace {

// 64-byte aligned memory for the length of one call: on the stack for a small problem, else from torch's allocator.
class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    if (bytes > sizeof(small_)) large_ = c10::GetCPUAllocator()->allocate(bytes);
  }
  void* get() { return large_ ? large_.get() : small_; }

 private:
  alignas(64) std::byte small_[8192];
  c10::DataPtr large_;
};

at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype, c10::Device) {
  return at::detail::empty_cpu(sizes, dtype);
}

void set_lr(Sgd& sgd, const at::Tensor& lr) {
  sgd.lr = lr.scalar_type() == at::kDouble ? *lr.const_data_ptr<double>() : double(*lr.const_data_ptr<float>());
}

void linear_loss(const char*, c10::Device, Problem& problem, const Gradients& gradients, void* loss) {
  problem.threads = at::get_num_threads();
  Workspace workspace(cpu::loss_workspace(problem, gradients));
  cpu::linear_loss(problem, gradients, loss, workspace.get());
}

void sgd_step(const char*, c10::Device, Problem& problem, const Sgd& sgd, const Parameter& weight,
              const Parameter& bias, bool skip_nonfinite, void* loss) {
  problem.threads = at::get_num_threads();
  Workspace workspace(cpu::sgd_workspace(problem));
  cpu::sgd_step(problem, sgd, weight, bias, skip_nonfinite, loss, workspace.get());
}

constexpr Backend kBackend = {empty, set_lr, linear_loss, sgd_step, nullptr, nullptr, nullptr, nullptr};

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, CPU, m) {
  set_backend(c10::DeviceType::CPU, kBackend);
  implement(m);
}

}  // namespace linreg::torch_ops
