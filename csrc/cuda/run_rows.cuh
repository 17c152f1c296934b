// SPDX-License-Identifier: BSD-3-Clause
// The rows that a block keeps in its shared memory for all steps of a launch, and a pass over those of a batch.
//
// X, Y and v are read once and kept column by column, so that neighbours in a warp read neighbours. A row lies over
// `lanes` of a warp; a warp has one target. Deterministic: which thread adds which rows follows from the sizes, and
// sums are combined in fixed order, in double.
#pragma once

#include "reduce.cuh"
#include "residual.cuh"
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
  double* lines;    // [2, blocks, line], where there are several blocks
  double* signals;  // [blocks], of which step a block's line is there, counted from 1
};

template <Dtype kX_, Dtype kW_, int kColumns_>
struct ResidentShape {
  static constexpr Dtype kX = kX_, kW = kW_;
  static constexpr int kColumns = kColumns_;                                     // of a thread
  static constexpr int kRows = kColumns >= 4 ? 2 : 4;                            // in flight: more of them would spill
  static constexpr int kSums = kColumns + 3;                                     // and the loss, Σ v ℓ' and Σ v
  static constexpr int kScattered = kColumns == 1 ? 4 : kColumns == 8 ? 16 : 8;  // kSums as a power of two
};

// `count` numbers, `stride` apart, in fixed order; four sums, since an addition waits for the one before.
LINREG_DEVICE double sum_apart(const double* numbers, int count, int stride) {
  double sums[4] = {};
  int i = 0;
  for (; i + 4 <= count; i += 4)
#pragma unroll
    for (int s = 0; s < 4; ++s) sums[s] += numbers[(i + s) * stride];
#pragma unroll
  for (int s = 0; s < 3; ++s)
    if (i + s < count) sums[s] += numbers[(i + s) * stride];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// A batch of a run, of which this block has n rows.
struct Batch {
  int64_t index = 0;  // in its epoch
  int n = 0;
  const int64_t* order = nullptr;  // of its epoch
};

template <class S>
class ResidentRows {
 public:
  using Number = Stored<S::kX>;

  LINREG_DEVICE ResidentRows(const ResidentRun& call, double* memory)
      : call_(call),
        p_(call.problem),
        l_(call.layout),
        lane_(thread_index() & (l_.lanes - 1)),
        target_(thread_index() / kWarp % int(p_.k)),
        slot_((thread_index() / kWarp / int(p_.k) * kWarp + thread_index() % kWarp) / l_.lanes),
        slots_(l_.workers * kWarp / l_.lanes),
        first_(int64_t(block_index()) * l_.rows),
        rows_(p_.n - first_ < l_.rows ? p_.n > first_ ? int(p_.n - first_) : 0 : l_.rows),
        x_(reinterpret_cast<Number*>(memory)),
        y_(x_ + int(p_.d) * l_.stride),
        v_(y_ + int(p_.k) * l_.rows) {}

  LINREG_DEVICE void load() const {
    const auto fetch = [&](const View& from, int columns, Number* to, int stride) {
      const auto* const data = static_cast<const Number*>(from.data) + first_ * from.row_stride;
      for (int i = thread_index(); i < rows_ * columns; i += thread_count()) {
        const int row = i / columns, j = i - row * columns;
        to[j * stride + row] = data[row * from.row_stride + j * from.col_stride];
      }
    };
    fetch(p_.x, int(p_.d), x_, l_.stride);
    fetch(p_.y, int(p_.k), y_, l_.rows);
    if (p_.v.data) fetch(p_.v, l_.weight_columns, v_, l_.rows);
  }

  LINREG_DEVICE Batch batch_of(int64_t step) const {
    const Run& run = call_.run;
    const int64_t epoch = step / run.epoch_steps, index = step - epoch * run.epoch_steps;
    return {index, rows_of(index), run.order ? run.order + epoch * run.order_stride : nullptr};
  }

  LINREG_DEVICE Batch following(const Batch& batch) const {
    const Run& run = call_.run;
    const bool same_epoch = batch.index + 1 < run.epoch_steps;
    const int64_t index = same_epoch ? batch.index + 1 : 0;
    return {index, rows_of(index), !run.order || same_epoch ? batch.order : batch.order + run.order_stride};
  }

  // The rows that this thread goes on with: those of a batch from position `from` on. They are looked up one turn
  // ahead, since an order is in global memory, and looked at when they are used.
  LINREG_DEVICE void find(const Batch& batch, int from) {
    const int64_t first = batch.index * call_.run.batch_size;
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) {
      const int at = from + u * slots_ + slot_;
      next_[u] = at >= batch.n ? kNone : batch.order ? batch.order[first + at] : first + at;
    }
  }

  // Leaves the warp's sums of a batch at `line`: its target's columns, loss, slopes and weights. Finds the first rows
  // of the next batch.
  LINREG_DEVICE void add(const Batch& batch, const Batch& next, const double (&w)[S::kColumns], double b,
                         double* line) {
    double sums[S::kScattered] = {};
    const int tile = S::kRows * slots_;
    if (batch.n == 0) find(next, 0);
    for (int from = 0; from < batch.n; from += tile) {
      int rows[S::kRows];
#pragma unroll
      for (int u = 0; u < S::kRows; ++u)
        rows[u] = next_[u] == kNone ? kAbsent : 0 <= next_[u] && next_[u] < rows_ ? int(next_[u]) : kMissing;
      if (from + tile < batch.n) {
        find(batch, from + tile);
      } else {
        find(next, 0);
      }
      with_loss(p_.loss, [&]<Loss kLoss>() { add_tile<kLoss>(rows, w, b, sums); });
    }
    leave_sums(sums, line);
  }

  LINREG_DEVICE int lane() const { return lane_; }
  LINREG_DEVICE int target() const { return target_; }
  LINREG_DEVICE int column(int c) const { return c * l_.lanes + lane_; }

 private:
  LINREG_DEVICE int rows_of(int64_t index) const {
    return l_.blocks > 1 ? rows_ : int(batch_rows(call_.run, index));  // several blocks share the one batch of an epoch
  }

  template <Loss kLoss>
  LINREG_DEVICE void add_tile(const int (&rows)[S::kRows], const double (&w)[S::kColumns], double b,
                              double (&sums)[S::kScattered]) const {
    double x[S::kRows][S::kColumns], dot[S::kRows];
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) {
      dot[u] = 0;
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
        const bool there = rows[u] >= 0 && column(c) < p_.d;
        x[u][c] = there ? double(widen<S::kX>(x_[column(c) * l_.stride + rows[u]])) : 0;
        dot[u] += x[u][c] * w[c];
      }
      dot[u] = sum_lanes(dot[u], 1, l_.lanes);
    }
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) {
      if (rows[u] == kAbsent) continue;
      const bool there = rows[u] >= 0;
      const double y = there ? double(widen<S::kX>(y_[target_ * l_.rows + rows[u]])) : NAN;
      const int of_weight = l_.weight_columns > 1 ? target_ * l_.rows : 0;
      const double v = p_.v.data && there ? double(widen<S::kX>(v_[of_weight + rows[u]])) : 1;
      const double r = dot[u] + b - y, slope = v * loss_slope<kLoss>(r, p_.delta);
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) sums[c] += x[u][c] * slope;
      sums[S::kColumns] += v * loss_value<kLoss>(r, p_.delta);
      sums[S::kColumns + 1] += slope;
      sums[S::kColumns + 2] += v;
    }
  }

  // Over the lanes of a warp that have other rows of the same columns.
  LINREG_DEVICE void leave_sums(double (&sums)[S::kScattered], double* line) const {
    if (l_.lanes == 1) {
      const double mine = scatter_sums(sums, kWarp);
      constexpr int kShare = kWarp / S::kScattered;
      const int number = thread_index() % kWarp / kShare;
      if (thread_index() % kShare == 0 && number < S::kSums) line[number] = mine;
      return;
    }
    const int group = thread_index() % kWarp / l_.lanes;
#pragma unroll
    for (int s = 0; s < S::kSums; ++s) {
      const double sum = sum_lanes(sums[s], l_.lanes, kWarp);
      if (group != 0) continue;
      if (s < S::kColumns) line[column(s)] = sum;
      if (s >= S::kColumns && lane_ == 0) line[l_.columns + s - S::kColumns] = sum;
    }
  }

  static constexpr int64_t kNone = INT64_MIN;  // in place of a row: the batch has none there
  static constexpr int kAbsent = -1;           // the same
  static constexpr int kMissing = -2;          // the order names a row that there is not, which is nan

  const ResidentRun& call_;
  const Problem& p_;
  const ResidentLayout& l_;
  const int lane_;          // of those that share a row
  const int target_;        // of this warp
  const int slot_, slots_;  // which rows of a batch this thread has: slot_, slot_ + slots_, …
  const int64_t first_;     // of this block's rows, of which there are rows_
  const int rows_;
  Number* const x_;  // [d, stride]
  Number* const y_;  // [k, rows]
  Number* const v_;  // [weight columns, rows]
  int64_t next_[S::kRows];
};

}  // namespace linreg::cuda
