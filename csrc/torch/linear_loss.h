// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <string_view>
#include <tuple>
#include <vector>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

// linreg_ext::linear_loss and linear_loss_grads, for the dispatcher and for the direct entry.
at::Tensor linear_loss(const Operands& operands, std::string_view loss, double delta, std::string_view reduction);

// The loss and the gradients that are wanted of a checked problem, by matrix products or by the device's own kernel.
void compute_loss(const char* op, const Backend& backend, c10::Device device, Problem& problem,
                  const Gradients& gradients, void* loss);

// `wanted` and the gradients are in the order of linreg_ext.autograd.OPERANDS: input, weight, bias, target.
std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(const Operands& operands, std::string_view loss,
                                                                  double delta, std::string_view reduction,
                                                                  std::array<bool, 4> wanted);

}  // namespace linreg::torch_ops
