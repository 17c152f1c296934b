// SPDX-License-Identifier: BSD-3-Clause
// product_rows.h for processors with AVX2, FMA and F16C.
#include <cstdint>
#include <cstring>

#include "../math/losses.h"
#include "product_rows_entry.h"

// Behind the pragma only what is compiled for this set alone: the headers above must not be.
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "product_rows.h"

namespace linreg::cpu {

const ProductRows product_rows_avx2 = kProductRows;

}  // namespace linreg::cpu

#pragma GCC pop_options
