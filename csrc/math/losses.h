// SPDX-License-Identifier: BSD-3-Clause
// The table of losses. Everything that depends on the loss comes from it. Only mse has shorter code besides, where
// speed needs it (with_loss.h, small_steps.cpp).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "inline.h"

namespace linreg {

// A row holds a loss's name; its threshold's name, condition, and condition in words; and ℓ(r) and dℓ/dr for a residual
// r or a vector of them, where z = |r| and delta is the threshold. The conventions are those of torch.nn.functional:
// sign(0) = 0. For l1, sign(nan) = 0, too; the other losses propagate nan.
// clang-format off
#define LINREG_LOSSES(LOSS)                                                                       \
  LOSS(mse, "", true, "",                                                                         \
       r * r,                                                                                     \
       S(2) * r)                                                                                  \
  LOSS(l1, "", true, "",                                                                          \
       z,                                                                                         \
       (r > T{} ? one : T{}) - (r < T{} ? one : T{}))                                             \
  LOSS(huber, "delta", delta > 0, "> 0",                                                          \
       z <= delta ? S(0.5) * z * z : delta * (z - S(0.5) * delta),                                \
       r <= -delta ? -bound : r >= delta ? bound : r)                                             \
  LOSS(smooth_l1, "beta", delta >= 0, ">= 0",                                                     \
       z < delta ? S(0.5) * z * z / delta : z - S(0.5) * delta,                                   \
       r <= -delta ? -one : r >= delta ? one : r / delta)                                         \
  LOSS(quantile, "quantile", delta > 0 && delta < 1, "> 0 and < 1",                               \
       r < T{} ? -bound * r : (one - bound) * r,                                                  \
       r < T{} ? -bound : r > T{} ? one - bound : T{})
// clang-format on

enum class Loss : int8_t {
#define LINREG_LOSS(name, ...) name,
  LINREG_LOSSES(LINREG_LOSS)
#undef LINREG_LOSS
};

// The names that users pass, by number.
inline constexpr std::array kLossNames = {
#define LINREG_LOSS(name, ...) std::string_view(#name),
    LINREG_LOSSES(LINREG_LOSS)
#undef LINREG_LOSS
};

// The thresholds by number.
struct Threshold {
  std::string_view name;
  bool (*is_valid)(double delta);
  std::string_view expected;
};
inline constexpr Threshold kThresholds[] = {
#define LINREG_LOSS(name, threshold, condition, expected, ...) \
  {threshold, []([[maybe_unused]] double delta) { return condition; }, expected},
    LINREG_LOSSES(LINREG_LOSS)
#undef LINREG_LOSS
};

// smooth_l1 with beta = 0 is computed as l1, so that 0 / 0 never arises.
LINREG_MATH Loss effective_loss(Loss loss, double delta) {
  return loss == Loss::smooth_l1 && delta == 0 ? Loss::l1 : loss;
}

// A number as a T, which may be a vector of them.
template <class T>
LINREG_MATH T filled(const T&, T number) {
  return number;
}
template <class T, class S>
LINREG_MATH T filled(const T&, S number) {
  return T{} + number;
}

// ℓ(r)
template <Loss kLoss, class T, class S>
LINREG_MATH T loss_value(T r, S delta) {
  [[maybe_unused]] const T z = r < T{} ? -r : r, one = filled(r, S(1)), bound = filled(r, delta);
#define LINREG_LOSS(name, threshold, condition, expected, value, derivative) \
  if constexpr (kLoss == Loss::name) return value;
  LINREG_LOSSES(LINREG_LOSS)
#undef LINREG_LOSS
}

// dℓ/dr
template <Loss kLoss, class T, class S>
LINREG_MATH T dloss(T r, S delta) {
  const T one = filled(r, S(1)), bound = filled(r, delta);
#define LINREG_LOSS(name, threshold, condition, expected, value, derivative) \
  if constexpr (kLoss == Loss::name) return derivative;
  LINREG_LOSSES(LINREG_LOSS)
#undef LINREG_LOSS
}

}  // namespace linreg
