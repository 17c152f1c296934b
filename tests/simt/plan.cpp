// SPDX-License-Identifier: BSD-3-Clause
// The plan of a pass on a device of any size, for tests, by way of ctypes.
#include "csrc/cuda/plan.h"

using namespace linreg;

extern "C" __attribute__((visibility("default"))) void plan_of(int dtype, int64_t n, int64_t d, int64_t k,
                                                               int multiprocessors, int shared_bytes, int cache_bytes,
                                                               int64_t* out) {
  Problem p;
  p.n = n, p.d = d, p.k = k;
  p.x.dtype = p.w.dtype = p.y.dtype = Dtype(dtype);
  const cuda::Plan plan = cuda::plan_of(p, {multiprocessors, shared_bytes, cache_bytes});
  const cuda::Layout& l = plan.layout;
  for (const int64_t number :
       {plan.product_rows, int64_t(plan.threads), int64_t(plan.blocks), int64_t(plan.shared_bytes), int64_t(l.rows),
        int64_t(l.chain_tiles), int64_t(l.residual_tiles), int64_t(l.groups), int64_t(cuda::kStages)})
    *out++ = number;
}
