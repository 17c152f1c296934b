// SPDX-License-Identifier: BSD-3-Clause
// The sums of all blocks, added by whichever block comes last, in the blocks' order: the same bits every time.
//
// Two levels, so that the tail is short: the last block of each team of about √blocks adds its team's sums, and the
// last team adds the teams'. One block adding 132 times 1024 doubles would take 5 to 6 µs (at some 100 GB/s for one
// multiprocessor, estimated); two levels read 12 + 11 times 1024.
#pragma once

#include "../math/inline.h"
#include "device.cuh"

namespace linreg::cuda {

constexpr int kWarp = 32;

// The sum over lanes whose numbers differ in bits from, 2 · from, … below `to`; the same bits in each of them, since
// both sides of every exchange add the same two numbers.
template <class T>
LINREG_DEVICE T sum_lanes(T value, int from, int to) {
  for (int mask = from; mask < to; mask *= 2) value += shuffle_xor(value, mask);
  return value;
}

// The sums over the lanes of a row of each of kCount numbers, each of which ends in lanes / kCount neighbouring lanes:
// the first of them in lane 0, and so on. Half of the numbers go at each exchange, where a sum of each over all
// lanes would send all of them: 15 exchanges and one for 16 numbers in 32 lanes, not 80.
template <class T, int kCount>
LINREG_DEVICE T scatter_sums(const T (&numbers)[kCount], int lanes) {
  if constexpr (kCount == 1) {
    return sum_lanes(numbers[0], 1, lanes);
  } else {
    const bool upper = thread_index() & lanes / 2;
    T half[kCount / 2];
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const T send = upper ? numbers[i] : numbers[i + kCount / 2];
      half[i] = (upper ? numbers[i + kCount / 2] : numbers[i]) + shuffle_xor(send, lanes / 2);
    }
    return scatter_sums(half, lanes / 2);
  }
}

// Blocks [team · size, (team + 1) · size) are a team.
LINREG_MATH constexpr int team_size(int blocks) {
  int size = 1;
  while (size * size < blocks) ++size;
  return size;
}

// True in all threads of the last of `count` arrivals, which then sees what the others have stored.
LINREG_DEVICE bool last_to_arrive(unsigned* counter, int count, int* flag) {
  sync_block();  // all threads have stored, and none still reads the flag of before
  if (thread_index() == 0) {
    fence();  // of what the block has stored, before the arrival
    *flag = arrive_last(counter, unsigned(count));
    if (*flag) fence();  // reads after this see what was stored before the arrivals
  }
  sync_block();  // the flag is written
  return *flag;
}

// Adds `rows` lines of `count` doubles, `stride` apart, into the first.
LINREG_DEVICE void add_lines(double* lines, int rows, int64_t stride, int64_t count) {
  for (int64_t i = thread_index(); i < count; i += thread_count()) {
    double sum = load_cg(lines + i);
#pragma unroll 4
    for (int row = 1; row < rows; ++row) sum += load_cg(lines + row * stride + i);
    store_cg(lines + i, sum);
  }
}

// Each block has published `count` sums at its line, partials + block_index() · stride. True in the one block that
// finds the sums of all at partials; the others are done.
LINREG_DEVICE bool reduce_blocks(double* partials, int64_t stride, int64_t count, unsigned* counters, int* flag) {
  const int index = block_index(), blocks = block_count();
  if (blocks == 1) {
    sync_block();  // every thread may read every sum
    return true;
  }
  const int size = team_size(blocks), teams = (blocks + size - 1) / size;
  const int team = index / size, first = team * size;
  const int members = first + size < blocks ? size : blocks - first;
  if (!last_to_arrive(counters + 1 + team, members, flag)) return false;
  add_lines(partials + first * stride, members, stride, count);
  if (!last_to_arrive(counters, teams, flag)) return false;
  add_lines(partials, teams, size * stride, count);
  sync_block();  // every thread may read every sum
  return true;
}

}  // namespace linreg::cuda
