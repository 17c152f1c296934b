// SPDX-License-Identifier: BSD-3-Clause
// From tensors to the kernels' structs: the one place that checks arguments. linreg_ext/check.py says the same in the
// same words for the reference and the fake kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <string_view>

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

Checked check_problem(std::string_view op, const Operands& operands, std::string_view loss, double delta,
                      std::string_view reduction);

// What the rule needs beside the operands.
struct SgdArguments {
  const at::Tensor *weight_momentum_buffer, *bias_momentum_buffer;
  const at::Tensor* lr_tensor;  // in place of lr
  double lr, momentum, dampening, weight_decay;
  bool nesterov, maximize;
  bool weight_first_step, bias_first_step;  // the buffer is filled, not read
  bool weight_frozen, bias_frozen;          // the parameter is read, not updated, and needs no buffer
  bool skip_nonfinite;                      // change nothing when the loss is nan or inf
  int64_t steps = 1;                        // of a run: lr_tensor may have a number for each
};

// A tensor and what to call it; nullptr: it was not given.
struct Named {
  const char* name;
  const at::Tensor* tensor;
};

// Two arguments of a step by name, the first of which it writes; `other` is nullptr for one that overlaps itself.
struct Overlap {
  const char *name, *other;
};

// Those that share memory, if any do, `also_read` included.
std::optional<Overlap> find_overlap(const Operands& operands, const SgdArguments& sgd,
                                    std::initializer_list<Named> also_read = {});

// Checks the hyper-parameters and the state, and that there is no overlap.
void check_sgd(std::string_view op, const Operands& operands, std::string_view reduction, const SgdArguments& sgd,
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
