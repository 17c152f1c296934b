// SPDX-License-Identifier: BSD-3-Clause
// The steps of a run, as many in a launch as end soon; and what a run needs beside its steps.
#include <cmath>

#include "../math/losses.h"
#include "number.cuh"
#include "reduce.cuh"
#include "run.cuh"

namespace linreg::cuda {

// ---- The kernels between and after steps that are launched one by one -----------------------------------------------
//
// What a run whose steps are launched one by one needs between them and after the last: its rows gathered, and its end.
//
// gather_kernel reads the rows that the order names and writes them contiguous, once each; some lanes of a warp share
// a row, so that neighbours read neighbours. end_kernel is one block.

constexpr int kGatherThreads = 256;
constexpr int kEndThreads = 256;

// Rows of an operand, in units of `bytes`: a number, or 16 bytes of neighbours.
struct GatheredRows {
  const void* from;  // nullptr: nothing to do
  void* to;
  int64_t row_stride, col_stride, columns;
  int bytes;
};

struct Gather {
  GatheredRows operands[3];
  const int64_t* order;  // [rows]
  int64_t rows, rows_there;
  int lanes;  // that share a row, a power of two up to 32
};

template <int kBytes>
LINREG_DEVICE void gather_rows(const Gather& g, const GatheredRows& of) {
  const int lane = thread_index() & (g.lanes - 1), workers = thread_count() / g.lanes;
  const int64_t step = int64_t(block_count()) * workers;
  const auto* const from = static_cast<const Words<kBytes>*>(of.from);
  auto* const to = static_cast<Words<kBytes>*>(of.to);
  for (int64_t i = int64_t(block_index()) * workers + thread_index() / g.lanes; i < g.rows; i += step) {
    const int64_t row = g.order[i];
    const bool there = 0 <= row && row < g.rows_there;
    for (int64_t j = lane; j < of.columns; j += g.lanes) {
      Words<kBytes> words;
      memset(&words, 0xff, sizeof words);  // a nan of any dtype
      if (there) words = from[row * of.row_stride + j * of.col_stride];
      to[i * of.columns + j] = words;
    }
  }
}

LINREG_KERNEL(kGatherThreads, 4)
gather_kernel(LINREG_PARAMETER Gather g) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const GatheredRows& of = g.operands[i];
    if (!of.from) continue;
    if (of.bytes == 16) gather_rows<16>(g, of);
    if (of.bytes == 8) gather_rows<8>(g, of);
    if (of.bytes == 4) gather_rows<4>(g, of);
    if (of.bytes == 2) gather_rows<2>(g, of);
  }
}

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
