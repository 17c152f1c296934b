// SPDX-License-Identifier: BSD-3-Clause
// The partition of a problem into chunks and groups of rows, and the layout of the workspace.
#pragma once

#include <algorithm>

#include "../math/convert.h"
#include "pass.h"

namespace linreg::cpu {

constexpr int64_t kMaxLanes = 8;         // doubles in a register of the widest instruction set
constexpr int64_t kColumnsMaxD = 8;      // the most features, with one target, for which lanes run along rows
constexpr int64_t kNarrow = 4;           // the most vectors of a row that, with one target, stay in registers
constexpr int64_t kMostGroupRows = 256;  // of few features and one target
constexpr int64_t kBlockRows = 64;       // the most rows before gradient sums move to double
constexpr int64_t kChain = 64;           // the longest chain of float additions
constexpr int kTileRows = 8;             // rows predicted together
// Bytes of X in a group. Small groups alternate the two products often enough to hide memory latency. From memory,
// [n, 64] reaches 0.83 of the bandwidth of a plain sum over it with 2 KB, and 0.90 to 0.96 with 4 to 16 KB (AVX-512).
// In cache, [n, 128] reaches 0.49 with 4 KB and 0.54 with 8 KB. With AVX2, [n, 128] reaches 0.72 with 8 KB and 0.91
// with 16 KB, of which the rows read in parallel lie in several pages.
constexpr int64_t kGroupBytes = 16 << 10;
constexpr int64_t kWideGroupBytes = 512 << 10;  // the same for 8 rows too wide for the first-level cache
constexpr int64_t kLineRows = 16;  // rows of a line: whole vectors in every instruction set, for any number of targets
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kSumsBytes = 4 << 20;  // for all chunks' sums; wider problems still get kMinChunks
constexpr int64_t kMinChunks = 4;
constexpr int64_t kChunkElements = 1 << 15;  // multiplications: less work does not pay for waking a thread
constexpr int64_t kAlign = 64;               // a cache line, to avoid false sharing
constexpr int64_t kMostTogether = 8;         // problems that share a pass over one reading of the rows

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// The elements of a line, kLineRows rows of few targets or one row of many. Sums over rows are kept per place in a
// line.
inline int64_t line_of(int64_t targets) {
  return targets < kLineRows ? targets * kLineRows : ceil_div(targets, kLineRows) * kLineRows;
}

// For problems of one size that share their rows. Each has the bits that it has alone: chunks and groups depend only on
// the size and the requested outputs.
struct Plan {
  bool columns;  // lanes run along rows
  bool narrow;   // rows stay in registers
  int64_t group_rows, chunk_rows, chunks, threads;
  int64_t line;  // elements of a line
  int64_t ldw;   // the distance between rows of W, whole vectors
  // In bytes: at 0 the sums of each problem's chunks, then each thread's scratch memory: each problem's own and a group
  // of packed rows.
  int64_t sums_stride, scratch, scratch_stride, own_stride, bytes;

  // vector_bytes: a register of the instruction set.
  Plan(const Problem& p, int64_t problems, const PassOutputs& outputs, int64_t vector_bytes) {
    const int64_t size = p.x.dtype == Dtype::float64 ? sizeof(double) : sizeof(float);
    // Whole vectors need no transposition: with AVX2, [n, 8] in cache took 217 µs in columns, and 147 in rows.
    const bool is_vectors = p.d * int64_t(size_of(p.x.dtype)) % vector_bytes == 0;
    columns = p.k == 1 && p.d > 0 && p.d <= kColumnsMaxD && !is_vectors;
    narrow = p.k == 1 && p.d > 0 && p.d * size <= kNarrow * vector_bytes && !columns;
    line = line_of(p.k);
    ldw = ceil_div(p.d, 2 * kMaxLanes) * 2 * kMaxLanes;
    const int64_t row_bytes = std::max<int64_t>(1, ldw * size);
    const int64_t by_cache = std::max(kGroupBytes / row_bytes / kTileRows * kTileRows,
                                      std::min<int64_t>(kTileRows, kWideGroupBytes / row_bytes));
    group_rows = columns ? kMostGroupRows : std::clamp<int64_t>(by_cache, 1, narrow ? kMostGroupRows : kBlockRows);

    const int64_t sums = aligned(sum_count(p, outputs) * int64_t(sizeof(double)));
    const int64_t by_memory = std::max(kMinChunks, kSumsBytes / sums);
    const int64_t work = p.n * std::max<int64_t>(1, p.k * p.d);
    const int64_t wanted = std::clamp<int64_t>(work / kChunkElements, 1, std::min(kMaxChunks, by_memory));
    const int64_t multiple = columns ? kMostGroupRows : kBlockRows;
    chunk_rows = std::max<int64_t>(1, ceil_div(ceil_div(p.n, wanted), multiple)) * multiple;
    chunks = std::max<int64_t>(1, ceil_div(p.n, chunk_rows));
    threads = std::min<int64_t>(std::max(1, p.threads), chunks);

    // For rows.cpp: W twice, Gᵀ X and a row of X's gradient; the predictions; the bias and the sums of G; the sums in
    // double.
    const int64_t numbers = (3 * p.k + 1) * (ldw + kLineRows) + group_rows * p.k + 2 * line;
    const int64_t doubles = 2 * line + 2 * kMaxLanes + 2 * kMaxLanes * kColumnsMaxD;
    sums_stride = sums;
    scratch = problems * chunks * sums;
    own_stride = aligned(numbers * size + doubles * int64_t(sizeof(double)) + kParts * kAlign);
    scratch_stride = problems * own_stride + aligned(group_rows * (ldw + kLineRows) * size);
    bytes = scratch + threads * scratch_stride;
  }

  // The number of sums: the loss, Σ G [k] and Gᵀ X [k, d].
  static int64_t sum_count(const Problem& p, const PassOutputs& outputs) {
    return 1 + p.k + (outputs.weight_sum ? p.k * p.d : 0);
  }

 private:
  static constexpr int64_t kParts = 12;  // arrays in a thread's scratch memory, each rounded up to cache lines
};

}  // namespace linreg::cpu
