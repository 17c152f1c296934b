// SPDX-License-Identifier: BSD-3-Clause
// A parameter that a kernel updates.
#pragma once

#include <ATen/core/Tensor.h>

#include "check.h"

namespace linreg::torch_ops {

// A parameter and its buffer for the kernel; finish() copies back what could not be updated in place and tells
// autograd that both have changed.
class Updated {
 public:
  Updated(const at::Tensor* value, const at::Tensor* buffer, bool first_step, bool frozen)
      : value_(frozen ? nullptr : value), buffer_(frozen ? nullptr : buffer) {
    parameter.first_step = first_step;
    parameter.frozen = frozen;
    if (value_) parameter.value = rows_of(*value_, value_copy_);
    if (buffer_) parameter.momentum_buffer = rows_of(*buffer_, buffer_copy_);
  }

  void finish() {
    finish(value_, value_copy_);
    finish(buffer_, buffer_copy_);
  }

  Parameter parameter;

 private:
  static void finish(const at::Tensor* tensor, const at::Tensor& copy) {
    if (!tensor) return;
    if (copy.defined()) tensor->copy_(copy);
    if (!tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();
  }

  const at::Tensor *value_, *buffer_;
  at::Tensor value_copy_, buffer_copy_;
};

}  // namespace linreg::torch_ops
