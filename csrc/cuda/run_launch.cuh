// SPDX-License-Identifier: BSD-3-Clause
// Launches of the kernels that take many steps of a run, for sgd_run.cu.
#pragma once

#include "run_sums.cuh"

namespace linreg::cuda {

const char* launch_steps(const ResidentRun& call, void* stream);
const char* clear_signals(const ResidentRun& call, void* stream);

// Calls `work` with the shape of a problem of which a thread has so many columns.
template <Dtype kX, Dtype kW, class Work>
const char* with_columns(int columns, const Work& work) {
  switch (columns) {
    case 1:
      return work.template operator()<RunShape<kX, kW, 1>>();
    case 2:
      return work.template operator()<RunShape<kX, kW, 2>>();
    case 4:
      return work.template operator()<RunShape<kX, kW, 4>>();
    default:
      return work.template operator()<RunShape<kX, kW, 8>>();
  }
}

template <class Work>
const char* with_shape(const Problem& p, int columns, const Work& work) {
  const bool same = p.w.dtype == p.x.dtype;
  switch (p.x.dtype) {
    case Dtype::float32:
      return with_columns<Dtype::float32, Dtype::float32>(columns, work);
    case Dtype::float64:
      return with_columns<Dtype::float64, Dtype::float64>(columns, work);
    case Dtype::bfloat16:
      return same ? with_columns<Dtype::bfloat16, Dtype::bfloat16>(columns, work)
                  : with_columns<Dtype::bfloat16, Dtype::float32>(columns, work);
    default:
      return same ? with_columns<Dtype::float16, Dtype::float16>(columns, work)
                  : with_columns<Dtype::float16, Dtype::float32>(columns, work);
  }
}

}  // namespace linreg::cuda
