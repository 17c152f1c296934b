// SPDX-License-Identifier: BSD-3-Clause
// Converts numbers of any Dtype in memory to and from the type that a pass computes in, float or double.
#pragma once

#include <cstdint>

#include "../linreg.h"
#include "../math/convert.h"

namespace linreg::cpu {
namespace {

// to[i] = from[i * stride], converted.
template <class C>
[[gnu::noinline]] void load(const void* from, int64_t stride, Dtype dtype, int64_t count, C* __restrict__ to) {
  const auto loop = [&](auto* source, auto convert) {
    if (stride == 1) {
      for (int64_t i = 0; i < count; ++i) to[i] = C(convert(source[i]));
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = C(convert(source[i * stride]));
    }
  };
  const auto same = [](auto number) { return number; };
  switch (dtype) {
    case Dtype::float32:
      return loop(static_cast<const float*>(from), same);
    case Dtype::float64:
      return loop(static_cast<const double*>(from), same);
    case Dtype::bfloat16:
      return loop(static_cast<const uint16_t*>(from), [](uint16_t h) { return from_bfloat16(h); });
    case Dtype::float16:
      return loop(static_cast<const uint16_t*>(from), [](uint16_t h) { return from_float16(h); });
  }
}

// to[i] = from[i], rounded to dtype once.
template <class C>
inline void store(const C* __restrict__ from, int64_t count, Dtype dtype, void* to) {
  const auto loop = [&](auto* sink, auto convert) {
    for (int64_t i = 0; i < count; ++i) sink[i] = convert(from[i]);
  };
  switch (dtype) {
    case Dtype::float32:
      return loop(static_cast<float*>(to), [](C c) { return float(c); });
    case Dtype::float64:
      return loop(static_cast<double*>(to), [](C c) { return double(c); });
    case Dtype::bfloat16:
      return loop(static_cast<uint16_t*>(to), [](C c) { return to_bfloat16(to_odd(c)); });
    case Dtype::float16:
      return loop(static_cast<uint16_t*>(to), [](C c) { return to_float16(to_odd(c)); });
  }
}

template <class C>
inline C load_one(const void* from, Dtype dtype) {
  C number = 0;
  load(from, 1, dtype, 1, &number);
  return number;
}

inline const void* at(const View& view, int64_t i, int64_t j = 0) {
  const int64_t offset = i * view.row_stride + j * view.col_stride;
  return static_cast<const char*>(view.data) + offset * int64_t(size_of(view.dtype));
}

inline void* at(const Rows& rows, int64_t i) {
  return static_cast<char*>(rows.data) + i * rows.row_stride * int64_t(size_of(rows.dtype));
}

}  // namespace
}  // namespace linreg::cpu
