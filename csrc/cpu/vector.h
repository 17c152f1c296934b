// SPDX-License-Identifier: BSD-3-Clause
// Vectors of the widest registers that this translation unit may use, as GCC's vector extension: arithmetic is written
// with operators and lowered to whatever the instruction set has.
#pragma once

#include <cstdint>
#include <cstring>

namespace linreg::cpu {
namespace {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
};
template <class C>
using Vec = typename VectorOf<C>::type;

template <class C>
inline constexpr int kLanes = kVectorBytes / int(sizeof(C));

template <class C>
inline __attribute__((always_inline)) Vec<C> load_vec(const C* from) {
  Vec<C> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class C>
inline __attribute__((always_inline)) void store_vec(C* to, Vec<C> v) {
  std::memcpy(to, &v, sizeof(v));
}

// The sum of the lanes, halves first, so that its rounding error grows with the logarithm of their number.
template <class C>
inline __attribute__((always_inline)) C sum_lanes(Vec<C> v) {
  C lanes[kLanes<C>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kLanes<C> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace
}  // namespace linreg::cpu
