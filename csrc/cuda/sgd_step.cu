// SPDX-License-Identifier: BSD-3-Clause
// One SGD step: one pass, whose last block applies the rule to every number of the parameters, in double, rounded once.
#include "../math/losses.h"
#include "pass.h"

namespace linreg::cuda {
namespace {

Pass pass_for(const Problem& problem) {
  Pass pass;
  pass.problem = problem;
  pass.weight_sum = true;
  pass.finish.step = true;
  return pass;
}

}  // namespace

const char* sgd_workspace(const Problem& problem, size_t& bytes) { return pass_workspace(pass_for(problem), bytes); }

const char* sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                     const Skip& skip, void* loss, void* workspace, void* stream) {
  Pass pass = pass_for(problem);
  pass.finish.loss = loss;
  pass.finish.sgd = sgd;
  pass.finish.weight = weight;
  pass.finish.bias = bias;
  pass.finish.skip = skip;
  return run_pass(pass, workspace, stream);
}

}  // namespace linreg::cuda
