// SPDX-License-Identifier: BSD-3-Clause
// The kernels of a pass by matrix products: when it is the way, and their launches.
#include "../math/losses.h"
#include "pass.h"
#include "plan.h"
#include "products.cuh"

namespace linreg::cuda {
namespace {

constexpr int kResidualBlocks = 4;  // of a multiprocessor, at most
constexpr int kRowsOfAThread = 8;   // at least, of one target

int residual_blocks(const Problem& p, const Limits& limits) {
  const int64_t workers = kProductThreads / target_lanes(p.k);
  const int64_t wanted = ceil_div(p.n, workers * kRowsOfAThread), most = limits.multiprocessors * kResidualBlocks;
  return int(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

Pass pass_for(const Problem& problem) {
  Pass pass;
  pass.problem = problem;
  return pass;
}

const char* launch_finish(const Pass& pass, void* stream) {
  const int64_t blocks = pass.products.weight ? ceil_div(pass.problem.d, kFinishColumns) : 1;
  return launch(finish_kernel, {int(blocks > 1 ? blocks : 1), kProductThreads, kSharedLeast, stream}, pass);
}

}  // namespace

const char* by_products(const Problem& problem, const Gradients& gradients, bool& yes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  yes = plan_of(problem, reinterpret_cast<uintptr_t>(problem.x.data), {gradients.input != nullptr, false}, device)
            .by_products;
  return nullptr;
}

const char* residuals_workspace(const Problem& rows, size_t& bytes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  bytes = sizeof(double) * size_t(residual_blocks(rows, device) * weight_sums(rows));
  return nullptr;
}

const char* residuals(const Problem& rows, const Residuals& wanted, void* workspace, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  Pass pass = pass_for(rows);
  if (const char* error = counters(stream, pass.counters)) return error;
  pass.elements = wanted.elements;
  pass.elements_dtype = loss_dtype(pass.problem);
  pass.target_gradient = wanted.target_gradient;
  pass.scale = wanted.scale;
  pass.weighted_scale = wanted.weighted_scale;
  pass.partials = static_cast<double*>(workspace);
  pass.line_stride = weight_sums(rows);
  const int shared_bytes = 3 * kProductThreads * int(sizeof(double));
  return launch(residuals_kernel, {residual_blocks(rows, device), kProductThreads, shared_bytes, stream}, pass, wanted);
}

const char* finish_linear_loss(const Problem& problem, const ProductSums& sums, const Gradients& gradients, void* loss,
                               void* stream) {
  Pass pass = pass_for(problem);
  pass.products = sums;
  pass.finish.loss = loss;
  pass.finish.gradients = gradients;
  return launch_finish(pass, stream);
}

const char* finish_sgd_step(const Problem& problem, const ProductSums& sums, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, const Skip& skip, void* loss, void* stream) {
  Pass pass = pass_for(problem);
  pass.products = sums;
  pass.finish.step = true;
  pass.finish.loss = loss;
  pass.finish.sgd = sgd;
  pass.finish.weight = weight;
  pass.finish.bias = bias;
  pass.finish.skip = skip;
  return launch_finish(pass, stream);
}

}  // namespace linreg::cuda
