// SPDX-License-Identifier: BSD-3-Clause
// OpenMP threads; torch.set_num_threads sets their number.
#pragma once

#include <omp.h>
#include <unistd.h>
#ifdef __SSE2__
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <thread>

namespace linreg::cpu {
namespace {

// The floating-point mode of a thread (torch.set_flush_denormal). Workers adopt their caller's, so that results do not
// depend on which thread computes them.
#ifdef __SSE2__
inline unsigned float_mode() { return _mm_getcsr(); }
inline void set_float_mode(unsigned mode) { _mm_setcsr(mode); }
#else
inline unsigned float_mode() { return 0; }
inline void set_float_mode(unsigned) {}
#endif

template <class Body>
void run_parallel(int64_t limit, unsigned mode, const Body& body) {
#pragma omp parallel
  {
    const unsigned own_mode = float_mode();
    set_float_mode(mode);
    const int64_t threads = std::min<int64_t>(omp_get_num_threads(), limit);
    const int64_t thread = omp_get_thread_num();
    if (thread < threads) body(thread, threads);
    set_float_mode(own_mode);
  }
}

const pid_t kProcess = getpid();  // the process that loaded this library

// Calls body(thread, threads) on at most `limit` threads, or on one inside another parallel region.
template <class Body>
void run_threaded(int64_t limit, const Body& body) {
  if (limit == 1) return body(int64_t(0), int64_t(1));
  const unsigned mode = float_mode();
  if (getpid() == kProcess) return run_parallel(limit, mode, body);
  // After a fork, OpenMP would wait for threads that exist only in the parent. For a new thread it makes new ones.
  std::thread([&] {
    omp_set_num_threads(int(limit));
    run_parallel(limit, mode, body);
  }).join();
}

}  // namespace
}  // namespace linreg::cpu
