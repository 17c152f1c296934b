// SPDX-License-Identifier: BSD-3-Clause
// The loss of a residual and its derivative, and what is written of them.
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

template <class T>
LINREG_DEVICE Residual<T> residual(const Problem& p, T r, T v) {
  Residual<T> of;
  with_loss(p.loss, [&]<Loss kLoss>() { of = residual<kLoss>(r, v, T(p.delta)); });
  return of;
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
