// SPDX-License-Identifier: BSD-3-Clause
// What is done element by element around the matrix products of a pass, in pieces of a row that stay in the
// first-level cache, all of it in double; a piece of kChain rows after the other, whose sums stay there as well.
//
// Included once for each instruction set (product_rows_*.cpp), behind a target pragma. What it defines is in an
// anonymous namespace, and what it instantiates is its own, never std's: the linker would keep one copy for all sets.
#pragma once

#include "../math/loss.h"
#include "../math/sum.h"
#include "convert.h"
#include "product_rows_entry.h"

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

// A piece of a row: predictions become slopes, scale · v ℓ'(R). Losses and slopes are written for who wants them, too.
template <Loss kLoss, bool kWeighted, class C, class Y>
void residuals_of(const Y* __restrict__ y, const double* __restrict__ v, const double* __restrict__ bias, int64_t count,
                  double delta, double scale, C* __restrict__ predictions, double* __restrict__ losses,
                  double* __restrict__ slopes, double* __restrict__ loss_sums, double* __restrict__ slope_sums) {
  for (int64_t t = 0; t < count; ++t) {
    // In this order nothing is rounded where y is near the prediction.
    const double r = double(predictions[t]) - double(y[t]) + bias[t], weight = kWeighted ? v[t] : 1.0;
    losses[t] = weight * loss_value<kLoss>(r, delta);
    slopes[t] = scale * (weight * loss_slope<kLoss>(r, delta));
    loss_sums[t] += losses[t];
    slope_sums[t] += slopes[t];
    predictions[t] = C(slopes[t]);
  }
}

template <Loss kLoss, class C>
void residuals_of(const Problem& p, const PassOutputs& outputs, double scale, const ResidualBlock& block) {
  alignas(64) double losses[kPiece], slopes[kPiece], targets[kPiece], weights[kPiece];
  constexpr Dtype kDtype = sizeof(C) == sizeof(double) ? Dtype::float64 : Dtype::float32;
  const bool as_it_lies = p.y.dtype == kDtype && p.y.col_stride == 1;
  for (int64_t begin = 0; begin < block.rows; begin += kChain) {
    for (int64_t j = 0; j < block.targets; j += kPiece) {
      const int64_t count = piece(block.targets - j), end = block.rows - begin < kChain ? block.rows : begin + kChain;
      alignas(64) double loss_sums[kPiece] = {}, slope_sums[kPiece] = {};
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = block.first + i, target = block.target + j;
        const void* const y = at(p.y, row, target);
        if (!as_it_lies) load(y, p.y.col_stride, p.y.dtype, count, targets);
        if (p.v.data) load(at(p.v, row, target), p.v.col_stride, p.v.dtype, count, weights);
        const auto run = [&](const auto* from, auto weighted) {
          residuals_of<kLoss, weighted.value>(from, weights, block.bias + j, count, p.delta, scale,
                                              static_cast<C*>(block.predictions) + i * block.targets + j, losses,
                                              slopes, loss_sums, slope_sums);
        };
        const auto weigh = [&](const auto* from) { p.v.data ? run(from, Flag<true>()) : run(from, Flag<false>()); };
        as_it_lies ? weigh(static_cast<const C*>(y)) : weigh(targets);

        const int64_t index = row * p.k + target;
        if (outputs.elements) store(losses, count, loss_dtype(p), element(outputs.elements, loss_dtype(p), index));
        if (outputs.target_gradient) {
          const Dtype dtype = gradient_dtype(p.y.dtype);
          for (int64_t t = 0; t < count; ++t) slopes[t] = -slopes[t];
          store(slopes, count, dtype, element(outputs.target_gradient, dtype, index));
        }
      }
      for (int64_t t = 0; t < count; ++t) {
        add_keeping(loss_sums[t], block.losses.sums[j + t], block.losses.lost[j + t]);
        add_keeping(slope_sums[t], block.slope_sums.sums[j + t], block.slope_sums.lost[j + t]);
      }
    }
  }
}

template <class C>
void residuals_of(const Problem& p, const PassOutputs& outputs, double scale, const ResidualBlock& block) {
  switch (effective_loss(p.loss, p.delta)) {
    case Loss::mse:
      return residuals_of<Loss::mse, C>(p, outputs, scale, block);
    case Loss::l1:
      return residuals_of<Loss::l1, C>(p, outputs, scale, block);
    case Loss::huber:
      return residuals_of<Loss::huber, C>(p, outputs, scale, block);
    case Loss::smooth_l1:
      return residuals_of<Loss::smooth_l1, C>(p, outputs, scale, block);
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

constexpr ProductRows kProductRows = {convert, residuals, add, store_converted};

}  // namespace
}  // namespace linreg::cpu
