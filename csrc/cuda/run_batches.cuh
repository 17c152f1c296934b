// SPDX-License-Identifier: BSD-3-Clause
// What a kernel that takes many steps of a run is told, and how it goes from batch to batch.
#pragma once

#include "number.cuh"
#include "run_plan.h"

namespace linreg::cuda {

struct ResidentRun {
  Problem problem;
  Run run;  // order and lr are the device's
  Sgd sgd;
  Parameter weight, bias;
  bool stop_nonfinite;
  const void* before;  // the loss of the step before run.begin, which may have ended the run; nullptr: there is none
  void* losses;        // [run.end - run.begin]
  ResidentLayout layout;
};

struct Batch {
  int64_t index = 0;               // in its epoch
  int n = 0;                       // rows
  const int64_t* order = nullptr;  // of its epoch
};

LINREG_DEVICE Batch batch_of(const Run& run, int64_t step) {
  const int64_t epoch = step / run.epoch_steps, index = step - epoch * run.epoch_steps;
  return {index, int(batch_rows(run, index)), run.order ? run.order + epoch * run.order_stride : nullptr};
}

LINREG_DEVICE Batch following(const Run& run, const Batch& batch) {
  const bool same_epoch = batch.index + 1 < run.epoch_steps;
  const int64_t index = same_epoch ? batch.index + 1 : 0;
  return {index, int(batch_rows(run, index)), !run.order || same_epoch ? batch.order : batch.order + run.order_stride};
}

// Whether the step before has ended the run.
LINREG_DEVICE bool ended_before(const ResidentRun& call, Dtype dtype) {
  return call.before && call.stop_nonfinite && !is_finite(load_number(call.before, dtype, 0));
}

// The losses from `step` on, of steps that are not reached.
LINREG_DEVICE void leave_unreached(const ResidentRun& call, Dtype dtype, int64_t step) {
  for (int64_t i = step - call.run.begin + thread_index(); i < call.run.end - call.run.begin; i += thread_count())
    store_number(call.losses, dtype, i, NAN);
}

}  // namespace linreg::cuda
