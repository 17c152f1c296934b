// SPDX-License-Identifier: BSD-3-Clause
// The only dispatch on the loss. It has its own header because a function must be compiled for the same target as the
// lambda that it calls: after the pragma of cpu/target.h, or for the device in CUDA sources.
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
  // The switch compiles to an indirect jump, which makes a pass over 16 features from memory 10 % slower.
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
