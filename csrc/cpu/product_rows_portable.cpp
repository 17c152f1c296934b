// SPDX-License-Identifier: BSD-3-Clause
// product_rows.h for any processor.
#include "product_rows.h"

namespace linreg::cpu {

const ProductRows product_rows_portable = kProductRows;

}  // namespace linreg::cpu
