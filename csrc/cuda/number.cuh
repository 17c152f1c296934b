// SPDX-License-Identifier: BSD-3-Clause
// Converts numbers of any Dtype in memory to and from the type that a kernel computes in; float32 represents every
// 16-bit number exactly. Also sums over the lanes of a warp.
#pragma once

#include "../math/convert.h"
#include "device.cuh"

namespace linreg::cuda {

template <Dtype kDtype>
using Wide = std::conditional_t<kDtype == Dtype::float64, double, float>;
template <Dtype kDtype>
using Stored = std::conditional_t<size_of(kDtype) == 2, uint16_t, Wide<kDtype>>;

template <Dtype kDtype>
LINREG_DEVICE Wide<kDtype> widen(Stored<kDtype> number) {
  if constexpr (kDtype == Dtype::bfloat16) return from_bfloat16(number);
  if constexpr (kDtype == Dtype::float16) return half_bits_to_float(number);
  if constexpr (kDtype == Dtype::float32 || kDtype == Dtype::float64) return number;
}

// Copies kBytes, in words of at most 16 bytes. Both addresses must be aligned to a word.
template <int kBytes>
LINREG_DEVICE void copy_words(void* to, const void* from) {
  constexpr int kWord = kBytes < 16 ? kBytes : 16;
#pragma unroll
  for (int i = 0; i < kBytes / kWord; ++i) {
    const Words<kWord> word = static_cast<const Words<kWord>*>(from)[i];
    memcpy(static_cast<char*>(to) + i * kWord, &word, kWord);
  }
}

// Loads a number, whose dtype is known only at run time, as a float or double. A float64 can only be loaded as a
// double, so that kernels in float contain no double instruction for it.
template <class T>
LINREG_DEVICE T load_as(const void* from, Dtype dtype, int64_t index) {
  if constexpr (sizeof(T) == sizeof(double)) {
    if (dtype == Dtype::float64) return static_cast<const double*>(from)[index];
  }
  if (dtype == Dtype::float32) return static_cast<const float*>(from)[index];
  const uint16_t bits = static_cast<const uint16_t*>(from)[index];
  return dtype == Dtype::bfloat16 ? from_bfloat16(bits) : half_bits_to_float(bits);
}

// Element (i, j) of a view.
template <class T>
LINREG_DEVICE T load_as(const View& view, int64_t i, int64_t j) {
  return load_as<T>(view.data, view.dtype, i * view.row_stride + j * view.col_stride);
}

// A float that rounds to 16 bits as the number does.
LINREG_DEVICE float before_16_bits(double number) { return to_odd(number); }
LINREG_DEVICE float before_16_bits(float number) { return number; }

// Stores a number, rounded to dtype once. A float cannot be stored as a float64.
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

LINREG_DEVICE void store_nan(void* to, Dtype dtype, int64_t index) { store_number<double>(to, dtype, index, NAN); }

LINREG_DEVICE bool is_finite(double number) { return number - number == 0; }  // inf − inf and nan − nan are nan

LINREG_DEVICE double round_to(double number, Dtype dtype) {
  if (dtype == Dtype::float64) return number;
  if (dtype == Dtype::float32) return float(number);
  const float rounded = before_16_bits(number);
  return dtype == Dtype::bfloat16 ? from_bfloat16(to_bfloat16(rounded)) : half_bits_to_float(to_float16(rounded));
}

constexpr int kWarp = 32;

// The sum over the lanes whose indices differ in the bits from, 2 · from, … below `to`. All of them get the same bits,
// because both sides of every exchange add the same two numbers.
template <class T>
LINREG_DEVICE T sum_lanes(T value, int from, int to) {
  for (int mask = from; mask < to; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// Sums each of kCount numbers over `lanes` lanes. Each sum ends in lanes / kCount neighbouring lanes, the first sum
// from lane 0 on. Every step exchanges only half of the remaining numbers: 16 numbers in 32 lanes take 15 exchanges and
// a last one, where separate sums would take 80.
template <class T, int kCount>
LINREG_DEVICE T scatter_sums(const T (&numbers)[kCount], int lanes) {
  if constexpr (kCount == 1) {
    return sum_lanes(numbers[0], 1, lanes);
  } else {
    const bool upper = thread_index() & lanes / 2;
    T half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const T send = upper ? numbers[i] : numbers[i + kCount / 2];
      half[i] = (upper ? numbers[i + kCount / 2] : numbers[i]) + shuffle_xor(send, lanes / 2);
    }
    return scatter_sums(half, lanes / 2);
  }
}

}  // namespace linreg::cuda
