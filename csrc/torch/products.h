// SPDX-License-Identifier: BSD-3-Clause
// The pass over many targets, where PyTorch's own matrix products are faster than any loop: rows in blocks that stay in
// cache between the product that predicts them and the one that sums their gradient, with a kernel between the two.
#pragma once

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

  ProductSums sums() const;

 private:
  at::Tensor sums_;    // [3, K] double
  at::Tensor weight_;  // [K, D] float or double
};

}  // namespace linreg::torch_ops
