// SPDX-License-Identifier: BSD-3-Clause
// What a pass kernel is told, what it makes of a residual, and the order of the sums that its blocks leave for the last
// of them.
#pragma once

#include "../linreg.h"
#include "../math/with_loss.h"
#include "number.cuh"

namespace linreg::cuda {

// What the block that finishes does with the sums: hands out gradients, or applies the rule.
struct Finish {
  void* loss = nullptr;  // 0-dim, of its loss_dtype; nullptr: every element was written by the pass
  bool step = false;     // the rule is wanted, not gradients
  Gradients gradients;
  Sgd sgd;
  Parameter weight, bias;
  Skip skip;
};

struct Pass {
  Problem problem;
  ProductSums products;                    // of a pass by matrix products, whose weight sums are not in a line
  bool weight_sum = false;                 // Gᵀ X is wanted
  void* input_gradient = nullptr;          // scale · G W, [n, d] in x's gradient_dtype
  void* target_gradient = nullptr;         // −scale · G, [n, k] in y's gradient_dtype
  void* elements = nullptr;                // v ℓ(R), [n, k]
  Dtype elements_dtype = Dtype::float32;   // loss_dtype, found before the launch: finding it in a thread makes it spill
  double scale = 1;                        // of the gradients above and of all sums
  const double* weighted_scale = nullptr;  // in its place: 1 / Σ v, where the gradients above must know it
  Finish finish;
  Layout layout;
  double* partials = nullptr;  // a line for each block, line_stride apart
  int64_t line_stride = 0;
  unsigned* counters = nullptr;
};

// Launches the kernel of a plan (tiles.cuh). Each dtype of X is compiled on its own (pass_*.cu).
template <Dtype kX>
const char* launch_pass(const Plan& plan, const Pass& pass, void* stream);
using LaunchPass = const char*(const Plan&, const Pass&, void*);

// A block's line of sums: of each target the loss, Σ v and Σ G, [3, k]; then, where it is wanted, Gᵀ X [k, d].
LINREG_MATH constexpr int64_t loss_sums(const Problem&) { return 0; }
LINREG_MATH constexpr int64_t weight_totals(const Problem& p) { return p.k; }
LINREG_MATH constexpr int64_t bias_sums(const Problem& p) { return 2 * p.k; }
LINREG_MATH constexpr int64_t weight_sums(const Problem& p) { return 3 * p.k; }
LINREG_MATH constexpr int64_t sum_count(const Problem& p, bool weight_sum) {
  return weight_sums(p) + (weight_sum ? p.k * p.d : 0);
}

// X Wᵀ + b − Y. The target comes before the bias: it is near the prediction, so that their difference is small. A bias
// that is added to a large prediction is rounded alike in many rows, an error that adds up in its gradient.
template <class T>
LINREG_DEVICE T difference(T product, T bias, T target) {
  return product - target + bias;
}

// v ℓ(r) and v ℓ'(r) of a residual.
template <class T>
struct Residual {
  T loss, dloss;
};

template <Loss kLoss, class T>
LINREG_DEVICE Residual<T> residual(T r, T v, T delta) {
  return {v * loss_value<kLoss>(r, delta), v * dloss<kLoss>(r, delta)};
}

// What the gradients that a pass writes are multiplied by.
LINREG_DEVICE double pass_scale(const Pass& pass) { return pass.weighted_scale ? *pass.weighted_scale : pass.scale; }

// What is written of the residual of row i and target t.
template <class T>
LINREG_DEVICE void write_residual(const Pass& pass, T scale, int64_t i, int64_t t, const Residual<T>& of) {
  const Problem& p = pass.problem;
  if (pass.elements) store_number(pass.elements, pass.elements_dtype, i * p.k + t, of.loss);
  if (pass.target_gradient)
    store_number(pass.target_gradient, gradient_dtype(p.y.dtype), i * p.k + t, -(scale * of.dloss));
}

}  // namespace linreg::cuda
