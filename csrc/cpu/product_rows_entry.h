// SPDX-License-Identifier: BSD-3-Clause
// The ways into product_rows.h, one for each instruction set that it is compiled for. Where a function takes a Dtype
// for its numbers, that is float32 or float64.
#pragma once

#include "pass.h"

namespace linreg::cpu {

// Sums, and what they have lost (math/sum.h).
struct KeptSums {
  double *sums, *lost;
};

// Rows [first, first + rows) and targets [target, target + targets), between their two products.
struct ResidualBlock {
  int64_t first, rows, target, targets;
  void* predictions;            // X Wᵀ, [rows, targets]; G = scale · v ℓ'(R) takes its place
  Dtype dtype;                  // of the predictions
  const double* bias;           // [targets]
  KeptSums losses, slope_sums;  // Σ ℓ and Σ G, [targets], added to
};

struct ProductRows {
  // to[i, j] = from(first + i, j), [rows, columns], converted.
  void (*convert)(const View& from, int64_t first, int64_t rows, int64_t columns, Dtype dtype, void* to);
  void (*residuals)(const Problem& problem, const PassOutputs& outputs, double scale, const ResidualBlock& block);
  // to[i] = Σ_part from[part · stride + i], in order, for i in [begin, end).
  void (*add)(const void* from, Dtype dtype, int64_t parts, int64_t stride, int64_t begin, int64_t end, double* to);
  // to[first + i] = from[i], rounded once.
  void (*store_converted)(const void* from, Dtype dtype, int64_t count, Dtype to_dtype, int64_t first, void* to);
};

extern const ProductRows product_rows_portable, product_rows_avx2, product_rows_avx512;

}  // namespace linreg::cpu
