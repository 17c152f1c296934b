// SPDX-License-Identifier: BSD-3-Clause
// The losses ℓ(r) of one residual r, or of a vector T of them, and their derivatives, with torch.nn.functional's
// conventions: sign(0) = 0, and sign(nan) = 0 for l1 while the others hand a nan on.
#pragma once

#include "../linreg.h"
#include "inline.h"

namespace linreg {

// A number as a T: itself, or a vector filled with it.
template <class T>
LINREG_MATH T filled(const T&, T number) {
  return number;
}
template <class T, class S>
LINREG_MATH T filled(const T&, S number) {
  return T{} + number;
}

template <Loss kLoss, class T, class S>
LINREG_MATH T loss_value(T r, S delta) {
  const T z = r < T{} ? -r : r;
  if constexpr (kLoss == Loss::mse) return r * r;
  if constexpr (kLoss == Loss::l1) return z;
  if constexpr (kLoss == Loss::huber) return z <= delta ? S(0.5) * z * z : delta * (z - S(0.5) * delta);
  if constexpr (kLoss == Loss::smooth_l1) return z < delta ? S(0.5) * z * z / delta : z - S(0.5) * delta;
}

template <Loss kLoss, class T, class S>
LINREG_MATH T loss_slope(T r, S delta) {
  const T one = filled(r, S(1)), bound = filled(r, delta);
  if constexpr (kLoss == Loss::mse) return S(2) * r;
  if constexpr (kLoss == Loss::l1) return (r > T{} ? one : T{}) - (r < T{} ? one : T{});
  if constexpr (kLoss == Loss::huber) return r <= -delta ? -bound : r >= delta ? bound : r;
  if constexpr (kLoss == Loss::smooth_l1) return r <= -delta ? -one : r >= delta ? one : r / delta;
}

// smooth_l1 with β = 0 is l1, and is computed as l1 so that 0 / 0 never arises.
LINREG_MATH Loss effective_loss(Loss loss, double delta) {
  return loss == Loss::smooth_l1 && delta == 0 ? Loss::l1 : loss;
}

}  // namespace linreg
