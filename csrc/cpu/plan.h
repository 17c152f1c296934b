// SPDX-License-Identifier: BSD-3-Clause
// How a pass cuts a problem up, and where in the workspace its parts lie.
#pragma once

#include <algorithm>

#include "../math/convert.h"
#include "pass.h"

namespace linreg::cpu {

constexpr int64_t kMaxLanes = 8;             // doubles in a register of the widest instruction set
constexpr int64_t kLaneSum = 2 * kMaxLanes;  // numbers of a sum by lanes (tiles.h)
constexpr int64_t kColumnsMaxD = 8;          // up to here lanes run along rows, not along features
constexpr int64_t kColumnsRows = 128;        // in a group then
constexpr int64_t kGroupRows = 64;           // at most in another group, between the two uses of a row
constexpr int64_t kBlockRows = 64;           // at most, in whole groups, before gradients of float rows go on in double
// Of X in a group: small, so that the two uses take turns before memory has been waited for.
constexpr int64_t kGroupBytes = 4 << 10;
constexpr int64_t kWideGroupBytes = 512 << 10;  // the same for 8 rows so wide that they need the second level
// How far ahead memory is asked for, into the second level: two threads read 1 GB of [n, 64] at 0.82 of what a sum over
// it reads when 8 KB ahead, 0.78 at 16 KB, 0.91 at 32 KB with small groups.
constexpr int64_t kAhead = 32 << 10;
constexpr int64_t kSeveralTargets = 4;
constexpr int64_t kSeveralTargetsGroupBytes = 256 << 10;
// Of X in a group towards several targets where only sums are wanted (targets.h), so small that the two products take
// turns: 0.25 GB of [n, 128] with 8 targets went at 0.88 of what a sum over it reads, at 0.85 in groups of 32 KB (both
// products in float).
constexpr int64_t kTargetsGroupBytes = 8 << 10;
constexpr int kTileRows = 8;                // that are predicted together there
constexpr int64_t kTileFeatures = 128;      // and are converted for that, at a time: 8 KB of doubles
constexpr int64_t kTargetSet = 4;           // so many targets at least are taken together
constexpr int64_t kGroupResiduals = 16384;  // residuals of a group: 128 KB each of four arrays
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
  bool columns;                            // lanes run along rows
  bool towards_targets;                    // targets.h takes the rows from which only sums are wanted
  int64_t ld;                              // from one target's row of a group to the next, in numbers
  int64_t ldw;                             // from one row of W to the next, whole vectors
  int64_t target_group_rows, target_sets;  // of targets.h: rows of a group, and targets in whole sets
  int64_t ldk;                             // from one row of all targets to the next, whole vectors
  // Bytes from the start of the workspace, and for the parts that each thread has its own of, from its scratch.
  int64_t sums_stride, weights, biases, scratch, scratch_stride, bytes;
  int64_t features, predictions, targets, element_weights, losses, dlosses, float_dloss, loss_lanes, bias_lanes,
      weight_lanes, block_sums, row, interleaved, tile, target_predictions, target_bias_sums, target_rows, target_dloss;

  Plan(const Problem& p, const PassOutputs& outputs) {
    const bool is_double = p.x.dtype == Dtype::float64;
    const int64_t row_bytes = std::max<int64_t>(1, p.d * int64_t(size_of(p.x.dtype)));
    // Several targets stream weights and gradient sums past each group: more rows, from the second level, share them
    // (4096 × 1024 with 64 targets: 17 ms instead of 32; 65536 × 128 with 8: 5 instead of 8).
    const int64_t group_bytes = p.k < kSeveralTargets ? kGroupBytes : kSeveralTargetsGroupBytes;
    const int64_t by_cache = std::max(group_bytes / row_bytes, std::min<int64_t>(8, kWideGroupBytes / row_bytes));
    const int64_t by_targets = kGroupResiduals / std::max<int64_t>(1, p.k);
    columns = p.d <= kColumnsMaxD;
    group_rows = columns ? kColumnsRows : std::clamp<int64_t>(std::min(by_cache, by_targets), 1, kGroupRows);
    ld = ceil_div(group_rows, kMaxLanes) * kMaxLanes;
    ldw = ceil_div(p.d, 2 * kMaxLanes) * 2 * kMaxLanes;
    towards_targets =
        !columns && p.k >= kSeveralTargets && kTileRows * row_bytes <= kWideGroupBytes && gives_only_sums(p, outputs);
    target_group_rows =
        std::clamp<int64_t>(kTargetsGroupBytes / row_bytes / kTileRows * kTileRows, kTileRows, kBlockRows);
    target_sets = ceil_div(p.k, kTargetSet) * kTargetSet;
    ldk = ceil_div(p.k, kMaxLanes) * kMaxLanes;

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
    const auto doubles = [&take](bool wanted, int64_t count) { return take(wanted ? count : 0, sizeof(double)); };
    features = doubles(columns, p.d * ld);
    predictions = doubles(true, p.k * ld);
    targets = doubles(true, ld);
    element_weights = doubles(p.v.data, ld);
    losses = doubles(true, p.k * ld);
    dlosses = doubles(true, p.k * ld);
    float_dloss = take(columns || is_double ? 0 : p.k * ld, sizeof(float));
    loss_lanes = doubles(true, kLaneSum);
    bias_lanes = doubles(true, p.k * kLaneSum);
    weight_lanes = doubles(columns && outputs.weight_sum, p.k * p.d * kMaxLanes);
    const int64_t size = is_double ? sizeof(double) : sizeof(float);
    block_sums = take(!columns && outputs.weight_sum ? target_sets * ldw : 0, size);
    row = doubles(outputs.input_gradient, ldw);
    interleaved = doubles(towards_targets, target_sets * ldw);
    tile = doubles(towards_targets, kTileRows * kTileFeatures);
    target_predictions = doubles(towards_targets, kTileRows * ldk);
    target_bias_sums = doubles(towards_targets, ldk);
    target_rows = take(towards_targets && size_of(p.x.dtype) == 2 ? target_group_rows * ldw : 0, size);
    target_dloss = take(towards_targets ? target_group_rows * ldk : 0, size);
    scratch_stride = end;

    end = 0;
    sums_stride = sums;
    take(chunks, sums);
    weights = doubles(true, p.k * ldw);
    biases = doubles(true, ldk);
    scratch = take(threads, scratch_stride);
    bytes = end;
  }

  static bool gives_only_sums(const Problem& p, const PassOutputs& outputs) {
    return p.d > 0 && !p.v.data && (p.k == 1 ? p.y.row_stride : p.y.col_stride) == 1 && p.y.dtype == p.x.dtype &&
           outputs.weight_sum && !outputs.input_gradient && !outputs.target_gradient && !outputs.elements;
  }

  // The loss, then Σ G [k], then Gᵀ X [k, d].
  static int64_t sum_count(const Problem& p, const PassOutputs& outputs) {
    return 1 + p.k + (outputs.weight_sum ? p.k * p.d : 0);
  }
};

}  // namespace linreg::cpu
