// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstddef>

namespace linreg::torch_ops {

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

}  // namespace linreg::torch_ops
