// SPDX-License-Identifier: BSD-3-Clause
// Many runs in one call. Threads take problems, a few at a time, and each problem is a run of its own (sgd_run.cpp) on
// one thread: its bits do not depend on the number of threads. With the same bits, small problems of one size are taken
// together, a lane for each (small_runs.cpp), and larger problems that share their rows, a few for each reading
// (rows.cpp). If there are fewer problems than threads, all threads take part in the same problems.
#include <algorithm>
#include <atomic>

#include "../math/single_run.h"
#include "convert.h"
#include "kernels.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kPieces = 16;  // of the problems for each thread, so that all threads end at about the same time
constexpr int64_t kMostLanes = 2 * kMaxLanes;

// The problems that small_runs takes together if this is one of them; else 1.
int64_t lanes_of(const SingleRun& one, const Many& many) {
  const Problem& p = one.problem;
  if (p.k != 1 || one.run.end == 0 || !is_small(p, batch_rows(one.run, 0))) return 1;
  if (p.n * (p.d + 1) > kLaneNumbers || (many.offsets && one.run.order)) return 1;
  return kernels().small_runs->wide_lanes * (p.x.dtype == Dtype::float64 ? 1 : 2);
}

// The most problems that share a reading of the rows if this is one of them; else 1.
int64_t together_of(const SingleRun& one, const Many& many, int64_t threads) {
  if (many.x != 0 || many.offsets || is_small(one.problem, batch_rows(one.run, 0)) || by_products(one.problem, {}))
    return 1;
  return std::clamp<int64_t>((many.end - many.begin) / threads, 1, kMostTogether);
}

bool may_be_lanes(const SingleRun& a, const SingleRun& b) {
  return a.problem.n == b.problem.n && a.sgd.momentum == b.sgd.momentum && a.sgd.weight_decay == b.sgd.weight_decay;
}

// The weight of a step's loss in the mean of its epoch.
double weight_of(const SingleRun& one, int64_t step) {
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

// The parts of a thread's workspace.
struct Workspace {
  char* losses;  // of the steps of an epoch, for each lane
  void* rows;    // of small_runs, or of a step
};

// How problems are given to threads, and the bytes of each thread's workspace.
struct Layout {
  Layout(const SingleRun& given, const Many& many)
      : first(given), threads(many.end - many.begin < given.problem.threads ? 1 : given.problem.threads) {
    if (threads > 1) first.problem.threads = 1;
    const int64_t size = int64_t(size_of(loss_dtype(first.problem)));
    const int64_t sizes = many.offsets ? many.end - many.begin : 1;  // else all problems have one size
    for (int64_t p = many.begin; p < many.begin + sizes; ++p) {
      const SingleRun one = single_run(first, many, p);
      if (one.run.end == 0) continue;
      const Problem& problem = one.problem;
      const int64_t lanes = lanes_of(one, many), together = together_of(one, many, threads);
      const int64_t number = problem.x.dtype == Dtype::float64 ? sizeof(double) : sizeof(float);
      work += one.run.rows * many.epochs * std::max<int64_t>(1, problem.d * problem.k);
      if (one.run.epoch_steps > 1)
        loss_bytes = std::max(loss_bytes, aligned(std::max(lanes, together) * one.run.epoch_steps * size));
      if (lanes > 1) row_bytes = std::max(row_bytes, aligned(lanes * problem.n * (problem.d + 1) * number));
      row_bytes = std::max(row_bytes, aligned(int64_t(runs_workspace(one, together))));
    }
    work *= (many.end - many.begin) / sizes;
  }

  int64_t bytes() const { return loss_bytes + row_bytes; }

  SingleRun first;  // with the threads of a step
  int64_t threads, work = 0, loss_bytes = 0, row_bytes = 0;
};

// Takes the steps of `count` problems, in lanes or together. Writes the losses of their epochs, those of a problem
// `stride` bytes apart from those of the next.
void take_runs(SingleRun* runs, int64_t count, bool in_lanes, const Many& many, char* losses, int64_t stride,
               const Workspace& workspace) {
  Run& run = runs[0].run;
  const Dtype dtype = loss_dtype(runs[0].problem);
  const int64_t size = int64_t(size_of(dtype)), epoch_steps = run.epoch_steps;
  if (in_lanes) kernels().small_runs->load_rows(runs, workspace.rows);
  const auto take = [&](char* to, int64_t to_stride) {
    in_lanes ? kernels().small_runs->take_steps(runs, to, to_stride, workspace.rows)
             : sgd_runs(runs, count, to, to_stride, workspace.rows);
    for (int64_t i = 0; i < count; ++i) runs[i].weight.first_step = runs[i].bias.first_step = false;
  };
  if (epoch_steps == 1) return take(losses, stride);
  for (int64_t epoch = 0; epoch < many.epochs; ++epoch) {
    for (int64_t i = 0; i < count; ++i) {
      runs[i].run.begin = epoch * epoch_steps;
      runs[i].run.end = runs[i].run.begin + epoch_steps;
    }
    if (epoch_steps > 0) take(workspace.losses, epoch_steps * size);
    for (int64_t i = 0; i < count; ++i) {
      double sum = 0, total = 0;
      for (int64_t step = 0; step < epoch_steps; ++step) {
        const double weight = weight_of(runs[i], run.begin + step);
        sum += weight * load_one<double>(workspace.losses + (i * epoch_steps + step) * size, dtype);
        total += weight;
      }
      const double mean = sum / total;  // nan without steps
      store(&mean, 1, dtype, losses + i * stride + epoch * size);
    }
  }
}

}  // namespace

size_t many_workspace(const SingleRun& first, const Many& many) {
  const Layout layout(first, many);
  return size_t(layout.threads * layout.bytes());
}

void sgd_run_many(const SingleRun& first, const Many& many, void* losses, void* workspace) {
  const Layout layout(first, many);
  const int64_t threads = std::clamp<int64_t>(layout.work / kChunkElements, 1, layout.threads);
  const SingleRun begin = single_run(layout.first, many, many.begin);
  const int64_t together = together_of(begin, many, layout.threads);
  const int64_t set = std::max(lanes_of(begin, many), together);  // a piece has whole sets
  const int64_t share = (many.end - many.begin) / (threads * kPieces), piece = std::max<int64_t>(1, share / set) * set;
  const int64_t stride = many.epochs * int64_t(size_of(loss_dtype(first.problem)));
  std::atomic<int64_t> next = many.begin;
  run_threaded(threads, [&](int64_t thread, int64_t) {
    char* const own = static_cast<char*>(workspace) + thread * layout.bytes();
    SingleRun runs[kMostLanes];
    for (int64_t p; (p = next.fetch_add(piece)) < many.end;) {
      const int64_t end = std::min(p + piece, many.end);
      for (int64_t count; p < end; p += count) {
        runs[0] = single_run(layout.first, many, p);
        const int64_t lanes = lanes_of(runs[0], many), wanted = std::max(lanes, together);
        for (count = 1; count < wanted && p + count < end; ++count) {
          runs[count] = single_run(layout.first, many, p + count);
          if (lanes > 1 && !may_be_lanes(runs[0], runs[count])) break;
        }
        if (count < lanes) count = 1;
        char* const to = static_cast<char*>(losses) + (p - many.begin) * stride;
        take_runs(runs, count, lanes > 1 && count > 1, many, to, stride, {own, own + layout.loss_bytes});
      }
    }
  });
}

}  // namespace linreg::cpu
