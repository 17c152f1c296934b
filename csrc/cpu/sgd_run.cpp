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

// The workspace of a step. It depends on the layout of the rows, too.
size_t step_workspace(Problem problem, const Run& run) {
  if (run.order) {
    problem.x = gathered(problem.x, problem.d, problem.x.data);
    problem.y = gathered(problem.y, problem.k, problem.y.data);
    problem.v = gathered(problem.v, problem.k, problem.v.data);
  }
  problem.n = batch_rows(run, 0);
  const size_t full = sgd_workspace(problem);
  problem.n = batch_rows(run, run.epoch_steps - 1);  // fewer rows may be partitioned differently
  return std::max(full, sgd_workspace(problem));
}

// Where a step reads a parameter: where the previous step wrote it.
View current(const Parameter& parameter, const View& view) {
  if (!parameter.value.data || parameter.frozen) return view;
  return {parameter.value.data, parameter.value.row_stride, 1, parameter.value.dtype};
}

// Takes the steps [run.begin, run.end) one by one. The parameters of `problem` are those that the steps update.
int64_t take_steps(const Problem& problem, const Run& run, const Sgd& settings, const Parameter& weight,
                   const Parameter& bias, bool stop_nonfinite, char* losses, char* workspace) {
  Sgd sgd = settings;
  Parameter w = weight, b = bias;
  const Dtype dtype = loss_dtype(problem);
  char* const behind = workspace + step_workspace(problem, run);
  for (int64_t step = run.begin; step < run.end; ++step) {
    const int64_t epoch = step / run.epoch_steps, first = step % run.epoch_steps * run.batch_size;
    Problem batch = problem;
    batch.n = batch_rows(run, step % run.epoch_steps);
    if (run.order) {
      const int64_t* order = run.order + epoch * run.order_stride + first;
      char* to = behind;
      batch.x = gather(problem.x, problem.d, order, batch.n, to);
      batch.y = gather(problem.y, problem.k, order, batch.n, to);
      batch.v = gather(problem.v, problem.k, order, batch.n, to);
    } else {
      batch.x = shifted(problem.x, first);
      batch.y = shifted(problem.y, first);
      batch.v = shifted(problem.v, first);
    }
    if (run.lr) sgd.lr = run.lr[step - run.begin];
    char* const loss = losses + (step - run.begin) * int64_t(size_of(dtype));
    sgd_step(batch, sgd, w, b, stop_nonfinite, loss, workspace);
    if (stop_nonfinite && !std::isfinite(load_one<double>(loss, dtype))) return step - run.begin;
    w.first_step = b.first_step = false;
  }
  return run.end - run.begin;
}

}  // namespace

size_t run_workspace(const Problem& problem, const Run& run, const Problem* validation) {
  size_t bytes = 0;
  if (!is_small(problem, batch_rows(run, 0))) {
    bytes = step_workspace(problem, run);
    const int64_t rows = run.order ? batch_rows(run, 0) : 0;
    bytes += gathered_bytes(problem.x, problem.d, rows) + gathered_bytes(problem.y, problem.k, rows) +
             gathered_bytes(problem.v, problem.k, rows);
  }
  return validation ? std::max(bytes, loss_workspace(*validation, {})) : bytes;
}

int64_t sgd_run(const Problem& given, const Run& run, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                bool stop_nonfinite, void* losses, const Problem* validation, void* validation_losses,
                void* workspace) {
  Problem problem = given;
  problem.w = current(weight, given.w);
  problem.b = current(bias, given.b);
  Problem after;
  if (validation) after = *validation, after.w = problem.w, after.b = problem.b;

  // The size of a full batch decides: a shorter last batch is then small, too.
  const bool small = is_small(problem, batch_rows(run, 0));
  const int64_t size = int64_t(size_of(loss_dtype(problem)));
  Parameter w = weight, b = bias;
  Run part = run;
  char* validation_loss = static_cast<char*>(validation_losses);
  while (part.begin < run.end) {
    const int64_t epoch_end = (part.begin / run.epoch_steps + 1) * run.epoch_steps;
    part.end = validation ? std::min(run.end, epoch_end) : run.end;
    if (run.lr) part.lr = run.lr + (part.begin - run.begin);
    char* const loss = static_cast<char*>(losses) + (part.begin - run.begin) * size;
    const int64_t steps =
        small ? kernels().small_steps(problem, part, sgd, w, b, stop_nonfinite, loss)
              : take_steps(problem, part, sgd, w, b, stop_nonfinite, loss, static_cast<char*>(workspace));
    part.begin += steps;
    if (part.begin < part.end) break;
    w.first_step = b.first_step = false;
    if (validation && part.end == epoch_end) {
      linear_loss(after, {}, validation_loss, workspace);
      validation_loss += size_of(loss_dtype(after));
    }
  }
  return part.begin - run.begin;
}

}  // namespace linreg::cpu
