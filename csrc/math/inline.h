// SPDX-License-Identifier: BSD-3-Clause
// The declaration of a csrc/math function: for host and device, and always inlined, so that no copy compiled for one
// instruction set is linked into code for another.
#pragma once

#ifdef __CUDACC__
#define LINREG_MATH __host__ __device__ __forceinline__
#else
#define LINREG_MATH static inline __attribute__((always_inline))
#endif
