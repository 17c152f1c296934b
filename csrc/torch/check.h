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

// Tensors are passed by reference, or by pointer if optional: updating the reference count of a tensor that Python
// holds costs as much as a small step.
inline const at::Tensor* given(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

// The operands of a call, named as in the public functions.
struct Operands {
  const at::Tensor& input;          // [*, D]
  const at::Tensor& linear_weight;  // [K, D] or [D]
  const at::Tensor& target;         // [*, K] or [*]
  const at::Tensor* linear_bias;    // [K], or [] or [1] beside [D]
  const at::Tensor* weight;         // target's shape, or [*] or [*, 1]
};

// A checked problem, with copies of the operands that no View can describe.
struct Checked {
  Problem problem;
  at::Tensor copies[5];
};

struct Objective {
  std::string_view loss;
  double delta;  // the loss's threshold
  std::string_view reduction;
};

Checked check_problem(std::string_view op, const Operands& operands, const Objective& objective);

// Raises unless the group of a row of least squares is in range.
void check_group(const char* op, int64_t index, int64_t row, int64_t groups);

// Raises unless a target has the shape of `rows` followed by `outputs`.
void check_target(std::string_view op, at::IntArrayRef rows, at::IntArrayRef outputs, const at::Tensor& target);

// The operands of the first of many problems, and the strides in bytes to those of the next. Operands with a dimension
// less than usual are shared.
struct FirstProblem {
  at::Tensor input, linear_weight, target, linear_bias, weight;
  Many strides;

  Operands operands() const {
    return {input, linear_weight, target, linear_bias.defined() ? &linear_bias : nullptr,
            weight.defined() ? &weight : nullptr};
  }
};
FirstProblem first_problem(std::string_view op, const Operands& operands, bool by_offsets);

// The keyword of a loss's threshold.
std::string_view threshold_of(std::string_view loss);

// The hyper-parameters of the rule, and its state for [linear_weight, linear_bias].
struct SgdArguments {
  Sgd rule;                               // without lr_on_device
  const at::Tensor* lr_tensor = nullptr;  // replaces rule.lr
  // Of many runs, one number for each; replace the rule's.
  const at::Tensor *momentum_tensor = nullptr, *weight_decay_tensor = nullptr;
  std::array<const at::Tensor*, 2> momentum_buffers{};
  std::array<bool, 2> first_step{};  // the buffer is initialised, not read
  std::array<bool, 2> frozen{};      // the parameter is read, not updated, and needs no buffer
  bool skip_nonfinite = false;       // change nothing if the loss is nan or inf
  int64_t steps = 1;                 // of a run; lr_tensor may have one number per step (of many runs, per run)
};

// A tensor and its name in messages; nullptr: not given.
struct Named {
  const char* name;
  const at::Tensor* tensor;
};

// The names of a tensor that a step would write and of one that overlaps it in memory, which may be "itself".
std::optional<std::pair<const char*, const char*>> find_overlap(const Operands& operands, const SgdArguments& sgd);

// Checks the hyper-parameters and the state, and that nothing written overlaps.
void check_sgd(std::string_view op, const Operands& operands, const Objective& objective, const SgdArguments& sgd,
               std::initializer_list<Named> also_read = {});

// Checks one rule; `has_lr` is false if a tensor replaces its learning rate.
void check_rule(std::string_view op, const Sgd& rule, bool has_lr = true);

struct RunArguments {
  const at::Tensor* order;  // int64, [rows of an epoch] or [epochs, rows of an epoch]; nullptr: all rows in sequence
  int64_t batch_size;
  bool drop_last;  // drop a smaller last batch
  int64_t epochs, begin, end;
};

// The steps of a run over `rows` rows, without order and learning rates. The indices of an order on the CPU are
// checked: all of them if the run begins at its first step, else those of the epochs it covers.
Run check_run(std::string_view op, const RunArguments& run, int64_t rows, c10::Device device);

struct ManyArguments {
  RunArguments run;  // of each problem, without begin and end
  const at::Tensor* offsets;
  int64_t begin, end;  // the problems
};

// Many problems with the steps of `run`, which has the rows of all or, with offsets, the length of the order. Offsets
// and an order on the CPU are checked: all of them if the first problem is taken, else those of the problems.
Many check_many(std::string_view op, const ManyArguments& many, const Run& run, int64_t problems, int64_t rows);

Dtype dtype_of(const at::Tensor& tensor);
at::ScalarType scalar_type_of(Dtype dtype);

// A parameter to read and write in place. If its columns are not contiguous, `copy` takes its place, and the caller
// copies it back.
Rows rows_of(const at::Tensor& tensor, at::Tensor& copy);

}  // namespace linreg::torch_ops
