// SPDX-License-Identifier: BSD-3-Clause
#include "tiles.cuh"
LINREG_LAUNCH_PASS(float16)
