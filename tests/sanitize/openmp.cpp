// SPDX-License-Identifier: BSD-3-Clause
// The part of GCC's OpenMP runtime that csrc/cpu calls, with std::thread: the real one is not instrumented, so that
// ThreadSanitizer would miss its synchronisation. Every region starts new threads, in any order.
#include <thread>
#include <vector>

namespace {

int wanted = 1;
thread_local int own_number = 0, in_region = 1;

}  // namespace

extern "C" {

void omp_set_num_threads(int threads) { wanted = threads; }
int omp_get_num_threads() { return in_region; }
int omp_get_thread_num() { return own_number; }

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned) {
  const int count = threads ? int(threads) : wanted;
  const auto run = [=](int number) {
    own_number = number, in_region = count;
    body(data);
    own_number = 0, in_region = 1;
  };
  std::vector<std::thread> others;
  for (int number = count - 1; number > 0; --number) others.emplace_back(run, number);
  run(0);
  for (std::thread& thread : others) thread.join();
}
}
