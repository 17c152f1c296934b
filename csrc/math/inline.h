// SPDX-License-Identifier: BSD-3-Clause
// How a function of csrc/math is declared: on host and device alike, and always inlined, so that no copy compiled for
// one instruction set can be linked into code for another. One that calls a lambda of its caller is a device function
// in CUDA sources, because there a lambda inside of a device function is one, too.
#pragma once

#ifdef __CUDACC__
#define LINREG_MATH __host__ __device__ __forceinline__
#define LINREG_MATH_WITH_LAMBDA __device__ __forceinline__
#else
#define LINREG_MATH static inline __attribute__((always_inline))
#define LINREG_MATH_WITH_LAMBDA LINREG_MATH
#endif
