// SPDX-License-Identifier: BSD-3-Clause
// The pass for every shape, without a bound on D, K or alignment: rows too long for registers, or targets too many.
//
// A block takes a few rows at a time, goes over them for the predictions and again for the sums; the second time they
// come from a cache if a block's few rows times the blocks fit (plan.h bounds the blocks). Its sums are in global
// memory, in its line of partials. This is the plain kernel; rows.cuh is the fast one.
// Deterministic: a sum belongs to one thread of a block, and blocks are added in order.
#pragma once

#include "finish.cuh"
#include "plan.h"
#include "reduce.cuh"
#include "residual.cuh"

namespace linreg::cuda {

template <Dtype kX, Dtype kW>
class StreamedPass {
 public:
  LINREG_DEVICE StreamedPass(const Pass& pass, double* line)
      : pass_(pass),
        p_(pass.problem),
        line_(line),
        dlosses_(pass.scratch + int64_t(block_index()) * kStreamedRows * p_.k),
        scale_(pass_scale(pass)) {}

  LINREG_DEVICE void run() {
    const int64_t count = sum_count(p_, pass_.weight_sum);
    for (int64_t i = thread_index(); i < count; i += thread_count()) line_[i] = 0;
    sync_block();  // a sum may belong to another thread than the one that cleared it
    const int64_t step = int64_t(block_count()) * kStreamedRows;
    for (int64_t first = int64_t(block_index()) * kStreamedRows; first < p_.n; first += step) {
      predict(first);
      sync_block();  // dlosses_ is written
      if (pass_.weight_sum) add_rows(first);
      if (pass_.input_gradient) write_input_gradient(first);
      sync_block();  // and read, and may be written again
    }
  }

 private:
  LINREG_DEVICE double x(int64_t row, int64_t j) const {
    return widen<kX>(static_cast<const Stored<kX>*>(p_.x.data)[row * p_.x.row_stride + j]);
  }

  LINREG_DEVICE double w(int64_t target, int64_t j) const {
    return widen<kW>(static_cast<const Stored<kW>*>(p_.w.data)[target * p_.w.row_stride + j]);
  }

  LINREG_DEVICE int64_t rows_from(int64_t first) const {
    return p_.n - first < kStreamedRows ? p_.n - first : kStreamedRows;
  }

  // A warp for a target: v ℓ'(r) of the rows from `first` on, and what is summed of their residuals.
  LINREG_DEVICE void predict(int64_t first) {
    const int lane = thread_index() % kWarp, rows = int(rows_from(first));
    for (int64_t t = thread_index() / kWarp; t < p_.k; t += thread_count() / kWarp) {
      double dot[kStreamedRows] = {};
      for (int64_t j = lane; j < p_.d; j += kWarp) {
        const double weight = w(t, j);
#pragma unroll
        for (int u = 0; u < kStreamedRows; ++u)
          if (u < rows) dot[u] += x(first + u, j) * weight;
      }
      double mine = 0;
#pragma unroll
      for (int u = 0; u < kStreamedRows; ++u) {
        const double sum = sum_lanes(dot[u], 1, kWarp);
        if (lane == u) mine = sum;
      }
      ResidualSums sums;
      if (lane < rows) {
        const int64_t i = first + lane;
        const double b = p_.b.data ? load_number(p_.b, 0, t) : 0;
        const double v = p_.v.data ? load_number(p_.v, i, t) : 1;
        const Residual<double> of = residual(p_, mine + b - load_number(p_.y, i, t), v);
        sums.add(of, v);
        dlosses_[lane * p_.k + t] = of.dloss;
        write_residual(pass_, scale_, i, t, of);
      }
      add(loss_sums(p_) + t, sums.loss);
      add(weight_totals(p_) + t, sums.weight_total);
      add(bias_sums(p_) + t, sums.dloss);
    }
  }

  LINREG_DEVICE void add(int64_t i, double of_lane) {
    const double sum = sum_lanes(of_lane, 1, kStreamedRows);
    if (thread_index() % kWarp == 0) line_[i] += sum;
  }

  LINREG_DEVICE void add_rows(int64_t first) {
    const int64_t rows = rows_from(first);
    double* const sums = line_ + weight_sums(p_);
    for (int64_t i = thread_index(); i < p_.k * p_.d; i += thread_count()) {
      const int64_t t = p_.k == 1 ? 0 : i / p_.d;
      double sum = sums[i];
      for (int64_t u = 0; u < rows; ++u) sum += dlosses_[u * p_.k + t] * x(first + u, i - t * p_.d);
      sums[i] = sum;
    }
  }

  LINREG_DEVICE void write_input_gradient(int64_t first) const {
    for (int64_t u = 0; u < rows_from(first); ++u)
      for (int64_t j = thread_index(); j < p_.d; j += thread_count()) {
        double sum = 0;
        for (int64_t t = 0; t < p_.k; ++t) sum += scale_ * dlosses_[u * p_.k + t] * w(t, j);
        store_number(pass_.input_gradient, gradient_dtype(kX), (first + u) * p_.d + j, sum);
      }
  }

  const Pass& pass_;
  const Problem& p_;
  double* const line_;
  double* const dlosses_;  // [kStreamedRows, k]
  const double scale_;
};

template <Dtype kX, Dtype kW>
LINREG_KERNEL(kStreamedThreads, kStreamedBlocks)
streamed_kernel(LINREG_PARAMETER Pass pass) {
  StreamedPass<kX, kW>(pass, pass.partials + block_index() * pass.line_stride).run();
  finish_last(pass);
}

}  // namespace linreg::cuda
