// SPDX-License-Identifier: BSD-3-Clause
// The operators' backend for the CPU.
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/CPUAllocator.h>

#include <cstddef>
#include <limits>

#include "backend.h"
#include "check.h"

// Present if torch is built with MKL; other libraries use a single thread inside a parallel region anyway.
extern "C" int MKL_Set_Num_Threads_Local(int threads) __attribute__((weak));

namespace linreg::torch_ops {
namespace {

// Restricts MKL to the calling thread. In a parallel region it has only one thread, but would still partition a product
// for torch.get_num_threads() of them, and so round differently.
class OneThread {
 public:
  OneThread() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
  ~OneThread() {
    if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  const int before_;
};

at::Tensor matrix(const void* data, int64_t rows, int64_t columns, int64_t row_stride, int64_t col_stride,
                  Dtype dtype) {
  return at::for_blob(const_cast<void*>(data), {rows, columns})
      .strides({row_stride, col_stride})
      .options(scalar_type_of(dtype))
      .make_tensor();
}

// Bypasses the dispatcher, whose modes belong to the thread that called the operator.
void multiply(int64_t m, int64_t l, int64_t n, const View& a, const View& b, const Rows& sum, bool add) {
  const auto is_packed = [](const View& v, int64_t rows, int64_t columns) {  // else bits depend on strides and offsets
    const int64_t stride = v.row_stride * v.col_stride;                      // one of the two is 1
    return uintptr_t(v.data) % 64 == 0 && (stride == columns || stride == rows);
  };
  TORCH_INTERNAL_ASSERT(is_packed(a, m, l) && is_packed(b, l, n));
  const OneThread one_thread;
  at::Tensor out = matrix(sum.data, m, n, sum.row_stride, 1, sum.dtype);
  at::cpu::addmm_out(out, out, matrix(a.data, m, l, a.row_stride, a.col_stride, a.dtype),
                     matrix(b.data, l, n, b.row_stride, b.col_stride, b.dtype), add ? 1 : 0, 1);
}

// Aligned memory for one call: on the stack for small problems, else from torch's allocator.
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

void linear_loss(const char*, c10::Device, Problem& problem, const Plan&, const Gradients& gradients, void* loss) {
  problem.threads = at::get_num_threads();
  problem.multiply = multiply;
  Workspace workspace(cpu::loss_workspace(problem, gradients));
  cpu::linear_loss(problem, gradients, loss, workspace.get());
}

void sgd_step(const char*, c10::Device, Problem& problem, const Plan&, const Sgd& sgd, const Parameter& weight,
              const Parameter& bias, const Skip& skip, void* loss) {
  problem.threads = at::get_num_threads();
  problem.multiply = multiply;
  Workspace workspace(cpu::sgd_workspace(problem));
  cpu::sgd_step(problem, sgd, weight, bias, skip.nonfinite, loss, workspace.get());
}

void sgd_run(RunCall& call) {
  Problem& problem = call.problem;
  for (Problem* const part : {&problem, call.validation}) {
    if (!part) continue;
    part->threads = at::get_num_threads();
    part->multiply = multiply;
  }
  Run run = call.run;
  if (call.order.defined()) run.order = call.order.const_data_ptr<int64_t>();
  if (call.rates.defined()) run.lr = call.rates.const_data_ptr<double>();
  Workspace workspace(cpu::run_workspace(problem, run, call.validation));
  const int64_t taken =
      cpu::sgd_run(problem, run, call.sgd, call.weight, call.bias, call.stop_nonfinite, call.losses.data_ptr(),
                   call.validation, call.validation_losses.data_ptr(), workspace.get());
  if (taken < run.end - run.begin) {
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    call.losses.narrow(0, taken + 1, run.end - run.begin - taken - 1).fill_(kNan);
    const int64_t validated =
        call.validation_losses.numel() == 0 ? 0 : (run.begin + taken) / run.epoch_steps - run.begin / run.epoch_steps;
    call.validation_losses.narrow(0, validated, call.validation_losses.numel() - validated).fill_(kNan);
  }
  *call.done.mutable_data_ptr<int64_t>() = taken;
}

void sgd_run_many(ManyCall& call) {
  call.first.problem.threads = at::get_num_threads();
  call.first.problem.multiply = multiply;
  if (call.order.defined()) call.first.run.order = call.order.const_data_ptr<int64_t>();
  Workspace workspace(cpu::many_workspace(call.first, call.many));
  cpu::sgd_run_many(call.first, call.many, call.losses.data_ptr(), workspace.get());
}

void add_moments(const char* op, c10::Device, MomentRows& rows, const Moments& moments) {
  rows.threads = at::get_num_threads();
  Workspace workspace(cpu::moments_workspace(rows));
  if (cpu::add_moments(rows, moments, workspace.get())) return;
  for (int64_t i = 0; i < rows.n && rows.group; ++i) check_group(op, rows.group[i], i, moments.groups);
  TORCH_CHECK_VALUE(false, op, ": weight must be >= 0, got a negative number");
}

void residual_moments(const char*, c10::Device, MomentRows& rows, const double* w, const double* offset,
                      const double* center, double* sums) {
  rows.threads = at::get_num_threads();
  Workspace workspace(cpu::residual_moments_workspace(rows));
  cpu::residual_moments(rows, w, offset, center, sums, workspace.get());
}

void descend(Descent& descent) {
  descent.threads = at::get_num_threads();
  Workspace workspace(cpu::descent_workspace(descent));
  cpu::descend(descent, workspace.get());
}

constexpr Backend kBackend = {.empty = empty,
                              .set_lr = set_lr,
                              .linear_loss = linear_loss,
                              .sgd_step = sgd_step,
                              .sgd_run = sgd_run,
                              .sgd_run_many = sgd_run_many,
                              .add_moments = add_moments,
                              .residual_moments = residual_moments,
                              .descend = descend};

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, CPU, m) {
  set_backend(c10::DeviceType::CPU, kBackend);
  implement(m);
}

}  // namespace linreg::torch_ops
