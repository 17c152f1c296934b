// SPDX-License-Identifier: BSD-3-Clause
// Many runs in one call. Threads take problems, a few at a time, and each problem is a run of its own (sgd_run.cpp) on
// one thread: its bits do not depend on the number of threads. If there are fewer problems than threads, all threads
// take part in one problem after another.
#include <algorithm>
#include <atomic>
#include <limits>

#include "convert.h"
#include "kernels.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kPieces = 16;  // of the problems for each thread, so that all threads end at about the same time

template <class T>
void move(T*& pointer, int64_t bytes) {
  if (pointer) pointer = reinterpret_cast<T*>(reinterpret_cast<intptr_t>(pointer) + bytes);
}

// The run of one problem.
struct One {
  One(const Problem& first, const Run& all, const Sgd& rule, const Parameter& w, const Parameter& b, const Many& many,
      int64_t p)
      : problem(first), run(all), sgd(rule_of(many, rule, p)), weight(w), bias(b) {
    move(problem.x.data, p * many.x);
    move(problem.y.data, p * many.y);
    move(problem.v.data, p * many.v);
    move(weight.value.data, p * many.w);
    move(bias.value.data, p * many.b);
    move(weight.momentum_buffer.data, p * many.w_buffer);
    move(bias.momentum_buffer.data, p * many.b_buffer);
    if (many.offsets) {
      const int64_t begin = many.offsets[p];
      run.rows = many.offsets[p + 1] - begin;
      if (run.order) {
        run.order += begin;
      } else {
        problem.n = run.rows;
        for (View* const view : {&problem.x, &problem.y, &problem.v})
          move(view->data, begin * view->row_stride * int64_t(size_of(view->dtype)));
      }
    }
    run.epoch_steps = steps_of(run.rows, run.batch_size, many.drop_last);
    run.begin = 0;
    run.end = many.epochs * run.epoch_steps;
  }

  Problem problem;
  Run run;
  Sgd sgd;
  Parameter weight, bias;
};

// What the loss of a step counts in the mean of its epoch.
double weight_of(const One& one, int64_t step) {
  const Run& run = one.run;
  const View& v = one.problem.v;
  const int64_t batch = step % run.epoch_steps, first = batch * run.batch_size, rows = batch_rows(run, batch);
  if (!v.data) return double(rows);
  const int64_t* const order = run.order ? run.order + step / run.epoch_steps * run.order_stride : nullptr;
  double sum = 0;
  for (int64_t i = first; i < first + rows; ++i)
    for (int64_t j = 0; j < (v.col_stride == 0 ? 1 : one.problem.k); ++j)
      sum += load_one<double>(at(v, order ? order[i] : i, j), v.dtype);
  return sum;
}

// Takes a problem's steps; writes the losses of its epochs. The workspace begins with room for the losses of an epoch.
void take_steps(One one, int64_t epochs, char* losses, char* workspace, int64_t step_losses) {
  const Dtype dtype = loss_dtype(one.problem);
  const auto take = [&](char* to) {
    sgd_run(one.problem, one.run, one.sgd, one.weight, one.bias, false, to, nullptr, nullptr, workspace + step_losses);
    one.weight.first_step = one.bias.first_step = false;
  };
  if (one.run.epoch_steps == 1) return take(losses);
  for (int64_t epoch = 0; epoch < epochs; ++epoch) {
    double sum = 0, weight = 0;
    one.run.begin = epoch * one.run.epoch_steps;
    one.run.end = one.run.begin + one.run.epoch_steps;
    if (one.run.epoch_steps > 0) take(workspace);
    for (int64_t step = one.run.begin; step < one.run.end; ++step) {
      const double its_weight = weight_of(one, step);
      const int64_t i = step - one.run.begin;
      sum += its_weight * load_one<double>(workspace + i * int64_t(size_of(dtype)), dtype);
      weight += its_weight;
    }
    const double mean = sum / weight;  // nan without steps
    store(&mean, 1, dtype, losses + epoch * int64_t(size_of(dtype)));
  }
}

// How problems are given to threads, and the bytes of each thread's workspace.
struct Layout {
  Layout(const Problem& first, const Run& run, const Many& many)
      : threads(many.end - many.begin < first.threads ? 1 : first.threads), problem(first) {
    if (threads > 1) problem.threads = 1;
    int64_t steps = 0, step_workspace = 0;
    for (int64_t p = many.begin; p < many.end; ++p) {
      const One one(problem, run, {}, {}, {}, many, p);
      if (one.run.end == 0) continue;
      work += one.run.rows * many.epochs * std::max<int64_t>(1, first.d * first.k);
      steps = std::max(steps, one.run.epoch_steps);
      step_workspace = std::max(step_workspace, int64_t(run_workspace(one.problem, one.run, nullptr)));
    }
    step_losses = steps > 1 ? aligned(steps * int64_t(size_of(loss_dtype(first)))) : 0;
    bytes = step_losses + aligned(step_workspace);
  }

  int64_t threads, work = 0, step_losses = 0, bytes = 0;
  Problem problem;  // with the threads of a step
};

}  // namespace

size_t many_workspace(const Problem& first, const Run& run, const Many& many) {
  const Layout layout(first, run, many);
  return size_t(layout.threads * layout.bytes);
}

void sgd_run_many(const Problem& first, const Run& run, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                  const Many& many, void* losses, void* workspace) {
  const Layout layout(first, run, many);
  const int64_t threads = std::clamp<int64_t>(layout.work / kChunkElements, 1, layout.threads);
  const int64_t piece = std::max<int64_t>(1, (many.end - many.begin) / (threads * kPieces));
  const int64_t size = many.epochs * int64_t(size_of(loss_dtype(first)));
  std::atomic<int64_t> next = many.begin;
  run_threaded(threads, [&](int64_t thread, int64_t) {
    char* const own = static_cast<char*>(workspace) + thread * layout.bytes;
    for (int64_t begin; (begin = next.fetch_add(piece)) < many.end;)
      for (int64_t p = begin; p < std::min(begin + piece, many.end); ++p)
        take_steps(One(layout.problem, run, sgd, weight, bias, many, p), many.epochs,
                   static_cast<char*>(losses) + (p - many.begin) * size, own, layout.step_losses);
  });
}

}  // namespace linreg::cpu
