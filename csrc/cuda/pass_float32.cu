// SPDX-License-Identifier: BSD-3-Clause
#include "launch.cuh"
LINREG_LAUNCH_PASS(float32)
