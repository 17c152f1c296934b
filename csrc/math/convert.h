// SPDX-License-Identifier: BSD-3-Clause
// Converts 16-bit numbers to and from float32 with integer operations: the same bits on every processor.
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

// Branch-free, so that loops vectorise, and without intermediate float32 subnormals, which flush-to-zero modes would
// drop. The exponent bias goes from 15 to 127; for inf and nan the exponent goes up as much again, to all ones. A
// subnormal counts units of 2^-24, the last place of 0.5.
LINREG_MATH float from_float16(uint16_t h) {
  const uint32_t magnitude = h & 0x7fff;
  const uint32_t rebased = (magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000u : 0x38000000u);
  const float subnormal = bit_cast<float>(0x3f000000u | magnitude) - 0.5f;
  const uint32_t bits = magnitude < 0x400 ? bit_cast<uint32_t>(subnormal) : rebased;
  return bit_cast<float>(bits | uint32_t(h & 0x8000) << 16);
}

// Round to odd: the float rounds to 16 bits as the double would, because an inexact one has its last bit set and so is
// never a tie.
LINREG_MATH float to_odd(double d) {
  const float f = float(d);
  if (double(f) == d || f != f) return f;
  uint32_t bits = bit_cast<uint32_t>(f);
  const bool away = (double(f) > d) == (d > 0);  // rounded away from zero; step back
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
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // at least 2^16, inf
  if (magnitude < 0x38800000) {                       // below 2^-14: subnormal, in units of 2^-24
    // The last place of 0.5 is 2^-24, so adding 0.5 rounds in hardware.
    return sign | uint16_t(bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u);
  }
  return sign | uint16_t((magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

}  // namespace linreg
