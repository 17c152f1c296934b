// SPDX-License-Identifier: BSD-3-Clause
// Rows towards several targets, from which only sums are wanted. Predictions, residuals and derivatives lie in rows of
// targets, as Y does, and neither product needs a sum over the lanes of a register.
//
// For predictions the lanes hold T targets of F features: W is laid out so, and F features of a row come from memory
// repeated T times, which a load does by itself. For gradients lanes run along features, and the sums of a few columns
// stay in registers for all rows of a group.
#pragma once

#include "../math/with_loss.h"
#include "plan.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kFeaturesPrefetched =
    64;                               // of a row, between two prefetches, while they are converted and multiplied
constexpr int kMostTargets = kLanes;  // share a register; when fewer are left, half as many
constexpr int kFewestTargets = kLanes < int(kTargetSet) ? kLanes : int(kTargetSet);

// Calls with<T>(first target) for sets of T targets.
template <int T = kMostTargets, class With>
LINREG_INLINE void for_target_sets(int64_t k, With with, int64_t t = 0) {
  for (; t + T <= k; t += T) with.template operator()<T>(t);
  if constexpr (T > kFewestTargets) for_target_sets<T / 2>(k, with, t);
}

// kCount doubles from memory, over and over.
template <int kCount>
LINREG_INLINE Wide repeated(const double* from) {
#if LINREG_LANES == 8
  if constexpr (kCount == 2) return Wide(_mm512_broadcast_f64x2(bits_at<__m128d>(from)));
#endif
  if constexpr (kCount == 1) return broadcast<Wide>(*from);
}

// W for T targets, of which there are k: of each F features the first target's, the second's, …; zeros where there is
// no target or feature.
template <int T, class W>
inline void interleave(const W* w, int64_t ldw, int64_t k, int64_t d, double* to) {
  constexpr int F = kLanes / T;
  for (int64_t j = 0; j < d; j += F)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t f = 0; f < F; ++f) *to++ = t < k && j + f < d ? double(w[t * ldw + j + f]) : 0;
}

// Of R registers that hold kCount partial sums of each target, one after the other, the sums.
template <int kCount, int R>
LINREG_INLINE void add_features(Wide* v) {
  if constexpr (kCount > 1) {
    constexpr auto even = [](int i) constexpr { return i / (kLanes / 2) * kLanes + i % (kLanes / 2) * 2; };
    constexpr auto odd = [](int i) constexpr { return decltype(even)()(i) + 1; };
    LINREG_UNROLL
    for (int i = 0; i < R / 2; ++i) v[i] = permute(v[2 * i], v[2 * i + 1], even) + permute(v[2 * i], v[2 * i + 1], odd);
    add_features<kCount / 2, R / 2>(v);
  }
}

// Converts `count` features of a tile's rows to doubles, with zeros behind them. Prefetches half as many bytes as are
// read, less what predict prefetches.
template <class E>
LINREG_INLINE void widen(const E* x, int64_t ldx, int64_t count, double* to, Prefetcher& given) {
  constexpr int64_t asked = kFeaturesPrefetched * int64_t(sizeof(E)) / 2 - 64;
  Prefetcher ahead = given;
  for (int r = 0; r < kTileRows; ++r, x += ldx, to += kTileFeatures) {
    int64_t j = 0;
    for (; j + kFeaturesPrefetched <= count; j += kFeaturesPrefetched) {
      if constexpr (asked > 0) ahead.prefetch<asked>();
      LINREG_UNROLL
      for (int64_t i = 0; i < kFeaturesPrefetched; i += kLanes) store_vec<Wide>(to + j + i, load_vec<Wide>(x + j + i));
    }
    for (; j + kLanes <= count; j += kLanes) store_vec<Wide>(to + j, load_vec<Wide>(x + j));
    if (j < count) store_vec<Wide>(to + j, load_first<Wide>(x + j, count - j));
  }
  given = ahead;
}

// p[r, t] += x[r] · w[t] for a tile's rows and T targets; p has rows of ldp. Not inlined, like add_gradient, so that
// the dtypes of rows share it.
template <int T>
[[gnu::noinline]] void predict(const double* x, int64_t count, const double* w, double* p, int64_t ldp,
                               Prefetcher& given) {
  constexpr int F = kLanes / T;
  constexpr int sets = kLanes == 8 ? 2 : 1;  // of chains, so that an addition need not wait for the one before it
  constexpr int together = kFeaturesPrefetched / kTileRows;
  Prefetcher ahead = given;
  Wide chains[sets][kTileRows] = {};
  const auto add = [&](int set) __attribute__((always_inline)) {
    const Wide wj = load_vec<Wide>(w);
    LINREG_UNROLL
    for (int r = 0; r < kTileRows; ++r) chains[set][r] += repeated<F>(x + r * kTileFeatures) * wj;
    w += kLanes;
    x += F;
  };
  int64_t j = 0;
  for (; j + together <= count; j += together) {
    ahead.prefetch<64>();
    LINREG_UNROLL
    for (int step = 0; step < together / F; ++step) add(step % sets);
  }
  for (; j < count; j += F) add(0);
  LINREG_UNROLL
  for (int r = 0; r < kTileRows && sets == 2; ++r) chains[0][r] += chains[sets - 1][r];
  add_features<F, kTileRows>(chains[0]);
  double sums[kTileRows * T];
  LINREG_UNROLL
  for (int i = 0; i < kTileRows / F; ++i) store_vec<Wide>(sums + i * kLanes, chains[0][i]);
  LINREG_UNROLL
  for (int r = 0; r < kTileRows; ++r) LINREG_UNROLL
  for (int t = 0; t < T; ++t) p[r * ldp + t] += sums[r * T + t];
  given = ahead;
}

// dw[t, j] += Σ_r g[r, t] x[r, j] for T targets and C registers of columns, over the rows of a group. Like widen
// and predict, prefetches half of what it reads.
template <class V, int T, int C, class Load>
LINREG_INLINE void add_columns_of(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* g, int64_t ldg, int64_t count,
                                  NumberOf<V>* dw, int64_t ldw, Prefetcher& given, Load load) {
  constexpr int lanes = lanes_of<V>;
  Prefetcher ahead = given;
  V sums[T][C];
  LINREG_UNROLL
  for (int t = 0; t < T; ++t) LINREG_UNROLL
  for (int c = 0; c < C; ++c) sums[t][c] = load_vec<V>(dw + t * ldw + c * lanes);
  for (int64_t r = 0; r < count; ++r, x += ldx, g += ldg) {
    ahead.prefetch<C * int64_t(sizeof(V)) / 2>();
    V xr[C];
    LINREG_UNROLL
    for (int c = 0; c < C; ++c) load(x + c * lanes, xr[c]);
    LINREG_UNROLL
    for (int t = 0; t < T; ++t) {
      const V gt = broadcast<V>(g[t]);
      LINREG_UNROLL
      for (int c = 0; c < C; ++c) sums[t][c] += gt * xr[c];
    }
  }
  LINREG_UNROLL
  for (int t = 0; t < T; ++t) LINREG_UNROLL
  for (int c = 0; c < C; ++c) store_vec<V>(dw + t * ldw + c * lanes, sums[t][c]);
  given = ahead;
}

template <class V, int T>
[[gnu::noinline]] void add_gradient(const NumberOf<V>* x, int64_t ldx, const NumberOf<V>* g, int64_t ldg, int64_t count,
                                    int64_t d, NumberOf<V>* dw, int64_t ldw, Prefetcher& ahead) {
  constexpr int lanes = lanes_of<V>, C = (kLanes == 8 ? 16 : 8) / T;  // as many sums as leave registers for the rest
  const auto whole = [](const NumberOf<V>* from, V& to) __attribute__((always_inline)) { to = load_vec<V>(from); };
  int64_t j = 0;
  for (; j + C * lanes <= d; j += C * lanes)
    add_columns_of<V, T, C>(x + j, ldx, g, ldg, count, dw + j, ldw, ahead, whole);
  for (; j + lanes <= d; j += lanes) add_columns_of<V, T, 1>(x + j, ldx, g, ldg, count, dw + j, ldw, ahead, whole);
  if (j < d)
    add_columns_of<V, T, 1>(x + j, ldx, g, ldg, count, dw + j, ldw, ahead,
                            [=](const NumberOf<V>* from, V& to)
                                __attribute__((always_inline)) { to = load_first<V>(from, d - j); });
}

// A thread's rows of E.
template <class E>
class TowardsTargets {
  using V = std::conditional_t<sizeof(E) == 8, Wide, Narrow>;  // what gradients are summed in
  using Number = NumberOf<V>;

 public:
  TowardsTargets() = default;

  TowardsTargets(const Problem& problem, const Plan& plan, double scale, const Number* w, const double* b,
                 char* scratch, double* loss_lanes, double* bias_lanes, Number* block_sums)
      : p_(&problem), plan_(&plan), scale_(scale), b_(b), loss_lanes_(loss_lanes), bias_lanes_(bias_lanes) {
    block_sums_ = block_sums;
    const auto part = [scratch](int64_t offset) { return reinterpret_cast<double*>(scratch + offset); };
    interleaved_ = part(plan.interleaved), tile_ = part(plan.tile), predictions_ = part(plan.target_predictions);
    bias_sums_ = part(plan.target_bias_sums);
    rows_ = reinterpret_cast<Number*>(scratch + plan.target_rows);
    dloss_ = reinterpret_cast<Number*>(scratch + plan.target_dloss);
    for_target_sets(plan.target_sets, [&]<int T>(int64_t t) {
      interleave<T>(w + t * plan.ldw, plan.ldw, problem.k - t, problem.d, interleaved_ + t * plan.ldw);
    });
  }

  // Adds whole tiles of rows, and calls flush() after every block of them; how many rows that were.
  template <class Flush>
  int64_t add(int64_t first, int64_t rows, int64_t ahead_by, Flush flush) {
    constexpr int together = kLanes == 8 ? 8 : 4;  // targets of a gradient, as many as registers hold
    const int64_t ldk = plan_->ldk, ldw = plan_->ldw, sets = plan_->target_sets;
    std::memset(bias_sums_, 0, ldk * sizeof(double));
    loss_sum_ = Wide{};
    const auto keep_sums = [&] {
      add_to(loss_lanes_, loss_sum_);
      for (int64_t t = 0; t < p_->k; ++t) add_to(bias_lanes_ + t * kLaneSum, bias_sums_[t]);
      std::memset(bias_sums_, 0, ldk * sizeof(double));
      loss_sum_ = Wide{};
    };
    int64_t done = 0, unflushed = 0;
    while (done + kTileRows <= rows) {
      const int64_t left = (rows - done) / kTileRows * kTileRows;
      const int64_t count = left < plan_->target_group_rows ? left : plan_->target_group_rows;
      const E* const x = static_cast<const E*>(at(p_->x, first + done));
      Prefetcher ahead(x + ahead_by);
      for (int64_t r = 0; r < count; r += kTileRows) {
        predict_tile(x + r * p_->x.row_stride, ahead);
        with_loss(p_->loss, [&]<Loss kLoss>() { to_dlosses<kLoss>(first + done + r, dloss_ + r * ldk); });
      }
      int64_t ldx = p_->x.row_stride;
      const Number* const numbers = as_numbers(x, count, ldx);
      int64_t t = 0;
      for (; t + together <= sets; t += together) {
        Prefetcher asked = t == 0 ? ahead : Prefetcher(x);
        add_gradient<V, together>(numbers, ldx, dloss_ + t, ldk, count, p_->d, block_sums_ + t * ldw, ldw, asked);
      }
      for (; t < sets; t += kTargetSet) {
        Prefetcher asked = t == 0 ? ahead : Prefetcher(x);
        add_gradient<V, kTargetSet>(numbers, ldx, dloss_ + t, ldk, count, p_->d, block_sums_ + t * ldw, ldw, asked);
      }
      done += count;
      unflushed += count;
      if (unflushed >= kBlockRows) {
        keep_sums();
        flush();
        unflushed = 0;
      }
    }
    keep_sums();
    return done;
  }

 private:
  // X Wᵀ of a tile's rows.
  LINREG_INLINE void predict_tile(const E* x, Prefetcher& ahead) {
    const int64_t d = p_->d, ldk = plan_->ldk, ldw = plan_->ldw;
    std::memset(predictions_, 0, kTileRows * ldk * sizeof(double));
    for (int64_t j = 0; j < d; j += kTileFeatures) {
      const int64_t count = d - j < kTileFeatures ? d - j : kTileFeatures;
      widen(x + j, p_->x.row_stride, count, tile_, ahead);
      for_target_sets(plan_->target_sets, [&]<int T>(int64_t t) __attribute__((always_inline)) {
        Prefetcher nothing(x);
        predict<T>(tile_, count, interleaved_ + t * ldw + j * T, predictions_ + t, ldk, t == 0 ? ahead : nothing);
      });
    }
  }

  // The rows as they lie in memory, or 16-bit ones converted.
  const Number* as_numbers(const E* x, int64_t count, int64_t& ldx) {
    if constexpr (sizeof(E) == sizeof(Number)) {
      return x;
    } else {
      constexpr int lanes = lanes_of<V>;
      for (int64_t r = 0; r < count; ++r, x += ldx) {
        Number* const to = rows_ + r * plan_->ldw;
        int64_t j = 0;
        for (; j + lanes <= p_->d; j += lanes) store_vec<V>(to + j, load_vec<V>(x + j));
        if (j < p_->d) store_vec<V>(to + j, load_first<V>(x + j, p_->d - j));
      }
      ldx = plan_->ldw;
      return rows_;
    }
  }

  // From a tile's X Wᵀ to its scaled derivatives; sums losses and derivatives.
  template <Loss kLoss>
  void to_dlosses(int64_t first, Number* dlosses) {
    const int64_t k = p_->k, ldk = plan_->ldk, ldy = p_->y.row_stride;
    const E* const y = static_cast<const E*>(at(p_->y, first));
    const double delta = p_->delta;
    const auto targets = [&](int64_t t, auto load, auto counted) __attribute__((always_inline)) {
      const Wide bias = load_vec<Wide>(b_ + t);
      Wide loss_sum{}, bias_sum{};
      LINREG_UNROLL
      for (int r = 0; r < kTileRows; ++r) {
        Wide target;
        load(y + r * ldy + t, target);
        const Wide residual = (load_vec<Wide>(predictions_ + r * ldk + t) + bias) - target;
        Wide loss = loss_value<kLoss>(residual, delta), g = dloss<kLoss>(residual, delta) * scale_;
        counted(loss);
        counted(g);
        loss_sum += loss;
        bias_sum += g;
        store_narrowed(dlosses + r * ldk + t, g);
      }
      loss_sum_ += loss_sum;
      store_vec<Wide>(bias_sums_ + t, load_vec<Wide>(bias_sums_ + t) + bias_sum);
    };
    int64_t t = 0;
    for (; t + kLanes <= k; t += kLanes)
      targets(
          t, [](const E* from, Wide& to) __attribute__((always_inline)) { to = load_vec<Wide>(from); },
          [](Wide&) __attribute__((always_inline)) {});
    if (t < k) {  // behind the last target there is nothing, whatever X times 0 is
      typename Lanes<Wide>::Index lane;
      for (int l = 0; l < kLanes; ++l) lane[l] = l;
      targets(
          t, [=](const E* from, Wide& to) __attribute__((always_inline)) { to = load_first<Wide>(from, k - t); },
          [=](Wide& v) __attribute__((always_inline)) { v = lane < k - t ? v : Wide{}; });
    }
  }

  const Problem* p_;
  const Plan* plan_;
  double scale_;
  const double* b_;
  double *loss_lanes_, *bias_lanes_;
  Wide loss_sum_;  // and bias_sums_: of the rows since these were added to
  double *interleaved_, *tile_, *predictions_, *bias_sums_;
  Number *rows_, *dloss_, *block_sums_;
};

}  // namespace
}  // namespace linreg::cpu
