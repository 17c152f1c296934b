// SPDX-License-Identifier: BSD-3-Clause
// The rows that a block keeps in its shared memory for all steps of a launch, and a pass over those of a batch.
//
// X, Y and v are read once and kept column by column, so that neighbours in a warp read neighbours. A row lies over
// `lanes` of a warp; a warp has one target. Deterministic: which thread adds which rows follows from the sizes, and
// sums are combined in fixed order, in double.
#pragma once

#include "run_sums.cuh"

namespace linreg::cuda {

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
        x_(reinterpret_cast<Number*>(memory)),
        y_(x_ + int(p_.d) * l_.stride),
        v_(y_ + int(p_.k) * l_.rows) {}

  LINREG_DEVICE void load() const {
    const auto fetch = [&](const View& from, int columns, Number* to, int stride) {
      const auto* const data = static_cast<const Number*>(from.data);
      for (int i = thread_index(); i < l_.rows * columns; i += thread_count()) {
        const int row = i / columns, j = i - row * columns;
        to[j * stride + row] = data[row * from.row_stride + j * from.col_stride];
      }
    };
    fetch(p_.x, int(p_.d), x_, l_.stride);
    fetch(p_.y, int(p_.k), y_, l_.rows);
    if (p_.v.data) fetch(p_.v, l_.weight_columns, v_, l_.rows);
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

  // Leaves the warp's sums of a batch at `line`: its target's columns, losses, derivatives and weights. Finds the first
  // rows of the next batch.
  LINREG_DEVICE void add(const Batch& batch, const Batch& next, const double (&w)[S::kColumns], double b,
                         double* line) {
    double sums[S::kScattered] = {};
    const int tile = S::kRows * slots_;
    if (batch.n == 0) find(next, 0);
    for (int from = 0; from < batch.n; from += tile) {
      int rows[S::kRows];
#pragma unroll
      for (int u = 0; u < S::kRows; ++u)
        rows[u] = next_[u] == kNone ? kAbsent : 0 <= next_[u] && next_[u] < l_.rows ? int(next_[u]) : kMissing;
      if (from + tile < batch.n) {
        find(batch, from + tile);
      } else {
        find(next, 0);
      }
      with_loss(p_.loss, [&]<Loss kLoss>() { add_tile<kLoss>(rows, w, b, sums); });
    }
    leave_sums<S>(sums, l_.lanes, line);
  }

  LINREG_DEVICE int lane() const { return lane_; }
  LINREG_DEVICE int target() const { return target_; }
  LINREG_DEVICE int column(int c) const { return c * l_.lanes + lane_; }

 private:
  template <Loss kLoss>
  LINREG_DEVICE void add_tile(const int (&rows)[S::kRows], const double (&w)[S::kColumns], double b,
                              double (&sums)[S::kScattered]) const {
    const auto read = [&](int u, double (&x)[S::kColumns]) {
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
        const bool there = rows[u] >= 0 && column(c) < p_.d;
        x[c] = there ? double(widen<S::kX>(x_[column(c) * l_.stride + rows[u]])) : 0;
      }
    };
    const auto target = [&](int u) { return double(widen<S::kX>(y_[target_ * l_.rows + rows[u]])); };
    const auto weight = [&](int u) {
      const int of_target = l_.weight_columns > 1 ? target_ * l_.rows : 0;
      return p_.v.data ? double(widen<S::kX>(v_[of_target + rows[u]])) : 1;
    };
    add_rows<S, kLoss>(rows, read, target, weight, w, b, l_.lanes, p_.delta, sums);
  }

  static constexpr int64_t kNone = INT64_MIN;  // in place of a row: the batch has none there

  const ResidentRun& call_;
  const Problem& p_;
  const ResidentLayout& l_;
  const int lane_;          // of those that share a row
  const int target_;        // of this warp
  const int slot_, slots_;  // which rows of a batch this thread has: slot_, slot_ + slots_, …
  Number* const x_;         // [d, stride]
  Number* const y_;         // [k, rows]
  Number* const v_;         // [weight columns, rows]
  int64_t next_[S::kRows];
};

}  // namespace linreg::cuda
