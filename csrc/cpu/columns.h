// SPDX-License-Identifier: BSD-3-Clause
// Few features: rows are transposed to columns, so that lanes run along rows.
#pragma once

#include <utility>

#include "../math/with_loss.h"
#include "convert.h"
#include "residuals.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

// The longest chain, in vectors. With float64 and AVX2, the loss of 131 rows has 1.7 times the error of PyTorch's
// after 32.
template <class V>
constexpr int64_t kColumnsChain = sizeof(NumberOf<V>) == 8 ? 4 * kLanes : 32;

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

// One target: lanes run along the rows of a piece. Adds losses and slopes as residuals_of does, and no chain of
// additions is longer than kColumnsChain: with two lanes of double, one over 100 vectors has 2.6 times the error of
// PyTorch's sum. If D > 0, it also predicts, from contiguous rows of D features, and adds G · X to sums [D, lanes];
// else the predictions are given.
template <int D, class V, class E>
inline void one_target(const Problem& p, const E* x, const NumberOf<V>* w, const Piece<NumberOf<V>>& piece,
                       const NumberOf<V>* y, const NumberOf<V>* v, NumberOf<V> power, NumberOf<V>* losses,
                       double* sums) {
  using Number = NumberOf<V>;
  constexpr int lanes = lanes_of<V>;
  const Number delta = Number(p.delta);
  Number* const predictions = piece.predictions;
  V loss{}, slope{}, gradient[D > 0 ? D : 1] = {};
  Prefetcher ahead(x + (D > 0 ? ahead_of(1) / int64_t(sizeof(E)) : 0));
  const auto step = [&]<bool kWhole>(int64_t i, int64_t left) __attribute__((always_inline)) {
    const auto load = [left](const auto* from, int64_t m = 0, int64_t per_row = 1) __attribute__((always_inline)) {
      const int64_t count = kWhole ? lanes_of<V> : left * per_row - m * lanes_of<V>;
      if (count >= lanes_of<V>) return load_vec<V>(from + m * lanes_of<V>);
      return count > 0 ? load_first<V>(from + m * lanes_of<V>, count) : V{};
    };
    V columns[D > 0 ? D : 1], prediction{};
    if constexpr (D == 0) {
      prediction = load(predictions + i);
    } else {
      LINREG_UNROLL
      for (int m = 0; m < D; ++m) columns[m] = load(x + i * D, m, D);
      ahead.prefetch<D * lanes * int64_t(sizeof(E))>();
      to_columns(columns);
      LINREG_UNROLL
      for (int c = 0; c < D; ++c) prediction += columns[c] * w[c];
    }
    if constexpr (!kWhole && D > 0) {  // 0 times an infinite weight
      alignas(64) Number first[lanes];
      store_vec<V>(first, prediction);
      prediction = load_first<V>(first, left);
    }
    // The missing lanes of a partial vector are 0, where every loss and slope is 0.
    const V r = (prediction + load(piece.bias)) - load(y + i);
    const V weight = v ? load(v + i) : broadcast<V>(1);
    const Terms<V> terms = with_loss(p.loss, [&]<Loss kLoss>() { return terms_of<kLoss>(r, weight, delta, power); });
    loss += terms.loss;
    slope += terms.slope;
    store_vec<V>(losses + i, terms.loss);
    store_vec<V>(predictions + i, terms.slope);
    LINREG_UNROLL
    for (int c = 0; c < D; ++c) gradient[c] += terms.slope * columns[c];
  };
  for (int64_t i = 0, end = 0; i < piece.rows; i = end) {
    end = i + kColumnsChain<V> * lanes < piece.rows ? i + kColumnsChain<V> * lanes : piece.rows;
    for (; i + lanes <= end; i += lanes) step.template operator()<true>(i, lanes);
    if (i < end) step.template operator()<false>(i, end - i);
    add_to(piece.loss, piece.loss + kMaxLanes, folded(loss));
    add_to(piece.slope_sums, piece.slope_sums + piece.width, folded(slope));
    loss = slope = V{};
    LINREG_UNROLL
    for (int c = 0; c < D; ++c) {
      store_vec<Wide>(sums + c * kLanes, load_vec<Wide>(sums + c * kLanes) + folded(gradient[c]));
      gradient[c] = V{};
    }
  }
}

}  // namespace
}  // namespace linreg::cpu
