// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <tuple>

#include "check.h"

namespace linreg::torch_ops {

// linreg_ext::sgd_run_, as its schema has it: the losses, the validation losses and how many steps were taken.
std::tuple<at::Tensor, at::Tensor, at::Tensor> sgd_run_op(
    const at::Tensor& input, const at::Tensor& linear_weight, const at::Tensor& target,
    const OptionalTensor& linear_bias, const OptionalTensor& weight, const OptionalTensor& weight_momentum_buffer,
    const OptionalTensor& bias_momentum_buffer, const OptionalTensor& order, const OptionalTensor& validation_input,
    const OptionalTensor& validation_target, int64_t batch_size, bool drop_last, int64_t epochs, int64_t begin,
    int64_t end, std::string_view loss, double delta, std::string_view reduction, const OptionalTensor& lr_tensor,
    double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
    bool weight_first_step, bool bias_first_step, bool weight_frozen, bool bias_frozen, bool stop_nonfinite);

}  // namespace linreg::torch_ops
