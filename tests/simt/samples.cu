// SPDX-License-Identifier: BSD-3-Clause
// Small kernels, correct and faulty, that test the interpreter itself. Each sums n numbers with the techniques of the
// project's kernels.
#include <cstdint>
#include <string_view>

#include "device.cuh"

namespace linreg::cuda {
namespace {

enum class Fault : int {
  none,
  missing_barrier,          // between the warps' writes and a thread's reads
  missing_barrier_2,        // between a thread's reads and the warps' next writes
  missing_bound,            // reads beyond the end
  divergent_barrier,        // the two halves of a block reach different barriers
  early_exit,               // a thread ends while others wait at a barrier
  divergent_shuffle,        // some lanes are at a barrier
  exited_lanes,             // some lanes have ended
  small_shared,             // writes beyond the end of shared memory
  missing_publish_barrier,  // between a block's stores and the arrival of its thread
  missing_fence,
  wrong_count,  // the counter does not return to zero
  deadlock,     // polls for a value that no thread publishes
  misaligned,
  missing_wait,  // for an asynchronous copy
};

struct Sum {
  const float* x;  // [n], 16-byte aligned
  int64_t n;
  int rounds;       // the number of times to compute the sum
  double* partial;  // [blocks]
  double* out;      // [blocks] or [1]
  unsigned* counter;
  Fault fault;
};

LINREG_DEVICE double warp_sum(double value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// Shared memory behind the words that the threads copy to.
LINREG_DEVICE double* shared_numbers() { return static_cast<double*>(shared_memory()) + 2 * thread_count(); }

// The sum of a thread's share of x, copied in words of four.
LINREG_DEVICE double thread_sum(const Sum& p, int64_t begin, int64_t stride) {
  float* const four = static_cast<float*>(shared_memory()) + 4 * thread_index();
  const int64_t n = p.fault == Fault::missing_bound ? p.n + 1 : p.n;
  double sum = 0;
  int64_t i = begin * 4;
  for (; i + 4 <= n; i += stride * 4) {
    copy_async<16>(four, p.x + i + (p.fault == Fault::misaligned));
    copy_commit();
    if (p.fault != Fault::missing_wait) copy_wait<0>();
    sum += (double(four[0]) + double(four[1])) + (double(four[2]) + double(four[3]));
  }
  for (; i < n; ++i) sum += double(p.x[i]);
  return sum;
}

// The sum over a block, in its first thread. `shared` holds one number per warp.
LINREG_DEVICE double block_sum(const Sum& p, double value, double* shared) {
  const int thread = thread_index(), warps = thread_count() / 32;
  if (p.fault == Fault::exited_lanes && thread % 32 == 7) return value;
  if (p.fault == Fault::divergent_shuffle && thread % 32 == 7) sync_block();
  value = warp_sum(value);
  if (p.fault == Fault::early_exit && thread == 33) return value;
  if (thread % 32 == 0) shared[thread / 32] = value;
  if (p.fault == Fault::small_shared) shared[warps] = 0;
  if (p.fault == Fault::divergent_barrier && thread >= 32) {
    sync_block();
  } else if (p.fault != Fault::missing_barrier) {
    sync_block();
  }
  value = 0;
  if (thread == 0)
    for (int i = 0; i < warps; ++i) value += shared[i];
  if (p.fault != Fault::missing_barrier_2) sync_block();  // before shared is written again
  return value;
}

// Each block sums all of x by itself.
LINREG_KERNEL(1024, 1) sum_in_blocks(LINREG_PARAMETER Sum p) {
  double* shared = shared_numbers();
  double sum = 0;
  for (int round = 0; round < p.rounds; ++round)
    sum += block_sum(p, (round + 1) * thread_sum(p, thread_index(), thread_count()), shared);
  if (p.fault == Fault::deadlock && block_index() == 0)
    while (load_cg(p.partial) != 1) {
    }
  if (thread_index() == 0) p.out[block_index()] = sum;
}

// All blocks sum x together; the last to arrive adds the numbers that the others published, one per warp.
LINREG_KERNEL(1024, 1) sum_in_grid(LINREG_PARAMETER Sum p) {
  const int thread = thread_index(), threads = thread_count(), warps = threads / 32;
  double* shared = shared_numbers();
  bool* last = reinterpret_cast<bool*>(shared + warps);
  const int64_t stride = int64_t(block_count()) * threads;
  const double sum = warp_sum(thread_sum(p, int64_t(block_index()) * threads + thread, stride));
  if (thread % 32 == 0) store_cg(p.partial + block_index() * warps + thread / 32, sum);
  if (p.fault != Fault::missing_publish_barrier) sync_block();
  if (thread == 0) {
    if (p.fault != Fault::missing_fence) fence();
    *last = arrive_last(p.counter, unsigned(block_count()) + (p.fault == Fault::wrong_count));
  }
  sync_block();
  if (!*last) return;
  fence();
  double total = 0;
  for (int i = thread; i < block_count() * warps; i += threads) total += load_cg(p.partial + i);
  total = block_sum(p, total, shared);
  if (thread == 0) *p.out = total;
}

// For timing.
LINREG_KERNEL(1024, 1) shuffles(LINREG_PARAMETER Sum p) {
  double sum = 0;
  for (int round = 0; round < p.rounds; ++round) sum = warp_sum(sum + thread_index()) * 0x1p-10;
  if (thread_index() == 0) p.out[block_index()] = sum;
}

}  // namespace
}  // namespace linreg::cuda

using namespace linreg::cuda;

extern "C" {

const char* run_sum(const char* name, const float* x, int64_t n, int rounds, double* partial, double* out, int blocks,
                    int threads, int shared_bytes, int fault) {
  Sum p = {x, n, rounds, partial, out, nullptr, Fault(fault)};
  if (const char* error = counters(nullptr, p.counter)) return error;
  ++p.counter;
  const Launch l = {blocks, threads, shared_bytes, nullptr};
  const std::string_view kernel = name;
  if (kernel == "blocks") return launch(sum_in_blocks, l, p);
  if (kernel == "grid") return launch(sum_in_grid, l, p);
  return launch(shuffles, l, p);
}

float half_to_float(uint16_t bits) { return half_bits_to_float(bits); }

int get_multiprocessors() {
  Limits now;
  limits(now);
  return now.multiprocessors;
}
}
