// SPDX-License-Identifier: BSD-3-Clause
// The two products of a group of rows, X Wᵀ and Gᵀ X, in tiles of rows and targets small enough for registers.
// Rows are float or double and are widened to double as they are loaded.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "vector.h"

namespace linreg::cpu {
namespace {

// So many vectors are added up before their sum goes to the next one: rounding errors grow with the length of a chain.
constexpr int64_t kChain = 32;

// p[r, t] = x[r] · w[t] for R rows and T targets; R T chains of additions in flight hide their latency.
template <class S, int R, int T>
inline __attribute__((always_inline)) void dots(const S* x, int64_t ldx, const double* w, int64_t d, double* p, int64_t k) {
  Vec sums[R][T] = {};
  int64_t j = 0;
  while (j + kLanes <= d) {
    Vec chains[R][T] = {};
    const int64_t end = std::min(j + kChain * kLanes, d);
    for (; j + kLanes <= end; j += kLanes) {
      Vec wj[T];
      for (int t = 0; t < T; ++t) wj[t] = load_vec(w + t * d + j);
      for (int r = 0; r < R; ++r) {
        const Vec xj = load_vec(x + r * ldx + j);
        for (int t = 0; t < T; ++t) chains[r][t] += xj * wj[t];
      }
    }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) sums[r][t] += chains[r][t];
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      double tail = 0;
      for (int64_t i = j; i < d; ++i) tail += double(x[r * ldx + i]) * w[t * d + i];
      p[r * k + t] = sum_lanes(sums[r][t]) + tail;
    }
}

// dw[t] += Σ_r g[r, t] x[r] for R rows and T targets.
template <class S, int R, int T>
inline __attribute__((always_inline)) void add_rows(const S* x, int64_t ldx, const double* g, int64_t k, int64_t d, double* dw) {
  int64_t j = 0;
  for (; j + kLanes <= d; j += kLanes) {
    Vec sums[T];
    for (int t = 0; t < T; ++t) sums[t] = load_vec(dw + t * d + j);
    for (int r = 0; r < R; ++r) {
      const Vec xj = load_vec(x + r * ldx + j);
      for (int t = 0; t < T; ++t) sums[t] += xj * g[r * k + t];
    }
    for (int t = 0; t < T; ++t) store_vec(dw + t * d + j, sums[t]);
  }
  for (; j < d; ++j)
    for (int t = 0; t < T; ++t) {
      double sum = dw[t * d + j];
      for (int r = 0; r < R; ++r) sum += double(x[r * ldx + j]) * g[r * k + t];
      dw[t * d + j] = sum;
    }
}

// Calls tile(first row, first target, rows, targets) over a group: 8 rows at a time for one target, 4 by 2 for several.
template <class Tile>
inline void for_tiles(int64_t rows, int64_t k, Tile tile) {
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  constexpr std::integral_constant<int, 4> four;
  constexpr std::integral_constant<int, 8> eight;
  int64_t t = 0;
  for (; t + 2 <= k; t += 2) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) tile(r, t, four, two);
    for (; r < rows; ++r) tile(r, t, one, two);
  }
  if (t < k) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) tile(r, t, eight, one);
    for (; r + 2 <= rows; r += 2) tile(r, t, two, one);
    for (; r < rows; ++r) tile(r, t, one, one);
  }
}

}  // namespace
}  // namespace linreg::cpu
