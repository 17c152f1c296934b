// SPDX-License-Identifier: BSD-3-Clause
// The loss of a residual and its derivative, their sums, and what is written of them.
#pragma once

#include "../math/with_loss.h"
#include "number.cuh"
#include "pass.cuh"

namespace linreg::cuda {

// v ℓ(r) and v ℓ'(r) of a residual.
template <class T>
struct Residual {
  T loss, dloss;
};

template <Loss kLoss, class T>
LINREG_DEVICE Residual<T> residual(T r, T v, T delta) {
  return {v * loss_value<kLoss>(r, delta), v * dloss<kLoss>(r, delta)};
}

LINREG_DEVICE Residual<double> residual(const Problem& p, double r, double v) {
  Residual<double> of;
  with_loss(p.loss, [&]<Loss kLoss>() { of = residual<kLoss>(r, v, p.delta); });
  return of;
}

// The sums over the residuals of one target that a thread keeps.
struct ResidualSums {
  double loss = 0, weight_total = 0, dloss = 0;

  LINREG_DEVICE void add(const Residual<double>& of, double v) {
    loss += of.loss;
    weight_total += v;
    dloss += of.dloss;
  }
};

// What is written of the residual of row i and target t.
LINREG_DEVICE void write_residual(const Pass& pass, double scale, int64_t i, int64_t t, const Residual<double>& of) {
  const Problem& p = pass.problem;
  if (pass.elements) store_number(pass.elements, pass.elements_dtype, i * p.k + t, of.loss);
  if (pass.target_gradient)
    store_number(pass.target_gradient, gradient_dtype(p.y.dtype), i * p.k + t, -(scale * of.dloss));
}

// What the gradients that a pass writes are multiplied by.
LINREG_DEVICE double pass_scale(const Pass& pass) { return pass.weighted_scale ? *pass.weighted_scale : pass.scale; }

}  // namespace linreg::cuda
