// SPDX-License-Identifier: BSD-3-Clause
// The two products of a group of rows, X Wᵀ and Gᵀ X, in tiles of rows and targets small enough for registers.
// Rows are float or double and are widened to double as they are loaded.
#pragma once

#include <cstdint>

#include "vector.h"

namespace linreg::cpu {
namespace {

// Tiles live in registers only if the loops over them are gone before arrays are.
#define LINREG_UNROLL _Pragma("GCC unroll 8")

// So many vectors are added up before their sum goes to the next one: rounding errors grow with the length of a chain.
constexpr int64_t kChain = 32;

// p[r, t] = x[r] · w[t] for R rows and T targets; R T chains of additions in flight hide their latency. The rows
// `ahead` elements further on, which are next, are asked for: 1 GB of [n, 64] took 97 ms instead of 124, [n, 512] 75
// instead of 92.
template <class S, int R, int T>
inline __attribute__((always_inline)) void dots(const S* x, int64_t ldx, const double* w, int64_t d, double* p,
                                                int64_t k, int64_t ahead) {
  Vec sums[R][T] = {};
  int64_t j = 0;
  while (j + kLanes <= d) {
    Vec chains[R][T] = {};
    const int64_t end = j + kChain * kLanes < d ? j + kChain * kLanes : d;
    for (; j + kLanes <= end; j += kLanes) {
      Vec wj[T];
      LINREG_UNROLL
      for (int t = 0; t < T; ++t) wj[t] = load_vec(w + t * d + j);
      LINREG_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec xj = load_vec(x + r * ldx + j);
        __builtin_prefetch(x + r * ldx + j + ahead);
        LINREG_UNROLL
        for (int t = 0; t < T; ++t) chains[r][t] += xj * wj[t];
      }
    }
    LINREG_UNROLL
    for (int r = 0; r < R; ++r) LINREG_UNROLL
    for (int t = 0; t < T; ++t) sums[r][t] += chains[r][t];
  }
  LINREG_UNROLL
  for (int r = 0; r < R; ++r) LINREG_UNROLL
  for (int t = 0; t < T; ++t) {
    double tail = 0;
    for (int64_t i = j; i < d; ++i) tail += double(x[r * ldx + i]) * w[t * d + i];
    p[r * k + t] = sum_lanes(sums[r][t]) + tail;
  }
}

// dw[t] += Σ_r g[r, t] x[r] for R rows and T targets.
template <class S, int R, int T>
inline __attribute__((always_inline)) void add_rows(const S* x, int64_t ldx, const double* g, int64_t k, int64_t d,
                                                    double* dw) {
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    Vec sums[T];
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) sums[t] = load_vec(dw + t * d + j);
    LINREG_UNROLL
    for (int r = 0; r < R; ++r) {
      const Vec xj = load_vec(x + r * ldx + j);
      LINREG_UNROLL
      for (int t = 0; t < T; ++t) sums[t] += xj * g[r * k + t];
    }
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) store_vec(dw + t * d + j, sums[t]);
  }
  for (; j < d; ++j) LINREG_UNROLL
  for (int t = 0; t < T; ++t) {
    double sum = dw[t * d + j];
    LINREG_UNROLL
    for (int r = 0; r < R; ++r) sum += double(x[r * ldx + j]) * g[r * k + t];
    dw[t * d + j] = sum;
  }
}

// Calls tile<rows, targets>(first row, first target) over a group: 8 rows at a time for one target, 4 by 2 for several.
template <class Tile>
inline void for_tiles(int64_t rows, int64_t k, Tile tile) {
  int64_t t = 0;
  if constexpr (kLanes == 8) {  // 32 registers hold 16 sums
    for (; t + 4 <= k; t += 4) {
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) tile.template operator()<4, 4>(r, t);
      for (; r < rows; ++r) tile.template operator()<1, 4>(r, t);
    }
  }
  for (; t + 2 <= k; t += 2) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) tile.template operator()<4, 2>(r, t);
    for (; r < rows; ++r) tile.template operator()<1, 2>(r, t);
  }
  if (t < k) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) tile.template operator()<8, 1>(r, t);
    for (; r + 2 <= rows; r += 2) tile.template operator()<2, 1>(r, t);
    for (; r < rows; ++r) tile.template operator()<1, 1>(r, t);
  }
}

}  // namespace
}  // namespace linreg::cpu
