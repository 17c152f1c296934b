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

// For one or several problems that differ in their operands alone, of which x is the same; kMostTogether at most, and
// several only if not by_products. Their sums are in the workspace.
size_t pass_workspace(const Problem& problem, int64_t problems, const PassOutputs& outputs);

// `divisors` are those of the gradients.
void run_pass(const Problem* problems, int64_t count, const PassOutputs& outputs, const double* divisors,
              PassSums* sums, void* workspace);

// A step for each of such problems, by the rules and parameters of its run. Writes the losses `stride` bytes apart.
size_t steps_workspace(const Problem& problem, int64_t count);
void sgd_steps(const Problem* problems, const SingleRun* runs, int64_t count, bool skip_nonfinite, char* losses,
               int64_t stride, void* workspace);

// All steps of such problems' runs, whose batches are the same. Their parameters are then no longer new. The losses of
// each run begin `stride` bytes apart.
size_t runs_workspace(const SingleRun& run, int64_t count);
void sgd_runs(SingleRun* runs, int64_t count, char* losses, int64_t stride, void* workspace);

// The divisor of the sums: 1 for a sum, n k or Σ v for a mean.
double reduction_divisor(const Problem& problem);

// Whether a problem has enough targets for the pass by the matrix products of Problem::multiply. Does not depend on the
// number of threads.
bool by_products(const Problem& problem, const PassOutputs& outputs);

// Like pass_workspace and run_pass.
size_t products_workspace(const Problem& problem, const PassOutputs& outputs);
PassSums run_products(const Problem& problem, const PassOutputs& outputs, const Scale& scale, void* workspace);

}  // namespace linreg::cpu
