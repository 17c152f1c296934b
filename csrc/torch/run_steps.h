// SPDX-License-Identifier: BSD-3-Clause
// A run whose steps are launched one by one, for a device that works them off by itself: nothing here waits for it.
#pragma once

#include "backend.h"

namespace linreg::torch_ops {

void take_steps(const Backend& backend, RunCall& call);

// A tensor on the device: itself, or a copy that comes in the order of the stream.
at::Tensor on_device(const at::Tensor& tensor, c10::Device device);

}  // namespace linreg::torch_ops
