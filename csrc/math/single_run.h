// SPDX-License-Identifier: BSD-3-Clause
// The run of one of many problems.
#pragma once

#include "convert.h"
#include "inline.h"

namespace linreg {

template <class T>
LINREG_MATH void move_bytes(T*& pointer, int64_t bytes) {
  if (pointer) pointer = reinterpret_cast<T*>(reinterpret_cast<intptr_t>(pointer) + bytes);
}

// Run p of many, from that of the first problem.
LINREG_MATH SingleRun single_run(SingleRun one, const Many& many, int64_t p) {
  Run& run = one.run;
  move_bytes(one.problem.x.data, p * many.x);
  move_bytes(one.problem.y.data, p * many.y);
  move_bytes(one.problem.v.data, p * many.v);
  move_bytes(one.weight.value.data, p * many.w);
  move_bytes(one.bias.value.data, p * many.b);
  move_bytes(one.weight.momentum_buffer.data, p * many.w_buffer);
  move_bytes(one.bias.momentum_buffer.data, p * many.b_buffer);
  one.sgd = rule_of(many, one.sgd, p);
  if (many.offsets) {
    const int64_t begin = many.offsets[p];
    run.rows = many.offsets[p + 1] - begin;
    if (run.order) {
      run.order += begin;
    } else {
      one.problem.n = run.rows;
      for (View* const view : {&one.problem.x, &one.problem.y, &one.problem.v})
        move_bytes(view->data, begin * view->row_stride * int64_t(size_of(view->dtype)));
    }
  }
  run.epoch_steps = steps_of(run.rows, run.batch_size, many.drop_last);
  run.begin = 0;
  run.end = many.epochs * run.epoch_steps;
  return one;
}

}  // namespace linreg
