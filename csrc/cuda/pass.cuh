// SPDX-License-Identifier: BSD-3-Clause
// The parameters of a pass kernel, the results for a residual, and the layout of the sums that each block stores.
#pragma once

#include "../linreg.h"
#include "../math/with_loss.h"
#include "number.cuh"

namespace linreg::cuda {

// The work of the last block: to write gradients or to apply the rule.
struct Finish {
  void* loss = nullptr;  // 0-dim, in the loss_dtype; nullptr: the pass writes every element
  bool step = false;     // apply the rule instead of writing gradients
  Gradients gradients;
  Sgd sgd;
  Parameter weight, bias;
  Skip skip;
};

struct Pass {
  Problem problem;
  ProductSums products;                    // for a pass by matrix products, whose weight sums are not in a line
  bool weight_sum = false;                 // Gᵀ X is wanted
  void* input_gradient = nullptr;          // scale · G W, [n, d] in x's gradient_dtype
  void* target_gradient = nullptr;         // −scale · G, [n, k] in y's gradient_dtype
  void* elements = nullptr;                // v ℓ(R), [n, k]
  Dtype elements_dtype = Dtype::float32;   // the loss_dtype; finding it in the kernel makes it spill
  double scale = 1;                        // of the gradients above
  const double* weighted_scale = nullptr;  // replaces scale for a weighted mean: 1 / Σ v
  Finish finish;
  Layout layout;
  double* partials = nullptr;  // the blocks' lines, line_stride apart
  int64_t line_stride = 0;
  unsigned* counters = nullptr;
};

// Launches the kernel of a plan (tiles.cuh). Each dtype of X has its own translation unit (pass_*.cu).
template <Dtype kX>
const char* launch_pass(const Plan& plan, const Pass& pass, void* stream);
using LaunchPass = const char*(const Plan&, const Pass&, void*);

// A block's line of sums: the loss, Σ v and Σ G of each target, [3, k], then Gᵀ X [k, d] if requested.
LINREG_MATH constexpr int64_t loss_sums(const Problem&) { return 0; }
LINREG_MATH constexpr int64_t weight_totals(const Problem& p) { return p.k; }
LINREG_MATH constexpr int64_t bias_sums(const Problem& p) { return 2 * p.k; }
LINREG_MATH constexpr int64_t weight_sums(const Problem& p) { return 3 * p.k; }
LINREG_MATH constexpr int64_t sum_count(const Problem& p, bool weight_sum) {
  return weight_sums(p) + (weight_sum ? p.k * p.d : 0);
}

// X Wᵀ + b − Y. The target comes before the bias: it is close to the prediction, so their difference is small. Adding
// the bias to a large prediction would round it alike in many rows, an error that accumulates in the bias's gradient.
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

// The factor of the gradients that a pass writes row by row.
LINREG_DEVICE double pass_scale(const Pass& pass) { return pass.weighted_scale ? *pass.weighted_scale : pass.scale; }

// Writes the requested results for the residual of row i and target t.
template <class T>
LINREG_DEVICE void write_residual(const Pass& pass, T scale, int64_t i, int64_t t, const Residual<T>& of) {
  const Problem& p = pass.problem;
  if (pass.elements) store_number(pass.elements, pass.elements_dtype, i * p.k + t, of.loss);
  if (pass.target_gradient)
    store_number(pass.target_gradient, gradient_dtype(p.y.dtype), i * p.k + t, -(scale * of.dloss));
}

}  // namespace linreg::cuda
