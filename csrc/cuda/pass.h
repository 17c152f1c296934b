// SPDX-License-Identifier: BSD-3-Clause
// The pass on a GPU, for the operations in this folder.
#pragma once

#include "pass.cuh"

namespace linreg::cuda {

// Bytes of workspace; nullptr, or what the CUDA runtime says is wrong.
const char* pass_workspace(const Pass& pass, size_t& bytes);

// Completes the pass (all that is wanted is set, its memory is not) and launches it on the stream.
const char* run_pass(Pass pass, void* workspace, void* stream);

}  // namespace linreg::cuda
