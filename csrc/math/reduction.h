// SPDX-License-Identifier: BSD-3-Clause
// The factor of a pass's sums.
#pragma once

#include "../linreg.h"
#include "inline.h"

namespace linreg {

// 1 for a sum; for a mean 1 / (n k), or 1 / Σ v if weighted. It is inf for a mean over no rows, whose gradient in
// PyTorch is an empty sum.
LINREG_MATH double reduction_scale(Reduction reduction, double total) {
  return reduction == Reduction::mean ? 1.0 / total : 1.0;
}
LINREG_MATH double reduction_scale(const Problem& p, double weight_total) {
  return reduction_scale(p.reduction, p.v.data ? weight_total : double(p.n) * double(p.k));
}

}  // namespace linreg
