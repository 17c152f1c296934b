// SPDX-License-Identifier: BSD-3-Clause
// GCC's vector extension: arithmetic is written with operators, and GCC lowers it to the instruction set. A Wide holds
// doubles; a Narrow holds floats in as many bytes. V is the one that a pass computes in.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "../math/convert.h"

namespace linreg::cpu {
namespace {

inline constexpr int kLanes = LINREG_LANES;  // doubles in a register
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

// The traits of a vector: the type of its numbers, and integer vectors with as many lanes.
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

// Intrinsics, because GCC would split the conversion in two.
LINREG_INLINE Wide widened(HalfNarrow v) {
#if LINREG_LANES == 8
  return Wide(_mm512_cvtps_pd(__m256(v)));
#elif LINREG_LANES == 4
  return Wide(_mm256_cvtps_pd(__m128(v)));
#else
  return __builtin_convertvector(v, Wide);
#endif
}

template <class V>
LINREG_INLINE V broadcast(NumberOf<V> number) {
  return [number]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return V{(void(I), number)...};
  }(std::make_integer_sequence<int, lanes_of<V>>());
}

LINREG_INLINE Narrow floats_at(const Bfloat16* from) {
  using Words = Lanes<Narrow>::Words;
  const Words words = __builtin_convertvector(bits_at<Lanes<Narrow>::Shorts>(from), Words) << 16;
  return bits_at<Narrow>(&words);
}

LINREG_INLINE Narrow floats_at(const Float16* from) {
#if LINREG_LANES == 8
  return Narrow(_mm512_cvtph_ps(bits_at<__m256i>(from)));
#elif LINREG_LANES == 4
  return Narrow(_mm256_cvtph_ps(bits_at<__m128i>(from)));
#else
  Narrow floats;
  for (int i = 0; i < kFloats; ++i) floats[i] = from_float16(from[i].bits);
  return floats;
#endif
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
  return floats_at(from);
}

// The first `count` numbers, fewer than a vector, padded with zeros. Memory beyond them is not read.
template <class V, class E>
LINREG_INLINE V load_first(const E* from, int64_t count) {
#if LINREG_LANES == 8
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(E) == 8) return V(_mm512_maskz_loadu_pd(__mmask8(mask), from));
  if constexpr (sizeof(E) == 4 && lanes_of<V> == kFloats) return V(_mm512_maskz_loadu_ps(__mmask16(mask), from));
  if constexpr (sizeof(E) == 4 && lanes_of<V> == kLanes)
    return widened(HalfNarrow(_mm256_maskz_loadu_ps(__mmask8(mask), from)));
#elif LINREG_LANES == 4
  using Index = typename Lanes<V>::Index;
  const auto index = [count]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    return Index{(I < count ? -1 : 0)...};
  }(std::make_integer_sequence<int, lanes_of<V>>());
  const __m256i mask = __m256i(index);
  if constexpr (sizeof(E) == 8) return V(_mm256_maskload_pd(from, mask));
  if constexpr (sizeof(E) == 4 && lanes_of<V> == kFloats) return V(_mm256_maskload_ps(from, mask));
  if constexpr (sizeof(E) == 4 && lanes_of<V> == kLanes) {
    typedef int32_t Half __attribute__((vector_size(16)));
    return widened(HalfNarrow(_mm_maskload_ps(from, __m128i(__builtin_convertvector(index, Half)))));
  }
#endif
  E all[lanes_of<V>] = {};
  for (int64_t i = 0; i < count; ++i) all[i] = from[i];
  return load_vec<V>(all);
}

// kCount numbers from memory, repeated to fill a vector.
template <class V, int kCount>
LINREG_INLINE V repeated(const NumberOf<V>* from) {
  [[maybe_unused]] constexpr int bytes = kCount * int(sizeof(NumberOf<V>));
  if constexpr (kCount == lanes_of<V>) return load_vec<V>(from);
  if constexpr (kCount == 1) return broadcast<V>(*from);
#if LINREG_LANES == 8
  if constexpr (bytes == 8) return V(_mm512_set1_pd(bits_at<double>(from)));
  if constexpr (bytes == 16) return V(_mm512_broadcast_f32x4(bits_at<__m128>(from)));
  return V(_mm512_broadcast_f64x4(bits_at<__m256d>(from)));
#elif LINREG_LANES == 4
  if constexpr (bytes == 8) return V(_mm256_set1_pd(bits_at<double>(from)));
  return V(_mm256_broadcastsi128_si256(bits_at<__m128i>(from)));
#else
  V v;
  for (int i = 0; i < lanes_of<V>; ++i) v[i] = from[i % kCount];
  return v;
#endif
}

// Lane i of the result is lane choose(i) of a and b concatenated.
template <class V, class Choose, int... I>
LINREG_INLINE V permute(V a, V b, Choose, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(a, b, typename Lanes<V>::Index{Choose()(I)...});
}
template <class V, class Choose>
LINREG_INLINE V permute(V a, V b, Choose choose) {
  return permute(a, b, choose, std::make_integer_sequence<int, lanes_of<V>>());
}

// Blocks of kHalf lanes, alternately from a and b, in their own places.
template <int kHalf, class V>
LINREG_INLINE V blend(V a, V b) {
#if LINREG_LANES == 4  // GCC would shuffle, which fewer ports can
  constexpr int of_b = kHalf == 1 ? 0xAA : kHalf == 2 ? 0xCC : 0xF0;
  if constexpr (lanes_of<V> == kFloats) return V(_mm256_blend_ps(__m256(a), __m256(b), of_b));
  if constexpr (lanes_of<V> == kLanes) return V(_mm256_blend_pd(__m256d(a), __m256d(b), of_b & 0xF));
#endif
  return permute(a, b, [](int i) constexpr { return i / kHalf % 2 == 0 ? i : lanes_of<V> + i; });
}

// Combines two vectors of partial sums: 2 · kHalf lanes per sum become kHalf, from a and b in turn.
template <int kHalf, class V>
LINREG_INLINE V hadd(V a, V b) {
  if constexpr (kHalf == 1 && kLanes == 4) {
    const V other = blend<1>(b, a);
    return blend<1>(a, b) + permute(other, other, [](int i) constexpr { return i ^ 1; });
  }
  constexpr auto other = [](int i) constexpr { return i / kHalf % 2 == 0 ? i + kHalf : lanes_of<V> + i - kHalf; };
  return blend<kHalf>(a, b) + permute(a, b, other);
}

// Reduces R vectors, each T groups of F neighbouring lanes, to the R · T sums of the groups, row by row.
template <int T, int F, int R, class V>
LINREG_INLINE void fold(V* v) {
  if constexpr (F > 1 && T == 1 && R > F) {
#pragma GCC unroll 8
    for (int i = 0; i < R / F; ++i) {
      fold<T, F, F>(v + i * F);
      v[i] = v[i * F];
    }
  } else if constexpr (F > 1) {
    constexpr auto even = [](int i) constexpr { return i * 2; };  // lanes of a and b
    constexpr auto odd = [](int i) constexpr { return i * 2 + 1; };
#pragma GCC unroll 8
    for (int i = 0; i < (R + 1) / 2; ++i) {
      if constexpr (T == 1 && R > 1) {  // AVX2 has shuffles for this order, but not for the other
        v[i] = hadd<F / 2>(v[i], v[i + R / 2]);
      } else {
        const V a = v[2 * i], b = v[R == 1 ? 0 : 2 * i + 1];
        v[i] = permute(a, b, even) + permute(a, b, odd);
      }
    }
    fold<T, F / 2, (R + 1) / 2>(v);
  }
}

}  // namespace
}  // namespace linreg::cpu
