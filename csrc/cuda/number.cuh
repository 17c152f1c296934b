// SPDX-License-Identifier: BSD-3-Clause
// Numbers in memory, of any Dtype, to and from the types that a kernel computes with: float32 holds every number of
// 16 bits, and sums are in double.
#pragma once

#include "../math/convert.h"
#include "device.cuh"

namespace linreg::cuda {

template <Dtype kDtype>
struct Number {
  using Stored = uint16_t;
  using Wide = float;
};
template <>
struct Number<Dtype::float32> {
  using Stored = float;
  using Wide = float;
};
template <>
struct Number<Dtype::float64> {
  using Stored = double;
  using Wide = double;
};

template <Dtype kDtype>
using Stored = typename Number<kDtype>::Stored;
template <Dtype kDtype>
using Wide = typename Number<kDtype>::Wide;

template <Dtype kDtype>
LINREG_DEVICE Wide<kDtype> widen(Stored<kDtype> number) {
  if constexpr (kDtype == Dtype::bfloat16) return from_bfloat16(number);
  if constexpr (kDtype == Dtype::float16) return half_bits_to_float(number);
  if constexpr (kDtype == Dtype::float32 || kDtype == Dtype::float64) return number;
}

// The numbers of some words, in order.
template <Dtype kDtype, int kBytes>
LINREG_DEVICE void widen(const Words<kBytes>& words, Wide<kDtype> (&out)[kBytes / sizeof(Stored<kDtype>)]) {
  Stored<kDtype> numbers[kBytes / sizeof(Stored<kDtype>)];
  memcpy(numbers, &words, kBytes);
#pragma unroll
  for (size_t i = 0; i < kBytes / sizeof(Stored<kDtype>); ++i) out[i] = widen<kDtype>(numbers[i]);
}

// One number of a dtype that is known at run time, for what is read once a row or once a step.
LINREG_DEVICE double load_number(const void* from, Dtype dtype, int64_t index) {
  switch (dtype) {
    case Dtype::float32:
      return static_cast<const float*>(from)[index];
    case Dtype::float64:
      return static_cast<const double*>(from)[index];
    case Dtype::bfloat16:
      return from_bfloat16(static_cast<const uint16_t*>(from)[index]);
    default:
      return half_bits_to_float(static_cast<const uint16_t*>(from)[index]);
  }
}

// Element (i, j) of a view.
LINREG_DEVICE double load_number(const View& view, int64_t i, int64_t j) {
  return load_number(view.data, view.dtype, i * view.row_stride + j * view.col_stride);
}

// Rounded to dtype once.
LINREG_DEVICE void store_number(void* to, Dtype dtype, int64_t index, double number) {
  switch (dtype) {
    case Dtype::float32:
      static_cast<float*>(to)[index] = float(number);
      break;
    case Dtype::float64:
      static_cast<double*>(to)[index] = number;
      break;
    case Dtype::bfloat16:
      static_cast<uint16_t*>(to)[index] = to_bfloat16(to_odd(number));
      break;
    default:
      static_cast<uint16_t*>(to)[index] = to_float16(to_odd(number));
  }
}

LINREG_DEVICE bool is_finite(double number) { return number - number == 0; }  // inf − inf and nan − nan are nan

LINREG_DEVICE double round_to(double number, Dtype dtype) {
  double stored;
  store_number(&stored, dtype, 0, number);
  return load_number(&stored, dtype, 0);
}

}  // namespace linreg::cuda
