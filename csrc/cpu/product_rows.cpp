// SPDX-License-Identifier: BSD-3-Clause
// The element-wise work around the matrix products of a pass, in pieces that fit in the first-level cache.
//
// Compiled once per instruction set, behind target.h.
#include "residuals.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kSummed = 256;  // numbers summed or converted at a time: 2 KB

inline int64_t piece(int64_t left) { return left < kSummed ? left : kSummed; }

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

template <class V>
void residuals_of(const Problem& p, const PassOutputs& outputs, const Scale& scale, const ResidualBlock& block) {
  using Number = NumberOf<V>;
  const int64_t targets = block.targets, line = line_of(targets);
  Number *const bias = static_cast<Number*>(block.line), *const slopes = bias + line;
  for (int64_t i = 0; i < line; ++i) bias[i] = i < targets ? Number(block.bias[i]) : bias[i - targets];
  std::memset(slopes, 0, line * sizeof(Number));
  for (int64_t begin = 0; begin < block.rows; begin += kBlockRows)
    residuals_of<V>(
        p, outputs, scale,
        {block.first + begin, block.rows - begin < kBlockRows ? block.rows - begin : kBlockRows, block.target, targets,
         static_cast<Number*>(block.predictions) + begin * targets, bias, line, block.loss, slopes, block.slope_sums});
}

void residuals(const Problem& problem, const PassOutputs& outputs, const Scale& scale, const ResidualBlock& block) {
  return block.dtype == Dtype::float64 ? residuals_of<Wide>(problem, outputs, scale, block)
                                       : residuals_of<Narrow>(problem, outputs, scale, block);
}

template <class C>
void add_of(const C* from, int64_t parts, int64_t stride, int64_t begin, int64_t end, double divisor, double* to) {
  for (int64_t first = begin; first < end; first += kSummed) {
    const int64_t count = piece(end - first);
    alignas(64) double sums[kSummed] = {};
    for (int64_t part = 0; part < parts; ++part) {
      const C* const numbers = from + part * stride + first;
      for (int64_t i = 0; i < count; ++i) sums[i] += double(numbers[i]);
    }
    for (int64_t i = 0; i < count; ++i) to[first + i] = sums[i] / divisor;
  }
}

void add(const void* from, Dtype dtype, int64_t parts, int64_t stride, int64_t begin, int64_t end, double divisor,
         double* to) {
  return dtype == Dtype::float64 ? add_of(static_cast<const double*>(from), parts, stride, begin, end, divisor, to)
                                 : add_of(static_cast<const float*>(from), parts, stride, begin, end, divisor, to);
}

void store_converted(const void* from, Dtype dtype, int64_t count, double divisor, Dtype to_dtype, int64_t first,
                     void* to) {
  alignas(64) double numbers[kSummed];
  for (int64_t j = 0; j < count; j += kSummed) {
    const int64_t length = piece(count - j);
    load(static_cast<const char*>(from) + j * int64_t(size_of(dtype)), 1, dtype, length, numbers);
    for (int64_t i = 0; i < length; ++i) numbers[i] /= divisor;
    store(numbers, length, to_dtype, element(to, to_dtype, first + j));
  }
}

}  // namespace

const ProductRows LINREG_SET::product_rows = {convert, residuals, add, store_converted};

}  // namespace linreg::cpu
