// SPDX-License-Identifier: BSD-3-Clause
// 16-bit numbers to and from float32, by their bits: the same on every processor.
#pragma once

#include <string.h>

#include <cstddef>
#include <cstdint>

#include "../linreg.h"
#include "inline.h"

namespace linreg {

LINREG_MATH constexpr size_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return 4;
    case Dtype::float64:
      return 8;
    default:
      return 2;
  }
}

template <class To, class From>
LINREG_MATH To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

LINREG_MATH float from_bfloat16(uint16_t h) { return bit_cast<float>(uint32_t(h) << 16); }

// Branch-free, so that loops over it vectorise, and without a float32 subnormal in between, which some modes of the
// processor take for zero. A normal number has its exponent rebased, from 15 to 127; inf and nan, by as much again, to
// all ones. A subnormal is a count of 2^-24, the unit in the last place of 0.5.
LINREG_MATH float from_float16(uint16_t h) {
  const uint32_t magnitude = h & 0x7fff;
  const uint32_t rebased = (magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u);
  const float subnormal = bit_cast<float>(0x3f000000u | magnitude) - 0.5f;
  const uint32_t bits = magnitude < 0x400 ? bit_cast<uint32_t>(subnormal) : rebased;
  return bit_cast<float>(bits | uint32_t(h & 0x8000) << 16);
}

// A double as a float that rounds to 16 bits as the double itself would: where it is not exact its last bit is set, so
// that it is never taken for a tie.
LINREG_MATH float to_odd(double d) {
  const float f = float(d);
  if (double(f) == d || f != f) return f;
  uint32_t bits = bit_cast<uint32_t>(f);
  const bool away = (double(f) > d) == (d > 0);  // rounded away from zero: back towards it
  return bit_cast<float>((away ? bits - 1 : bits) | 1);
}

// Both round to nearest, ties to even.
LINREG_MATH uint16_t to_bfloat16(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  if (f != f) return 0x7fc0;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

LINREG_MATH uint16_t to_float16(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7e00;          // nan
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // 2^16 and more, inf
  if (magnitude < 0x38800000) {                       // below 2^-14: subnormal, in units of 2^-24
    // Adding 0.5 makes the unit of f's last place 2^-24, so the hardware rounds.
    return sign | uint16_t(bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u);
  }
  return sign | uint16_t((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

}  // namespace linreg
