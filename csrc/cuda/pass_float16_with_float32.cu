// SPDX-License-Identifier: BSD-3-Clause
#include "launch.cuh"
LINREG_LAUNCH_PASS(float16_with_float32, float16, float32)
