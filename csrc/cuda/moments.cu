// SPDX-License-Identifier: BSD-3-Clause
// Least squares: second moments of [X | Y] about their means, and the gradient of the sum of squares that refines a
// solution. Everything is added in double.
//
// moments_kernel reads the rows of a unit, which is a group or a chunk of all rows, and writes Σ v z zᵀ with
// z = [x − shift, y − shift, 1] to the unit's line. The shift is the mean of the unit's first rows, near enough to its
// mean that little cancels. A block has a tile of that symmetric matrix, at or below the diagonal; the blocks of a unit
// read its rows from the second-level cache. merge_kernel adds the units to the moments that there are.
// gradient_kernel reads the rows twice, the second time from the first-level cache, kStageRows at a time.
// Deterministic: units follow from the sizes, a unit's rows are added in order, and so are the units.
#include "finish.cuh"
#include "number.cuh"
#include "plan.h"

namespace linreg::cuda {

constexpr int kTile = 32, kStageRows = 32, kMomentThreads = 256;
constexpr int kShiftRows = 64;      // whose mean is the shift
constexpr int kTargetsOfStage = 8;  // of a gradient, at a time

struct MomentPass {
  MomentRows rows;
  Moments to;
  double* lines = nullptr;  // of the units: counts [2], shift [m + 1] and sums [m + 1, m + 1], whose last row is Σ v z
  int64_t line = 0;
  int64_t first = 0, units = 1;  // of this launch
  int64_t unit_rows = 0;         // of a chunk
  int tiles = 1;                 // of a unit
};

struct GradientPass {
  MomentRows rows;
  const double *w = nullptr, *offset = nullptr, *center = nullptr;
  double* sums = nullptr;
  double* lines = nullptr;  // [blocks, k (d + 2)]
  int64_t block_rows = 0;
  unsigned* counters = nullptr;
};

struct Range {
  int64_t begin, end;
};

LINREG_DEVICE Range unit_range(const MomentPass& pass, int64_t unit) {
  const MomentRows& p = pass.rows;
  if (p.offsets) return {p.offsets[pass.first + unit], p.offsets[pass.first + unit + 1]};
  const int64_t begin = unit * pass.unit_rows;
  return {begin, begin + pass.unit_rows < p.n ? begin + pass.unit_rows : p.n};
}

LINREG_DEVICE int64_t row_at(const MomentRows& p, int64_t place) { return p.order ? p.order[place] : place; }
LINREG_DEVICE double weight_of(const MomentRows& p, int64_t row) {
  return p.v.data ? load_as<double>(p.v, row, 0) : 1.0;
}
LINREG_DEVICE double element(const MomentRows& p, int64_t row, int64_t column) {
  return column < p.d ? load_as<double>(p.x, row, column) : load_as<double>(p.y, row, column - p.d);
}

// What a block of moments_kernel has in shared memory; [0] is for the rows of its tile, [1] for its columns.
struct Stage {
  double z[2][kStageRows][kTile], shift[2][kTile], v[kStageRows];
};

LINREG_KERNEL(kMomentThreads, 2)
moments_kernel(LINREG_PARAMETER MomentPass pass) {
  const MomentRows& p = pass.rows;
  Stage& stage = *static_cast<Stage*>(shared_memory());
  const int64_t m = p.d + p.k, unit = block_index() / pass.tiles;
  int tile_row = 0, tile_column = block_index() % pass.tiles;
  while (tile_column > tile_row) tile_column -= ++tile_row;
  const int64_t first_row = int64_t(tile_row) * kTile, first_column = int64_t(tile_column) * kTile;
  const auto column_of = [&](int side, int c) { return (side == 0 ? first_row : first_column) + c; };
  const Range range = unit_range(pass, unit);
  double* const line = pass.lines + unit * pass.line;

  if (thread_index() < 2 * kTile) {
    const int side = thread_index() / kTile, c = thread_index() % kTile;
    const int64_t column = column_of(side, c);
    double mean = 0, count = 0;
    for (int64_t i = range.begin; i < range.end && i < range.begin + kShiftRows && column < m; ++i) {
      const int64_t row = row_at(p, i);
      if (weight_of(p, row) != 0) mean += (element(p, row, column) - mean) / ++count;
    }
    stage.shift[side][c] = mean;
    if (side == 0 && tile_row == tile_column && column <= m) line[2 + column] = mean;
  }

  const int y = thread_index() / (kTile / 2), x = thread_index() % (kTile / 2);  // of 2 × 2 sums, half a tile apart
  double sums[2][2] = {}, rows = 0, weight = 0;
  for (int64_t first = range.begin; first < range.end; first += kStageRows) {
    sync_block();  // the shift is there, and nobody reads the rows before
    if (thread_index() < kStageRows)
      stage.v[thread_index()] =
          first + thread_index() < range.end ? weight_of(p, row_at(p, first + thread_index())) : 0;
    sync_block();  // the weights are there
    for (int e = thread_index(); e < 2 * kStageRows * kTile; e += kMomentThreads) {
      const int side = e / (kStageRows * kTile), r = e / kTile % kStageRows, c = e % kTile;
      const int64_t column = column_of(side, c);
      double z = 0;
      if (stage.v[r] != 0 && column <= m) {
        z = column == m ? 1 : element(p, row_at(p, first + r), column) - stage.shift[side][c];
        z *= sqrt(stage.v[r]);
      }
      stage.z[side][r][c] = z;
    }
    sync_block();  // the rows are there
    for (int r = 0; r < kStageRows; ++r) {
      for (int a = 0; a < 2; ++a)
        for (int b = 0; b < 2; ++b) sums[a][b] += stage.z[0][r][y + a * kTile / 2] * stage.z[1][r][x + b * kTile / 2];
      rows += stage.v[r] != 0;
      weight += stage.v[r];
    }
  }
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 2; ++b) {
      const int64_t i = first_row + y + a * kTile / 2, j = first_column + x + b * kTile / 2;
      if (i <= m && j <= i) line[2 + m + 1 + i * (m + 1) + j] = sums[a][b];
    }
  if (block_index() % pass.tiles == 0 && thread_index() == 0) {
    line[0] = rows;
    line[1] = weight;
  }
}

// The elements of the moments, some of each group's in a block; then, once these have used them, `means` and counts.
LINREG_KERNEL(kMomentThreads, 2)
merge_kernel(LINREG_PARAMETER MomentPass pass, bool means, int parts) {
  const int64_t m = pass.rows.d + pass.rows.k, index = block_index() / parts, group = pass.first + index;
  const bool grouped = pass.rows.offsets;
  const int64_t units = grouped ? 1 : pass.units;
  const double* const lines = pass.lines + (grouped ? index * pass.line : 0);
  double *const counts = pass.to.counts + 2 * group, *const mean = pass.to.mean + m * group;
  double* const moments = pass.to.moments + m * m * group;
  const double rows_before = counts[0], weight_before = counts[1];
  sync_block();  // all threads have the counts
  const int64_t count = means ? m : m * m, step = int64_t(parts) * kMomentThreads;
  for (int64_t e = block_index() % parts * kMomentThreads + thread_index(); e < count; e += step) {
    const int64_t i = means ? e : e / m, j = means ? e : e % m;
    if (j > i) continue;
    double weight = weight_before, mean_i = mean[i], mean_j = mean[j], moment = means ? 0 : moments[i * m + j];
    for (int64_t u = 0; u < units; ++u) {
      const double *const line = lines + u * pass.line, *const shift = line + 2, *const sums = shift + m + 1;
      const double *const totals = sums + m * (m + 1), its = line[1];
      if (its == 0) continue;
      const double apart_i = shift[i] + totals[i] / its - mean_i, apart_j = shift[j] + totals[j] / its - mean_j;
      const double share = its / (weight + its);
      if (!means) moment += sums[i * (m + 1) + j] - totals[i] * totals[j] / its + weight * share * apart_i * apart_j;
      mean_i += share * apart_i;
      mean_j += share * apart_j;
      weight += its;
    }
    if (means) {
      mean[i] = mean_i;
    } else {
      moments[i * m + j] = moments[j * m + i] = moment;
    }
  }
  if (means && thread_index() == 0) {
    double rows = rows_before, weight = weight_before;
    for (int64_t u = 0; u < units; ++u) {
      rows += lines[u * pass.line];
      weight += lines[u * pass.line + 1];
    }
    counts[0] = rows;
    counts[1] = weight;
  }
}

LINREG_KERNEL(kMomentThreads, 2)
gradient_kernel(LINREG_PARAMETER GradientPass pass) {
  const MomentRows& p = pass.rows;
  auto& slopes = *static_cast<double (*)[2][kStageRows][kTargetsOfStage]>(shared_memory());  // v r and v r²
  const int64_t width = p.d + 2, count = p.k * width;
  double* const line = pass.lines + block_index() * count;
  for (int64_t e = thread_index(); e < count; e += kMomentThreads) store_cg(line + e, 0);
  const int64_t begin = block_index() * pass.block_rows;
  const int64_t end = begin + pass.block_rows < p.n ? begin + pass.block_rows : p.n;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  for (int64_t first = begin; first < end; first += kStageRows)
    for (int64_t target = 0; target < p.k; target += kTargetsOfStage) {
      const int targets = int(p.k - target < kTargetsOfStage ? p.k - target : kTargetsOfStage);
      sync_block();  // nobody reads the slopes before
      for (int r = warp; r < kStageRows; r += kMomentThreads / kWarp) {
        const int64_t row = first + r;
        const double v = row < end ? weight_of(p, row) : 0;
        for (int t = 0; t < targets; ++t) {
          double sum = 0;
          for (int64_t j = lane; j < p.d && v != 0; j += kWarp)
            sum += (element(p, row, j) - pass.center[j]) * pass.w[(target + t) * p.d + j];
          sum = sum_lanes(sum, 1, kWarp);
          if (lane == 0) {
            double residual = 0;
            if (v != 0)
              residual =
                  sum + pass.offset[target + t] - (element(p, row, p.d + target + t) - pass.center[p.d + target + t]);
            slopes[0][r][t] = v * residual;
            slopes[1][r][t] = v * residual * residual;
          }
        }
      }
      sync_block();  // the slopes are there
      for (int64_t e = thread_index(); e < targets * width; e += kMomentThreads) {
        const int64_t t = e / width, column = e % width;
        double sum = 0;
        for (int r = 0; r < kStageRows && first + r < end; ++r) {
          const double slope = slopes[column > p.d][r][t];
          if (slope != 0) sum += column < p.d ? slope * (element(p, first + r, column) - pass.center[column]) : slope;
        }
        store_cg(line + target * width + e, load_cg(line + target * width + e) + sum);
      }
    }
  sync_block();  // the flag takes the place of the slopes
  if (!reduce_blocks(pass.lines, count, count, pass.counters, static_cast<int*>(shared_memory()))) return;
  for (int64_t e = thread_index(); e < count; e += kMomentThreads) pass.sums[e] = load_cg(pass.lines + e);
}

namespace {

constexpr int64_t kLinesBytes = 64 << 20;  // of a launch's units, unless one has more
constexpr int64_t kUnitRows = 1024;        // at least, of a chunk
constexpr int kBlocksOfMultiprocessor = 4;
constexpr int64_t kMostBlocks = kCounters * kCounters / 4;  // of a gradient: teams of √blocks have a counter each

const char* pass_for(const MomentRows& p, int64_t groups, MomentPass& pass) {
  Limits device;
  if (const char* error = limits(device)) return error;
  const int64_t m = p.d + p.k, side = ceil_div(m + 1, kTile);
  pass.rows = p;
  pass.line = 2 + (m + 1) + (m + 1) * (m + 1);
  pass.tiles = int(side * (side + 1) / 2);
  const int64_t fitting = kLinesBytes / (pass.line * int64_t(sizeof(double)));
  const int64_t blocks = int64_t(device.multiprocessors) * kBlocksOfMultiprocessor;
  int64_t units = p.offsets ? groups : blocks / pass.tiles;
  if (!p.offsets && units > ceil_div(p.n, kUnitRows)) units = ceil_div(p.n, kUnitRows);
  units = units < fitting ? units : fitting;
  pass.units = units > 1 ? units : 1;
  pass.unit_rows = ceil_div(p.n, pass.units);
  return nullptr;
}

int64_t gradient_blocks(const MomentRows& p, const Limits& device) {
  const int64_t wanted = ceil_div(p.n, 4 * kStageRows), most = device.multiprocessors * kBlocksOfMultiprocessor;
  const int64_t blocks = wanted < most ? wanted : most;
  return blocks < 1 ? 1 : blocks < kMostBlocks ? blocks : kMostBlocks;
}

}  // namespace

const char* moments_workspace(const MomentRows& rows, int64_t groups, size_t& bytes) {
  MomentPass pass;
  const char* const error = pass_for(rows, groups, pass);
  bytes = size_t(pass.units * pass.line) * sizeof(double);
  return error;
}

const char* add_moments(const MomentRows& rows, const Moments& to, void* workspace, void* stream) {
  if (rows.n == 0) return nullptr;
  MomentPass pass;
  if (const char* error = pass_for(rows, to.groups, pass)) return error;
  pass.to = to;
  pass.lines = static_cast<double*>(workspace);
  const int64_t m = rows.d + rows.k, all = rows.offsets ? to.groups : pass.units, at_once = pass.units;
  for (; pass.first < all; pass.first += at_once) {
    if (pass.units > all - pass.first) pass.units = all - pass.first;
    const auto with = [&](int64_t blocks, int shared) { return Launch{int(blocks), kMomentThreads, shared, stream}; };
    if (const char* error = launch(moments_kernel, with(pass.units * pass.tiles, int(sizeof(Stage))), pass))
      return error;
    const int64_t groups = rows.offsets ? pass.units : 1;
    const int parts = groups > 1 ? 1 : int(ceil_div(m * m, kMomentThreads));
    if (const char* error = launch(merge_kernel, with(groups * parts, 0), pass, false, parts)) return error;
    if (const char* error = launch(merge_kernel, with(groups, 0), pass, true, 1)) return error;
  }
  return nullptr;
}

const char* residual_moments_workspace(const MomentRows& rows, size_t& bytes) {
  Limits device;
  const char* const error = limits(device);
  bytes = size_t(gradient_blocks(rows, device) * rows.k * (rows.d + 2)) * sizeof(double);
  return error;
}

const char* residual_moments(const MomentRows& rows, const double* w, const double* offset, const double* center,
                             double* sums, void* workspace, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  GradientPass pass{rows, w, offset, center, sums, static_cast<double*>(workspace)};
  const int64_t blocks = gradient_blocks(rows, device);
  pass.block_rows = ceil_div(ceil_div(rows.n, blocks), kStageRows) * kStageRows;
  if (const char* error = counters(stream, pass.counters)) return error;
  const int shared_bytes = 2 * kStageRows * kTargetsOfStage * int(sizeof(double));
  return launch(gradient_kernel, {int(blocks), kMomentThreads, shared_bytes, stream}, pass);
}

}  // namespace linreg::cuda
