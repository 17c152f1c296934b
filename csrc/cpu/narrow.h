// SPDX-License-Identifier: BSD-3-Clause
// Few features and one target: rows from memory to sums in registers.
#pragma once

#include <type_traits>
#include <utility>

#include "../math/with_loss.h"
#include "columns.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

// Sums over rows: Σ ℓ, Σ G and, by lanes, Gᵀ X [d, kMaxLanes].
struct NarrowSums {
  double *loss, *dloss, *weight;
};

LINREG_INLINE void loss_and_dloss(Loss kind, Wide residual, double delta, Wide& loss, Wide& g) {
  with_loss(kind, [&]<Loss kLoss>() __attribute__((always_inline)) {
    loss = loss_value<kLoss>(residual, delta);
    g = dloss<kLoss>(residual, delta);
  });
}

// Adds as many rows of D features as fill whole vectors and returns their number. Rows and targets lie without gaps.
template <int D, class E, class W>
int64_t add_narrow(const E* x, const E* y, int64_t rows, const W* weights, double bias, Loss kind, double delta,
                   double scale, const NarrowSums& to) {
  using V = std::conditional_t<sizeof(E) == 8, Wide, Narrow>;
  constexpr int lanes = lanes_of<V>, parts = lanes / kLanes;
  constexpr int sets = D <= 4 ? parts : 1;  // of sums, as far as the registers go, so that none waits for another
  // What double sums of float rows lose is far below what the result is rounded to.
  constexpr int64_t block = (sizeof(E) == 8 ? 1 : 32) * kChain * lanes;
  Wide w[D], weight[sets][D] = {};
#pragma GCC unroll 8
  for (int c = 0; c < D; ++c) w[c] = broadcast<Wide>(double(weights[c]));
  Prefetcher ahead(x + kAhead / int64_t(sizeof(E)));
  int64_t i = 0;
  while (i + lanes <= rows) {
    const int64_t end = rows - i < block ? rows : i + block;
    Wide loss[parts] = {}, dloss_sum[parts] = {};
    for (; i + lanes <= end; i += lanes) {
      V vectors[D];
#pragma GCC unroll 8
      for (int m = 0; m < D; ++m) vectors[m] = load_vec<V>(x + i * D + m * lanes);
      to_columns(vectors);
      ahead.prefetch<D * lanes * int64_t(sizeof(E))>();
      const auto add = [&]<int kPart, int... C>(std::integral_constant<int, kPart>,
                                                std::integer_sequence<int, C...>) __attribute__((always_inline)) {
        const Wide features[D] = {part<kPart>(vectors[C])...};
        Wide prediction{}, l{}, g{};
        ((prediction += features[C] * w[C]), ...);
        loss_and_dloss(kind, (prediction + bias) - load_vec<Wide>(y + i + kPart * kLanes), delta, l, g);
        g *= scale;
        loss[kPart] += l;
        dloss_sum[kPart] += g;
        ((weight[kPart % sets][C] += g * features[C]), ...);
      };
      constexpr auto all = std::make_integer_sequence<int, D>();
      add(std::integral_constant<int, 0>(), all);
      if constexpr (parts == 2) add(std::integral_constant<int, 1>(), all);
    }
    for (const Wide& sum : loss) add_to(to.loss, sum);
    for (const Wide& sum : dloss_sum) add_to(to.dloss, sum);
  }
#pragma GCC unroll 8
  for (int c = 0; c < D; ++c) {
    Wide total = load_vec<Wide>(to.weight + c * kMaxLanes);
    for (int set = 0; set < sets; ++set) total += weight[set][c];
    store_vec<Wide>(to.weight + c * kMaxLanes, total);
  }
  return i;
}

}  // namespace
}  // namespace linreg::cpu
