// SPDX-License-Identifier: BSD-3-Clause
// The pass for rows that fit into registers: prediction, residual, loss and gradient sums from one reading of X.
//
// Read once: X, n·d elements, in words of kBytes; Y and v, n·k. Written: what is asked for, and one line of sums a
// block. Launch: persistent blocks. A row lies over `lanes` of a warp, or over `row_warps` warps; a thread always holds
// the same columns, so its weights and its gradient sums stay in registers. kTargets targets share a reading; other
// targets belong to other warps of the block, which find the row in the first-level cache. kRows rows are in flight.
// Deterministic: which thread adds which rows follows from the sizes and the grid, and sums are combined in fixed
// order.
#pragma once

#include <type_traits>

#include "finish.cuh"
#include "plan.h"
#include "reduce.cuh"
#include "residual.cuh"

namespace linreg::cuda {

// An instance of the kernel: a tier of plan.h for the dtypes of X and W.
template <Dtype kX_, Dtype kW_, bool kWordLoads, Width kWidth>
struct RowsShape {
  static constexpr Dtype kX = kX_, kW = kW_;
  static constexpr Tier kTier = tier(kX, kWordLoads, kWidth);
  static constexpr int kBytes = kTier.bytes, kLoads = kTier.loads, kTargets = kTier.targets, kRows = kTier.rows;
  static constexpr int kPerLoad = kBytes / int(sizeof(Stored<kX>));
  static constexpr int kColumns = kPerLoad * kLoads;  // of a thread
  static constexpr int kDots = kRows * kTargets;      // of the lanes of a row at a time
  // Whether each dot product is given to one lane, which alone computes the residual; else every lane computes all.
  static constexpr bool kOwned = kWidth != Width::narrow;
  static constexpr bool kWritesInput = kWidth == Width::writing;
  // A wide row's weights are read anew for each row, from the first-level cache: there are no registers left for them.
  static constexpr bool kKeepsWeights = kWidth != Width::wide;
  // Weights are kept as double, which saves a conversion a number, where there are few of them.
  static constexpr bool kFewWeights = kWidth == Width::narrow || kWidth == Width::deep;
  using Weight = std::conditional_t<kFewWeights, double, Wide<kW>>;
};

// Where this thread stands: its warp is one of those that share a row, of a group of targets, of a worker.
struct Place {
  int row_warp, group, worker;
};

LINREG_DEVICE Place place_of(const Layout& l) {
  const int warp = thread_index() / kWarp;
  return {warp % l.row_warps, warp / l.row_warps % l.groups, warp / (l.row_warps * l.groups)};
}

template <class S>
class RowsPass {
 public:
  LINREG_DEVICE RowsPass(const Pass& pass)
      : pass_(pass),
        p_(pass.problem),
        l_(pass.layout),
        lane_(place_of(l_).row_warp * l_.lanes + in_row()),
        first_target_(place_of(l_).group * S::kTargets),
        columns_(int(p_.d)),
        x_(static_cast<const Stored<S::kX>*>(p_.x.data)),
        shared_(static_cast<double*>(shared_memory())) {
    const int own_target = S::kOwned ? first_target_ + own() % S::kTargets : first_target_;
    bias_ = p_.b.data && own_target < p_.k ? load_number(p_.b, 0, own_target) : 0;
#pragma unroll
    for (int t = 0; t < S::kTargets; ++t) {
      const int target = first_target_ + t;
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
        if constexpr (S::kKeepsWeights) w_[t][c] = load_weight(target, column(c));
        sums_[t][c] = 0;
      }
    }
  }

  LINREG_DEVICE void run() {
    const int slots = shared_row() ? thread_count() / kWarp * S::kDots : 0;
    const int64_t tile = int64_t(S::kRows) * row_step();
    const int row_in_tile = place_of(l_).worker * l_.warp_rows + thread_index() % kWarp / l_.lanes;
    int parity = 0;
    for (int64_t begin = block_index() * tile; begin < p_.n; begin += block_count() * tile, parity ^= 1) {
      const int64_t first = begin + row_in_tile;  // this thread's first row; the others are row_step() apart
      Words<S::kBytes> x[S::kRows][S::kLoads];
      Wide<S::kX> y[S::kOwned ? 1 : S::kDots];
      double dot[S::kDots];
      load_rows(first, x, y);
      dots(x, dot);
      if constexpr (S::kOwned) {
        own_dlosses(first, y, dot, slots * parity);
      } else {
        dlosses(first, y, dot);
      }
      if (pass_.weight_sum) add_rows(x, dot);
      if constexpr (S::kWritesInput) write_input_gradient(first, dot);
    }
  }

  // Leaves this block's sums at `line`. Workers add to it one after the other, in shared memory unless there is one.
  LINREG_DEVICE void leave_sums(double* line) {
    sync_block();  // the slots are no longer read
    double* const sums = l_.workers > 1 ? shared_ : line;
    for (int worker = 0; worker < l_.workers; ++worker) {
      if (worker == place_of(l_).worker) add_sums(sums);
      sync_block();  // before the next worker adds
    }
    if (l_.workers == 1) return;
    const int count = int(sum_count(p_, pass_.weight_sum));
    for (int i = thread_index(); i < count; i += thread_count()) store_cg(line + i, sums[i]);
  }

 private:
  // Of this thread's columns the one with number c.
  LINREG_DEVICE int column(int c) const {
    return (c / S::kPerLoad * (l_.lanes * l_.row_warps) + lane_) * S::kPerLoad + c % S::kPerLoad;
  }

  // Of the lanes that its warp gives a row.
  LINREG_DEVICE int in_row() const { return thread_index() & (l_.lanes - 1); }
  LINREG_DEVICE bool first_row_of_warp() const { return thread_index() % kWarp < l_.lanes; }
  LINREG_DEVICE bool shared_row() const { return l_.row_warps > 1; }
  LINREG_DEVICE int row_step() const { return l_.workers * l_.warp_rows; }
  LINREG_DEVICE int64_t row(int64_t first, int u) const { return first + u * row_step(); }

  // This thread's own dot product is of row own() / kTargets and target own() % kTargets.
  LINREG_DEVICE int own() const { return in_row() / (l_.lanes / S::kDots); }

  LINREG_DEVICE Wide<S::kX> load_target(int64_t row, int target) const {
    const auto* y = static_cast<const Stored<S::kX>*>(p_.y.data) + row * p_.y.row_stride;
    if constexpr (sizeof(*y) == 2) {
      if (p_.y.dtype == Dtype::float32) return load_float_target(row, target);
    }
    return row < p_.n && target < p_.k ? widen<S::kX>(y[target * p_.y.col_stride]) : 0;
  }

  // float32 beside 16-bit rows.
  LINREG_DEVICE float load_float_target(int64_t row, int target) const {
    const auto* y = static_cast<const float*>(p_.y.data) + row * p_.y.row_stride;
    return row < p_.n && target < p_.k ? y[target * p_.y.col_stride] : 0;
  }

  template <int kOnes>
  LINREG_DEVICE void load_rows(int64_t first, Words<S::kBytes> (&x)[S::kRows][S::kLoads],
                               Wide<S::kX> (&y)[kOnes]) const {
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) {
      const bool valid = row(first, u) < p_.n;
      const auto* from = x_ + row(first, u) * p_.x.row_stride;
#pragma unroll
      for (int load = 0; load < S::kLoads; ++load) {
        const int j = column(load * S::kPerLoad);
        x[u][load] = valid && j < columns_ ? load_once<S::kBytes>(from + j) : Words<S::kBytes>{};
      }
      if constexpr (!S::kOwned) y[u] = load_target(row(first, u), first_target_);
    }
    if constexpr (S::kOwned) y[0] = load_target(row(first, own() / S::kTargets), first_target_ + own() % S::kTargets);
  }

  // Not as a constant: the last block will write it.
  LINREG_DEVICE Wide<S::kW> load_weight(int target, int j) const {
    const auto* w = static_cast<const Stored<S::kW>*>(p_.w.data) + target * p_.w.row_stride;
    return target < p_.k && j < columns_ ? widen<S::kW>(w[j]) : 0;
  }

  LINREG_DEVICE double weight(int t, int c) const {
    if constexpr (S::kKeepsWeights) {
      return w_[t][c];
    } else {
      return load_weight(first_target_ + t, column(c));
    }
  }

  // This thread's part of X Wᵀ.
  LINREG_DEVICE void dots(const Words<S::kBytes> (&x)[S::kRows][S::kLoads], double (&dot)[S::kDots]) {
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) {
#pragma unroll
      for (int t = 0; t < S::kTargets; ++t) {
        dot[u * S::kTargets + t] = 0;
#pragma unroll
        for (int c = 0; c < S::kColumns && S::kKeepsWeights; ++c) forget(w_[t][c]);
      }
#pragma unroll
      for (int load = 0; load < S::kLoads; ++load) {
        Wide<S::kX> numbers[S::kPerLoad];
        widen<S::kX>(x[u][load], numbers);
#pragma unroll
        for (int c = 0; c < S::kPerLoad; ++c)
#pragma unroll
          for (int t = 0; t < S::kTargets; ++t)
            dot[u * S::kTargets + t] += double(numbers[c]) * weight(t, load * S::kPerLoad + c);
      }
    }
  }

  // From dot products to v ℓ'(r), zero for rows that do not exist. One target a warp, no weights.
  LINREG_DEVICE void dlosses(int64_t first, const Wide<S::kX> (&y)[S::kDots], double (&dot)[S::kDots]) {
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) dot[u] = sum_lanes(dot[u], 1, l_.lanes);
    with_loss(p_.loss, [&]<Loss kLoss>() {
#pragma unroll
      for (int u = 0; u < S::kRows; ++u) {
        const int64_t i = row(first, u);
        if (i >= p_.n) {
          dot[u] = 0;
          continue;
        }
        const Residual<double> of = residual<kLoss>(dot[u] + bias_ - y[u], 1.0, p_.delta);
        residuals_.add(of, 1);
        dot[u] = of.dloss;
      }
    });
  }

  // The same; each lane computes its own, and then all get all.
  LINREG_DEVICE void own_dlosses(int64_t first, const Wide<S::kX> (&y)[1], double (&dot)[S::kDots], int slots) {
    double mine = scatter_sums(dot, l_.lanes);
    if (shared_row()) mine = sum_warps(mine, shared_ + slots);
    const int64_t i = row(first, own() / S::kTargets);
    const int t = first_target_ + own() % S::kTargets;
    double dloss = 0;
    if (i < p_.n && t < p_.k) {
      const double v = p_.v.data ? load_number(p_.v, i, t) : 1;
      const Residual<double> of = residual(p_, mine + bias_ - y[0], v);
      residuals_.add(of, v);
      dloss = of.dloss;
      if (is_lane_leader() && lane_ < l_.lanes) write_residual(pass_, pass_scale(pass_), i, t, of);
    }
    const int share = l_.lanes / S::kDots, row_begin = thread_index() % kWarp - in_row();
#pragma unroll
    for (int d = 0; d < S::kDots; ++d) dot[d] = shuffle(dloss, row_begin + d * share);
  }

  // Of the lanes that own the same dot product, the one whose residual counts.
  LINREG_DEVICE bool is_lane_leader() const { return in_row() % (l_.lanes / S::kDots) == 0; }

  // Adds what all warps of a row have for a dot product. The row's lanes are whole warps here. `slots` alternate
  // between two calls, so that one barrier suffices: who writes the next slots has passed the barrier after which these
  // are read.
  LINREG_DEVICE double sum_warps(double mine, double* slots) const {
    const Place at = place_of(l_);
    const int share = kWarp / S::kDots;
    double* const line = slots + (at.worker * l_.groups + at.group) * l_.row_warps * S::kDots + own();
    if (is_lane_leader()) line[at.row_warp * S::kDots] = mine;
    sync_block();  // every warp's part is there
    double sum = 0;
    for (int warp = in_row() % share; warp < l_.row_warps; warp += share) sum += line[warp * S::kDots];
    return sum_lanes(sum, 1, share);
  }

  LINREG_DEVICE void add_rows(Words<S::kBytes> (&x)[S::kRows][S::kLoads], const double (&dloss)[S::kDots]) {
#pragma unroll
    for (int u = 0; u < S::kRows; ++u)
#pragma unroll
      for (int load = 0; load < S::kLoads; ++load) {
        forget(x[u][load].bits);
        Wide<S::kX> numbers[S::kPerLoad];
        widen<S::kX>(x[u][load], numbers);
#pragma unroll
        for (int c = 0; c < S::kPerLoad; ++c)
#pragma unroll
          for (int t = 0; t < S::kTargets; ++t)
            sums_[t][load * S::kPerLoad + c] += double(numbers[c]) * dloss[u * S::kTargets + t];
      }
  }

  LINREG_DEVICE void write_input_gradient(int64_t first, const double (&dloss)[S::kDots]) const {
    const double scale = pass_scale(pass_);
#pragma unroll
    for (int u = 0; u < S::kRows; ++u)
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
        const int j = column(c);
        if (row(first, u) >= p_.n || j >= columns_) continue;
        double sum = 0;
#pragma unroll
        for (int t = 0; t < S::kTargets; ++t) sum += dloss[u * S::kTargets + t] * weight(t, c);
        store_number(pass_.input_gradient, gradient_dtype(S::kX), row(first, u) * p_.d + j, scale * sum);
      }
  }

  LINREG_DEVICE void add_sums(double* sums) const {
    add_residuals(sums);
    if (!pass_.weight_sum) return;
#pragma unroll
    for (int t = 0; t < S::kTargets; ++t) {
      const int target = first_target_ + t;
      double* const of_target = sums + weight_sums(p_) + target * columns_;
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c) {
        const double sum = sum_lanes(sums_[t][c], l_.lanes, kWarp);
        if (target < p_.k && column(c) < columns_ && first_row_of_warp()) put(of_target + column(c), sum);
      }
    }
  }

  LINREG_DEVICE void put(double* at, double sum) const {
    *at = thread_index() / kWarp < l_.row_warps * l_.groups ? sum : *at + sum;
  }

  // Over the lanes that have residuals of the same target: those of other rows, and of the same lane of other rows.
  LINREG_DEVICE void add_residuals(double* sums) const {
    const auto sum_of = [&](double mine) {
      if constexpr (S::kOwned) mine = sum_lanes(mine, l_.lanes / S::kRows, l_.lanes);
      return sum_lanes(mine, l_.lanes, kWarp);
    };
    const double loss = sum_of(residuals_.loss);
    const double weight_total = sum_of(residuals_.weight_total);
    const double dloss = sum_of(residuals_.dloss);
    int target = first_target_;
    bool writer = lane_ == 0 && first_row_of_warp();
    if constexpr (S::kOwned) {
      target += own() % S::kTargets;
      writer = first_row_of_warp() && lane_ < l_.lanes && is_lane_leader() && own() < S::kTargets;
    }
    if (!writer || target >= p_.k) return;
    put(sums + loss_sums(p_) + target, loss);
    put(sums + weight_totals(p_) + target, weight_total);
    put(sums + bias_sums(p_) + target, dloss);
  }

  const Pass& pass_;
  const Problem& p_;
  const Layout& l_;
  const int lane_;          // of the lanes that its block gives a row
  const int first_target_;  // of this warp
  const int columns_;
  const Stored<S::kX>* const x_;
  double* const shared_;
  double bias_;  // of this thread's target
  typename S::Weight w_[S::kTargets][S::kKeepsWeights ? S::kColumns : 1];
  double sums_[S::kTargets][S::kColumns];
  ResidualSums residuals_;  // of this thread's target
};

template <class S>
LINREG_KERNEL(S::kTier.threads, S::kTier.resident_threads / S::kTier.threads)
rows_kernel(LINREG_PARAMETER Pass pass) {
  RowsPass<S> rows(pass);
  rows.run();
  rows.leave_sums(pass.partials + block_index() * pass.line_stride);
  finish_last(pass);
}

}  // namespace linreg::cuda
