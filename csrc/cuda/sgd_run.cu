// SPDX-License-Identifier: BSD-3-Clause
// The steps of a run, as many in a launch as end soon; and what a run needs beside its steps.
#include <cmath>

#include "../math/losses.h"
#include "number.cuh"
#include "reduce.cuh"
#include "run.cuh"

namespace linreg::cuda {

// The kernel after the last step, of one block: it counts the steps and marks the losses that were not reached.

constexpr int kEndThreads = 256;

struct RunEnd {
  bool stop_nonfinite;
  int64_t begin, steps, epoch_steps;
  Losses losses, validation_losses;
  int64_t* taken;
};

LINREG_KERNEL(kEndThreads, 1)
end_kernel(LINREG_PARAMETER RunEnd run) {
  int64_t* const firsts = static_cast<int64_t*>(shared_memory());  // [threads]
  int64_t first = run.steps;                                       // of this thread's the first that was not taken
  for (int64_t i = thread_index(); run.stop_nonfinite && i < first; i += thread_count())
    if (!is_finite(load_number(run.losses.data, run.losses.dtype, i))) first = i;
  firsts[thread_index()] = first;
  sync_block();  // every thread has read its losses and left what it found
  for (int i = 0; i < thread_count(); ++i) first = firsts[i] < first ? firsts[i] : first;
  if (thread_index() == 0) *run.taken = first;
  for (int64_t i = first + 1 + thread_index(); i < run.steps; i += thread_count())
    store_number(run.losses.data, run.losses.dtype, i, NAN);
  if (!run.validation_losses.data) return;
  const int64_t before = run.begin / run.epoch_steps;
  const int64_t ended = (run.begin + run.steps) / run.epoch_steps - before;
  for (int64_t i = (run.begin + first) / run.epoch_steps - before + thread_index(); i < ended; i += thread_count())
    store_number(run.validation_losses.data, run.validation_losses.dtype, i, NAN);
}
namespace {

template <class T>
const char* launch_once(const ResidentRun& call, void* stream) {
  const Launch how{1, call.layout.warps * kWarp, call.layout.shared_bytes, stream};
  switch (call.layout.columns_of_thread) {
    case 1:
      return launch(resident_kernel<RunShape<T, 1>>, how, call);
    case 2:
      return launch(resident_kernel<RunShape<T, 2>>, how, call);
    case 4:
      return launch(resident_kernel<RunShape<T, 4>>, how, call);
    default:
      return launch(resident_kernel<RunShape<T, 8>>, how, call);
  }
}

const char* take_launches(ResidentRun call, void* stream) {
  const Run run = call.run;
  char* const losses = static_cast<char*>(call.losses);
  const int64_t size = int64_t(size_of(call.problem.w.dtype)), most = launch_steps(call.problem, run);
  for (int64_t begin = run.begin; begin < run.end; begin = call.run.end) {
    call.run.begin = begin;
    call.run.end = run.end - begin < most ? run.end : begin + most;
    if (run.lr) call.run.lr = run.lr + (begin - run.begin);
    call.losses = losses + (begin - run.begin) * size;
    const bool doubles = call.problem.x.dtype == Dtype::float64;
    if (const char* error = doubles ? launch_once<double>(call, stream) : launch_once<float>(call, stream))
      return error;
    call.weight.first_step = call.bias.first_step = false;
    call.before = losses + (call.run.end - 1 - run.begin) * size;
  }
  return nullptr;
}

}  // namespace

const char* takes_many_steps(const Problem& problem, const Run& run, bool& yes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentLayout layout;
  yes = lay_out(layout, problem, run, device);
  return nullptr;
}

const char* take_many_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, const void* before, void* losses,
                            void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentRun call{problem, run, sgd, weight, bias, stop_nonfinite, before, losses, {}};
  if (!lay_out(call.layout, problem, run, device)) return "a run whose steps are to be launched one by one";
  return take_launches(call, stream);
}

const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream) {
  const RunEnd end{stop_nonfinite, run.begin, run.end - run.begin, run.epoch_steps, losses, validation_losses, taken};
  return launch(end_kernel, {1, kEndThreads, kEndThreads * int(sizeof(int64_t)), stream}, end);
}

}  // namespace linreg::cuda
