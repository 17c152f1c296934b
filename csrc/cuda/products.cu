// SPDX-License-Identifier: BSD-3-Clause
// The kernels between and after the matrix products of a pass over many targets.
//
// residuals_kernel reads P = X Wᵀ, Y and v once, n·k each, and writes v ℓ'(R) once, in place of P if the dtypes agree.
// A thread takes one target at a time, so that accesses coalesce, and sums over its rows. It computes in the type of
// the products, and sums at most kChain rows before the sum moves to double.
//
// finish_kernel scales the second product or applies the rule to it, in double. Each block takes some columns.
//
// Deterministic: the sizes determine each thread's rows and columns, and sums are combined in a fixed order.
#include "finish.cuh"
#include "plan.h"

namespace linreg::cuda {

constexpr int kProductThreads = 256;

// The threads of a block that take neighbouring targets. The other threads take the same targets of other rows.
LINREG_MATH constexpr int target_lanes(int64_t k) {
  int lanes = kWarp;
  while (lanes < k && lanes < kProductThreads) lanes *= 2;
  return lanes;
}

template <class T>
LINREG_KERNEL(kProductThreads, 2)
residuals_kernel(LINREG_PARAMETER Pass pass, LINREG_PARAMETER Residuals wanted) {
  const Problem& p = pass.problem;
  double* const shared = static_cast<double*>(shared_memory());  // [3, threads]
  double* const line = pass.partials + block_index() * pass.line_stride;
  const int lanes = target_lanes(p.k), lane = thread_index() % lanes, worker = thread_index() / lanes;
  const int64_t workers = thread_count() / lanes, step = block_count() * workers;
  const T scale = T(pass_scale(pass));
  for (int64_t first = 0; first < p.k; first += lanes) {
    const int64_t t = first + lane;
    double totals[3] = {};  // the loss, Σ v and Σ v ℓ'
    const T b = p.b.data && t < p.k ? load_as<T>(p.b, 0, t) : T(0);
    for (int64_t i = block_index() * workers + worker; i < p.n && t < p.k;) {
      T sums[3] = {};
      for (int row = 0; row < kChain && i < p.n; ++row, i += step) {
        const T product = static_cast<const T*>(wanted.products)[i * p.k + t];
        const T v = p.v.data ? load_as<T>(p.v, i, t) : T(1);
        const T r = difference(product, b, load_as<T>(p.y, i, t));
        Residual<T> of;
        with_loss(p.loss, [&]<Loss kLoss>() { of = residual<kLoss>(r, v, T(p.delta)); });
        sums[0] += of.loss;
        sums[1] += v;
        sums[2] += of.dloss;
        write_residual(pass, scale, i, t, of);
        if (wanted.dlosses) store_number(wanted.dlosses, wanted.dlosses_dtype, i * p.k + t, of.dloss);
      }
      for (int s = 0; s < 3; ++s) totals[s] += double(sums[s]);
    }
    sync_block();  // the sums of the previous targets have been read
    for (int s = 0; s < 3; ++s) shared[s * kProductThreads + thread_index()] = totals[s];
    sync_block();  // all workers' sums are stored
    for (int s = worker; s < 3 && t < p.k; s += int(workers)) {
      double sum = 0;
      for (int other = 0; other < workers; ++other) sum += shared[s * kProductThreads + other * lanes + lane];
      store_cg(line + s * p.k + t, sum);
    }
  }
  sync_block();  // all sums have been read; the flag takes their place
  const int64_t count = weight_sums(p);
  if (!reduce_blocks(pass.partials, pass.line_stride, count, pass.counters, static_cast<int*>(shared_memory()))) return;
  for (int64_t i = thread_index(); i < count; i += thread_count())
    wanted.sums[i] = load_cg(pass.partials + i) + (wanted.add ? wanted.sums[i] : 0);
}

constexpr int kFinishColumns = 8;  // of a block: 32 bytes of float32, one memory sector

LINREG_KERNEL(kProductThreads, 2)
finish_kernel(LINREG_PARAMETER Pass pass) {
  const int64_t d = pass.problem.d, first = int64_t(block_index()) * kFinishColumns;
  finish(pass, pass.products.sums, {first, first + kFinishColumns < d ? kFinishColumns : d - first});
}
namespace {

constexpr int kResidualBlocks = 4;  // the most per multiprocessor
constexpr int kRowsOfAThread = 8;   // the fewest, of one target

int residual_blocks(const Problem& p, const Limits& limits) {
  const int64_t workers = kProductThreads / target_lanes(p.k);
  const int64_t wanted = ceil_div(p.n, workers * kRowsOfAThread), most = limits.multiprocessors * kResidualBlocks;
  return int(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

const char* launch_finish(const Problem& problem, const ProductSums& sums, const Finish& finish, void* stream) {
  Pass pass;
  pass.problem = problem;
  pass.products = sums;
  pass.finish = finish;
  const int64_t blocks = sums.weight ? ceil_div(problem.d, kFinishColumns) : 1;
  return launch(finish_kernel, {int(blocks > 1 ? blocks : 1), kProductThreads, kSharedLeast, stream}, pass);
}

}  // namespace

const char* residuals_workspace(const Problem& rows, size_t& bytes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  bytes = sizeof(double) * size_t(residual_blocks(rows, device) * weight_sums(rows));
  return nullptr;
}

const char* residuals(const Problem& rows, const Residuals& wanted, void* workspace, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  Pass pass;
  pass.problem = rows;
  if (const char* error = counters(stream, pass.counters)) return error;
  pass.elements = wanted.elements;
  pass.elements_dtype = loss_dtype(pass.problem);
  pass.target_gradient = wanted.target_gradient;
  pass.scale = wanted.scale;
  pass.weighted_scale = wanted.weighted_scale;
  pass.partials = static_cast<double*>(workspace);
  pass.line_stride = weight_sums(rows);
  const int shared_bytes = 3 * kProductThreads * int(sizeof(double));
  const Launch how{residual_blocks(rows, device), kProductThreads, shared_bytes, stream};
  return wanted.products_dtype == Dtype::float64 ? launch(residuals_kernel<double>, how, pass, wanted)
                                                 : launch(residuals_kernel<float>, how, pass, wanted);
}

const char* finish_linear_loss(const Problem& problem, const ProductSums& sums, const Gradients& gradients, void* loss,
                               void* stream) {
  return launch_finish(problem, sums, {loss, false, gradients, {}, {}, {}, {}}, stream);
}

const char* finish_sgd_step(const Problem& problem, const ProductSums& sums, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, const Skip& skip, void* loss, void* stream) {
  return launch_finish(problem, sums, {loss, true, {}, sgd, weight, bias, skip}, stream);
}

}  // namespace linreg::cuda
