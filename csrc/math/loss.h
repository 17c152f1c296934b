// SPDX-License-Identifier: BSD-3-Clause
// The losses ℓ(r) of one residual r and their derivatives, with torch.nn.functional's conventions: sign(0) = 0, and
// sign(nan) = 0 for l1 while the others hand a nan on.
#pragma once

#include "../linreg.h"
#include "inline.h"

namespace linreg {

template <Loss kLoss, class T>
LINREG_MATH T loss_value(T r, T delta) {
  const T z = r < T(0) ? -r : r;
  if constexpr (kLoss == Loss::mse) return r * r;
  if constexpr (kLoss == Loss::l1) return z;
  if constexpr (kLoss == Loss::huber) return z <= delta ? T(0.5) * z * z : delta * (z - T(0.5) * delta);
  if constexpr (kLoss == Loss::smooth_l1) return z < delta ? T(0.5) * z * z / delta : z - T(0.5) * delta;
}

template <Loss kLoss, class T>
LINREG_MATH T loss_slope(T r, T delta) {
  if constexpr (kLoss == Loss::mse) return T(2) * r;
  if constexpr (kLoss == Loss::l1) return T(r > T(0)) - T(r < T(0));
  if constexpr (kLoss == Loss::huber) return r <= -delta ? -delta : r >= delta ? delta : r;
  if constexpr (kLoss == Loss::smooth_l1) return r <= -delta ? T(-1) : r >= delta ? T(1) : r / delta;
}

// smooth_l1 with β = 0 is l1, and is computed as l1 so that 0 / 0 never arises.
LINREG_MATH Loss effective_loss(Loss loss, double delta) {
  return loss == Loss::smooth_l1 && delta == 0 ? Loss::l1 : loss;
}

}  // namespace linreg
