// SPDX-License-Identifier: BSD-3-Clause
// The operators as C++ calls them; ops.cpp registers them.
#pragma once

#include <array>
#include <string_view>
#include <tuple>
#include <vector>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

at::Tensor linear_loss(const Operands& operands, const Objective& objective);

// `wanted` and the gradients are in the order of linreg_ext.autograd.OPERANDS: input, weight, bias, target.
std::tuple<at::Tensor, std::vector<at::Tensor>> linear_loss_grads(const Operands& operands, const Objective& objective,
                                                                  std::array<bool, 4> wanted);

// Takes one step and returns the loss before it.
at::Tensor sgd_step(const Operands& operands, const Objective& objective, const SgdArguments& sgd);

// The losses, the validation losses and how many steps were taken.
using RunResults = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

// Takes the steps [begin, end) of a run, so that whoever calls can do a run in stretches, to be interrupted or to show
// progress between them.
RunResults sgd_run(const Operands& operands, const Objective& objective, SgdArguments sgd, const RunArguments& order,
                   const at::Tensor* validation_input, const at::Tensor* validation_target);

// The loss with its derivative, recorded by autograd.
at::Tensor differentiable_loss(const Operands& operands, const Objective& objective);

// linear_loss and sgd_step on a checked problem, by matrix products or by the device's own kernel.
void compute_loss(const char* op, const Backend& backend, c10::Device device, Problem& problem,
                  const Gradients& gradients, void* loss);
void take_step(const char* op, const Backend& backend, c10::Device device, Problem& problem, const Sgd& sgd,
               const Parameter& weight, const Parameter& bias, const Skip& skip, void* loss);

}  // namespace linreg::torch_ops
