// SPDX-License-Identifier: BSD-3-Clause
// From residuals to losses and slopes, elementwise over a group of rows.
#pragma once

#include <cstdint>

#include "../math/loss.h"

namespace linreg::cpu {
namespace {

template <Loss kLoss>
void losses_and_slopes(const double* __restrict__ residuals, int64_t count, double delta, double* __restrict__ losses,
                       double* __restrict__ slopes) {
  for (int64_t i = 0; i < count; ++i) {
    losses[i] = loss_value<kLoss>(residuals[i], delta);
    slopes[i] = loss_slope<kLoss>(residuals[i], delta);
  }
}

inline void losses_and_slopes(Loss loss, const double* residuals, int64_t count, double delta, double* losses,
                              double* slopes) {
  switch (effective_loss(loss, delta)) {
    case Loss::mse:
      return losses_and_slopes<Loss::mse>(residuals, count, delta, losses, slopes);
    case Loss::l1:
      return losses_and_slopes<Loss::l1>(residuals, count, delta, losses, slopes);
    case Loss::huber:
      return losses_and_slopes<Loss::huber>(residuals, count, delta, losses, slopes);
    case Loss::smooth_l1:
      return losses_and_slopes<Loss::smooth_l1>(residuals, count, delta, losses, slopes);
  }
}

// Four chains, so that an addition need not wait for the one before it.
inline double sum(const double* values, int64_t count) {
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += values[i + lane];
  for (; i < count; ++i) lanes[i & 3] += values[i];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

}  // namespace
}  // namespace linreg::cpu
