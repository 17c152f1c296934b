// SPDX-License-Identifier: BSD-3-Clause
// The two products of a group of rows, X Wᵀ and Gᵀ X, in tiles small enough for registers.
//
// Rows are whole vectors, in place or packed. Predictions, which G replaces, are row-major like Y. For X Wᵀ, the lanes
// hold T targets of F features: W is interleaved accordingly, and one broadcasting load repeats F features of a row T
// times. For Gᵀ X, lanes run along features, and the sums of a few columns stay in registers for all rows of the group.
//
// No chain of additions is longer than kChain; longer sums continue in double.
#pragma once

#include "plan.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

// Tiles stay in registers only if their loops are unrolled before GCC splits arrays into scalars.
#define LINREG_UNROLL _Pragma("GCC unroll 16")

// Several rows, read in parallel from left to right.
template <class Number>
class RowsAt {
 public:
  LINREG_INLINE RowsAt(const Number* x, int64_t ldx)
      : at_(reinterpret_cast<const char*>(x)), stride_(ldx * int64_t(sizeof(Number))) {}

  LINREG_INLINE const Number* row(int r) const { return reinterpret_cast<const Number*>(at_ + r * stride_); }

  LINREG_INLINE void advance(int64_t count) {
    at_ += count * int64_t(sizeof(Number));
    // Without this, GCC keeps a pointer for every row and runs out of registers.
    asm("" : "+r"(at_), "+r"(stride_));
  }

 private:
  const char* at_;
  int64_t stride_;
};

// The prefetch distance. Of the bandwidth of a plain sum over 1 GB, [n, 64] reaches, with AVX-512 (Intel Xeon, two
// threads), 0.82 with 8 KB, 0.78 with 16 KB and 0.91 with 32 KB. With AVX2 (AMD EPYC), [n, 128] reaches 0.69 with 1 KB,
// 0.86 with 4 KB and 1.03 with 8 KB; with two targets, [n, 512] reached 0.69 with 8 KB and 0.86 with 32 KB.
inline int64_t ahead_of(int64_t targets) { return (kLanes == 8 || targets > 1 ? 32 : 8) << 10; }

// Prefetches memory sequentially, a few 64-byte lines at a time, into the second-level cache. Each of the two products
// prefetches half as many bytes as it reads, which keeps the few requests of a core always in flight. 1 GB of [n, 128]
// took 54 ms, and 65 when only the first product prefetched; [n, 512] took 50 and 62.
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

// Adds numbers to sums in double.
template <class Number>
LINREG_INLINE void add_numbers(const Number* from, int64_t count, double* to) {
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) store_vec<Wide>(to + j, load_vec<Wide>(to + j) + load_vec<Wide>(from + j));
  for (; j < count; ++j) to[j] += double(from[j]);
}

// Calls with<T>(first target) for consecutive sets of T targets, T at most kMost.
template <int kMost, class With>
LINREG_INLINE void for_target_sets(int64_t k, With with, int64_t t = 0) {
  for (; t + kMost <= k; t += kMost) with.template operator()<kMost>(t);
  if constexpr (kMost > 1) for_target_sets<kMost / 2>(k, with, t);
}

// W for T targets in the order in which dots reads it: for each F features, the first target's, the second's, ….
template <int T, class V>
inline void interleave(const NumberOf<V>* w, int64_t ldw, NumberOf<V>* to) {
  constexpr int F = lanes_of<V> / T;
  for (int64_t j = 0; j < ldw; j += F)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t f = 0; f < F; ++f) *to++ = w[t * ldw + j + f];
}

// The longest chain of a dot product. With several targets, fewer lanes share the features. Half chains then have the
// errors of MKL's products of few rows; whole ones have 1.4 times those for 300 features and 9 targets.
template <int T>
constexpr int64_t kDotChain = T == 1 ? kChain : kChain / 2;

// Several chains of a row hide the latency of an addition.
template <class V, int R, int T>
constexpr int kSetsOfChains = R == 1 || (R == 2 && T == 1) ? 4
                              : R == 4 && T == 1           ? 2
                              : kLanes == 8 && T > 1       ? 2
                                                           : 1;

// products[r] = the lanes' sums of x[r] · w[t] for R rows and T targets. Prefetches half as many bytes as it reads.
template <class V, int R, int T>
LINREG_INLINE void add_products(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* w, int64_t width, V* products,
                                Prefetcher& given) {
  constexpr int lanes = lanes_of<V>, F = lanes / T, sets = kSetsOfChains<V, R, T>;
  constexpr int read = R * F * int(sizeof(NumberOf<V>)), steps = read * sets >= 128 ? sets : 128 / read;  // a prefetch
  Prefetcher ahead = given;
  RowsAt<NumberOf<V>> rows(x, ldx);
  V chains[sets][R] = {};
  const auto step = [&](int set) __attribute__((always_inline)) {
    const V wj = load_vec<V>(w);
    LINREG_UNROLL
    for (int r = 0; r < R; ++r) chains[set][r] += repeated<V, F>(rows.row(r)) * wj;
    w += lanes;
    rows.advance(F);
  };
  int64_t j = 0;
  for (; j + steps * F <= width; j += steps * F) {
    if constexpr (R > 1) ahead.prefetch<steps * read / 2>();
    LINREG_UNROLL
    for (int s = 0; s < steps; ++s) step(s % sets);
  }
  for (; j < width; j += F) step(0);
  LINREG_UNROLL
  for (int set = 1; set < sets; ++set) LINREG_UNROLL
  for (int r = 0; r < R; ++r) chains[0][r] += chains[set][r];
  LINREG_UNROLL
  for (int r = 0; r < R; ++r) products[r] = chains[0][r];
  given = ahead;
}

// Rows of a tile, read M at a time: set q has the rows q, q + apart, q + 2 apart, ….
template <int M>
LINREG_INLINE int64_t row_of(int i, int64_t apart) {
  return i / M + i % M * apart;
}

// sums[i, t] = x[row_of(i)] · w[t]
template <class V, int R, int T, int M>
LINREG_INLINE void dots(const NumberOf<V>* x, int64_t ldx, int64_t apart, const NumberOf<V>* w, int64_t width,
                        NumberOf<V>* sums, Prefetcher& ahead) {
  constexpr int lanes = lanes_of<V>;
  V products[R];
  LINREG_UNROLL
  for (int i = 0; i < R; i += M) {
    const int64_t first = row_of<M>(i, apart);
    add_products<V, M, T>(x + first * ldx, apart * ldx, w, width, products + i, ahead);
  }
  fold<T, lanes / T, R>(products);
  LINREG_UNROLL
  for (int i = 0; i < (R * T + lanes - 1) / lanes; ++i) store_vec<V>(sums + i * lanes, products[i]);
}

// p[r, t] = x[r] · w[t] for the R rows row_of(i); the rows of p are ldp apart. Adds chains of kDotChain additions in
// double.
template <class V, int R, int T, int M>
inline void predict(const NumberOf<V>* x, int64_t ldx, int64_t apart, const NumberOf<V>* w, int64_t width,
                    NumberOf<V>* p, int64_t ldp, Prefetcher& ahead) {
  using Number = NumberOf<V>;
  constexpr int count = R * T;
  constexpr int64_t most = kDotChain<T> * kSetsOfChains<V, M, T> * lanes_of<V> / T;
  alignas(64) Number sums[count < lanes_of<V> ? lanes_of<V> : count];
  if (width <= most) {
    dots<V, R, T, M>(x, ldx, apart, w, width, sums, ahead);
  } else {
    double totals[count] = {};
    for (int64_t j = 0; j < width; j += most) {
      dots<V, R, T, M>(x + j, ldx, apart, w + j * T, width - j < most ? width - j : most, sums, ahead);
      for (int i = 0; i < count; ++i) totals[i] += double(sums[i]);
    }
    for (int i = 0; i < count; ++i) sums[i] = Number(totals[i]);
  }
  LINREG_UNROLL
  for (int i = 0; i < R; ++i) std::memcpy(p + row_of<M>(i, apart) * ldp, sums + i * T, T * sizeof(Number));
}

// A vector for each of T problems that share their rows and have one target each.
template <class V, int T>
struct Vectors {
  V of[T];
};

// The sums of the lanes of product(0) … product(R - 1), in the order of fold<1, lanes, R>; each pair is folded as soon
// as it is there, which leaves registers for a second problem.
template <int R, int M = 1, class Product>
LINREG_INLINE auto folded_products(int i, Product product) {
  if constexpr (M == R) {
    return product(i);
  } else {
    auto a = folded_products<R, 2 * M>(i, product);
    const auto b = folded_products<R, 2 * M>(i + M, product);
    LINREG_UNROLL
    for (auto& v : a.of) {
      constexpr int half = lanes_of<std::remove_reference_t<decltype(v)>> * M / R;
      v = hadd<half>(v, b.of[&v - a.of]);
    }
    return a;
  }
}

// sums[t] += slope(t) x for a row of C vectors.
template <class V, int T, int C, class Slope>
LINREG_INLINE void add_row(const NumberOf<V>* x, const Slope& slope, V (&sums)[T][C]) {
  V xr[C];
  LINREG_UNROLL
  for (int c = 0; c < C; ++c) xr[c] = load_vec<V>(x + c * lanes_of<V>);
  LINREG_UNROLL
  for (int t = 0; t < T; ++t) {
    const V st = broadcast<V>(slope(t));
    LINREG_UNROLL
    for (int c = 0; c < C; ++c) sums[t][c] += st * xr[c];
  }
}

// p[t][r] = x[r] · w[t] for rows of C vectors, with w in registers.
template <class V, int C, int T>
inline void predict_narrow(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* const (&w)[T], int64_t rows,
                           NumberOf<V>* const (&p)[T], Prefetcher& given) {
  constexpr int lanes = lanes_of<V>, R = kTileRows < lanes ? kTileRows : lanes;
  Prefetcher ahead = given;
  V ws[T][C];
  LINREG_UNROLL
  for (int t = 0; t < T; ++t) LINREG_UNROLL
  for (int c = 0; c < C; ++c) ws[t][c] = load_vec<V>(w[t] + c * lanes);
  for (int64_t r = 0; r + kTileRows <= rows; r += kTileRows) {
    ahead.prefetch<kTileRows * C * int64_t(sizeof(V)) / 2>();
    LINREG_UNROLL
    for (int first = 0; first < kTileRows; first += R) {
      auto sums = folded_products<R>(0, [&](int i) __attribute__((always_inline)) {
        const NumberOf<V>* const row = x + (r + first + i) * ldx;
        Vectors<V, T> products;
        LINREG_UNROLL
        for (int c = 0; c < C; ++c) {
          const V xc = load_vec<V>(row + c * lanes);
          LINREG_UNROLL
          for (int t = 0; t < T; ++t) products.of[t] = c == 0 ? xc * ws[t][c] : products.of[t] + xc * ws[t][c];
        }
        return products;
      });
      LINREG_UNROLL
      for (int t = 0; t < T; ++t) {
        fold<1, lanes / R, 1>(&sums.of[t]);
        std::memcpy(p[t] + r + first, &sums.of[t], R * sizeof(NumberOf<V>));
      }
    }
  }
  given = ahead;
}

// dw[t][j] += Σ_r g[t][r] x[r, j] over rows of C vectors, in chains over blocks of kBlockRows and in double over all.
template <class V, int C, int T>
inline void add_gradient_narrow(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* const (&g)[T], int64_t rows,
                                int64_t d, double* const (&dw)[T], Prefetcher& given) {
  using Number = NumberOf<V>;
  constexpr int lanes = lanes_of<V>;
  // Several chains hide the latency of an addition. Twice as many, and what they add, are in registers.
  constexpr int sets = C == 1 ? 4 : C == 2 ? 3 : 2;
  Prefetcher ahead = given;
  for (int64_t r = 0, end = 0; r < rows; r = end) {
    end = r + kBlockRows < rows ? r + kBlockRows : rows;
    V sums[sets][T][C] = {};
    const auto row = [&](int set) __attribute__((always_inline)) {
      add_row<V>(x, [&](int t) { return g[t][r]; }, sums[set]);
      x += ldx;
      ++r;
    };
    while (r + sets <= end) {
      ahead.prefetch<sets * C * int64_t(sizeof(V)) / 2>();
      LINREG_UNROLL
      for (int set = 0; set < sets; ++set) row(set);
    }
    while (r < end) row(0);
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) {
      alignas(64) Number block[C * lanes];
      LINREG_UNROLL
      for (int c = 0; c < C; ++c) {
        LINREG_UNROLL
        for (int set = 1; set < sets; ++set) sums[0][t][c] += sums[set][t][c];
        store_vec<V>(block + c * lanes, sums[0][t][c]);
      }
      add_numbers(block, d, dw[t]);
    }
  }
  given = ahead;
}

constexpr int kMostSums = kLanes == 8 ? 16 : 8;  // vectors: half of the registers

// dw[t, j] += Σ_r g[r, t] x[r, j] for T targets and C vectors of columns, over `count` rows. Prefetches like dots.
template <class V, int T, int C>
LINREG_INLINE void add_columns(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* g, int64_t ldg, int64_t count,
                               NumberOf<V>* dw, int64_t ldw, Prefetcher& given) {
  constexpr int lanes = lanes_of<V>;
  Prefetcher ahead = given;
  // Several sets of sums hide the latency of an addition. They also shorten the chains: with AVX2, chains of 64 rows
  // have 1.3 times the error of MKL's products.
  constexpr int sets = T * C >= kMostSums ? 1 : T * C >= kMostSums / 2 ? 2 : 4;
  V sums[sets][T][C] = {};
  const auto row = [&](int set) __attribute__((always_inline)) {
    add_row<V>(x, [g](int t) { return g[t]; }, sums[set]);
    x += ldx;
    g += ldg;
  };
  int64_t r = 0;
  for (; r + sets <= count; r += sets) {
    ahead.prefetch<sets * C * int64_t(sizeof(V)) / 2>();
    LINREG_UNROLL
    for (int set = 0; set < sets; ++set) row(set);
  }
  for (; r < count; ++r) row(0);
  given = ahead;
  LINREG_UNROLL
  for (int t = 0; t < T; ++t) LINREG_UNROLL
  for (int c = 0; c < C; ++c) {
    V sum = sums[0][t][c];
    LINREG_UNROLL
    for (int set = 1; set < sets; ++set) sum += sums[set][t][c];
    store_vec<V>(dw + t * ldw + c * lanes, load_vec<V>(dw + t * ldw + c * lanes) + sum);
  }
}

// The same for all columns.
template <class V, int T, int C = kMostSums / T < 8 ? kMostSums / T : 8>
inline void add_gradient(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* g, int64_t ldg, int64_t count,
                         int64_t width, NumberOf<V>* dw, int64_t ldw, Prefetcher& ahead) {
  constexpr int columns = C * lanes_of<V>;
  int64_t j = 0;
  for (; j + columns <= width; j += columns) add_columns<V, T, C>(x + j, ldx, g, ldg, count, dw + j, ldw, ahead);
  if constexpr (C > 1) add_gradient<V, T, C / 2>(x + j, ldx, g, ldg, count, width - j, dw + j, ldw, ahead);
}

}  // namespace
}  // namespace linreg::cpu
