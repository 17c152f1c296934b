// SPDX-License-Identifier: BSD-3-Clause
// The pass over the rows on a CPU, from which every operation in this folder is built.
#pragma once

#include "../linreg.h"

namespace linreg::cpu {

// The requested outputs of a pass beside the loss sum.
struct PassOutputs {
  bool weight_sum = false;          // Gᵀ X
  bool bias_sum = false;            // Σ G over rows
  void* input_gradient = nullptr;   // G W, [n, d] in x's gradient_dtype
  void* target_gradient = nullptr;  // −G, [n, k] in y's gradient_dtype
  void* elements = nullptr;         // v ℓ(R), [n, k] in its loss_dtype
};

// The sums of a pass, in its workspace. The gradients are scaled; the loss is not.
struct PassSums {
  double loss = 0;
  const double* weight = nullptr;  // [k, d]
  const double* bias = nullptr;    // [k]
};

// The divisor of the gradients, applied in two steps. The kernels multiply by a power of two, which is exact and keeps
// sums over rows in range. Then each sum is divided by the rest, between 1 and 2, which rounds it once.
struct Scale {
  double power = 1, rest = 1;
};

size_t pass_workspace(const Problem& problem, const PassOutputs& outputs);

// `divisor` is the divisor of the gradients.
PassSums run_pass(const Problem& problem, const PassOutputs& outputs, double divisor, void* workspace);

// The divisor of the sums: 1 for a sum, n k or Σ v for a mean.
double reduction_divisor(const Problem& problem);

// Whether a problem has enough targets for the pass by the matrix products of Problem::multiply. Does not depend on the
// number of threads.
bool by_products(const Problem& problem, const PassOutputs& outputs);

// Like pass_workspace and run_pass.
size_t products_workspace(const Problem& problem, const PassOutputs& outputs);
PassSums run_products(const Problem& problem, const PassOutputs& outputs, const Scale& scale, void* workspace);

}  // namespace linreg::cpu
