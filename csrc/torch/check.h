// SPDX-License-Identifier: BSD-3-Clause
// From tensors to the kernels' structs: the one place that checks arguments.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <string_view>
#include <utility>

#include "../linreg.h"

namespace linreg::torch_ops {

using OptionalTensor = std::optional<at::Tensor>;

// Tensors are passed on by reference or, where they may be missing, by pointer: copying one counts references, which
// for a tensor that Python holds costs as much as a small step.
inline const at::Tensor* given(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

// The operands of one call, as the public functions name them.
struct Operands {
  const at::Tensor& input;          // [*, D]
  const at::Tensor& linear_weight;  // [K, D] or [D]
  const at::Tensor& target;         // [*, K] or [*]
  const at::Tensor* linear_bias;    // [K], or [] or [1] beside [D]
  const at::Tensor* weight;         // target's shape, or [*] or [*, 1]
};

// A checked problem, with the copies of operands that cannot be read in place (see Rows and View in linreg.h).
struct Checked {
  Problem problem;
  at::Tensor copies[5];
};

// What a pass computes of the residuals.
struct Objective {
  std::string_view loss;
  double delta;  // the loss's own number
  std::string_view reduction;
};

Checked check_problem(std::string_view op, const Operands& operands, const Objective& objective);

// Raises unless a target has the shape of `rows` followed by `outputs`.
void check_target(std::string_view op, at::IntArrayRef rows, at::IntArrayRef outputs, const at::Tensor& target);

// The keyword of a loss's own number.
std::string_view threshold_of(std::string_view loss);

// What the rule needs beside the operands: its settings, and its state for [linear_weight, linear_bias].
struct SgdArguments {
  Sgd rule;                               // without lr_on_device
  const at::Tensor* lr_tensor = nullptr;  // in place of rule.lr
  std::array<const at::Tensor*, 2> momentum_buffers{};
  std::array<bool, 2> first_step{};  // the buffer is filled, not read
  std::array<bool, 2> frozen{};      // the parameter is read, not updated, and needs no buffer
  bool skip_nonfinite = false;       // change nothing when the loss is nan or inf
  int64_t steps = 1;                 // of a run: lr_tensor may have a number for each
};

// A tensor and what to call it; nullptr: it was not given.
struct Named {
  const char* name;
  const at::Tensor* tensor;
};

// What a step would write while it shares memory with something else, and that, which may be "itself".
std::optional<std::pair<const char*, const char*>> find_overlap(const Operands& operands, const SgdArguments& sgd);

// Checks the hyper-parameters and the state, and that there is no overlap.
void check_sgd(std::string_view op, const Operands& operands, const Objective& objective, const SgdArguments& sgd,
               std::initializer_list<Named> also_read = {});

// What orders the steps of a run over `rows` rows.
struct RunArguments {
  const at::Tensor* order;  // [rows of an epoch] or [epochs, rows of an epoch] int64; nullptr: every row in turn
  int64_t batch_size;
  bool drop_last;  // a last batch that is shorter
  int64_t epochs, begin, end;
};

// The run's order of steps, without `order` and learning rates. An order that is on the CPU is read: all rows that it
// names when the run begins at its first step, else those of the steps to be taken.
Run check_run(std::string_view op, const RunArguments& run, int64_t rows, c10::Device device);

Dtype dtype_of(const at::Tensor& tensor);
at::ScalarType scalar_type_of(Dtype dtype);

// A parameter as rows, read and written in place. What cannot be (columns that are not contiguous) is copied into
// `copy`, which the caller copies back.
Rows rows_of(const at::Tensor& tensor, at::Tensor& copy);

}  // namespace linreg::torch_ops
