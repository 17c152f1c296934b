// SPDX-License-Identifier: BSD-3-Clause
// Vectors of doubles as GCC's vector extension: arithmetic is written with operators and lowered to whatever the
// instruction set has.
#pragma once

#include <cstdint>
#include <cstring>

namespace linreg::cpu {
namespace {

inline constexpr int kLanes = LINREG_LANES;  // of the file that includes this

typedef double Vec __attribute__((vector_size(kLanes * sizeof(double))));

inline __attribute__((always_inline)) Vec load_vec(const double* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

inline __attribute__((always_inline)) Vec load_vec(const float* from) {
  typedef float Narrow __attribute__((vector_size(kLanes * sizeof(float))));
  Narrow v;
  std::memcpy(&v, from, sizeof(v));
  return __builtin_convertvector(v, Vec);
}

inline __attribute__((always_inline)) void store_vec(double* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

inline __attribute__((always_inline)) double sum_lanes(Vec v) {
  double lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace
}  // namespace linreg::cpu
