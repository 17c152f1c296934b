// SPDX-License-Identifier: BSD-3-Clause
// What a run whose steps are launched one by one needs between them and after the last: its rows gathered, and its end.
//
// gather_kernel reads the rows that the order names and writes them contiguous, once each; some lanes of a warp share
// a row, so that neighbours read neighbours. end_kernel is one block.
#pragma once

#include <cmath>

#include "number.cuh"
#include "reduce.cuh"

namespace linreg::cuda {

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

}  // namespace linreg::cuda
