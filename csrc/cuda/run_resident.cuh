// SPDX-License-Identifier: BSD-3-Clause
// Many steps of a run in one launch, over rows that stay in shared memory: of one block, or a full batch of all blocks.
//
// Every thread keeps the weights of its columns, and each of the threads that have the same columns updates them from
// the same sums, so that nothing is handed out after the barrier. The sums of two steps alternate between two places:
// who writes the next ones has passed the barrier after which these are read. Parameters are rounded to their dtype
// after every step, so that steps in two launches are the steps of one. Read: the rows once a launch. Written: a loss a
// step. Several blocks leave their sums for each other in global memory and each adds up all of them, in their order,
// where one that adds for all would have to be waited for twice. They wait in a cooperative launch: all of them are
// running.
#pragma once

#include "run_rows.cuh"

namespace linreg::cuda {

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
    if (block_index() > 0 || thread_index() / kWarp >= p_.k || thread_index() % kWarp >= call_.layout.lanes) return;
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

// Adds up the sums of all blocks' warps. `own` are this block's; the sums of all are then in `parts`.
LINREG_DEVICE void exchange(const ResidentRun& call, int64_t step, const Lines& own, const Lines& parts, double* to) {
  const int line = call.layout.line, blocks = call.layout.blocks;
  double* const lines = call.lines + (step & 1) * blocks * line;
  for (int i = thread_index(); i < line; i += thread_count()) store_cg(lines + block_index() * line + i, own.sum(i));
  fence();       // this thread's sums, before the signal that thread 0 gives for all
  sync_block();  // all threads have published
  const double turn = double(step + 1);
  if (thread_index() == 0) signal(call.signals + block_index(), turn);
  // Who signals a step has read the sums of the one before, so that their place is free for the one after.
  for (int block = thread_index(); block < blocks; block += thread_count())
    while (signalled(call.signals + block) < turn) {
    }
  sync_block();  // every block's sums are there
  const int part = thread_index() / line, i = thread_index() - part * line;
  if (part < parts.count) {
    double sum = 0;
    // Asked for together and then added, since one answer takes as long as eight; instead of a block that there is not,
    // one is asked again.
    constexpr int kAtOnce = 8;
    for (int first = part; first < blocks; first += kAtOnce * parts.count) {
      double sums[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int block = first + u * parts.count;
        sums[u] = load_cg(lines + (block < blocks ? block : first) * line + i);
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u)
        if (first + u * parts.count < blocks) sum += sums[u];
    }
    to[part * line + i] = sum;
  }
  sync_block();  // and added, but for the parts
}

template <class S>
LINREG_DEVICE void take_steps(const ResidentRun& call) {
  const Problem& p = call.problem;
  const Run& run = call.run;
  const ResidentLayout& l = call.layout;
  if (ended_before(call, S::kW)) return leave_unreached(call, S::kW, run.begin);
  double* const lines = static_cast<double*>(shared_memory());  // [2, warps, line]
  double* const parts = lines + 2 * l.warps * l.line;           // [l.parts, line]
  ResidentRows<S> rows(call, parts + l.parts * l.line);
  rows.load();
  ResidentParameters<S> parameters(call, rows);
  Sgd sgd = call.sgd;
  if (sgd.lr_on_device) sgd.lr = load_number(sgd.lr_on_device, sgd.lr_dtype, 0);
  bool first_weight = call.weight.first_step, first_bias = call.bias.first_step;
  Batch batch = rows.batch_of(run.begin);
  rows.find(batch, 0);
  sync_block();  // all rows are in shared memory
  int64_t step = run.begin;
  for (; step < run.end; ++step) {
    if (run.lr) sgd.lr = run.lr[step - run.begin];
    const double of_batch = l.blocks > 1 ? double(p.n) : double(batch.n);
    double scale = reduction_scale(p.reduction, of_batch * double(p.k));
    const Batch next = step + 1 < run.end ? rows.following(batch) : Batch{};
    double* const own = lines + (step & 1) * (l.warps * l.line);
    rows.add(batch, next, parameters.w, parameters.b, own + thread_index() / kWarp * l.line);
    batch = next;
    sync_block();  // every warp's sums are there
    Lines of_all = {own, l.warps, l.line}, of_target = {own + rows.target() * l.line, l.workers, int(p.k) * l.line};
    if (l.blocks > 1) {
      const Lines added = {parts, l.parts, l.line};
      exchange(call, step, of_all, added, parts);
      of_all = of_target = added;
    }
    if (p.v.data) scale = reduction_scale(p.reduction, of_all.sum(l.columns + 2));
    if (ends_run(call, S::kW, step, scale, of_all, l.columns)) break;  // in all threads of all blocks
    parameters.update(of_target, scale, sgd, first_weight, first_bias);
    first_weight = first_bias = false;
  }
  if (step > run.begin) parameters.store();
  leave_unreached(call, S::kW, step + 1);
}

template <class S>
LINREG_KERNEL(kRunThreads, 1)
resident_kernel(LINREG_PARAMETER ResidentRun call) {
  take_steps<S>(call);
}

// No block has signalled anything yet.
LINREG_KERNEL(kRunThreads, 1)
clear_signals_kernel(double* const signals, const int count) {
  for (int i = thread_index(); i < count; i += thread_count()) signals[i] = 0;
}

}  // namespace linreg::cuda
