// SPDX-License-Identifier: BSD-3-Clause
// What a run needs beside its steps: see run_steps.cuh.
#include "plan.h"
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

}  // namespace

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
  return launch(gather_kernel, {blocks, kGatherThreads, 1, 0, stream}, g);
}

const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream) {
  const RunEnd end{stop_nonfinite, run.begin, run.end - run.begin, run.epoch_steps, losses, validation_losses, taken};
  return launch(end_kernel, {1, kEndThreads, 1, kEndThreads * int(sizeof(int64_t)), stream}, end);
}

}  // namespace linreg::cuda
