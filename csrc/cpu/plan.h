// SPDX-License-Identifier: BSD-3-Clause
// How a pass cuts a problem up, and where in the workspace its parts lie.
#pragma once

#include <algorithm>

#include "../math/convert.h"
#include "pass.h"

namespace linreg::cpu {

constexpr int64_t kMaxLanes = 8;       // doubles in a register of the widest instruction set
constexpr int64_t kColumnsMaxD = 8;    // up to here lanes run along rows, not along features
constexpr int64_t kColumnsRows = 256;  // in a group then
constexpr int64_t kBlockRows = 64;     // at most, in whole groups, before gradient sums go on in double
constexpr int64_t kChain = 64;         // the most float additions in a row
constexpr int kTileRows = 8;           // that are predicted together
// Of X in a group: small, so that the two uses take turns before memory has been waited for. 2 KB read [n, 64] from
// memory at 0.83 of what a sum over it reads, 4 to 16 KB at 0.90 to 0.96; in cache [n, 128] goes at 0.49 in 4 KB, at
// 0.54 in 8 KB.
constexpr int64_t kGroupBytes = 8 << 10;
constexpr int64_t kWideGroupBytes = 512 << 10;  // the same for 8 rows so wide that they need the second level
// How far ahead memory is asked for, into the second level: two threads read 1 GB of [n, 64] at 0.82 of what a sum over
// it reads when 8 KB ahead, 0.78 at 16 KB, 0.91 at 32 KB with small groups.
constexpr int64_t kAhead = 32 << 10;
constexpr int64_t kLineRows = 16;  // whose targets, if fewer than 16, are whole vectors in every instruction set
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kSumsBytes = 4 << 20;  // of all chunks' sums; wider problems still get kMinChunks
constexpr int64_t kMinChunks = 4;
constexpr int64_t kChunkElements = 1 << 15;  // less work than this does not pay for waking a thread
constexpr int64_t kAlign = 64;               // a cache line, so that threads do not write to each other's

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// A line of elements is what sums over rows are made of by place: kLineRows rows of few targets, or a row of many.
inline int64_t line_of(int64_t targets) {
  return targets < kLineRows ? targets * kLineRows : ceil_div(targets, kLineRows) * kLineRows;
}

// How a problem is cut up, and where in the workspace its parts lie. All of it follows from the problem and the wishes.
struct Plan {
  bool columns;  // lanes run along rows
  int64_t group_rows, chunk_rows, chunks, threads;
  int64_t line;  // elements of a line
  int64_t ldw;   // from one row of W to the next, whole vectors
  // Bytes from the start of the workspace: of a chunk's sums, and of the memory that each thread has.
  int64_t sums_stride, scratch, scratch_stride, bytes;

  Plan(const Problem& p, const PassOutputs& outputs) {
    const int64_t size = p.x.dtype == Dtype::float64 ? sizeof(double) : sizeof(float);
    columns = p.k == 1 && p.d <= kColumnsMaxD;
    line = line_of(p.k);
    ldw = ceil_div(p.d, 2 * kMaxLanes) * 2 * kMaxLanes;
    const int64_t row_bytes = std::max<int64_t>(1, ldw * size);
    const int64_t by_cache = std::max(kGroupBytes / row_bytes / kTileRows * kTileRows,
                                      std::min<int64_t>(kTileRows, kWideGroupBytes / row_bytes));
    group_rows = columns ? kColumnsRows : std::clamp<int64_t>(by_cache, 1, kBlockRows);

    const int64_t sums = aligned(sum_count(p, outputs) * int64_t(sizeof(double)));
    const int64_t by_memory = std::max(kMinChunks, kSumsBytes / sums);
    const int64_t work = p.n * std::max<int64_t>(1, p.k * p.d);
    const int64_t wanted = std::clamp<int64_t>(work / kChunkElements, 1, std::min(kMaxChunks, by_memory));
    const int64_t multiple = columns ? kColumnsRows : kBlockRows;
    chunk_rows = std::max<int64_t>(1, ceil_div(ceil_div(p.n, wanted), multiple)) * multiple;
    chunks = std::max<int64_t>(1, ceil_div(p.n, chunk_rows));
    threads = std::min<int64_t>(std::max(1, p.threads), chunks);

    // rows.cpp: W twice, Gᵀ X, a row of X's gradient and packed rows; predictions; bias and sums of G; and sums in
    // double.
    const int64_t numbers = (3 * p.k + 1 + group_rows) * (ldw + kLineRows) + group_rows * p.k + 2 * line;
    const int64_t doubles = 2 * line + 2 * kMaxLanes + 2 * kMaxLanes * kColumnsMaxD;
    sums_stride = sums;
    scratch = chunks * sums;
    scratch_stride = aligned(numbers * size + doubles * int64_t(sizeof(double)) + kParts * kAlign);
    bytes = scratch + threads * scratch_stride;
  }

  // The loss, then Σ G [k], then Gᵀ X [k, d].
  static int64_t sum_count(const Problem& p, const PassOutputs& outputs) {
    return 1 + p.k + (outputs.weight_sum ? p.k * p.d : 0);
  }

 private:
  static constexpr int64_t kParts = 12;  // of a thread's memory, each of whole cache lines
};

}  // namespace linreg::cpu
