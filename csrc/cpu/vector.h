// SPDX-License-Identifier: BSD-3-Clause
// Vectors as GCC's vector extension: arithmetic is written with operators and lowered to whatever the instruction set
// has. A Wide holds doubles, a Narrow as many bytes of floats.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "../math/convert.h"

namespace linreg::cpu {
namespace {

inline constexpr int kLanes = LINREG_LANES;  // of the file that includes this: doubles in a register
inline constexpr int kFloats = 2 * kLanes;

typedef double Wide __attribute__((vector_size(kLanes * sizeof(double))));
typedef float Narrow __attribute__((vector_size(kFloats * sizeof(float))));
typedef float HalfNarrow __attribute__((vector_size(kLanes * sizeof(float))));

// 16-bit numbers in memory.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// What is known of a vector: its numbers, and the integer vectors of as many lanes.
template <class V>
struct Lanes;
template <>
struct Lanes<Wide> {
  using Number = double;
  typedef int64_t Index __attribute__((vector_size(kLanes * sizeof(int64_t))));
};
template <>
struct Lanes<Narrow> {
  using Number = float;
  typedef int32_t Index __attribute__((vector_size(kFloats * sizeof(int32_t))));
  typedef uint32_t Words __attribute__((vector_size(kFloats * sizeof(uint32_t))));
  typedef uint16_t Shorts __attribute__((vector_size(kFloats * sizeof(uint16_t))));
};
template <>
struct Lanes<HalfNarrow> {
  using Number = float;
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));
  typedef uint16_t Shorts __attribute__((vector_size(kLanes * sizeof(uint16_t))));
};
template <class V>
using NumberOf = typename Lanes<V>::Number;
template <class V>
inline constexpr int lanes_of = sizeof(V) / sizeof(NumberOf<V>);

#define LINREG_INLINE inline __attribute__((always_inline))

template <class V>
LINREG_INLINE V bits_at(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <class V>
LINREG_INLINE void store_vec(NumberOf<V>* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

// Intrinsics where GCC would split a conversion in two.
LINREG_INLINE Wide widened(HalfNarrow v) {
#if LINREG_LANES == 8
  return Wide(_mm512_cvtps_pd(__m256(v)));
#elif LINREG_LANES == 4
  return Wide(_mm256_cvtps_pd(__m128(v)));
#else
  return __builtin_convertvector(v, Wide);
#endif
}

LINREG_INLINE void store_narrowed(double* to, Wide v) { store_vec<Wide>(to, v); }
LINREG_INLINE void store_narrowed(float* to, Wide v) {
  const HalfNarrow narrowed = __builtin_convertvector(v, HalfNarrow);
  std::memcpy(to, &narrowed, sizeof(narrowed));
}

template <class V>
LINREG_INLINE V broadcast(NumberOf<V> number) {
  return [number]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return V{(void(I), number)...};
  }(std::make_integer_sequence<int, lanes_of<V>>());
}

// Float vectors of as many 16-bit numbers.
template <class F>
LINREG_INLINE F floats_at(const Bfloat16* from) {
  using Words = typename Lanes<F>::Words;
  const Words words = __builtin_convertvector(bits_at<typename Lanes<F>::Shorts>(from), Words) << 16;
  return bits_at<F>(&words);
}

template <class F>
LINREG_INLINE F floats_at(const Float16* from) {
  F floats;
#if LINREG_LANES == 8
  if constexpr (sizeof(F) == 64) floats = F(_mm512_cvtph_ps(bits_at<__m256i>(from)));
  if constexpr (sizeof(F) == 32) floats = F(_mm256_cvtph_ps(bits_at<__m128i>(from)));
#elif LINREG_LANES == 4
  if constexpr (sizeof(F) == 32) floats = F(_mm256_cvtph_ps(bits_at<__m128i>(from)));
  if constexpr (sizeof(F) == 16) floats = F(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  for (size_t i = 0; i < sizeof(F) / sizeof(float); ++i) floats[i] = from_float16(from[i].bits);
#endif
  return floats;
}

// A vector of numbers from memory, converted.
template <class V>
LINREG_INLINE V load_vec(const NumberOf<V>* from) {
  return bits_at<V>(from);
}
template <class V>
  requires(lanes_of<V> == kLanes)
LINREG_INLINE V load_vec(const float* from) {
  return widened(bits_at<HalfNarrow>(from));
}
template <class V, class E>
  requires(sizeof(E) == 2)
LINREG_INLINE V load_vec(const E* from) {
  if constexpr (lanes_of<V> == kLanes) {
    return widened(floats_at<HalfNarrow>(from));
  } else {
    return floats_at<Narrow>(from);
  }
}

// The first `count` numbers, fewer than a vector has, and zeros; what lies behind them is not touched.
template <class V, class E>
LINREG_INLINE V load_first(const E* from, int64_t count) {
#if LINREG_LANES == 8
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(E) == 8) return V(_mm512_maskz_loadu_pd(__mmask8(mask), from));
  if constexpr (sizeof(E) == 4 && lanes_of<V> == 16) return V(_mm512_maskz_loadu_ps(__mmask16(mask), from));
  if constexpr (sizeof(E) == 4 && lanes_of<V> == 8)
    return widened(HalfNarrow(_mm256_maskz_loadu_ps(__mmask8(mask), from)));
#endif
  E all[lanes_of<V>] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = from[i];
  return load_vec<V>(all);
}

template <class V>
LINREG_INLINE double sum_lanes(V v) {
  for (int half = lanes_of<V> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return v[0];
}

// Part kPart of a vector's numbers, as many as a Wide holds.
template <int kPart>
LINREG_INLINE Wide part(Wide v) {
  return v;
}
template <int kPart>
LINREG_INLINE Wide part(Narrow v) {
  return [v]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return widened(__builtin_shufflevector(v, v, (I + kPart * kLanes)...));
  }(std::make_integer_sequence<int, kLanes>());
}

LINREG_INLINE void store_widened(double* to, Wide v) { store_vec<Wide>(to, v); }
LINREG_INLINE void store_widened(double* to, Narrow v) {
  store_vec<Wide>(to, part<0>(v));
  store_vec<Wide>(to + kLanes, part<1>(v));
}

// A choice of lanes of two vectors, by the positions that `choose` gives the lanes, known when this is compiled.
template <class V, class Choose, int... I>
LINREG_INLINE V permute(V a, V b, Choose, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(a, b, typename Lanes<V>::Index{Choose()(I)...});
}
template <class V, class Choose>
LINREG_INLINE V permute(V a, V b, Choose choose) {
  return permute(a, b, choose, std::make_integer_sequence<int, lanes_of<V>>());
}

// Of two vectors that hold partial sums, 2 · kHalf of each addend, one that holds half as many of both's.
template <int kHalf, class V>
LINREG_INLINE V hadd(V a, V b) {
  // In blocks of kHalf lanes, by turns from a and from b.
  constexpr auto low = [](int i) constexpr {
    return i / kHalf % 2 * lanes_of<V> + i / kHalf / 2 * 2 * kHalf + i % kHalf;
  };
  constexpr auto high = [](int i) constexpr { return decltype(low)()(i) + kHalf; };
  return permute(a, b, low) + permute(a, b, high);
}

// The sums over the lanes of as many vectors as they have lanes, one a lane; the vectors are used up.
template <int kHalf, class V>
LINREG_INLINE V sums_of_lanes(V* v) {
#pragma GCC unroll 8
  for (int i = 0; i < kHalf; ++i) v[i] = hadd<kHalf>(v[i], v[i + kHalf]);
  if constexpr (kHalf == 1) {
    return v[0];
  } else {
    return sums_of_lanes<kHalf / 2>(v);
  }
}

}  // namespace
}  // namespace linreg::cpu
