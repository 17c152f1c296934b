// SPDX-License-Identifier: BSD-3-Clause
// A GPU's pass over many targets or very wide rows, for which PyTorch's matrix products are fastest: blocks of rows,
// with a kernel between the product for the predictions and the one for the gradient. The device's plan chooses the
// blocks.
#pragma once

#include <optional>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

// 1 / Σ v as a double on the device, for gradients of a weighted mean that are written row by row; otherwise undefined.
at::Tensor weighted_scale(const Problem& problem, const Gradients& gradients, c10::Device device);

class Products {
 public:
  // Reads the rows and writes per-row results: gradients.input and .target, and `elements`, v ℓ(R). The sums over rows
  // are then in sums(), with the weight's gradient if gradients.weight is not nullptr.
  Products(const char* op, const Backend& backend, c10::Device device, const Problem& problem, const Plan& plan,
           const Gradients& gradients, void* elements);

  // For a step: if the rule is W ← β W + α Gᵀ X with β and α known here, the second product updates W itself.
  Products(const char* op, const Backend& backend, c10::Device device, const Problem& problem, const Plan& plan,
           const Sgd& sgd, const Parameter& weight, bool skip_nonfinite);

  ProductSums sums() const;
  bool weight_updated() const { return update_.has_value(); }

 private:
  struct Update {
    at::Tensor weight;
    double beta, alpha;
  };

  void run(const char* op, const Backend& backend, c10::Device device, Problem problem, const Plan& plan,
           const Gradients& gradients, void* elements);

  std::optional<Update> update_;
  at::Tensor sums_;    // [3, K] double
  at::Tensor weight_;  // [K, D] float or double
};

}  // namespace linreg::torch_ops
