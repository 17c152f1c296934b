// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.cuh"
template linreg::cuda::LaunchPass linreg::cuda::launch_pass<linreg::Dtype::float32>;
