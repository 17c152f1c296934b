// SPDX-License-Identifier: BSD-3-Clause
// The pass over many targets, where PyTorch's own matrix products are faster than any loop: rows in blocks that stay in
// cache between the product that predicts them and the one that sums their gradient, with a kernel between the two.
#pragma once

#include <optional>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {

class Products {
 public:
  // Whether this is the way for a problem.
  static bool suit(const char* op, const Backend& backend, c10::Device device, const Problem& problem,
                   const Gradients& gradients);

  // Goes over the rows and writes what is wanted of each: gradients.input and .target, and `elements`, v ℓ(R). What is
  // summed over rows is then in sums(); of it gradients.weight says whether the weight's gradient is wanted.
  Products(const char* op, const Backend& backend, c10::Device device, const Problem& problem,
           const Gradients& gradients, void* elements);

  // For a step: the same, and where the rule is no more than W ← β W + α Gᵀ X, with numbers that are known here, the
  // second product updates W itself.
  Products(const char* op, const Backend& backend, c10::Device device, const Problem& problem, const Sgd& sgd,
           const Parameter& weight, bool skip_nonfinite);

  ProductSums sums() const;
  bool weight_updated() const { return update_.has_value(); }

 private:
  struct Update {
    at::Tensor weight;
    double beta, alpha;
  };

  void run(const char* op, const Backend& backend, c10::Device device, const Problem& problem,
           const Gradients& gradients, void* elements);

  std::optional<Update> update_;
  at::Tensor sums_;    // [3, K] double
  at::Tensor weight_;  // [K, D] float or double
};

}  // namespace linreg::torch_ops
