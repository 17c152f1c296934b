// SPDX-License-Identifier: BSD-3-Clause
// One SGD step: one pass, then the rule on every number of the parameters, in double, rounded once.
#include <algorithm>
#include <cmath>

#include "../math/sgd.h"
#include "convert.h"
#include "pass.h"

namespace linreg::cpu {
namespace {

PassOutputs outputs_for_step() {
  PassOutputs outputs;
  outputs.weight_sum = outputs.bias_sum = true;
  return outputs;
}

// Numbers `count` on from `values` and `buffers`, a momentum buffer or nullptr.
void update(char* values, char* buffers, const double* gradient, int64_t count, Dtype dtype, bool first_step,
            const Sgd& sgd) {
  constexpr int64_t kBlock = 64;  // converted at a time
  double p[kBlock], buffer[kBlock] = {};
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t offset = first * int64_t(size_of(dtype)), block = std::min(kBlock, count - first);
    load(values + offset, 1, dtype, block, p);
    if (buffers && !first_step) load(buffers + offset, 1, dtype, block, buffer);
    for (int64_t i = 0; i < block; ++i) {
      const SgdNumber<double> next = sgd_update(p[i], buffer[i], gradient[first + i], sgd, first_step);
      p[i] = next.p;
      buffer[i] = next.buffer;
    }
    store(p, block, dtype, values + offset);
    if (buffers) store(buffer, block, dtype, buffers + offset);
  }
}

void update(const Parameter& parameter, int64_t rows, int64_t columns, const double* gradient, const Sgd& sgd) {
  if (parameter.frozen || !parameter.value.data) return;
  for (int64_t i = 0; i < rows; ++i)
    update(static_cast<char*>(at(parameter.value, i)),
           sgd.momentum != 0 ? static_cast<char*>(at(parameter.momentum_buffer, i)) : nullptr, gradient + i * columns,
           columns, parameter.value.dtype, parameter.first_step, sgd);
}

}  // namespace

size_t sgd_workspace(const Problem& problem) { return pass_workspace(problem, outputs_for_step()); }

void sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
              bool skip_nonfinite, void* loss, void* workspace) {
  const double scale = reduction_scale(problem);
  const PassSums sums = run_pass(problem, outputs_for_step(), scale, workspace);
  const double value = scale * sums.loss;
  store(&value, 1, problem.w.dtype, loss);
  if (skip_nonfinite && !std::isfinite(load_one<double>(loss, problem.w.dtype))) return;
  update(weight, problem.k, problem.d, sums.weight, sgd);
  update(bias, 1, problem.k, sums.bias, sgd);
}

}  // namespace linreg::cpu
