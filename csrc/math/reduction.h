// SPDX-License-Identifier: BSD-3-Clause
// The divisor of a pass's sums, and its reciprocal.
#pragma once

#include "../linreg.h"
#include "inline.h"

namespace linreg {

// 1 for a sum; for a mean, n k or, if weighted, Σ v. A division rounds once, a product with the reciprocal twice.
LINREG_MATH double reduction_divisor(Reduction reduction, double total) {
  return reduction == Reduction::mean ? total : 1.0;
}
LINREG_MATH double reduction_divisor(const Problem& p, double weight_total) {
  return reduction_divisor(p.reduction, p.v.data ? weight_total : double(p.n) * double(p.k));
}

// The reciprocal. It is inf for a mean over no rows, whose gradient in PyTorch is an empty sum.
LINREG_MATH double reduction_scale(Reduction reduction, double total) {
  return 1.0 / reduction_divisor(reduction, total);
}
LINREG_MATH double reduction_scale(const Problem& p, double weight_total) {
  return 1.0 / reduction_divisor(p, weight_total);
}

}  // namespace linreg
