// SPDX-License-Identifier: BSD-3-Clause
// The first include of a kernel compiled for an instruction set: LINREG_LANES is 2 (any processor), 4 (AVX2, FMA, F16C)
// or 8 (AVX-512 F, DQ, BW, VL).
//
// All shared headers come before the pragma. Their inline functions must run on any processor, because the linker keeps
// one copy of each for all instruction sets. A kernel's own headers define everything in anonymous namespaces, and a
// kernel instantiates only its own templates, never std's.
#pragma once

#if LINREG_LANES == 8
// GCC 12 warns about its own header, which leaves uninitialised the lanes that a mask fills.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if LINREG_LANES > 2
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../math/convert.h"
#include "../math/losses.h"
#include "../math/sgd.h"
#include "../math/sum.h"
#include "kernels.h"

#if LINREG_LANES == 8
#define LINREG_SET avx512
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#elif LINREG_LANES == 4
#define LINREG_SET avx2
#pragma GCC target("avx2,fma,f16c")
#else
#define LINREG_SET portable
#endif
