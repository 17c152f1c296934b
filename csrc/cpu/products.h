// SPDX-License-Identifier: BSD-3-Clause
// The pass over many targets, by matrix products that Problem::multiply makes.
#pragma once

#include "pass.h"

namespace linreg::cpu {

// Whether this is the way for a problem. It does not depend on threads.
bool by_products(const Problem& problem, const PassOutputs& outputs);

// As pass_workspace and run_pass.
size_t products_workspace(const Problem& problem, const PassOutputs& outputs);
PassSums run_products(const Problem& problem, const PassOutputs& outputs, double scale, void* workspace);

}  // namespace linreg::cpu
