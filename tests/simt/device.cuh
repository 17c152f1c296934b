// SPDX-License-Identifier: BSD-3-Clause
// The twin of csrc/cuda/device.cuh for running the kernels on a CPU: the same interface, implemented by simt.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/simt.h"

#define LINREG_DEVICE inline
#define LINREG_DEVICE_CALL inline
#define LINREG_KERNEL(max_threads, min_blocks) void
#define LINREG_PARAMETER const

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

namespace linreg::cuda {

LINREG_DEVICE int thread_index() { return simt::position().thread; }
LINREG_DEVICE int thread_count() { return simt::position().threads; }
LINREG_DEVICE int block_index() { return simt::position().block; }
LINREG_DEVICE int block_count() { return simt::position().blocks; }

LINREG_DEVICE double shuffle_xor(double value, int mask, simt::Place place = simt::Place::current()) {
  return simt::shuffle(value, thread_index() % 32 ^ mask, "shuffle_xor", place);
}

LINREG_DEVICE float shuffle_xor(float value, int mask, simt::Place place = simt::Place::current()) {
  return float(shuffle_xor(double(value), mask, place));
}

LINREG_DEVICE double shuffle(double value, int lane, simt::Place place = simt::Place::current()) {
  return simt::shuffle(value, lane, "shuffle", place);
}

LINREG_DEVICE float shuffle(float value, int lane, simt::Place place = simt::Place::current()) {
  return float(shuffle(double(value), lane, place));
}

LINREG_DEVICE void* shared_memory() { return simt::shared_memory(); }

LINREG_DEVICE void sync_block(simt::Place place = simt::Place::current()) { simt::sync_block(place); }

template <int kBytes>
struct Words {
  std::conditional_t<kBytes == 16, uint4, std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>> bits;
};

template <int kBytes>
LINREG_DEVICE void copy_async(void* to, const void* from, simt::Place place = simt::Place::current()) {
  static_assert(sizeof(Words<kBytes>) == kBytes && kBytes >= 4);
  simt::copy_async(to, from, kBytes, place);
}
LINREG_DEVICE void copy_commit() { simt::copy_commit(); }
template <int kPending>
LINREG_DEVICE void copy_wait() {
  simt::copy_wait(kPending);
}

LINREG_DEVICE void store_cg(double* to, double value) { simt::store_cg(to, value); }
LINREG_DEVICE double load_cg(const double* from, simt::Place place = simt::Place::current()) {
  return simt::load_cg(from, place);
}

LINREG_DEVICE void fence(simt::Place place = simt::Place::current()) { simt::fence(place); }

LINREG_DEVICE bool arrive_last(unsigned* counter, unsigned count, simt::Place place = simt::Place::current()) {
  return simt::arrive_last(counter, count, place);
}

LINREG_DEVICE float half_bits_to_float(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float magnitude = std::ldexp(float(exponent ? 1024 + fraction : fraction), exponent ? exponent - 25 : -24);
  if (exponent == 31) magnitude = fraction ? NAN : INFINITY;
  return bits & 0x8000 ? -magnitude : magnitude;
}

struct Limits {
  int multiprocessors = 0;
  int shared_bytes = 0;
  int cache_bytes = 0;
};

constexpr int kCounters = 64;
constexpr int kMaxThreads = 512;
constexpr int kSharedUnasked = 48 << 10;

struct Launch {
  int blocks, threads;
  int shared_bytes;
  void* stream;
};

inline const char* limits(Limits& limits) {
  limits.multiprocessors = simt::settings().multiprocessors;
  limits.shared_bytes = simt::kSharedBytes;
  limits.cache_bytes = simt::kCacheBytes;
  return nullptr;
}

inline const char* counters(void* stream, unsigned*& counters) {
  counters = simt::counters(stream, kCounters);
  return nullptr;
}

template <class... Parameters>
const char* launch(void (*kernel)(Parameters...), const Launch& l, const Parameters&... arguments) {
  return simt::run_grid({l.blocks, l.threads, l.shared_bytes}, [&] { kernel(arguments...); });
}

}  // namespace linreg::cuda
