// SPDX-License-Identifier: BSD-3-Clause
// One SGD step: one pass, then the rule on every number of the parameters, in double, rounded once.
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

void update(const Parameter& parameter, int64_t rows, int64_t columns, const double* sums, double scale,
            const Sgd& sgd) {
  if (parameter.frozen || !parameter.value.data) return;
  const Dtype dtype = parameter.value.dtype;
  for (int64_t i = 0; i < rows; ++i) {
    char* values = static_cast<char*>(at(parameter.value, i));
    char* buffers = sgd.momentum != 0 ? static_cast<char*>(at(parameter.momentum_buffer, i)) : nullptr;
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t offset = j * int64_t(size_of(dtype));
      const double p = load_one<double>(values + offset, dtype);
      const bool has_buffer = buffers && !parameter.first_step;
      const double buffer = has_buffer ? load_one<double>(buffers + offset, dtype) : 0;
      const SgdNumber<double> next = sgd_update(p, buffer, scale * sums[i * columns + j], sgd, parameter.first_step);
      store(&next.p, 1, dtype, values + offset);
      if (buffers) store(&next.buffer, 1, dtype, buffers + offset);
    }
  }
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
  // Without rows the mean's scale is inf, and PyTorch's gradient a sum of nothing.
  const double gradient_scale = problem.n == 0 ? 0.0 : scale;
  update(weight, problem.k, problem.d, sums.weight, gradient_scale, sgd);
  update(bias, 1, problem.k, sums.bias, gradient_scale, sgd);
}

}  // namespace linreg::cpu
