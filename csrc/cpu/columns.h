// SPDX-License-Identifier: BSD-3-Clause
// Few features: rows are transposed to columns, so that lanes run along rows.
#pragma once

#include <utility>

#include "convert.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

// Column C, one lane per row, of the contiguous rows in D vectors. `found` holds the numbers from the first M vectors.
template <int D, int C, int M, class V>
LINREG_INLINE V column(V found, const V (&rows)[D]) {
  if constexpr (M == D) {
    return found;
  } else {
    constexpr auto from = [](int i) constexpr {
      constexpr int lanes = lanes_of<V>;
      const int at = i * D + C;  // in all vectors
      return at / lanes == M ? lanes + at % lanes : M == 1 && at / lanes == 0 ? at : i;
    };
    return column<D, C, M + 1>(permute(found, rows[M], from), rows);
  }
}

// Transposes D vectors of contiguous rows to D columns, one lane per row. While D is even, it deinterleaves the vectors
// into two halves; then it collects each column separately.
template <int D, class V>
LINREG_INLINE void to_columns(V (&v)[D]) {
  if constexpr (D > 1 && D % 2 == 0) {
    constexpr auto even_lane = [](int i) constexpr { return 2 * i; };
    constexpr auto odd_lane = [](int i) constexpr { return 2 * i + 1; };
    V even[D / 2], odd[D / 2];
#pragma GCC unroll 4
    for (int i = 0; i < D / 2; ++i) {
      even[i] = permute(v[2 * i], v[2 * i + 1], even_lane);
      odd[i] = permute(v[2 * i], v[2 * i + 1], odd_lane);
    }
    to_columns(even);
    to_columns(odd);
#pragma GCC unroll 4
    for (int i = 0; i < D / 2; ++i) v[2 * i] = even[i], v[2 * i + 1] = odd[i];
  } else if constexpr (D > 1) {
    [&v]<int... C>(std::integer_sequence<int, C...>) __attribute__((always_inline)) {
      const V columns[D] = {column<D, C, 1>(v[0], v)...};
      ((v[C] = columns[C]), ...);
    }(std::make_integer_sequence<int, D>());
  }
}

// columns[j · ld + i] = x[i, j] for whole vectors of contiguous rows of D features. Returns the number of rows.
template <class V, int D, class E>
inline int64_t load_whole_columns(const E* x, int64_t rows, NumberOf<V>* columns, int64_t ld) {
  constexpr int lanes = lanes_of<V>;
  Prefetcher ahead(x + kAhead / int64_t(sizeof(E)));
  int64_t i = 0;
  for (; i + lanes <= rows; i += lanes) {
    V vectors[D];
    LINREG_UNROLL
    for (int m = 0; m < D; ++m) vectors[m] = load_vec<V>(x + i * D + m * lanes);
    ahead.prefetch<D * lanes * int64_t(sizeof(E))>();
    to_columns(vectors);
    LINREG_UNROLL
    for (int c = 0; c < D; ++c) store_vec<V>(columns + c * ld + i, vectors[c]);
  }
  return i;
}

// columns[j · ld + i] = x[first + i, j] for any rows, padded with zeros to a whole vector.
template <class V, class E>
inline void load_columns(const View& x, int64_t d, int64_t first, int64_t rows, NumberOf<V>* columns, int64_t ld) {
  int64_t done = 0;
  if (x.row_stride == d) {
    const E* const from = static_cast<const E*>(at(x, first));
    [&]<int... D>(std::integer_sequence<int, D...>) {
      ((d == D + 1 ? void(done = load_whole_columns<V, D + 1>(from, rows, columns, ld)) : void()), ...);
    }(std::make_integer_sequence<int, kColumnsMaxD>());
  }
  for (int64_t j = 0; j < d && done < rows; ++j) {
    load(at(x, first + done, j), x.row_stride, x.dtype, rows - done, columns + j * ld + done);
    for (int64_t i = rows; i % lanes_of<V> != 0; ++i) columns[j * ld + i] = 0;
  }
}

// p[i] = Σ_j columns[j, i] w[j]. Writes whole vectors.
template <class V>
inline void predict_columns(const NumberOf<V>* columns, int64_t ld, int64_t d, int64_t rows, const NumberOf<V>* w,
                            NumberOf<V>* p) {
  const auto some = [=]<int N>(int64_t i, std::integral_constant<int, N>) __attribute__((always_inline)) {
    V sums[N] = {};
    for (int64_t j = 0; j < d; ++j) LINREG_UNROLL
    for (int m = 0; m < N; ++m) sums[m] += load_vec<V>(columns + j * ld + i + m * lanes_of<V>) * w[j];
    LINREG_UNROLL
    for (int m = 0; m < N; ++m) store_vec<V>(p + i + m * lanes_of<V>, sums[m]);
  };
  int64_t i = 0;
  for (; i + 4 * lanes_of<V> <= rows; i += 4 * lanes_of<V>) some(i, std::integral_constant<int, 4>());
  for (; i < rows; i += lanes_of<V>) some(i, std::integral_constant<int, 1>());
}

// sums[j, lane] += Σ g[i] columns[j, i]. Reads whole vectors.
template <class V>
inline void add_columns(const NumberOf<V>* columns, int64_t ld, int64_t d, int64_t rows, const NumberOf<V>* g,
                        NumberOf<V>* sums) {
  constexpr int lanes = lanes_of<V>;
  for (int64_t j = 0; j < d; ++j) {
    const NumberOf<V>* const x = columns + j * ld;
    V parts[4] = {};
    int64_t i = 0;
    for (; i + 4 * lanes <= rows; i += 4 * lanes) LINREG_UNROLL
    for (int m = 0; m < 4; ++m) parts[m] += load_vec<V>(g + i + m * lanes) * load_vec<V>(x + i + m * lanes);
    for (; i < rows; i += lanes) parts[0] += load_vec<V>(g + i) * load_vec<V>(x + i);
    store_vec<V>(sums + j * lanes, load_vec<V>(sums + j * lanes) + ((parts[0] + parts[1]) + (parts[2] + parts[3])));
  }
}

}  // namespace
}  // namespace linreg::cpu
