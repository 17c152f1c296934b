// SPDX-License-Identifier: BSD-3-Clause
// Many steps of a run in one launch, by one block, over rows that stay in its shared memory.
//
// Every thread keeps the weights of its columns, and each of the threads that have the same columns updates them from
// the same sums, so that nothing is handed out after the barrier. The sums of two steps alternate between two places:
// who writes the next ones has passed the barrier after which these are read. Parameters are rounded to their dtype
// after every step, so that steps in two launches are the steps of one. Read: the rows once a launch. Written: a loss a
// step.
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
