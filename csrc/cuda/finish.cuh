// SPDX-License-Identifier: BSD-3-Clause
// The end of a pass, in the last block to arrive. It adds the sums of all blocks in the blocks' order, so that the bits
// are the same every time. Then it writes the loss, and scales and rounds the gradients or applies the SGD rule. By
// then no other block reads the parameters.
//
// The sums are added in two levels to keep this tail short: the last block of each team of about √blocks adds its
// team's sums, and the last team adds the teams' sums. One block would take an estimated 11 µs to add 132 lines of 1024
// doubles, at some 100 GB/s for one multiprocessor. The two levels read 12 and 11 lines.
#pragma once

#include <cmath>

#include "../math/reduction.h"
#include "../math/sgd.h"
#include "pass.cuh"

namespace linreg::cuda {

// The size of a team. Blocks [team · size, (team + 1) · size) form a team.
LINREG_MATH constexpr int team_size(int blocks) {
  int size = 1;
  while (size * size < blocks) ++size;
  return size;
}

// True in all threads of the last of `count` blocks to arrive. That block then sees what the others have stored.
LINREG_DEVICE bool last_to_arrive(unsigned* counter, int count, int* flag) {
  sync_block();  // all threads have stored, and none still reads the previous flag
  if (thread_index() == 0) {
    fence();  // orders the block's stores before the arrival
    *flag = arrive_last(counter, unsigned(count));
    if (*flag) fence();  // orders later reads after all arrivals
  }
  sync_block();  // the flag is written
  return *flag;
}

// Adds `rows` lines of `count` doubles, `stride` apart, into the first.
LINREG_DEVICE void add_lines(double* lines, int rows, int64_t stride, int64_t count) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    double sum = load_cg(lines + i);
#pragma unroll 4
    for (int row = 1; row < rows; ++row) sum += load_cg(lines + row * stride + i);
    store_cg(lines + i, sum);
  }
}

// Each block has stored `count` sums at its line, partials + block_index() · stride. True in the one block that finds
// the total at `partials`; false in the others, which are done.
LINREG_DEVICE bool reduce_blocks(double* partials, int64_t stride, int64_t count, unsigned* counters, int* flag) {
  const int index = block_index(), blocks = block_count();
  if (blocks == 1) {
    sync_block();  // every thread may read every sum
    return true;
  }
  const int size = team_size(blocks), teams = (blocks + size - 1) / size;
  const int team = index / size, first = team * size;
  const int members = first + size < blocks ? size : blocks - first;
  if (!last_to_arrive(counters + 1 + team, members, flag)) return false;
  add_lines(partials + first * stride, members, stride, count);
  if (!last_to_arrive(counters, teams, flag)) return false;
  add_lines(partials, teams, size * stride, count);
  sync_block();  // every thread may read every sum
  return true;
}

// The sum of `count` entries of a line, in every thread. All threads of the block must call it.
LINREG_DEVICE double total(const double* sums, int64_t count) {
  double sum = 0;
  if (count <= kWarp) {
    for (int64_t i = 0; i < count; ++i) sum += load_cg(sums + i);
    return sum;
  }
  double* const of_warp = static_cast<double*>(shared_memory());
  for (int64_t i = thread_index(); i < count; i += thread_count()) sum += load_cg(sums + i);
  sum = sum_lanes(sum, 1, kWarp);
  sync_block();  // no thread still reads the sums of an earlier call
  if (thread_index() % kWarp == 0) of_warp[thread_index() / kWarp] = sum;
  sync_block();  // every warp's sum is stored
  sum = 0;
  for (int warp = 0; warp < thread_count() / kWarp; ++warp) sum += of_warp[warp];
  return sum;
}

// Some columns of the weight or of the bias.
struct Slice {
  int64_t first, columns;
};

// Σ (v ℓ')ᵀ X, or Σ v ℓ' as one row, for some columns: in a line of doubles or as the result of a matrix product.
struct Sums {
  const double* line;
  const void* product;
  Dtype dtype;
  int64_t row_stride;  // of `product`

  LINREG_DEVICE double at(int64_t i, int64_t row, int64_t column) const {
    return product ? load_as<double>(product, dtype, row * row_stride + column) : load_cg(line + i);
  }
};

// Applies the rule to columns [slice.first, slice.first + slice.columns) of a parameter.
LINREG_DEVICE void update(const Parameter& parameter, int64_t rows, Slice slice, const Sums& sums, double scale,
                          const Sgd& sgd) {
  if (parameter.frozen || !parameter.value.data) return;
  const Dtype dtype = parameter.value.dtype;
  for (int64_t i = thread_index(); i < rows * slice.columns; i += thread_count()) {
    const int64_t row = i / slice.columns, column = slice.first + i - row * slice.columns;
    const int64_t at = row * parameter.value.row_stride + column;
    const int64_t buffer_at = row * parameter.momentum_buffer.row_stride + column;
    const double p = load_as<double>(parameter.value.data, dtype, at);
    const bool has_buffer = sgd.momentum != 0 && !parameter.first_step;
    const double buffer = has_buffer ? load_as<double>(parameter.momentum_buffer.data, dtype, buffer_at) : 0;
    const SgdNumber<double> next = sgd_update(p, buffer, scale * sums.at(i, row, column), sgd, parameter.first_step);
    store_number(parameter.value.data, dtype, at, next.p);
    if (sgd.momentum != 0) store_number(parameter.momentum_buffer.data, dtype, buffer_at, next.buffer);
  }
}

// Writes the same columns of a gradient, [rows, columns].
LINREG_DEVICE void store_scaled(void* to, Dtype dtype, int64_t rows, int64_t columns, Slice slice, const Sums& sums,
                                double scale) {
  if (!to) return;
  for (int64_t i = thread_index(); i < rows * slice.columns; i += thread_count()) {
    const int64_t row = i / slice.columns, column = slice.first + i - row * slice.columns;
    store_number(to, dtype, row * columns + column, scale * sums.at(i, row, column));
  }
}

// `sums` is a line (pass.cuh) over all rows. The block with the first columns also handles the loss and the bias.
LINREG_DEVICE void finish(const Pass& pass, const double* sums, Slice slice) {
  const Problem& p = pass.problem;
  const Finish& f = pass.finish;
  if (f.skip.before && !is_finite(load_as<double>(f.skip.before, loss_dtype(p), 0))) {
    if (slice.first == 0 && thread_index() == 0) store_nan(f.loss, loss_dtype(p), 0);
    return;
  }
  const double scale = reduction_scale(p, p.v.data ? total(sums + weight_totals(p), p.k) : 0);
  const double loss = round_to(scale * total(sums + loss_sums(p), p.k), loss_dtype(p));
  const bool first = slice.first == 0;
  if (f.loss && first && thread_index() == 0) store_number(f.loss, loss_dtype(p), 0, loss);
  const double gradient_scale = p.n == 0 ? 0 : scale;
  const Slice bias = {0, p.k};
  const Sums of_bias = {sums + bias_sums(p), nullptr, Dtype::float64, 0};
  const Sums of_weight = {sums + weight_sums(p), pass.products.weight, pass.products.weight_dtype, p.d};
  if (f.step) {
    if (f.skip.nonfinite && !is_finite(loss)) return;
    Sgd sgd = f.sgd;
    if (sgd.lr_on_device) sgd.lr = load_as<double>(sgd.lr_on_device, sgd.lr_dtype, 0);
    update(f.weight, p.k, slice, of_weight, gradient_scale, sgd);
    if (first) update(f.bias, 1, bias, of_bias, gradient_scale, sgd);
  } else {
    const Dtype dtype = gradient_dtype(p.w.dtype);
    store_scaled(f.gradients.weight, dtype, p.k, p.d, slice, of_weight, gradient_scale);
    if (first) store_scaled(f.gradients.bias, dtype, 1, p.k, bias, of_bias, gradient_scale);
  }
}

// Called by every block after it has stored its line of sums. The last block to arrive finishes the pass.
LINREG_DEVICE_CALL void finish_last(const Pass& pass) {
  int* const flag = static_cast<int*>(shared_memory());
  if (reduce_blocks(pass.partials, pass.line_stride, sum_count(pass.problem, pass.weight_sum), pass.counters, flag))
    finish(pass, pass.partials, {0, pass.problem.d});
}

}  // namespace linreg::cuda
