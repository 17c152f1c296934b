// SPDX-License-Identifier: BSD-3-Clause
// Many steps of a run in one launch, by one block, over rows that stay in its shared memory.
//
// Every thread keeps the weights of its columns, and each of the threads that have the same columns updates them from
// the same sums, so that nothing is handed out after the barrier. The sums of two steps alternate between two places:
// who writes the next ones has passed the barrier after which these are read. Parameters are rounded to their dtype
// after every step, so that steps in two launches are the steps of one. Read: the rows once a launch. Written: a loss a
// step.
#pragma once

#include "../math/reduction.h"
#include "../math/sgd.h"
#include "number.cuh"
#include "plan.h"
#include "reduce.cuh"
#include "residual.cuh"

namespace linreg::cuda {

// ---- The call, and how it goes from batch to batch ------------------------------------------------------------------

struct ResidentRun {
  Problem problem;
  Run run;  // order and lr are the device's
  Sgd sgd;
  Parameter weight, bias;
  bool stop_nonfinite;
  const void* before;  // the loss of the step before run.begin, which may have ended the run; nullptr: there is none
  void* losses;        // [run.end - run.begin]
  ResidentLayout layout;
};

struct Batch {
  int64_t index = 0;               // in its epoch
  int n = 0;                       // rows
  const int64_t* order = nullptr;  // of its epoch
};

LINREG_DEVICE Batch batch_of(const Run& run, int64_t step) {
  const int64_t epoch = step / run.epoch_steps, index = step - epoch * run.epoch_steps;
  return {index, int(batch_rows(run, index)), run.order ? run.order + epoch * run.order_stride : nullptr};
}

LINREG_DEVICE Batch following(const Run& run, const Batch& batch) {
  const bool same_epoch = batch.index + 1 < run.epoch_steps;
  const int64_t index = same_epoch ? batch.index + 1 : 0;
  return {index, int(batch_rows(run, index)), !run.order || same_epoch ? batch.order : batch.order + run.order_stride};
}

// Whether the step before has ended the run.
LINREG_DEVICE bool ended_before(const ResidentRun& call, Dtype dtype) {
  return call.before && call.stop_nonfinite && !is_finite(load_number(call.before, dtype, 0));
}

// The losses from `step` on, of steps that are not reached.
LINREG_DEVICE void leave_unreached(const ResidentRun& call, Dtype dtype, int64_t step) {
  for (int64_t i = step - call.run.begin + thread_index(); i < call.run.end - call.run.begin; i += thread_count())
    store_number(call.losses, dtype, i, NAN);
}

// ---- The sums of a thread and a warp, and what becomes of them ------------------------------------------------------

// A row lies over some lanes of a warp, of which each has kColumns.
template <Dtype kX_, Dtype kW_, int kColumns_>
struct RunShape {
  static constexpr Dtype kX = kX_, kW = kW_;
  static constexpr int kColumns = kColumns_;  // of a thread
  static constexpr int kRows = rows_in_flight(kColumns);
  static constexpr int kSums = kColumns + 3;                                     // and the loss, Σ v ℓ' and Σ v
  static constexpr int kScattered = kColumns == 1 ? 4 : kColumns == 8 ? 16 : 8;  // kSums as a power of two
};

constexpr int kAbsent = -1;   // in place of a row: the batch has none there
constexpr int kMissing = -2;  // the order names a row that there is not, which is nan

// Adds some rows of a batch, each a number or one of the above, to the sums of a thread. `read` fills in a row's
// columns, `target` and `weight` are of a row; they are asked for rows that are there.
template <class S, Loss kLoss, class Read, class Target, class Weight>
LINREG_DEVICE void add_rows(const int (&rows)[S::kRows], const Read& read, const Target& target, const Weight& weight,
                            const double (&w)[S::kColumns], double b, int lanes, double delta,
                            double (&sums)[S::kScattered]) {
  double x[S::kRows][S::kColumns], dot[S::kRows];
#pragma unroll
  for (int u = 0; u < S::kRows; ++u) {
    dot[u] = 0;
    read(u, x[u]);
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) dot[u] += x[u][c] * w[c];
    dot[u] = sum_lanes(dot[u], 1, lanes);
  }
#pragma unroll
  for (int u = 0; u < S::kRows; ++u) {
    if (rows[u] == kAbsent) continue;
    const bool there = rows[u] >= 0;
    const double y = there ? target(u) : NAN, v = there ? weight(u) : 1;
    const Residual of = residual<kLoss>(dot[u] + b - y, v, delta);
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) sums[c] += x[u][c] * of.dloss;
    sums[S::kColumns] += of.loss;
    sums[S::kColumns + 1] += of.dloss;
    sums[S::kColumns + 2] += v;
  }
}

// Leaves a warp's sums at `line`, those over the lanes that have other rows of the same columns: column c of lane i at
// c · lanes + i, then those of the losses, their derivatives and the weights.
template <class S>
LINREG_DEVICE void leave_sums(double (&sums)[S::kScattered], int lanes, double* line) {
  const int in_warp = thread_index() % kWarp;
  if (lanes == 1) {
    const double mine = scatter_sums(sums, kWarp);
    constexpr int kShare = kWarp / S::kScattered;
    const int number = in_warp / kShare;
    if (in_warp % kShare == 0 && number < S::kSums) line[number] = mine;
    return;
  }
  const int group = in_warp / lanes, lane = in_warp & (lanes - 1);
#pragma unroll
  for (int s = 0; s < S::kSums; ++s) {
    const double sum = sum_lanes(sums[s], lanes, kWarp);
    if (group != 0) continue;
    if (s < S::kColumns) line[s * lanes + lane] = sum;
    if (s >= S::kColumns && lane == 0) line[S::kColumns * lanes + s - S::kColumns] = sum;
  }
}

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

// Sums that are to be added: `count` of each, `stride` apart.
struct Lines {
  const double* at;
  int count, stride;

  LINREG_DEVICE double sum(int i) const { return sum_apart(at + i, count, stride); }
};

// Writes the loss of a step, whose sums are at `at` of `of_all`; true if the run ends with it.
LINREG_DEVICE bool ends_run(const ResidentRun& call, Dtype dtype, int64_t step, double scale, const Lines& of_all,
                            int at) {
  const bool writes = thread_index() == 0;
  if (!call.stop_nonfinite && !writes) return false;
  const double loss = round_to(scale * of_all.sum(at), dtype);
  if (writes) store_number(call.losses, dtype, step - call.run.begin, loss);
  return call.stop_nonfinite && !is_finite(loss);
}

// The momentum of a parameter's number (i, j) before the first step of a launch.
LINREG_DEVICE double load_buffer(const ResidentRun& call, const Parameter& of, Dtype dtype, int64_t i, int64_t j) {
  const Rows& from = of.momentum_buffer;
  const bool stored = call.sgd.momentum != 0 && from.data && !of.first_step;
  return stored ? load_number(from.data, dtype, i * from.row_stride + j) : 0;
}

// The rule. Numbers are rounded to their dtype after every step: steps in two launches are the steps of one.
LINREG_DEVICE void step_number(double& p, double& buffer, double gradient, const Sgd& sgd, bool first, Dtype dtype) {
  const SgdNumber<double> next = sgd_update(p, buffer, gradient, sgd, first);
  p = round_to(next.p, dtype);
  buffer = round_to(next.buffer, dtype);
}

LINREG_DEVICE void store_parameter(const ResidentRun& call, const Parameter& of, Dtype dtype, int64_t i, int64_t j,
                                   double p, double buffer) {
  const auto put = [&](const Rows& to, double number) {
    if (to.data) store_number(to.data, dtype, i * to.row_stride + j, number);
  };
  put(of.value, p);
  if (call.sgd.momentum != 0) put(of.momentum_buffer, buffer);
}

// ---- The rows in shared memory, and a pass over those of a batch ----------------------------------------------------

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

// ---- The parameters, and the steps ----------------------------------------------------------------------------------

// The parameters of a thread's columns and target.
template <class S>
class ResidentParameters {
 public:
  LINREG_DEVICE ResidentParameters(const ResidentRun& call, const ResidentRows<S>& rows)
      : call_(call), p_(call.problem), rows_(rows) {
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) {
      const int j = rows_.column(c);
      w[c] = j < p_.d ? load_number(p_.w, rows_.target(), j) : 0;
      buffer_[c] = j < p_.d ? load_buffer(call_, call_.weight, S::kW, rows_.target(), j) : 0;
    }
    b = p_.b.data ? load_number(p_.b, 0, rows_.target()) : 0;
    bias_buffer_ = load_buffer(call_, call_.bias, S::kW, 0, rows_.target());
  }

  // The rule. `sums` are of the target.
  LINREG_DEVICE void update(const Lines& sums, double scale, const Sgd& sgd, bool first_weight, bool first_bias) {
    const auto step = [&](double& p, double& buffer, int i, bool first) {
      step_number(p, buffer, scale * sums.sum(i), sgd, first, S::kW);
    };
    if (!call_.weight.frozen) {
#pragma unroll
      for (int c = 0; c < S::kColumns; ++c)
        if (rows_.column(c) < p_.d) step(w[c], buffer_[c], rows_.column(c), first_weight);
    }
    if (!call_.bias.frozen && p_.b.data) step(b, bias_buffer_, call_.layout.columns + 1, first_bias);
  }

  // One thread of those that have the same columns writes them.
  LINREG_DEVICE void store() const {
    if (thread_index() / kWarp >= p_.k || thread_index() % kWarp >= call_.layout.lanes) return;
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c)
      if (rows_.column(c) < p_.d && !call_.weight.frozen)
        store_parameter(call_, call_.weight, S::kW, rows_.target(), rows_.column(c), w[c], buffer_[c]);
    if (rows_.lane() == 0 && !call_.bias.frozen)
      store_parameter(call_, call_.bias, S::kW, 0, rows_.target(), b, bias_buffer_);
  }

  double w[S::kColumns], b;

 private:
  const ResidentRun& call_;
  const Problem& p_;
  const ResidentRows<S>& rows_;
  double buffer_[S::kColumns], bias_buffer_;
};

template <class S>
LINREG_KERNEL(kRunThreads, 1)
resident_kernel(LINREG_PARAMETER ResidentRun call) {
  const Problem& p = call.problem;
  const Run& run = call.run;
  const ResidentLayout& l = call.layout;
  if (ended_before(call, S::kW)) return leave_unreached(call, S::kW, run.begin);
  double* const lines = static_cast<double*>(shared_memory());  // [2, warps, line]
  ResidentRows<S> rows(call, lines + 2 * l.warps * l.line);
  rows.load();
  ResidentParameters<S> parameters(call, rows);
  Sgd sgd = call.sgd;
  if (sgd.lr_on_device) sgd.lr = load_number(sgd.lr_on_device, sgd.lr_dtype, 0);
  bool first_weight = call.weight.first_step, first_bias = call.bias.first_step;
  Batch batch = batch_of(run, run.begin);
  rows.find(batch, 0);
  sync_block();  // all rows are in shared memory
  int64_t step = run.begin;
  for (; step < run.end; ++step) {
    if (run.lr) sgd.lr = run.lr[step - run.begin];
    double scale = reduction_scale(p.reduction, double(batch.n) * double(p.k));
    const Batch next = step + 1 < run.end ? following(run, batch) : Batch{};
    double* const own = lines + (step & 1) * (l.warps * l.line);
    rows.add(batch, next, parameters.w, parameters.b, own + thread_index() / kWarp * l.line);
    batch = next;
    sync_block();  // every warp's sums are there
    const Lines of_all = {own, l.warps, l.line};
    const Lines of_target = {own + rows.target() * l.line, l.workers, int(p.k) * l.line};
    if (p.v.data) scale = reduction_scale(p.reduction, of_all.sum(l.columns + 2));
    if (ends_run(call, S::kW, step, scale, of_all, l.columns)) break;  // in all threads
    parameters.update(of_target, scale, sgd, first_weight, first_bias);
    first_weight = first_bias = false;
  }
  if (step > run.begin) parameters.store();
  leave_unreached(call, S::kW, step + 1);
}

}  // namespace linreg::cuda
