// SPDX-License-Identifier: BSD-3-Clause
// From a dot product to a residual, its loss and its slope, and what is written of them.
#pragma once

#include "../math/with_loss.h"
#include "number.cuh"
#include "pass.cuh"

namespace linreg::cuda {

// The sums over the residuals of one target that a thread keeps.
struct ResidualSums {
  double loss = 0, weight_total = 0, slope = 0;
};

// Adds the loss and the slope v ℓ'(r) of a residual to the sums and returns the slope.
template <Loss kLoss>
LINREG_DEVICE double add_residual(double r, double v, double delta, ResidualSums& sums) {
  const double slope = v * dloss<kLoss>(r, delta);
  sums.loss += v * loss_value<kLoss>(r, delta);
  sums.weight_total += v;
  sums.slope += slope;
  return slope;
}

// What is written of the residual of row i and target t.
template <Loss kLoss>
LINREG_DEVICE void write_residual(const Pass& pass, double scale, int64_t i, int64_t t, double r, double v) {
  const Problem& p = pass.problem;
  if (pass.elements) store_number(pass.elements, pass.elements_dtype, i * p.k + t, v * loss_value<kLoss>(r, p.delta));
  if (pass.target_gradient)
    store_number(pass.target_gradient, gradient_dtype(p.y.dtype), i * p.k + t,
                 -(scale * (v * dloss<kLoss>(r, p.delta))));
}

// What the gradients that a pass writes are multiplied by.
LINREG_DEVICE double pass_scale(const Pass& pass) { return pass.weighted_scale ? *pass.weighted_scale : pass.scale; }

}  // namespace linreg::cuda
