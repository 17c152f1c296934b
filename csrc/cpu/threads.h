// SPDX-License-Identifier: BSD-3-Clause
// Threads by OpenMP, whose number torch.set_num_threads sets.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace linreg::cpu {
namespace {

// Calls body(thread, threads) on at most `limit` threads; inside another parallel region on one.
template <class Body>
void run_threaded(int64_t limit, const Body& body) {
  if (limit == 1) return body(int64_t(0), int64_t(1));
#pragma omp parallel
  {
    const int64_t threads = std::min<int64_t>(omp_get_num_threads(), limit);
    const int64_t thread = omp_get_thread_num();
    if (thread < threads) body(thread, threads);
  }
}

}  // namespace
}  // namespace linreg::cpu
