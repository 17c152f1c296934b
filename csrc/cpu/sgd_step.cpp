// SPDX-License-Identifier: BSD-3-Clause
// One SGD step: one pass (pass.cpp), then the rule, in double and rounded once. small_steps.cpp takes small steps.
#include <algorithm>
#include <cmath>

#include "../math/sgd.h"
#include "convert.h"
#include "kernels.h"
#include "pass.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

PassOutputs outputs_for_step() {
  PassOutputs outputs;
  outputs.weight_sum = outputs.bias_sum = true;
  return outputs;
}

constexpr int64_t kPiece = 256;                // numbers updated together, in the first-level cache
constexpr int64_t kUpdatesOfThread = 1 << 15;  // fewer do not pay for waking a thread

void update_row(const Parameter& parameter, int64_t row, int64_t columns, const double* gradient, const Sgd& sgd) {
  const Dtype dtype = parameter.value.dtype;
  const bool has_momentum = sgd.momentum != 0, has_buffer = has_momentum && !parameter.first_step;
  double values[kPiece], buffers[kPiece];
  for (int64_t j = 0; j < columns; j += kPiece) {
    const int64_t count = std::min(kPiece, columns - j), offset = j * int64_t(size_of(dtype));
    char* const value = static_cast<char*>(at(parameter.value, row)) + offset;
    char* const buffer = has_momentum ? static_cast<char*>(at(parameter.momentum_buffer, row)) + offset : nullptr;
    load(value, 1, dtype, count, values);
    if (has_buffer) load(buffer, 1, dtype, count, buffers);
    for (int64_t i = 0; i < count; ++i) {
      const double before = has_buffer ? buffers[i] : 0;
      const SgdNumber<double> next = sgd_update(values[i], before, gradient[j + i], sgd, parameter.first_step);
      values[i] = next.p;
      buffers[i] = next.buffer;
    }
    store(values, count, dtype, value);
    if (has_momentum) store(buffers, count, dtype, buffer);
  }
}

void update(const Parameter& parameter, int64_t rows, int64_t columns, const double* gradient, const Sgd& sgd,
            int64_t threads) {
  if (parameter.frozen || !parameter.value.data) return;
  const int64_t limit =
      std::clamp<int64_t>(rows * columns / kUpdatesOfThread, 1, std::min(threads, std::max<int64_t>(rows, 1)));
  run_threaded(limit, [&](int64_t thread, int64_t count) {
    for (int64_t row = rows * thread / count; row < rows * (thread + 1) / count; ++row)
      update_row(parameter, row, columns, gradient + row * columns, sgd);
  });
}

void small_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                bool skip_nonfinite, void* loss) {
  Run one;
  one.rows = one.batch_size = problem.n;
  one.epoch_steps = one.end = 1;
  kernels().small_steps(problem, one, sgd, weight, bias, skip_nonfinite, loss);
}

}  // namespace

size_t sgd_workspace(const Problem& problem) { return steps_workspace(problem, 1); }

size_t steps_workspace(const Problem& problem, int64_t count) {
  return is_small(problem, problem.n) ? 0 : pass_workspace(problem, count, outputs_for_step());
}

void sgd_steps(const Problem* problems, const SingleRun* runs, int64_t count, bool skip_nonfinite, char* losses,
               int64_t stride, void* workspace) {
  if (is_small(*problems, problems->n)) {
    for (int64_t i = 0; i < count; ++i)
      small_step(problems[i], runs[i].sgd, runs[i].weight, runs[i].bias, skip_nonfinite, losses + i * stride);
    return;
  }
  double divisors[kMostTogether] = {};
  PassSums sums[kMostTogether];
  for (int64_t i = 0; i < count; ++i) divisors[i] = reduction_divisor(problems[i]);
  run_pass(problems, count, outputs_for_step(), divisors, sums, workspace);
  for (int64_t i = 0; i < count; ++i) {
    const Problem& problem = problems[i];
    char* const loss = losses + i * stride;
    const double value = sums[i].loss / divisors[i];
    store(&value, 1, loss_dtype(problem), loss);
    if (skip_nonfinite && !std::isfinite(load_one<double>(loss, loss_dtype(problem)))) continue;
    update(runs[i].weight, problem.k, problem.d, sums[i].weight, runs[i].sgd, problem.threads);
    update(runs[i].bias, 1, problem.k, sums[i].bias, runs[i].sgd, problem.threads);
  }
}

void sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
              bool skip_nonfinite, void* loss, void* workspace) {
  if (is_small(problem, problem.n)) return small_step(problem, sgd, weight, bias, skip_nonfinite, loss);
  const SingleRun run{problem, {}, sgd, weight, bias};
  sgd_steps(&problem, &run, 1, skip_nonfinite, static_cast<char*>(loss), 0, workspace);
}

}  // namespace linreg::cpu
