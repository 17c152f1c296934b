// SPDX-License-Identifier: BSD-3-Clause
// Whether the dispatcher has nothing to decide, so that a direct entry may call a backend itself.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <initializer_list>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

inline constexpr c10::DispatchKeySet kPlain =
    c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::AutocastCPU,
                         c10::DispatchKey::CUDA, c10::DispatchKey::AutogradCUDA, c10::DispatchKey::AutocastCUDA,
                         c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::BackendSelect});

// Whether the dispatcher would only call a backend's kernel: no other device, no subclass, no transform, no tracing.
inline bool plain(at::ArrayRef<const at::Tensor*> tensors) {
  c10::DispatchKeySet keys = c10::impl::tls_local_dispatch_key_set().included_;
  for (const at::Tensor* tensor : tensors) {
    if (!tensor) continue;
    keys = keys | tensor->key_set();
    if (!backend_of(tensor->device().type())) return false;
  }
  return (keys.raw_repr() & ~kPlain.raw_repr()) == 0;  // operator- would keep the bits of the devices
}

// Whether the tensors differ in device or layout (those on the CPU may join any device). The operator's checks reject
// that by name, whereas the dispatcher would follow one of the tensors.
inline bool mixed(at::ArrayRef<const at::Tensor*> tensors) {
  constexpr c10::DispatchKeySet kModes =
      c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Functionalize, c10::DispatchKey::Batched,
                           c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper});
  const c10::Device device = tensors[0]->device();
  c10::DispatchKeySet keys = c10::impl::tls_local_dispatch_key_set().included_;
  bool differ = false;
  for (const at::Tensor* tensor : tensors) {
    if (!tensor) continue;
    keys = keys | tensor->key_set();
    differ |= tensor->layout() != at::kStrided || (tensor->device() != device && !tensor->is_cpu());
  }
  return differ && !keys.has_any(kModes);
}

// Computes, recorded by torch.profiler as if the dispatcher had called the operator.
template <class Compute>
auto recorded(const char* op, const Compute& compute) {
  RECORD_FUNCTION(op, c10::ArrayRef<const c10::IValue>());
  return compute();
}

constexpr int64_t kLongWork = 1 << 16;  // multiplications, some 10 µs: worth releasing the GIL for

inline bool takes_long(const at::Tensor& input, const at::Tensor& w) {
  return !input.is_cpu() || input.numel() * (w.dim() == 2 ? w.size(0) : 1) >= kLongWork;
}

// Whether a torch.func transform is active.
inline bool in_functorch() {
  const c10::DispatchKeySet keys = c10::impl::tls_local_dispatch_key_set().included_;
  return keys.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

// Whether torch.func or forward-mode AD is active, as in linreg_ext.autograd.is_transforming.
inline bool transforming() { return in_functorch() || torch::autograd::ForwardADLevel::try_get_by_idx(0) != nullptr; }

// For in-place steps: a transform would take the derivative of a loss that has none to be zero. refuse_transforms in
// linreg_ext/autograd.py is the same for compiled calls.
inline void refuse_transforms(const char* op) {
  TORCH_CHECK(!transforming(), op,
              ": must not be called inside a torch.func transform or forward-mode AD, which can neither differentiate "
              "nor batch an in-place step; transform linear_mse_loss or a sibling instead");
}

}  // namespace linreg::torch_ops
