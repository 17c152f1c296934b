// SPDX-License-Identifier: BSD-3-Clause
// How a function of csrc/math is declared: on host and device alike, and always inlined, so that no copy compiled for
// one instruction set can be linked into code for another.
#pragma once

#ifdef __CUDACC__
#define LINREG_MATH __host__ __device__ __forceinline__
#else
#define LINREG_MATH static inline __attribute__((always_inline))
#endif
