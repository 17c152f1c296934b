// SPDX-License-Identifier: BSD-3-Clause
// Many SGD steps in one call. A step uses the rows of its batch in place; rows in a given order are first gathered into
// the workspace. Nothing is allocated, and threads are woken only for large batches.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "convert.h"
#include "kernels.h"

namespace linreg::cpu {
namespace {

// The number of stored numbers in a row of `columns` elements: at most one if the row is broadcast.
int64_t columns_of(const View& view, int64_t columns) {
  return !view.data ? 0 : view.col_stride == 0 ? std::min<int64_t>(1, columns) : columns;
}

size_t gathered_bytes(const View& view, int64_t columns, int64_t rows) {
  return size_t(aligned(rows * columns_of(view, columns) * int64_t(size_of(view.dtype))));
}

template <class T>
void gather_numbers(const View& from, int64_t columns, const int64_t* order, int64_t rows, T* to) {
  for (int64_t i = 0; i < rows; ++i, to += columns) {
    const T* row = static_cast<const T*>(from.data) + order[i] * from.row_stride;
    for (int64_t j = 0; j < columns; ++j) to[j] = row[j * from.col_stride];
  }
}

// A view of rows of `from` that have been gathered at `to`, contiguous.
View gathered(const View& from, int64_t columns, const void* to) {
  return {from.data ? to : nullptr, columns_of(from, columns), from.col_stride == 0 ? 0 : 1, from.dtype};
}

// Copies the rows of `from` selected by `order` to `to`, and moves `to` past them.
View gather(const View& from, int64_t columns, const int64_t* order, int64_t rows, char*& to) {
  if (!from.data) return from;
  const int64_t held = columns_of(from, columns);
  char* const begin = to;
  if (from.col_stride == 1) {
    const size_t bytes = size_t(held) * size_of(from.dtype);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(begin + i * bytes, at(from, order[i]), bytes);
  } else if (size_of(from.dtype) == 8) {
    gather_numbers(from, held, order, rows, reinterpret_cast<uint64_t*>(begin));
  } else if (size_of(from.dtype) == 4) {
    gather_numbers(from, held, order, rows, reinterpret_cast<uint32_t*>(begin));
  } else {
    gather_numbers(from, held, order, rows, reinterpret_cast<uint16_t*>(begin));
  }
  to += gathered_bytes(from, columns, rows);
  return gathered(from, columns, begin);
}

View shifted(View view, int64_t rows) {
  if (view.data) view.data = at(view, rows);
  return view;
}

// The workspace of a step of several problems. It depends on the layout of the rows, too.
size_t step_workspace(Problem problem, const Run& run, int64_t count) {
  if (run.order) {
    problem.x = gathered(problem.x, problem.d, problem.x.data);
    problem.y = gathered(problem.y, problem.k, problem.y.data);
    problem.v = gathered(problem.v, problem.k, problem.v.data);
  }
  problem.n = batch_rows(run, 0);
  const size_t full = steps_workspace(problem, count);
  problem.n = batch_rows(run, run.epoch_steps - 1);  // fewer rows may be partitioned differently
  return std::max(full, steps_workspace(problem, count));
}

// Where a step reads a parameter: where the previous step wrote it.
View current(const Parameter& parameter, const View& view) {
  if (!parameter.value.data || parameter.frozen) return view;
  return {parameter.value.data, parameter.value.row_stride, 1, parameter.value.dtype};
}

// Takes the steps of runs that share x, the batches and the rates of each step, one step after another. The parameters
// of their problems are those that the steps update. With `stop_nonfinite`, there is one run.
int64_t take_steps(SingleRun* runs, int64_t count, bool stop_nonfinite, char* losses, int64_t stride, char* workspace) {
  const Run run = runs->run;
  const Dtype dtype = loss_dtype(runs->problem);
  char* const behind = workspace + step_workspace(runs->problem, run, count);
  for (int64_t step = run.begin; step < run.end; ++step) {
    const int64_t epoch = step / run.epoch_steps, first = step % run.epoch_steps * run.batch_size;
    const int64_t* const order = run.order ? run.order + epoch * run.order_stride + first : nullptr;
    const int64_t rows = batch_rows(run, step % run.epoch_steps);
    char* to = behind;
    const auto batch_of = [&](const View& view, int64_t columns) {
      return order ? gather(view, columns, order, rows, to) : shifted(view, first);
    };
    Problem batches[kMostTogether];
    for (int64_t i = 0; i < count; ++i) {
      const Problem& problem = runs[i].problem;
      batches[i] = problem;
      batches[i].n = rows;
      batches[i].x = i == 0 ? batch_of(problem.x, problem.d) : batches[0].x;
      batches[i].y = batch_of(problem.y, problem.k);
      batches[i].v = batch_of(problem.v, problem.k);
      if (run.lr) runs[i].sgd.lr = run.lr[step - run.begin];
    }
    char* const loss = losses + (step - run.begin) * int64_t(size_of(dtype));
    sgd_steps(batches, runs, count, stop_nonfinite, loss, stride, workspace);
    if (stop_nonfinite && !std::isfinite(load_one<double>(loss, dtype))) return step - run.begin;
    for (int64_t i = 0; i < count; ++i) runs[i].weight.first_step = runs[i].bias.first_step = false;
  }
  return run.end - run.begin;
}

// The parameters of the problem are those that the steps update.
SingleRun updating(SingleRun run) {
  run.problem.w = current(run.weight, run.problem.w);
  run.problem.b = current(run.bias, run.problem.b);
  return run;
}

}  // namespace

size_t runs_workspace(const SingleRun& one, int64_t count) {
  const auto& [problem, run, sgd, weight, bias] = one;
  if (is_small(problem, batch_rows(run, 0))) return 0;
  const int64_t rows = run.order ? batch_rows(run, 0) : 0;
  return step_workspace(problem, run, count) + gathered_bytes(problem.x, problem.d, rows) +
         count * (gathered_bytes(problem.y, problem.k, rows) + gathered_bytes(problem.v, problem.k, rows));
}

size_t run_workspace(const Problem& problem, const Run& run, const Problem* validation) {
  const size_t bytes = runs_workspace({problem, run, {}, {}, {}}, 1);
  return validation ? std::max(bytes, loss_workspace(*validation, {})) : bytes;
}

void sgd_runs(SingleRun* runs, int64_t count, char* losses, int64_t stride, void* workspace) {
  for (int64_t i = 0; i < count; ++i) runs[i] = updating(runs[i]);
  if (!is_small(runs->problem, batch_rows(runs->run, 0))) {
    take_steps(runs, count, false, losses, stride, static_cast<char*>(workspace));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto& [problem, run, sgd, weight, bias] = runs[i];
    kernels().small_steps(problem, run, sgd, weight, bias, false, losses + i * stride);
  }
}

int64_t sgd_run(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                bool stop_nonfinite, void* losses, const Problem* validation, void* validation_losses,
                void* workspace) {
  SingleRun one = updating({problem, run, sgd, weight, bias});
  Problem after;
  if (validation) after = *validation, after.w = one.problem.w, after.b = one.problem.b;

  // The size of a full batch decides: a shorter last batch is then small, too.
  const bool small = is_small(problem, batch_rows(run, 0));
  const int64_t size = int64_t(size_of(loss_dtype(problem)));
  Run& part = one.run;
  char* validation_loss = static_cast<char*>(validation_losses);
  while (part.begin < run.end) {
    const int64_t epoch_end = (part.begin / run.epoch_steps + 1) * run.epoch_steps;
    part.end = validation ? std::min(run.end, epoch_end) : run.end;
    if (run.lr) part.lr = run.lr + (part.begin - run.begin);
    char* const loss = static_cast<char*>(losses) + (part.begin - run.begin) * size;
    part.begin += small ? kernels().small_steps(one.problem, part, sgd, one.weight, one.bias, stop_nonfinite, loss)
                        : take_steps(&one, 1, stop_nonfinite, loss, 0, static_cast<char*>(workspace));
    if (part.begin < part.end) break;
    one.weight.first_step = one.bias.first_step = false;
    if (validation && part.end == epoch_end) {
      linear_loss(after, {}, validation_loss, workspace);
      validation_loss += size_of(loss_dtype(after));
    }
  }
  return part.begin - run.begin;
}

}  // namespace linreg::cpu
