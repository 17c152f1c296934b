// SPDX-License-Identifier: BSD-3-Clause
// The element-wise work around the matrix products of a pass, all in double: pieces of a row that stay in the
// first-level cache, for kChain rows at a time, whose sums stay there as well.
//
// Compiled once per instruction set, behind target.h.
#include "../math/with_loss.h"
#include "convert.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kPiece = 256;  // elements: 2 KB of each array

template <bool kValue>
struct Flag {  // std::bool_constant, of this file alone
  static constexpr bool value = kValue;
};

inline int64_t piece(int64_t left) { return left < kPiece ? left : kPiece; }

inline void* element(void* data, Dtype dtype, int64_t index) {
  return static_cast<char*>(data) + index * int64_t(size_of(dtype));
}

void convert(const View& from, int64_t first, int64_t rows, int64_t columns, Dtype dtype, void* to) {
  for (int64_t i = 0; i < rows; ++i) {
    const void* const row = at(from, first + i);
    if (dtype == Dtype::float64) {
      load(row, from.col_stride, from.dtype, columns, static_cast<double*>(to) + i * columns);
    } else {
      load(row, from.col_stride, from.dtype, columns, static_cast<float*>(to) + i * columns);
    }
  }
}

// A piece of a row: predictions are replaced by derivatives, scale · v ℓ'(R). Losses and derivatives are also written
// for the caller.
template <Loss kLoss, bool kWeighted, class C, class Y>
void residuals_of(const Y* __restrict__ y, const double* __restrict__ v, const double* __restrict__ bias, int64_t count,
                  double delta, double scale, C* __restrict__ predictions, double* __restrict__ losses,
                  double* __restrict__ dlosses, double* __restrict__ loss_sums, double* __restrict__ dloss_sums) {
  for (int64_t t = 0; t < count; ++t) {
    // In this order nothing is rounded where y is near the prediction.
    const double r = double(predictions[t]) - double(y[t]) + bias[t], weight = kWeighted ? v[t] : 1.0;
    losses[t] = weight * loss_value<kLoss>(r, delta);
    dlosses[t] = scale * (weight * dloss<kLoss>(r, delta));
    loss_sums[t] += losses[t];
    dloss_sums[t] += dlosses[t];
    predictions[t] = C(dlosses[t]);
  }
}

template <class C>
void residuals_of(const Problem& p, const PassOutputs& outputs, double scale, const ResidualBlock& block) {
  alignas(64) double losses[kPiece], dlosses[kPiece], targets[kPiece], weights[kPiece];
  constexpr Dtype kDtype = sizeof(C) == sizeof(double) ? Dtype::float64 : Dtype::float32;
  // Everything but unweighted targets in the products' dtype is converted first, to save instances.
  const bool as_it_lies = !p.v.data && p.y.dtype == kDtype && p.y.col_stride == 1;
  for (double& weight : weights) weight = 1;
  for (int64_t begin = 0; begin < block.rows; begin += kChain) {
    for (int64_t j = 0; j < block.targets; j += kPiece) {
      const int64_t count = piece(block.targets - j), end = block.rows - begin < kChain ? block.rows : begin + kChain;
      alignas(64) double loss_sums[kPiece] = {}, dloss_sums[kPiece] = {};
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = block.first + i, target = block.target + j;
        const void* const y = at(p.y, row, target);
        const auto run = [&](const auto* from, auto weighted) {
          with_loss(p.loss, [&]<Loss kLoss>() {
            residuals_of<kLoss, weighted.value>(from, weights, block.bias + j, count, p.delta, scale,
                                                static_cast<C*>(block.predictions) + i * block.targets + j, losses,
                                                dlosses, loss_sums, dloss_sums);
          });
        };
        if (as_it_lies) {
          run(static_cast<const C*>(y), Flag<false>());
        } else {
          load(y, p.y.col_stride, p.y.dtype, count, targets);
          if (p.v.data) load(at(p.v, row, target), p.v.col_stride, p.v.dtype, count, weights);
          run(targets, Flag<true>());
        }

        const int64_t index = row * p.k + target;
        if (outputs.elements) store(losses, count, loss_dtype(p), element(outputs.elements, loss_dtype(p), index));
        if (outputs.target_gradient) {
          const Dtype dtype = gradient_dtype(p.y.dtype);
          for (int64_t t = 0; t < count; ++t) dlosses[t] = -dlosses[t];
          store(dlosses, count, dtype, element(outputs.target_gradient, dtype, index));
        }
      }
      for (int64_t t = 0; t < count; ++t) {
        two_sum(loss_sums[t], block.losses.sums[j + t], block.losses.compensation[j + t]);
        two_sum(dloss_sums[t], block.dloss_sums.sums[j + t], block.dloss_sums.compensation[j + t]);
      }
    }
  }
}

void residuals(const Problem& problem, const PassOutputs& outputs, double scale, const ResidualBlock& block) {
  return block.dtype == Dtype::float64 ? residuals_of<double>(problem, outputs, scale, block)
                                       : residuals_of<float>(problem, outputs, scale, block);
}

template <class C>
void add_of(const C* from, int64_t parts, int64_t stride, int64_t begin, int64_t end, double* to) {
  for (int64_t first = begin; first < end; first += kPiece) {
    const int64_t count = piece(end - first);
    alignas(64) double sums[kPiece] = {};
    for (int64_t part = 0; part < parts; ++part) {
      const C* const numbers = from + part * stride + first;
      for (int64_t i = 0; i < count; ++i) sums[i] += double(numbers[i]);
    }
    for (int64_t i = 0; i < count; ++i) to[first + i] = sums[i];
  }
}

void add(const void* from, Dtype dtype, int64_t parts, int64_t stride, int64_t begin, int64_t end, double* to) {
  return dtype == Dtype::float64 ? add_of(static_cast<const double*>(from), parts, stride, begin, end, to)
                                 : add_of(static_cast<const float*>(from), parts, stride, begin, end, to);
}

void store_converted(const void* from, Dtype dtype, int64_t count, Dtype to_dtype, int64_t first, void* to) {
  alignas(64) double numbers[kPiece];
  for (int64_t j = 0; j < count; j += kPiece) {
    const int64_t length = piece(count - j);
    load(static_cast<const char*>(from) + j * int64_t(size_of(dtype)), 1, dtype, length, numbers);
    store(numbers, length, to_dtype, element(to, to_dtype, first + j));
  }
}

}  // namespace

const ProductRows LINREG_SET::product_rows = {convert, residuals, add, store_converted};

}  // namespace linreg::cpu
