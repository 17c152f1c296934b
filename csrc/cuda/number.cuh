// SPDX-License-Identifier: BSD-3-Clause
// Numbers in memory, of any Dtype, to and from the types that a kernel computes with: float32 holds every number of
// 16 bits.
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

// Copies kBytes, 16 at a time or all at once, of which both addresses are multiples.
template <int kBytes>
LINREG_DEVICE void copy_words(void* to, const void* from) {
  constexpr int kWord = kBytes < 16 ? kBytes : 16;
#pragma unroll
  for (int i = 0; i < kBytes / kWord; ++i) {
    const Words<kWord> word = static_cast<const Words<kWord>*>(from)[i];
    memcpy(static_cast<char*>(to) + i * kWord, &word, kWord);
  }
}

// One number of a dtype that is known at run time, as a float or a double; float64 only as a double, so that kernels in
// float have no instruction in double for it.
template <class T>
LINREG_DEVICE T load_as(const void* from, Dtype dtype, int64_t index) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (dtype == Dtype::float64) return static_cast<const double*>(from)[index];
  }
  if (dtype == Dtype::float32) return static_cast<const float*>(from)[index];
  const uint16_t bits = static_cast<const uint16_t*>(from)[index];
  return dtype == Dtype::bfloat16 ? from_bfloat16(bits) : half_bits_to_float(bits);
}

LINREG_DEVICE double load_number(const void* from, Dtype dtype, int64_t index) {
  return load_as<double>(from, dtype, index);
}

// Element (i, j) of a view.
template <class T>
LINREG_DEVICE T load_as(const View& view, int64_t i, int64_t j) {
  return load_as<T>(view.data, view.dtype, i * view.row_stride + j * view.col_stride);
}

LINREG_DEVICE double load_number(const View& view, int64_t i, int64_t j) { return load_as<double>(view, i, j); }

// The float that rounds to 16 bits as the number does.
LINREG_DEVICE float before_16_bits(double number) { return to_odd(number); }
LINREG_DEVICE float before_16_bits(float number) { return number; }

// Rounded to dtype once; a float is not stored as a float64.
template <class T>
LINREG_DEVICE void store_number(void* to, Dtype dtype, int64_t index, T number) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (dtype == Dtype::float64) {
      static_cast<double*>(to)[index] = number;
      return;
    }
  }
  if (dtype == Dtype::float32) {
    static_cast<float*>(to)[index] = float(number);
  } else {
    const float rounded = before_16_bits(number);
    static_cast<uint16_t*>(to)[index] = dtype == Dtype::bfloat16 ? to_bfloat16(rounded) : to_float16(rounded);
  }
}

LINREG_DEVICE bool is_finite(double number) { return number - number == 0; }  // inf − inf and nan − nan are nan

LINREG_DEVICE double round_to(double number, Dtype dtype) {
  if (dtype == Dtype::float64) return number;
  if (dtype == Dtype::float32) return float(number);
  const float rounded = before_16_bits(number);
  return dtype == Dtype::bfloat16 ? from_bfloat16(to_bfloat16(rounded)) : half_bits_to_float(to_float16(rounded));
}

}  // namespace linreg::cuda
