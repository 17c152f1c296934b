// SPDX-License-Identifier: BSD-3-Clause
// How a pass cuts a problem up, and where in the workspace its parts lie.
#pragma once

#include <algorithm>

#include "pass.h"

namespace linreg::cpu {

constexpr int64_t kGroupRows = 64;              // at most, between the two uses of a row
constexpr int64_t kGroupBytes = 16 << 10;       // of X in a group: with w and dw, a 32 KB first-level cache
constexpr int64_t kWideGroupBytes = 512 << 10;  // the same for 8 rows so wide that they need the second level
constexpr int64_t kManyTargets = 4;
constexpr int64_t kManyTargetsGroupBytes = 256 << 10;
constexpr int64_t kGroupResiduals = 16384;  // residuals of a group: 128 KB each of four arrays
constexpr int64_t kColumnsMaxD = 8;         // up to here lanes run along rows, not along features
constexpr int64_t kMaxLanes = 8;            // of the widest instruction set
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kSumsBytes = 4 << 20;  // of all chunks' sums; wider problems still get kMinChunks
constexpr int64_t kMinChunks = 4;
constexpr int64_t kChunkElements = 1 << 15;  // less work than this does not pay for waking a thread
constexpr int64_t kAlign = 64;               // a cache line, so that threads do not write to each other's

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// How a problem is cut up, and where in the workspace its parts lie. All of it follows from the problem and the wishes.
struct Plan {
  int64_t group_rows, chunk_rows, chunks, threads;
  bool columns;  // a group is held as [d, kGroupRows] and lanes run along rows
  bool widen;    // 16-bit rows are copied to float32, which is exact
  // Bytes from the start of the workspace, and for the parts that each thread has its own of, from its scratch.
  int64_t sums_stride, weights, biases, scratch, scratch_stride, bytes;
  int64_t rows, slopes, residuals, losses, targets, weighted, lanes;

  Plan(const Problem& p, const PassOutputs& outputs) {
    const int64_t row_bytes = std::max<int64_t>(1, p.d * (p.x.dtype == Dtype::float64 ? 8 : 4));
    // Several targets stream weights and gradient sums past each group: more rows, from the second level, share them
    // (4096 × 1024 with 64 targets: 17 ms instead of 32; 65536 × 128 with 8: 5 instead of 8).
    const int64_t group_bytes = p.k < kManyTargets ? kGroupBytes : kManyTargetsGroupBytes;
    const int64_t by_cache = std::max(group_bytes / row_bytes, std::min<int64_t>(8, kWideGroupBytes / row_bytes));
    const int64_t by_targets = kGroupResiduals / std::max<int64_t>(1, p.k);
    columns = p.d <= kColumnsMaxD;
    widen = p.x.dtype == Dtype::bfloat16 || p.x.dtype == Dtype::float16;
    group_rows = columns ? kGroupRows : std::clamp<int64_t>(std::min(by_cache, by_targets), 1, kGroupRows);

    const int64_t sums = aligned(sum_count(p, outputs) * int64_t(sizeof(double)));
    const int64_t by_memory = std::max(kMinChunks, kSumsBytes / sums);
    const int64_t work = p.n * std::max<int64_t>(1, p.k * p.d);
    const int64_t wanted = std::clamp<int64_t>(work / kChunkElements, 1, std::min(kMaxChunks, by_memory));
    chunk_rows = std::max<int64_t>(1, ceil_div(ceil_div(p.n, wanted), kGroupRows)) * kGroupRows;
    chunks = std::max<int64_t>(1, ceil_div(p.n, chunk_rows));
    threads = std::min<int64_t>(std::max(1, p.threads), chunks);

    int64_t end = 0;
    const auto take = [&end](int64_t count, int64_t size) {
      const int64_t begin = end;
      end += aligned(count * size);
      return begin;
    };
    const int64_t group_k = group_rows * p.k;
    rows = take(columns || widen || outputs.input_gradient ? group_rows * p.d : 0, sizeof(double));
    slopes = take(group_k, sizeof(double));
    residuals = take(group_k, sizeof(double));
    losses = take(group_k, sizeof(double));
    targets = take(group_k, sizeof(double));
    weighted = take(p.v.data ? group_k : 0, sizeof(double));
    lanes = take(columns && outputs.weight_sum ? p.k * p.d * kMaxLanes : 0, sizeof(double));
    scratch_stride = end;

    end = 0;
    sums_stride = sums;
    take(chunks, sums);
    weights = take(p.k * p.d, sizeof(double));
    biases = take(p.k, sizeof(double));
    scratch = take(threads, scratch_stride);
    bytes = end;
  }

  // The loss, then Σ G [k], then Gᵀ X [k, d].
  static int64_t sum_count(const Problem& p, const PassOutputs& outputs) {
    return 1 + p.k + (outputs.weight_sum ? p.k * p.d : 0);
  }
};

}  // namespace linreg::cpu
