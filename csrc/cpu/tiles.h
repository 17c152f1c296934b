// SPDX-License-Identifier: BSD-3-Clause
// The two products of a group of rows, X Wᵀ and Gᵀ X, in tiles of rows and targets small enough for registers.
//
// Rows are read as they lie in memory, E: float, double or 16-bit. W and dW have rows of whole vectors, zeros behind
// the last feature. Targets are planes: of target t, row r is at t · ld + r.
#pragma once

#include "../math/sum.h"
#include "plan.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

// Compensated sums over many rows in memory: kMaxLanes numbers, one per lane, then their compensations (math/sum.h).
//
// The losses and derivatives of a few rows are summed in registers, then added to these: PyTorch also sums them in
// short chains. Gᵀ X is summed in longer chains, as in a matrix product.
LINREG_INLINE void add_to(double* sum, Wide value) {
  Wide lanes = load_vec<Wide>(sum), compensation = load_vec<Wide>(sum + kMaxLanes);
  two_sum(value, lanes, compensation);
  store_vec<Wide>(sum, lanes);
  store_vec<Wide>(sum + kMaxLanes, compensation);
}

// To the first lane.
LINREG_INLINE void add_to(double* sum, double value) { two_sum(value, sum[0], sum[kMaxLanes]); }

LINREG_INLINE double total_of(const double* sum) {
  return linreg::total_of(sum_lanes(load_vec<Wide>(sum)), sum_lanes(load_vec<Wide>(sum + kMaxLanes)));
}

// Tiles live in registers only if the loops over them are gone before arrays are.
#define LINREG_UNROLL _Pragma("GCC unroll 8")

// Rows of E that are read side by side from left to right.
template <class E>
class RowsAt {
 public:
  LINREG_INLINE RowsAt(const E* x, int64_t ldx)
      : at_(reinterpret_cast<const char*>(x)), stride_(ldx * int64_t(sizeof(E))) {}

  // Row r, `bytes` after where it stands.
  LINREG_INLINE const E* row(int r, int64_t bytes = 0) const {
    return reinterpret_cast<const E*>(at_ + r * stride_ + bytes);
  }

  LINREG_INLINE void advance(int64_t count) {
    at_ += count * int64_t(sizeof(E));
    // Or GCC would keep a pointer for every row, and run out of registers for them.
    asm("" : "+r"(at_), "+r"(stride_));
  }

 private:
  const char* at_;
  int64_t stride_;
};

// Prefetches memory in order, a few lines of 64 bytes at a time, into the second-level cache. Each of the two products
// of a row prefetches half of what it reads, so that the few requests a core can have in flight never run out: 1 GB of
// [n, 128] took 54 ms, and 65 when only the first product prefetched; [n, 512] 50 and 62.
class Prefetcher {
  static constexpr int kSecondLevel = 2;

 public:
  LINREG_INLINE explicit Prefetcher(const void* from) : at_(static_cast<const char*>(from)) {}

  template <int64_t kBytes>
  LINREG_INLINE void prefetch() {
    LINREG_UNROLL
    for (int64_t byte = 0; byte < kBytes; byte += 64) __builtin_prefetch(at_ + byte, 0, kSecondLevel);
    at_ += kBytes;
  }

 private:
  const char* at_;
};

// p[t, r] = x[r] · w[t] for R rows and T targets, summed in double; R T chains of additions in flight hide their
// latency. Prefetches half as many bytes as it reads.
template <int R, int T, class E, class W>
LINREG_INLINE void dots(const E* x, int64_t ldx, const W* w, int64_t ldw, int64_t d, double* p, int64_t ld,
                        Prefetcher ahead) {
  constexpr int lanes = kLanes;
  RowsAt<E> rows(x, ldx);
  Wide chains[T][R], sums[T][R] = {};
  const auto step = [&](int64_t j, auto load) __attribute__((always_inline)) {
    Wide wj[T];
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) wj[t] = load_vec<Wide>(w + t * ldw + j);
    LINREG_UNROLL
    for (int r = 0; r < R; ++r) {
      Wide xj;
      load(rows.row(r), xj);
      LINREG_UNROLL
      for (int t = 0; t < T; ++t) chains[t][r] += xj * wj[t];
    }
    rows.advance(lanes);
  };
  const auto whole = [](const E* from, Wide& to) __attribute__((always_inline)) { to = load_vec<Wide>(from); };
  int64_t j = 0;
  do {
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) LINREG_UNROLL
    for (int r = 0; r < R; ++r) chains[t][r] = Wide{};
    const int64_t end = d - j < kChain * lanes ? d : j + kChain * lanes;
    for (; j + 2 * lanes <= end; j += 2 * lanes) {
      ahead.prefetch<R * lanes * int64_t(sizeof(E))>();
      step(j, whole);
      step(j + lanes, whole);
    }
    if (j + lanes <= end) {
      step(j, whole);
      j += lanes;
    }
    if (j < end) {
      step(j, [&](const E* from, Wide& to) __attribute__((always_inline)) { to = load_first<Wide>(from, d - j); });
      j = d;
    }
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) LINREG_UNROLL
    for (int r = 0; r < R; ++r) sums[t][r] += chains[t][r];
  } while (j < d);
  constexpr int folds = kLanes;
  if constexpr (R * T % folds == 0) {
    double all[T][R];
    LINREG_UNROLL
    for (int i = 0; i < R * T; i += folds) store_vec<Wide>(&all[0][0] + i, sums_of_lanes<folds / 2>(&sums[0][0] + i));
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) std::memcpy(p + t * ld, all[t], sizeof(all[t]));
  } else {
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) LINREG_UNROLL
    for (int r = 0; r < R; ++r) p[t * ld + r] = sum_lanes(sums[t][r]);
  }
}

// dw[t] += Σ_r g[t, r] x[r] for R rows and T targets. Prefetches like dots.
template <class V, int R, int T, class E>
LINREG_INLINE void add_rows(const E* x, int64_t ldx, const NumberOf<V>* g, int64_t ld, int64_t d, NumberOf<V>* dw,
                            int64_t ldw, Prefetcher ahead) {
  constexpr int lanes = lanes_of<V>;
  RowsAt<E> rows(x, ldx);
  V gs[T][R];
  LINREG_UNROLL
  for (int t = 0; t < T; ++t) LINREG_UNROLL
  for (int r = 0; r < R; ++r) gs[t][r] = broadcast<V>(g[t * ld + r]);
  const auto step = [&](int64_t j, auto load) __attribute__((always_inline)) {
    V sums[T];
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) sums[t] = load_vec<V>(dw + t * ldw + j);
    LINREG_UNROLL
    for (int r = 0; r < R; ++r) {
      V xj;
      load(rows.row(r), xj);
      LINREG_UNROLL
      for (int t = 0; t < T; ++t) sums[t] += xj * gs[t][r];
    }
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) store_vec<V>(dw + t * ldw + j, sums[t]);
    rows.advance(lanes);
  };
  int64_t j = 0;
  for (; j + lanes <= d; j += lanes) {
    ahead.prefetch<R * lanes * int64_t(sizeof(E)) / 2>();
    step(j, [](const E* from, V& to) __attribute__((always_inline)) { to = load_vec<V>(from); });
  }
  if (j < d) step(j, [&](const E* from, V& to) __attribute__((always_inline)) { to = load_first<V>(from, d - j); });
}

// Calls tile<rows, targets>(first row, first target) over a group: 8 rows at a time for one target, 4 by 4 or 4 by 2
// for several.
template <class Tile>
LINREG_INLINE void for_tiles(int64_t rows, int64_t k, Tile tile) {
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
    for (; r < rows; ++r) tile.template operator()<1, 1>(r, t);
  }
}

}  // namespace
}  // namespace linreg::cpu
