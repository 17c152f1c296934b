// SPDX-License-Identifier: BSD-3-Clause
// The pass over the rows on a CPU: what the operations in this folder are made of.
#pragma once

#include "../linreg.h"

namespace linreg::cpu {

// What a pass is asked for beside the loss sum.
struct PassOutputs {
  bool weight_sum = false;          // Gᵀ X
  bool bias_sum = false;            // Σ G over rows
  void* input_gradient = nullptr;   // G W, [n, d] in x's gradient_dtype
  void* target_gradient = nullptr;  // −G, [n, k] in y's gradient_dtype
  void* elements = nullptr;         // v ℓ(R), [n, k] in its loss_dtype
};

// The sums of a pass, in its workspace: the loss before scaling, the gradients after it.
struct PassSums {
  double loss = 0;
  const double* weight = nullptr;  // [k, d]
  const double* bias = nullptr;    // [k]
};

// What the gradients are divided by, in two steps: the kernels multiply by a power of two, which rounds nothing and
// keeps sums over rows in range; then a sum is divided by the rest, between 1 and 2, for which it is rounded once.
struct Scale {
  double power = 1, rest = 1;
};

size_t pass_workspace(const Problem& problem, const PassOutputs& outputs);

// `divisor` is what the gradients are divided by.
PassSums run_pass(const Problem& problem, const PassOutputs& outputs, double divisor, void* workspace);

// What the sums are divided by: 1 for a sum, n k or Σ v for a mean.
double reduction_divisor(const Problem& problem);

// The pass over many targets, by matrix products that Problem::multiply makes.
// Whether this is the way for a problem. It does not depend on threads.
bool by_products(const Problem& problem, const PassOutputs& outputs);

// As pass_workspace and run_pass.
size_t products_workspace(const Problem& problem, const PassOutputs& outputs);
PassSums run_products(const Problem& problem, const PassOutputs& outputs, const Scale& scale, void* workspace);

}  // namespace linreg::cpu
