// SPDX-License-Identifier: BSD-3-Clause
// The one dispatch on the loss. It has its own header because a function must be compiled for the same target as the
// lambda it calls: after the pragma of cpu/target.h, and in CUDA sources for the device.
#pragma once

#include "losses.h"

namespace linreg {

// Calls work.operator()<kLoss>() for `loss`.
template <class Work>
#ifdef __CUDACC__
__device__ __forceinline__
#else
static inline __attribute__((always_inline))
#endif
    decltype(auto) with_loss(Loss loss, Work&& work) {
#ifndef __CUDACC__
  // The switch alone is an indirect jump, with which a pass over 16 features from memory takes 10 % longer.
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
