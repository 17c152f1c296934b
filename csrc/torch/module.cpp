// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext._C: what it was built with, and the hot in-place step without the dispatcher, whose cost is several times
// the arithmetic of a small step.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include "sgd_step.h"

namespace linreg::torch_ops {
namespace {

// Kept whole in the binary, so that an import that fails can still tell what the file was built for.
__attribute__((used)) const char kStamp[] = "linreg_ext built for torch " LINREG_EXT_TORCH_VERSION;

constexpr int64_t kLongWork = 1 << 16;  // elements of X from which other Python threads should not have to wait

constexpr c10::DispatchKeySet kPlain =
    c10::DispatchKeySet({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU, c10::DispatchKey::ADInplaceOrView,
                         c10::DispatchKey::AutocastCPU, c10::DispatchKey::BackendSelect});

// Whether the CPU kernel is all that the dispatcher would call for these tensors: no other device, no subclass, no
// transform, no tracing.
bool plain(std::initializer_list<const at::Tensor*> tensors) {
  c10::DispatchKeySet keys = c10::impl::tls_local_dispatch_key_set().included_;
  for (const at::Tensor* tensor : tensors)
    if (tensor) keys = keys | tensor->key_set();
  return (keys - kPlain).empty();
}

const at::Tensor* given(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

at::Tensor sgd_step(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                    const OptionalTensor& linear_bias, const OptionalTensor& weight,
                    const OptionalTensor& weight_momentum_buffer, const OptionalTensor& bias_momentum_buffer,
                    std::string_view loss, double delta, std::string_view reduction, const OptionalTensor& lr_tensor,
                    double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                    bool weight_first_step, bool bias_first_step, bool weight_frozen, bool bias_frozen,
                    bool skip_nonfinite) {
  std::optional<pybind11::gil_scoped_release> released;
  const bool direct = plain({&input, &linear_weight, &target, given(linear_bias), given(weight),
                             given(weight_momentum_buffer), given(bias_momentum_buffer), given(lr_tensor)});
  if (!direct || input.numel() >= kLongWork) released.emplace();
  if (direct)
    return sgd_step_cpu(input, linear_weight, target, linear_bias, weight, weight_momentum_buffer, bias_momentum_buffer,
                        loss, delta, reduction, lr_tensor, lr, momentum, dampening, weight_decay, nesterov, maximize,
                        weight_first_step, bias_first_step, weight_frozen, bias_frozen, skip_nonfinite);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("linreg_ext::sgd_step_", "").typed<decltype(sgd_step_cpu)>();
  return op.call(input, linear_weight, target, linear_bias, weight, weight_momentum_buffer, bias_momentum_buffer, loss,
                 delta, reduction, lr_tensor, lr, momentum, dampening, weight_decay, nesterov, maximize,
                 weight_first_step, bias_first_step, weight_frozen, bias_frozen, skip_nonfinite);
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["torch"] = LINREG_EXT_TORCH_VERSION;
  info["compiler"] = "gcc " __VERSION__;
  const std::string cuda = LINREG_EXT_CUDA_VERSION;
  info["cuda"] = cuda.empty() ? pybind11::object(pybind11::none()) : pybind11::object(pybind11::str(cuda));
  return info;
}

}  // namespace
}  // namespace linreg::torch_ops

PYBIND11_MODULE(_C, m) {
  m.def("build_info", &linreg::torch_ops::build_info);
  m.def("sgd_step_", torch::wrap_pybind_function(&linreg::torch_ops::sgd_step));
}
