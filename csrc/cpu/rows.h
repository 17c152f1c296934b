// SPDX-License-Identifier: BSD-3-Clause
// A thread's part of a pass: groups of rows, from prediction to gradient sums while they are in cache.
//
// Included once for each instruction set (rows_*.cpp), behind a target pragma. What it defines is in an anonymous
// namespace, and what it instantiates is its own, never std's: the linker would keep one copy for all sets.
#pragma once

#include "convert.h"
#include "plan.h"
#include "residuals.h"
#include "rows_entry.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline void fill(double* to, int64_t count, double value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

// to[i, j] = from(first + i, j), converted.
template <class C>
void load_block(const View& from, int64_t first, int64_t rows, int64_t columns, C* to) {
  if (columns == 1) return load(at(from, first), from.row_stride, from.dtype, rows, to);
  for (int64_t i = 0; i < rows; ++i) load(at(from, first + i), from.col_stride, from.dtype, columns, to + i * columns);
}

inline void* element(void* data, Dtype dtype, int64_t index) {
  return static_cast<char*>(data) + index * int64_t(size_of(dtype));
}

// One thread's part of a pass. S is what the rows are read as: double for float64, else float.
template <class S>
class Worker {
 public:
  Worker(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale, char* workspace,
         int64_t thread)
      : p_(problem), outputs_(outputs), plan_(plan), scale_(scale) {
    char* scratch = workspace + plan.scratch + thread * plan.scratch_stride;
    const auto part = [scratch](int64_t offset) { return reinterpret_cast<double*>(scratch + offset); };
    rows_ = part(plan.rows), slopes_ = part(plan.slopes), residuals_ = part(plan.residuals);
    losses_ = part(plan.losses), targets_ = part(plan.targets), weighted_ = part(plan.weighted);
    lanes_ = part(plan.lanes);
    w_ = reinterpret_cast<const double*>(workspace + plan.weights);
    b_ = reinterpret_cast<const double*>(workspace + plan.biases);
  }

  // Writes the sums over rows [begin, end).
  void run(int64_t begin, int64_t end, double* sums) {
    loss_sum_ = sums, bias_sums_ = sums + 1, weight_sums_ = sums + 1 + p_.k;
    fill(sums, Plan::sum_count(p_, outputs_), 0.0);
    const bool by_lanes = plan_.columns && outputs_.weight_sum;
    if (by_lanes) fill(lanes_, p_.k * p_.d * kLanes, 0.0);
    for (int64_t row = begin; row < end; row += plan_.group_rows) group(row, smaller(plan_.group_rows, end - row));
    if (by_lanes)
      for (int64_t i = 0; i < p_.k * p_.d; ++i) weight_sums_[i] = sum_lanes(load_vec(lanes_ + i * kLanes));
  }

 private:
  void group(int64_t first, int64_t rows) {
    if (plan_.columns) {
      load_columns(first, rows);
      predict_columns(rows);
      residuals(first, rows);
      if (outputs_.weight_sum) add_columns(rows);
    } else {
      const S* x = static_cast<const S*>(at(p_.x, first));
      int64_t ldx = p_.x.row_stride;
      if (plan_.widen) {
        S* widened = reinterpret_cast<S*>(rows_);
        load_block(p_.x, first, rows, p_.d, widened);
        x = widened, ldx = p_.d;
      }
      for_tiles(rows, p_.k, [&]<int R, int T>(int64_t r, int64_t t) __attribute__((always_inline)) {
        dots<S, R, T>(x + r * ldx, ldx, w_ + t * p_.d, p_.d, residuals_ + r * p_.k + t, p_.k, plan_.group_rows * ldx);
      });
      residuals(first, rows);
      if (outputs_.weight_sum)
        for_tiles(rows, p_.k, [&]<int R, int T>(int64_t r, int64_t t) __attribute__((always_inline)) {
          add_rows<S, R, T>(x + r * ldx, ldx, slopes_ + r * p_.k + t, p_.k, p_.d, weight_sums_ + t * p_.d);
        });
    }
    if (outputs_.elements)
      store(losses_, rows * p_.k, p_.w.dtype, element(outputs_.elements, p_.w.dtype, first * p_.k));
    if (outputs_.target_gradient) write_target_gradient(first, rows);
    if (outputs_.input_gradient) write_input_gradient(first, rows);
  }

  // From residuals_ = X Wᵀ to losses_ = v ℓ(R) and slopes_ = G = v ℓ'(R), and their sums.
  void residuals(int64_t first, int64_t rows) {
    const int64_t k = p_.k, count = rows * k;
    load_block(p_.y, first, rows, k, targets_);
    if (k == 1) {
      for (int64_t i = 0; i < rows; ++i) residuals_[i] = (residuals_[i] + b_[0]) - targets_[i];
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < k; ++j) residuals_[i * k + j] = (residuals_[i * k + j] + b_[j]) - targets_[i * k + j];
    }
    losses_and_slopes(p_.loss, residuals_, count, p_.delta, losses_, slopes_);
    if (p_.v.data) {
      load_block(p_.v, first, rows, k, weighted_);
      for (int64_t i = 0; i < count; ++i) losses_[i] *= weighted_[i];
      for (int64_t i = 0; i < count; ++i) slopes_[i] *= weighted_[i];
    }
    *loss_sum_ += sum(losses_, count);
    if (!outputs_.bias_sum) return;
    if (k == 1) {
      bias_sums_[0] += sum(slopes_, rows);
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < k; ++j) bias_sums_[j] += slopes_[i * k + j];
    }
  }

  // With few features rows_ holds a group as [d, kGroupRows], zeros up to a whole number of vectors.
  void load_columns(int64_t first, int64_t rows) {
    for (int64_t j = 0; j < p_.d; ++j) {
      double* column = rows_ + j * kGroupRows;
      load(at(p_.x, first, j), p_.x.row_stride, p_.x.dtype, rows, column);
      fill(column + rows, padded(rows) - rows, 0.0);
    }
  }

  static int64_t padded(int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; }

  void predict_columns(int64_t rows) {
    for (int64_t t = 0; t < p_.k; ++t) {
      double sums[kGroupRows] = {};
      for (int64_t j = 0; j < p_.d; ++j) {
        const double w = w_[t * p_.d + j];
        const double* column = rows_ + j * kGroupRows;
        for (int64_t i = 0; i < padded(rows); ++i) sums[i] += column[i] * w;
      }
      for (int64_t i = 0; i < rows; ++i) residuals_[i * p_.k + t] = sums[i];
    }
  }

  void add_columns(int64_t rows) {
    for (int64_t t = 0; t < p_.k; ++t) {
      double g[kGroupRows] = {};
      for (int64_t i = 0; i < rows; ++i) g[i] = slopes_[i * p_.k + t];
      for (int64_t j = 0; j < p_.d; ++j) {
        double* lanes = lanes_ + (t * p_.d + j) * kLanes;
        Vec sum = load_vec(lanes);
        for (int64_t i = 0; i < padded(rows); i += kLanes)
          sum += load_vec(g + i) * load_vec(rows_ + j * kGroupRows + i);
        store_vec(lanes, sum);
      }
    }
  }

  void write_target_gradient(int64_t first, int64_t rows) {
    const int64_t count = rows * p_.k;
    const Dtype dtype = gradient_dtype(p_.y.dtype);
    for (int64_t i = 0; i < count; ++i) residuals_[i] = -(scale_ * slopes_[i]);
    store(residuals_, count, dtype, element(outputs_.target_gradient, dtype, first * p_.k));
  }

  void write_input_gradient(int64_t first, int64_t rows) {
    const Dtype dtype = gradient_dtype(p_.x.dtype);
    for (int64_t i = 0; i < rows; ++i) {
      fill(rows_, p_.d, 0.0);  // the rows of X have been used
      for (int64_t t = 0; t < p_.k; ++t) {
        const double g = scale_ * slopes_[i * p_.k + t];
        const double* w = w_ + t * p_.d;
        for (int64_t j = 0; j < p_.d; ++j) rows_[j] += g * w[j];
      }
      store(rows_, p_.d, dtype, element(outputs_.input_gradient, dtype, (first + i) * p_.d));
    }
  }

  const Problem& p_;
  const PassOutputs& outputs_;
  const Plan& plan_;
  const double scale_;
  double *rows_, *slopes_, *residuals_, *losses_, *targets_, *weighted_, *lanes_;
  double *loss_sum_, *bias_sums_, *weight_sums_;
  const double *w_, *b_;
};

// Chunks [begin, end) of the plan, by one thread.
void run_rows(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale, char* workspace,
              int64_t thread, int64_t begin, int64_t end) {
  const auto run = [&](auto worker) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      worker.run(chunk * plan.chunk_rows, smaller((chunk + 1) * plan.chunk_rows, problem.n),
                 reinterpret_cast<double*>(workspace + chunk * plan.sums_stride));
  };
  if (problem.x.dtype == Dtype::float64) {
    run(Worker<double>(problem, outputs, plan, scale, workspace, thread));
  } else {
    run(Worker<float>(problem, outputs, plan, scale, workspace, thread));
  }
}

}  // namespace
}  // namespace linreg::cpu
