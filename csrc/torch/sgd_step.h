// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <string_view>

#include "check.h"

namespace linreg::torch_ops {

// linreg_ext::sgd_step_ on a CPU, for the dispatcher and for the direct entry; returns the loss.
at::Tensor sgd_step_cpu(const Operands& operands, std::string_view loss, double delta, std::string_view reduction,
                        const SgdArguments& sgd);

// The same through the dispatcher, whatever the tensors are.
at::Tensor sgd_step_dispatched(const Operands& operands, std::string_view loss, double delta,
                               std::string_view reduction, const SgdArguments& sgd);

}  // namespace linreg::torch_ops
