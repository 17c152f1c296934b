// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string_view>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

// linreg_ext::sgd_step_, for the dispatcher and for the direct entry; returns the loss.
at::Tensor sgd_step(const Operands& operands, std::string_view loss, double delta, std::string_view reduction,
                    const SgdArguments& sgd);

// One step on a checked problem, by matrix products or by the device's own kernel; writes the loss.
void take_step(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Sgd& sgd,
               const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss);

// sgd_step through the dispatcher, whatever the tensors are.
at::Tensor sgd_step_dispatched(const Operands& operands, std::string_view loss, double delta,
                               std::string_view reduction, const SgdArguments& sgd);

// The operator's signature, as its schema has it.
at::Tensor sgd_step_op(const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
                       const OptionalTensor& linear_bias, const OptionalTensor& weight,
                       const OptionalTensor& weight_momentum_buffer, const OptionalTensor& bias_momentum_buffer,
                       std::string_view loss, double delta, std::string_view reduction, const OptionalTensor& lr_tensor,
                       double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                       bool weight_first_step, bool bias_first_step, bool weight_frozen, bool bias_frozen,
                       bool skip_nonfinite);

}  // namespace linreg::torch_ops
