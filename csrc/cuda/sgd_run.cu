// SPDX-License-Identifier: BSD-3-Clause
// The steps of a run, as many in a launch as end soon; and what a run needs beside its steps, see run_steps.cuh.
#include "../math/losses.h"
#include "run_resident.cuh"
#include "run_steps.cuh"

namespace linreg::cuda {
namespace {

constexpr int kGatherBlocks = 8;  // of a multiprocessor, at most: 2048 threads, all that it holds

// Whether all rows, there and where they go, can be taken for rows of 16-byte words.
bool in_words(const View& from, const View& to, int64_t columns) {
  const int64_t size = int64_t(size_of(from.dtype));
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return from.col_stride == 1 && columns * size % 16 == 0 && from.row_stride * size % 16 == 0 && aligned(from.data) &&
         aligned(to.data);
}

GatheredRows rows_of(const View& from, const View& to, int64_t columns) {
  if (!from.data) return {};
  if (from.col_stride == 0 && columns > 1) columns = 1;
  GatheredRows rows{from.data, const_cast<void*>(to.data), from.row_stride, from.col_stride,
                    columns,   int(size_of(from.dtype))};
  if (in_words(from, to, columns)) {
    const int numbers = 16 / rows.bytes;
    rows.row_stride /= numbers;
    rows.columns /= numbers;
    rows.bytes = 16;
  }
  return rows;
}

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

const char* launch_once(const ResidentRun& call, void* stream) {
  const ResidentLayout& l = call.layout;
  const Launch how{1, l.warps * kWarp, l.shared_bytes, stream};
  return with_shape(call.problem, l.columns_of_thread,
                    [&]<class S>() { return launch(resident_kernel<S>, how, call); });
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
    if (const char* error = launch_once(call, stream)) return error;
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

const char* gather(const Problem& problem, const int64_t* order, const Problem& batch, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  Gather g{{rows_of(problem.x, batch.x, problem.d), rows_of(problem.y, batch.y, problem.k),
            rows_of(problem.v, batch.v, problem.k)},
           order,
           batch.n,
           problem.n,
           1};
  while (g.lanes < kWarp && g.lanes < g.operands[0].columns) g.lanes *= 2;
  const int64_t wanted = ceil_div(batch.n, kGatherThreads / g.lanes), most = device.multiprocessors * kGatherBlocks;
  const int blocks = int(wanted < 1 ? 1 : wanted < most ? wanted : most);
  return launch(gather_kernel, {blocks, kGatherThreads, 0, stream}, g);
}

const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream) {
  const RunEnd end{stop_nonfinite, run.begin, run.end - run.begin, run.epoch_steps, losses, validation_losses, taken};
  return launch(end_kernel, {1, kEndThreads, kEndThreads * int(sizeof(int64_t)), stream}, end);
}

}  // namespace linreg::cuda
