// SPDX-License-Identifier: BSD-3-Clause
// From tensors to the kernels' structs: the one place that checks arguments. linreg_ext/check.py says the same in the
// same words for the reference and the fake kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "../linreg.h"

namespace linreg::torch_ops {

using OptionalTensor = std::optional<at::Tensor>;

// The operands of one call, as the public functions name them.
struct Operands {
  const at::Tensor& input;            // [*, D]
  const at::Tensor& linear_weight;    // [K, D] or [D]
  const at::Tensor& target;           // [*, K] or [*]
  const OptionalTensor& linear_bias;  // [K], or [] or [1] beside [D]
  const OptionalTensor& weight;       // target's shape, or [*] or [*, 1]
};

// A checked problem, with the copies of operands that cannot be read in place (see Rows and View in linreg.h).
struct Checked {
  Problem problem;
  at::Tensor copies[5];
};

Checked check_problem(std::string_view op, const Operands& operands, std::string_view loss, double delta,
                      std::string_view reduction);

struct SgdArguments {
  const OptionalTensor &weight_momentum_buffer, &bias_momentum_buffer;
  const OptionalTensor& lr_tensor;
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;
  bool weight_frozen, bias_frozen;  // a parameter that is not updated needs no buffer
};

// Checks the hyper-parameters and the state, and that nothing that is written overlaps itself or anything else.
void check_sgd(std::string_view op, const Operands& operands, std::string_view reduction, const SgdArguments& sgd);

Dtype dtype_of(const at::Tensor& tensor);

// A parameter as rows, read and written in place. What cannot be (columns that are not contiguous) is copied into
// `copy`, which the caller copies back.
Rows rows_of(const at::Tensor& tensor, at::Tensor& copy);

}  // namespace linreg::torch_ops
