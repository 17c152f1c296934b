// SPDX-License-Identifier: BSD-3-Clause
// Least squares in one pass: centred second moments of [X | Y], in double. Here the rows are given to threads and their
// sums are merged; what a thread does with its rows is moment_rows.cpp.
//
// Deterministic: chunks depend on the sizes alone, each has its own moments, and they are merged in order. A merge adds
// the moments about each mean and those of the means, so that nothing cancels however far the data are from zero.
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "convert.h"
#include "kernels.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kChunkRows = 8192, kMostChunks = 64;
constexpr int64_t kMostNumbers = int64_t(1) << 22;  // of all chunks' moments, 32 MB, beyond eight chunks

struct Layout {
  explicit Layout(const MomentRows& p, bool gradient = false) {
    const int64_t m = p.d + p.k;
    ld = (m + 1 + 15) / 16 * 16;  // whole vectors of any type
    numbers = gradient ? p.k * (ld + kMomentCounts) : kMomentCounts + ld + (m + 1) * ld;
    const int64_t fitting = std::clamp(kMostNumbers / std::max<int64_t>(1, numbers), int64_t(8), kMostChunks);
    chunks = std::clamp((p.n + kChunkRows - 1) / kChunkRows, int64_t(1), fitting);
    threads = std::min<int64_t>(p.threads, chunks);
    block = (kMomentBlock + 1) * ld;  // with the shift, as doubles
  }
  int64_t parts() const { return chunks * numbers + threads * block; }

  int64_t ld, numbers, chunks, threads, block;
};

template <class Body>
void for_chunks(const MomentRows& p, const Layout& layout, double* workspace, const Body& body) {
  run_threaded(layout.threads, [&](int64_t thread, int64_t threads) {
    double* const block = workspace + layout.chunks * layout.numbers + thread * layout.block;
    for (int64_t c = layout.chunks * thread / threads; c < layout.chunks * (thread + 1) / threads; ++c)
      body(p.n * c / layout.chunks, p.n * (c + 1) / layout.chunks, block, workspace + c * layout.numbers);
  });
}

// Adds other moments of `m` columns, whose lower triangle has rows of `other_ld`, to those with rows of `ld`.
void merge(const double* other_counts, const double* other_mean, const double* other, int64_t other_ld, int64_t m,
           int64_t ld, double* counts, double* mean, double* moments) {
  const double weight = counts[1] + other_counts[1];
  counts[0] += other_counts[0];
  if (other_counts[1] == 0) return;
  const double share = other_counts[1] / weight, factor = counts[1] * share;
  const bool first = counts[1] == 0;
  counts[1] = weight;
  if (first) {  // as below
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j <= i; ++j) moments[i * ld + j] += other[i * other_ld + j];
    std::copy_n(other_mean, m, mean);
    return;
  }
  for (int64_t i = 0; i < m; ++i) {
    const double apart = factor * (other_mean[i] - mean[i]);
    for (int64_t j = 0; j <= i; ++j) moments[i * ld + j] += other[i * other_ld + j] + apart * (other_mean[j] - mean[j]);
  }
  for (int64_t i = 0; i < m; ++i) mean[i] += share * (other_mean[i] - mean[i]);
}

void mirror(int64_t m, double* moments) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = i + 1; j < m; ++j) moments[i * m + j] = moments[j * m + i];
}

constexpr int64_t kGroupBytes = 1 << 20;  // of all groups' moments: more do not fit in the second-level cache
constexpr int64_t kRunRows = 8;           // of a group, one after another, from which their moments are merged
constexpr int64_t kAheadRows = 16;        // the prefetch distance
constexpr int64_t kSortedRows = 1 << 22;  // rows that are sorted by group together; their indices take 16 MB

// Adds row i to group g. `row` is memory for [d + k].
void add_to_group(const MomentRows& p, int64_t i, int64_t g, const Moments& to, double* row) {
  const int64_t m = p.d + p.k;
  const double v = p.v.data ? load_one<double>(at(p.v, i), p.v.dtype) : 1.0;
  if (v == 0) return;
  load(at(p.x, i), p.x.col_stride, p.x.dtype, p.d, row);
  load(at(p.y, i), p.y.col_stride, p.y.dtype, p.k, row + p.d);
  double *const counts = to.counts + 2 * g, *const mean = to.mean + m * g, *const moments = to.moments + m * m * g;
  counts[0] += 1;
  const double before = counts[1], share = v / (counts[1] += v);
  for (int64_t a = 0; a < m; ++a) row[a] -= mean[a];
  for (int64_t a = 0; a < m; ++a) {
    const double scaled = before * share * row[a];
    for (int64_t b = 0; b <= a; ++b) moments[a * m + b] += scaled * row[b];
    mean[a] += share * row[a];
  }
}

// Adds rows of group g: [first, first + count), or rows first + order[0] … first + order[count - 1].
void add_run(const MomentRows& p, const int32_t* order, int64_t first, int64_t count, int64_t g, const Moments& to,
             double* row) {
  const int64_t m = p.d + p.k;
  if (count < kRunRows || m > kRunColumns) {
    for (int64_t i = 0; i < count; ++i) add_to_group(p, first + (order ? order[i] : i), g, to, row);
    return;
  }
  const int64_t ld = (m + 7) / 8 * 8;
  double out[kMomentCounts + (kRunColumns + 1) * (kRunColumns + 7)];
  kernels().moments->run(p, order, first, count, ld, out);
  merge(out, out + kMomentCounts, out + kMomentCounts + ld, ld, m, m, to.counts + 2 * g, to.mean + m * g,
        to.moments + m * m * g);
}

struct Indices {
  bool valid, sorted;  // all in range; the rows of each group follow each other, in the order of the groups
};
Indices look_at(const int64_t* group, int64_t rows, int64_t groups, int64_t most_threads) {
  std::atomic<bool> beyond{false}, falls{false};
  run_threaded(std::clamp<int64_t>(rows / kChunkRows, 1, most_threads), [&](int64_t thread, int64_t threads) {
    const int64_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
    bool any_beyond = false, any_falls = false;
    for (int64_t i = begin; i < end; ++i) {
      any_beyond |= uint64_t(group[i]) >= uint64_t(groups);
      any_falls |= group[i] < group[i > 0 ? i - 1 : 0];
    }
    if (any_beyond) beyond = true;
    if (any_falls) falls = true;
  });
  return {!beyond, !falls};
}

// The end of the rows of one group that begin at `first`; `likely` is the number of rows of the group before.
int64_t end_of_run(const int64_t* group, int64_t first, int64_t end, bool sorted, int64_t likely) {
  const int64_t g = group[first];
  if (!sorted) return std::find_if(group + first, group + end, [g](int64_t other) { return other != g; }) - group;
  if (likely < end - first && group[first + likely - 1] == g && group[first + likely] != g) return first + likely;
  int64_t step = 1;
  while (first + step < end && group[first + step] == g) step *= 2;
  return std::upper_bound(group + first + step / 2, group + std::min(first + step, end), g) - group;
}

// Adds each row to its group. A thread has its own groups and looks for their rows. Groups that do not fit in the cache
// are visited in order, each for all of its rows at once, in the order of the rows: 20 million rows of a million groups
// in random order take 2.6 s of one core, not 20 s.
bool add_groups(const MomentRows& p, const Moments& to) {
  const int64_t m = p.d + p.k;
  const auto [valid, sorted] = look_at(p.group, p.n, to.groups, p.threads);
  if (!valid) return false;
  const bool sort = !sorted && to.groups * (m * m + m + 2) * int64_t(sizeof(double)) > kGroupBytes && p.n >= to.groups;
  // With more groups than rows, each is mirrored when its run ends; otherwise all are, once, at the end.
  const bool many = to.groups > p.n;
  const auto mirror_group = [&](int64_t g) { mirror(m, to.moments + m * m * g); };
  run_threaded(std::min<int64_t>(p.threads, to.groups), [&](int64_t thread, int64_t threads) {
    const int64_t begin = to.groups * thread / threads, end = to.groups * (thread + 1) / threads;
    const auto is_own = [&](int64_t i) { return begin <= p.group[i] && p.group[i] < end; };
    std::unique_ptr<double[]> row(new double[m]);
    // The rows in the order of their groups, those of other threads last, and where each group's end.
    std::vector<int32_t> places, order;
    const auto place_of = [&](int64_t i) {
      return std::min(uint64_t(p.group[i]) - uint64_t(begin), uint64_t(end - begin));  // without a branch
    };
    const auto row_of = [&](int64_t g) { return std::lower_bound(p.group, p.group + p.n, g) - p.group; };
    const int64_t stop = sorted ? row_of(end) : p.n;
    for (int64_t first = sorted ? row_of(begin) : 0, last = first; first < stop; first = last) {
      last = sort ? std::min(first + kSortedRows, stop) : stop;
      if (!sort) {
        for (int64_t i = first, next = 0, count = 1; i < last; i = next) {
          const int64_t g = p.group[i];
          next = end_of_run(p.group, i, last, sorted, count);
          count = next - i;
          if (!is_own(i)) continue;
          add_run(p, nullptr, i, count, g, to, row.get());
          if (many) mirror_group(g);
        }
        continue;
      }
      places.assign(size_t(end - begin + 2), 0);
      for (int64_t i = first; i < last; ++i) ++places[place_of(i) + 1];
      for (size_t g = 1; g < places.size(); ++g) places[g] += places[g - 1];
      order.resize(size_t(last - first + kAheadRows));
      for (int64_t i = first; i < last; ++i) order[size_t(places[place_of(i)]++)] = int32_t(i - first);
      for (int64_t g = begin, k = 0; g < end; ++g) {
        const int64_t next = places[size_t(g - begin)];
        for (int64_t i = k; i < next; ++i) {
          const int64_t ahead = first + order[size_t(i + kAheadRows)];
          __builtin_prefetch(at(p.x, ahead));
          __builtin_prefetch(at(p.y, ahead));
        }
        if (next > k) add_run(p, order.data() + k, first, next - k, g, to, row.get());
        k = next;
      }
    }
    for (int64_t g = begin; g < end && !many; ++g) mirror_group(g);
  });
  return true;
}

bool has_negative_weight(const MomentRows& p) {
  bool any = false;
  for (int64_t i = 0; p.v.data && i < p.n; ++i) any |= load_one<double>(at(p.v, i), p.v.dtype) < 0;
  return any;
}

}  // namespace

size_t moments_workspace(const MomentRows& rows) {
  return rows.group ? 0 : size_t(Layout(rows).parts()) * sizeof(double);
}

bool add_moments(const MomentRows& p, const Moments& to, void* workspace) {
  if (p.n == 0) return true;
  if (p.group) return !has_negative_weight(p) && add_groups(p, to);
  const Layout layout(p);
  const int64_t m = p.d + p.k, ld = layout.ld;
  double* const chunks = static_cast<double*>(workspace);
  bool valid[kMostChunks];
  for_chunks(p, layout, chunks, [&](int64_t begin, int64_t end, double* block, double* out) {
    valid[(out - chunks) / layout.numbers] = kernels().moments->moments(p, begin, end, ld, block, out);
  });
  if (!std::all_of(valid, valid + layout.chunks, [](bool ok) { return ok; })) return false;
  for (int64_t c = 0; c < layout.chunks; ++c) {
    const double* const out = chunks + c * layout.numbers;
    merge(out, out + kMomentCounts, out + kMomentCounts + ld, ld, m, m, to.counts, to.mean, to.moments);
  }
  mirror(m, to.moments);
  return true;
}

size_t residual_moments_workspace(const MomentRows& rows) {
  const Layout layout(rows, true);
  return size_t(layout.parts() + (rows.k + 1) * layout.ld) * sizeof(double);
}

void residual_moments(const MomentRows& p, const double* w, const double* offset, const double* center, double* sums,
                      void* workspace) {
  const Layout layout(p, true);
  const int64_t m = p.d + p.k, ld = layout.ld, width = ld + kMomentCounts;
  double *const chunks = static_cast<double*>(workspace), *const shift = chunks + layout.parts();
  double* const weights = shift + ld;  // of [x − center, y − center, 1], [k, ld]
  std::fill_n(shift, (p.k + 1) * ld, 0.0);
  std::copy_n(center, m, shift);
  for (int64_t t = 0; t < p.k; ++t) {
    std::copy_n(w + t * p.d, p.d, weights + t * ld);
    weights[t * ld + p.d + t] = -1;
    weights[t * ld + m] = offset[t];
  }
  for_chunks(p, layout, chunks, [&](int64_t begin, int64_t end, double* block, double* out) {
    kernels().moments->gradient(p, weights, shift, begin, end, ld, block, out);
  });
  std::fill_n(sums, p.k * (p.d + 2), 0.0);
  for (int64_t c = 0; c < layout.chunks; ++c)
    for (int64_t t = 0; t < p.k; ++t) {
      const double* const from = chunks + c * layout.numbers + t * width;
      double* const to = sums + t * (p.d + 2);
      for (int64_t j = 0; j < p.d; ++j) to[j] += from[j];
      to[p.d] += from[m];
      for (int64_t j = 0; j < kMomentCounts; ++j) to[p.d + 1] += from[ld + j];  // a number in each lane
    }
}

namespace {

size_t lanes_bytes(const Descent& p) {
  return size_t(descent_numbers(p)) * size_t(kernels().moments->lanes) * sizeof(double);
}

int64_t descent_threads(const Descent& p) {
  const int64_t lanes = kernels().moments->lanes;
  return std::min<int64_t>(p.threads, (p.problems + lanes - 1) / lanes);
}

}  // namespace

size_t descent_workspace(const Descent& p) { return size_t(descent_threads(p)) * lanes_bytes(p); }

void descend(const Descent& p, void* workspace) {
  const int64_t lanes = kernels().moments->lanes, blocks = (p.problems + lanes - 1) / lanes;
  if (blocks == 0) return;
  run_threaded(descent_threads(p), [&](int64_t thread, int64_t threads) {
    double* const memory = reinterpret_cast<double*>(static_cast<char*>(workspace) + size_t(thread) * lanes_bytes(p));
    for (int64_t i = blocks * thread / threads; i < blocks * (thread + 1) / threads; ++i)
      kernels().moments->descend(p, i * lanes, memory);
  });
}

}  // namespace linreg::cpu
