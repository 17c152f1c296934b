// SPDX-License-Identifier: BSD-3-Clause
// What the sums of a pass are multiplied by.
#pragma once

#include "../linreg.h"
#include "inline.h"

namespace linreg {

// 1 for a sum, 1 / (n k) or, of a weighted problem, 1 / Σ v for a mean. Without rows a mean's scale is inf, and
// PyTorch's gradient a sum of nothing.
LINREG_MATH double reduction_scale(Reduction reduction, double total) {
  return reduction == Reduction::mean ? 1.0 / total : 1.0;
}
LINREG_MATH double reduction_scale(const Problem& p, double weight_total) {
  return reduction_scale(p.reduction, p.v.data ? weight_total : double(p.n) * double(p.k));
}

}  // namespace linreg
