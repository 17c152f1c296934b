// SPDX-License-Identifier: BSD-3-Clause
// The one place that turns a loss's number into code. A header of its own, because a function that calls a lambda must
// be compiled for the same target: behind the pragma of cpu/target.h, and in CUDA sources for the device.
#pragma once

#include "losses.h"

namespace linreg {

// Calls work.operator()<kLoss>() for the loss of that number.
template <class Work>
#ifdef __CUDACC__
__device__ __forceinline__
#else
static inline __attribute__((always_inline))
#endif
    decltype(auto) with_loss(Loss loss, Work&& work) {
#ifndef __CUDACC__
  // A switch with this many cases is an indirect jump; with it a pass over 16 features from memory takes a tenth
  // longer.
  if (loss == Loss::mse) return work.template operator()<Loss::mse>();
#endif
  switch (loss) {
#define LINREG_LOSS(name, ...) \
  case Loss::name:             \
    return work.template operator()<Loss::name>();
    LINREG_LOSSES(LINREG_LOSS)
#undef LINREG_LOSS
  }
  __builtin_unreachable();
}

}  // namespace linreg
