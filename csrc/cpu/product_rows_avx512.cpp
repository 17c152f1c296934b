// SPDX-License-Identifier: BSD-3-Clause
// product_rows.h for processors with AVX-512 F, DQ, BW and VL.
#include <cstdint>
#include <cstring>

#include "../math/losses.h"
#include "product_rows_entry.h"

// Behind the pragma only what is compiled for this set alone: the headers above must not be.
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#include "product_rows.h"

namespace linreg::cpu {

const ProductRows product_rows_avx512 = kProductRows;

}  // namespace linreg::cpu

#pragma GCC pop_options
