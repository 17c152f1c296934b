// SPDX-License-Identifier: BSD-3-Clause
// Many steps of a run in one launch of one cluster, through whose shared memory the batches stream.
//
// Every batch's rows lie over the blocks, since what these then send each other is a sum for each column, however large
// the batch is and whatever the rows' alignment; columns over the blocks would send a product for each row. A batch
// does not depend on the weights, so it is asked for steps before (kStages). A block sends the sums of its rows to the
// owner of each column, which adds those of all blocks in their order, updates its weights and sends them to all: of
// 256 columns over 16 blocks 4 KB a block and step, where sums that every block adds up for itself would be 31 KB. The
// sums of the loss, of the slopes and of the rows' weights go to all blocks, whose threads all update the bias. Nobody
// waits for a barrier of the cluster, but for the numbers themselves. Read: the rows once a step. Written: a loss a
// step. Deterministic: fixed rows a block, fixed columns an owner, sums in fixed order.
#pragma once

#include "run_streamed_rows.cuh"

namespace linreg::cuda {

// Sends a block's sums to its place in each block: those of columns to their owners, the others to all.
LINREG_DEVICE void send_sums(const StreamedLayout& l, const Lines& of_block, double* places, uint64_t* box) {
  double* const to = places + block_index() * (l.own + 3);
  for (int i = thread_index(); i < l.columns + 3 * l.cluster; i += thread_count()) {
    const int other = i - l.columns;
    if (other < 0) {
      send(to + i % l.own, i / l.own, of_block.sum(i), box);
    } else {
      send(to + l.own + other % 3, other / 3, of_block.sum(l.columns + other % 3), box);
    }
  }
}

template <class S>
LINREG_DEVICE void take_steps(const StreamedRun& call) {
  const Problem& p = call.problem;
  const Run& run = call.run;
  const StreamedLayout& l = call.layout;
  if (ended_before(call, S::kW)) return leave_unreached(call, S::kW, run.begin);
  const StreamedMemory<S> memory(call, shared_memory());
  StreamedRows<S> rows(call, memory);
  const int first_own = block_index() * l.own, left = l.columns - first_own;
  const int own = left < l.own ? left > 0 ? left : 0 : l.own;
  const int place = first_own + thread_index(), column = rows.column(place);
  const bool owner = thread_index() < own && column < p.d && !call.weight.frozen;
  double w = 0, w_buffer = 0, b = p.b.data ? load_number(p.b, 0, 0) : 0, b_buffer = 0;
  if (owner) {
    w = load_number(p.w, 0, column);
    w_buffer = load_buffer(call, call.weight, S::kW, 0, column);
  }
  b_buffer = load_buffer(call, call.bias, S::kW, 0, 0);
  for (int i = thread_index(); i < l.columns; i += thread_count())
    memory.weights[i] = rows.column(i) < p.d ? load_number(p.w, 0, rows.column(i)) : 0;
  if (thread_index() < 3) open_box(memory.boxes + thread_index());
  Sgd sgd = call.sgd;
  if (sgd.lr_on_device) sgd.lr = load_number(sgd.lr_on_device, sgd.lr_dtype, 0);
  bool first_weight = call.weight.first_step, first_bias = call.bias.first_step;
  rows.start();
  sync_cluster();  // the first batch is there, every block's boxes are open, and it has read the parameters
  int64_t step = run.begin;
  for (int turn = 0; step < run.end; ++step, ++turn) {
    if (run.lr) sgd.lr = run.lr[turn];
    double scale = reduction_scale(p.reduction, double(rows.rows_of_batch()));
    // Lines, places and boxes of sums are two in turn: who sends again to one of them, or writes it, has heard from
    // this block after the barrier at which all its threads were done with it.
    const int of_turn = turn & 1;
    uint64_t* const box = memory.boxes + 1 + of_turn;
    double* const places = memory.sums + of_turn * (l.cluster * (l.own + 3));
    double* const lines = memory.lines + of_turn * (l.warps * l.line);
    if (thread_index() == 0) expect_numbers(box, l.cluster * (own + 3));
    rows.add(memory.weights, b, lines + thread_index() / kWarp * l.line);
    rows.wait();
    sync_block();  // every warp's sums are there, and the next batch
    send_sums(l, {lines, l.warps, l.line}, places, box);
    rows.go_on();
    await_numbers(box, turn / 2);
    const Lines of_all = {places, l.cluster, l.own + 3};
    if (p.v.data) scale = reduction_scale(p.reduction, of_all.sum(l.own + 2));
    if (ends_run(call, S::kW, step, scale, of_all, l.own)) break;  // in all threads of all blocks
    if (p.b.data && !call.bias.frozen) step_number(b, b_buffer, scale * of_all.sum(l.own + 1), sgd, first_bias, S::kW);
    if (!call.weight.frozen) {
      if (thread_index() == 0) expect_numbers(memory.boxes, int(p.d));
      if (owner) {
        step_number(w, w_buffer, scale * of_all.sum(thread_index()), sgd, first_weight, S::kW);
        for (int rank = 0; rank < l.cluster; ++rank) send(memory.weights + place, rank, w, memory.boxes);
      }
      await_numbers(memory.boxes, turn);
    }
    first_weight = first_bias = false;
  }
  if (step > run.begin) {
    if (owner) store_parameter(call, call.weight, S::kW, 0, column, w, w_buffer);
    if (block_index() == 0 && thread_index() == 0 && !call.bias.frozen)
      store_parameter(call, call.bias, S::kW, 0, 0, b, b_buffer);
  }
  leave_unreached(call, S::kW, step + 1);
  wait_copies<0>();  // into memory that is gone after this
  sync_cluster();    // no block is gone while others send to it
}

template <class S>
LINREG_KERNEL(kRunThreads, 1)
streamed_run_kernel(LINREG_PARAMETER StreamedRun call) {
  take_steps<S>(call);
}

}  // namespace linreg::cuda
