// SPDX-License-Identifier: BSD-3-Clause
// The element-wise step between the two products: from X Wᵀ to losses v ℓ(R) and slopes G = power · v ℓ'(R).
#pragma once

#include "../math/with_loss.h"
#include "convert.h"
#include "kernels.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kPiece = 1024;      // the most elements of a piece: 4 or 8 KB of each converted operand
constexpr int64_t kMostOfLine = 256;  // keeps the chain of additions along a line short in every instruction set

// Adds sums over few rows to compensated sums over many rows (math/sum.h). The compensation is for float64: over 3M
// equal rows, whose rounding errors are equal, a plain sum is off by 14 units in the last place, and this one by 1.
LINREG_INLINE void add_to(double* sum, double* compensation, Wide value) {
  Wide lanes = load_vec<Wide>(sum), lost = load_vec<Wide>(compensation);
  two_sum(value, lanes, lost);
  store_vec<Wide>(sum, lanes);
  store_vec<Wide>(compensation, lost);
}

// Adds `count` sums of a block, a multiple of 16, to those of earlier blocks and clears them.
template <class Number>
inline void move_sums(Number* from, int64_t count, double* to, double* compensation) {
  for (int64_t i = 0; i < count; i += kLanes) add_to(to + i, compensation + i, load_vec<Wide>(from + i));
  std::memset(from, 0, count * sizeof(Number));
}

// Rows [first, first + rows) and targets [target, target + targets): at most kPiece contiguous elements.
template <class Number>
struct Piece {
  int64_t first, rows, target, targets;
  Number* predictions;  // X Wᵀ; replaced by G
  const Number* bias;   // [width]: element i has bias[i % width]
  int64_t width;
  double* loss;        // accumulates the loss per lane, then the compensations: [2 kMaxLanes]
  Number* slopes;      // accumulates G over few rows, per place in the width; whole vectors, 0 at first
  double* slope_sums;  // accumulates G over many rows, per place in the width, then the compensations: [2, width]
};

inline void* element(void* data, Dtype dtype, int64_t index) {
  return static_cast<char*>(data) + index * int64_t(size_of(dtype));
}

// The elements of an operand: in place if possible, else converted to `to`.
template <class Number>
inline const Number* elements_of(const View& view, const Piece<Number>& piece, Number* to) {
  const int64_t first = piece.first, rows = piece.rows, target = piece.target, targets = piece.targets;
  const void* const from = at(view, first, target);
  const bool is_column = targets == 1, is_row = rows == 1;
  const int64_t stride = is_column ? view.row_stride : view.col_stride;
  if (is_column || is_row || (view.col_stride == 1 && view.row_stride == targets)) {
    constexpr Dtype dtype = sizeof(Number) == 8 ? Dtype::float64 : Dtype::float32;
    if (stride == 1 && view.dtype == dtype) return static_cast<const Number*>(from);
    load(from, stride, view.dtype, rows * targets, to);
  } else {
    for (int64_t i = 0; i < rows; ++i)
      load(at(view, first + i, target), view.col_stride, view.dtype, targets, to + i * targets);
  }
  return to;
}

// Writes a piece's elements to an [n, k] matrix.
template <class Number>
inline void store_elements(const Problem& p, const Piece<Number>& piece, const Number* from, Dtype dtype, void* to) {
  const bool is_whole = piece.targets == p.k;
  const int64_t count = is_whole ? piece.rows * p.k : piece.targets;
  for (int64_t i = 0; i < (is_whole ? 1 : piece.rows); ++i)
    store(from + i * count, count, dtype, element(to, dtype, (piece.first + i) * p.k + piece.target));
}

// v ℓ(r) and power · v ℓ'(r).
template <class V>
struct Terms {
  V loss, slope;
};
template <Loss kLoss, class V>
LINREG_INLINE Terms<V> terms_of(V r, NumberOf<V> delta, NumberOf<V> power) {
  return {loss_value<kLoss>(r, delta), dloss<kLoss>(r, delta) * power};
}
template <Loss kLoss, class V>
LINREG_INLINE Terms<V> terms_of(V r, V weight, NumberOf<V> delta, NumberOf<V> power) {
  const V scaled = weight * power;  // first, because a large weight times a slope may overflow
  return {loss_value<kLoss>(r, delta) * weight, dloss<kLoss>(r, delta) * scaled};
}

// The numbers of a vector in double, folded to one register.
template <class V>
LINREG_INLINE Wide folded(V v) {
  alignas(64) NumberOf<V> numbers[lanes_of<V>];
  store_vec<V>(numbers, v);
  Wide sum{};
  for (int i = 0; i < lanes_of<V>; i += kLanes) sum += load_vec<Wide>(numbers + i);
  return sum;
}

// Losses are added in V along a line of `width` elements, fewer than kChain vectors, then in double.
template <Loss kLoss, bool kWeighted, class V>
inline void residuals_of(const Piece<NumberOf<V>>& piece, const NumberOf<V>* __restrict__ y,
                         const NumberOf<V>* __restrict__ v, NumberOf<V> delta, NumberOf<V> power,
                         NumberOf<V>* __restrict__ losses) {
  using Number = NumberOf<V>;
  constexpr int lanes = lanes_of<V>;
  const int64_t count = piece.rows * piece.targets, width = piece.width;
  Number *const p = piece.predictions, *const slopes = piece.slopes;
  const Number* const bias = piece.bias;
  Wide total{};
  for (int64_t begin = 0; begin < count; begin += width) {
    const int64_t line = count - begin < width ? count - begin : width;
    V sum{};
    const auto step = [&]<bool kWhole>(int64_t i, int64_t left) __attribute__((always_inline)) {
      const auto load = [left](const Number* from) __attribute__((always_inline)) {
        return kWhole ? load_vec<V>(from) : load_first<V>(from, left);
      };
      const auto store = [left](Number* to, V value) __attribute__((always_inline)) {
        if constexpr (kWhole) {
          store_vec<V>(to, value);
        } else {
          for (int64_t lane = 0; lane < left; ++lane) to[lane] = value[lane];
        }
      };
      // The missing lanes of a partial vector are 0, where every loss and slope is 0.
      // Added to large predictions, the bias is rounded alike in all rows, and these errors add up in gradients. MKL's
      // products of float64 on an AMD EPYC avoid it, and so does the subtraction of y first; in float32 it would have
      // 1.2 times PyTorch's error for ordinary numbers.
      const V r = sizeof(Number) == 8 ? (load(p + begin + i) - load(y + begin + i)) + load(bias + i)
                                      : (load(p + begin + i) + load(bias + i)) - load(y + begin + i);
      const Terms<V> terms = [&]() __attribute__((always_inline)) {
        if constexpr (kWeighted) return terms_of<kLoss>(r, load(v + begin + i), delta, power);
        return terms_of<kLoss>(r, delta, power);
      }();
      sum += terms.loss;
      if (losses) store(losses + begin + i, terms.loss);
      store(p + begin + i, terms.slope);
      store_vec<V>(slopes + i, load_vec<V>(slopes + i) + terms.slope);
    };
    int64_t i = 0;
    for (; i + lanes <= line; i += lanes) step.template operator()<true>(i, lanes);
    if (i < line) step.template operator()<false>(i, line - i);
    total += folded(sum);
  }
  add_to(piece.loss, piece.loss + kMaxLanes, total);
}

// The operands and the outputs of a piece; compute(y, v, losses) is the arithmetic between.
template <class V, class Compute>
inline void with_elements(const Problem& p, const PassOutputs& outputs, const Scale& scale,
                          const Piece<NumberOf<V>>& piece, Compute compute) {
  using Number = NumberOf<V>;
  alignas(64) Number targets[kPiece], weights[kPiece], losses[kPiece];
  const Number* const y = elements_of(p.y, piece, targets);
  const Number* const v = p.v.data ? elements_of(p.v, piece, weights) : nullptr;
  compute(y, v, losses);
  if (outputs.elements) store_elements(p, piece, losses, loss_dtype(p), outputs.elements);
  if (outputs.target_gradient) {
    const Number rest = Number(scale.rest);
    for (int64_t i = 0; i < piece.rows * piece.targets; ++i) losses[i] = -piece.predictions[i] / rest;
    store_elements(p, piece, losses, gradient_dtype(p.y.dtype), outputs.target_gradient);
  }
}

template <class V>
inline void residuals_of_piece(const Problem& p, const PassOutputs& outputs, const Scale& scale,
                               const Piece<NumberOf<V>>& piece) {
  using Number = NumberOf<V>;
  const Number delta = Number(p.delta), power = Number(scale.power);
  with_elements<V>(p, outputs, scale, piece, [&](const Number* y, const Number* v, Number* losses) {
    Number* const kept = outputs.elements ? losses : nullptr;
    with_loss(p.loss, [&]<Loss kLoss>() {
      v ? residuals_of<kLoss, true, V>(piece, y, v, delta, power, kept)
        : residuals_of<kLoss, false, V>(piece, y, v, delta, power, kept);
    });
  });
}

// The same for any number of targets; with fewer than kLineRows targets, for at most kPiece elements. Slopes are added
// in chains of at most kLineRows, as short as PyTorch's, then in double.
template <class V>
inline void residuals_of(const Problem& p, const PassOutputs& outputs, const Scale& scale,
                         const Piece<NumberOf<V>>& all) {
  const auto keep = [&] { move_sums(all.slopes, all.width, all.slope_sums, all.slope_sums + all.width); };
  if (all.targets < kLineRows) {
    residuals_of_piece<V>(p, outputs, scale, all);
    return keep();
  }
  for (int64_t i = 0; i < all.rows; ++i) {
    for (int64_t t = 0; t < all.targets; t += kMostOfLine) {
      const int64_t count = all.targets - t < kMostOfLine ? all.targets - t : kMostOfLine;
      residuals_of_piece<V>(p, outputs, scale,
                            {all.first + i, 1, all.target + t, count, all.predictions + i * all.targets + t,
                             all.bias + t, count, all.loss, all.slopes + t, nullptr});
    }
    if ((i + 1) % kLineRows == 0 || i + 1 == all.rows) keep();
  }
}

}  // namespace
}  // namespace linreg::cpu
