// SPDX-License-Identifier: BSD-3-Clause
// torch.optim.SGD's update of one number p with gradient g, in the same order of operations.
#pragma once

#include "../linreg.h"
#include "inline.h"

namespace linreg {

template <class T>
struct SgdNumber {
  T p, buffer;
};

template <class T>
LINREG_MATH SgdNumber<T> sgd_update(T p, T buffer, T g, const Sgd& sgd, bool first_step) {
  if (sgd.maximize) g = -g;
  if (sgd.weight_decay != 0) g += T(sgd.weight_decay) * p;
  if (sgd.momentum != 0) {
    buffer = first_step ? g : T(sgd.momentum) * buffer + (T(1) - T(sgd.dampening)) * g;
    g = sgd.nesterov ? g + T(sgd.momentum) * buffer : buffer;
  }
  return {p - T(sgd.lr) * g, buffer};
}

}  // namespace linreg
