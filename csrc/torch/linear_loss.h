// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <string_view>
#include <tuple>
#include <vector>

#include "check.h"

namespace linreg::torch_ops {

// linreg_ext::linear_loss and linear_loss_grads, for the dispatcher and for the direct entry.
at::Tensor linear_loss(const Operands& operands, std::string_view loss, double delta, std::string_view reduction);

// `wanted` and the gradients are in the order of linreg_ext.autograd.OPERANDS: input, weight, bias, target.
std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(const Operands& operands, std::string_view loss,
                                                                  double delta, std::string_view reduction,
                                                                  std::array<bool, 4> wanted);

}  // namespace linreg::torch_ops
