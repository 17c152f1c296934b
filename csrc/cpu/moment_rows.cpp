// SPDX-License-Identifier: BSD-3-Clause
// The rows of least squares: Σ v z zᵀ over z = [x − shift, y − shift, 1], and Σ v r z for given coefficients; and steps
// of SGD on the moments, a problem in each lane.
//
// Rows go through in blocks of kMomentBlock, converted and shifted once, in the first- or second-level cache. A tile of
// the symmetric matrix stays in registers for a block: rows i of it in broadcasts, columns j in vectors, only j up to
// the vector that holds i. Its sums are then added to double ones, so that a chain of float additions has kMomentBlock.
//
// Compiled once per instruction set, behind target.h.
#include <utility>

#include "convert.h"
#include "tiles.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

constexpr int kTileRows = kLanes == 8 ? 8 : 4, kTileVectors = 3;  // accumulators, with operands, fill the registers

template <class C>
using VectorOf = std::conditional_t<sizeof(C) == 4, Narrow, Wide>;

// Rows of a block: root · [x − shift, y − shift, 1], then zeros up to ld. A row without weight is left out, whatever it
// holds.
template <class C, class E>
LINREG_INLINE void load_rows_of(const MomentRows& p, int64_t first, int64_t rows, const double* roots, const C* shift,
                                int64_t ld, C* block) {
  using V = VectorOf<C>;
  constexpr int kWidth = lanes_of<V>;
  const int64_t m = p.d + p.k;
  for (int64_t i = 0; i < rows; ++i) {
    C* const to = block + i * ld;
    if (roots[i] == 0) {
      for (int64_t j = 0; j < ld; ++j) to[j] = 0;
      continue;
    }
    const E* const x = static_cast<const E*>(at(p.x, first + i));
    const C root = C(roots[i]);
    const V scale = broadcast<V>(root);
    int64_t j = 0;
    if constexpr (sizeof(E) == 2 && sizeof(C) == 8) {
      load(x, 1, p.x.dtype, p.d, to);
      for (; j < p.d; ++j) to[j] = (to[j] - shift[j]) * root;
    } else {
      for (; j + kWidth <= p.d; j += kWidth)
        store_vec<V>(to + j, (load_vec<V>(x + j) - load_vec<V>(shift + j)) * scale);
      if (j < p.d) store_vec<V>(to + j, (load_first<V>(x + j, p.d - j) - load_vec<V>(shift + j)) * scale);
    }
    for (j = 0; j < p.k; ++j) to[p.d + j] = (load_one<C>(at(p.y, first + i, j), p.y.dtype) - shift[p.d + j]) * root;
    to[m] = root;
    for (j = m + 1; j < ld; ++j) to[j] = 0;
  }
}

template <class C>
void load_rows(const MomentRows& p, int64_t first, int64_t rows, const double* roots, const C* shift, int64_t ld,
               C* block) {
  switch (p.x.dtype) {
    case Dtype::float32:
      return load_rows_of<C, float>(p, first, rows, roots, shift, ld, block);
    case Dtype::bfloat16:
      return load_rows_of<C, Bfloat16>(p, first, rows, roots, shift, ld, block);
    case Dtype::float16:
      return load_rows_of<C, Float16>(p, first, rows, roots, shift, ld, block);
    case Dtype::float64:
      if constexpr (sizeof(C) == sizeof(double)) load_rows_of<C, double>(p, first, rows, roots, shift, ld, block);
  }
}

template <int kRows, int kVectors, class C>
void add_tile(const C* block, int64_t rows, int64_t ld, int64_t i, int64_t j, double* sums) {
  using V = VectorOf<C>;
  constexpr int kWidth = lanes_of<V>;
  V tile[kRows][kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const C* const z = block + r * ld;
    V right[kVectors];
#pragma GCC unroll 3
    for (int b = 0; b < kVectors; ++b) right[b] = load_vec<V>(z + j + b * kWidth);
#pragma GCC unroll 8
    for (int a = 0; a < kRows; ++a) {
      const V left = broadcast<V>(z[i + a]);
#pragma GCC unroll 3
      for (int b = 0; b < kVectors; ++b) tile[a][b] += left * right[b];
    }
  }
  for (int a = 0; a < kRows; ++a)
    for (int b = 0; b < kVectors; ++b) {
      double* const to = sums + (i + a) * ld + j + b * kWidth;
      alignas(64) C more[kWidth];
      store_vec<V>(more, tile[a][b]);
      for (int l = 0; l < kWidth; l += kLanes)
        store_vec<Wide>(to + l, load_vec<Wide>(to + l) + load_vec<Wide>(more + l));
    }
}

// Rows [i, i + kRows) of the lower triangle, in whole vectors.
template <int kRows, class C>
void add_rows(const C* block, int64_t rows, int64_t ld, int64_t i, double* sums) {
  constexpr int kWidth = lanes_of<VectorOf<C>>;
  const int64_t vectors = (i + kRows - 1) / kWidth + 1;
  int64_t b = 0;
  for (; b + kTileVectors <= vectors; b += kTileVectors)
    add_tile<kRows, kTileVectors>(block, rows, ld, i, b * kWidth, sums);
  if (vectors - b == 2) add_tile<kRows, 2>(block, rows, ld, i, b * kWidth, sums);
  if (vectors - b == 1) add_tile<kRows, 1>(block, rows, ld, i, b * kWidth, sums);
}

// Meanwhile prefetches the `bytes` of the next block.
template <class C>
void add_block(const C* block, int64_t rows, int64_t ld, int64_t m, const char* next, int64_t bytes, double* sums) {
  int64_t i = 0, byte = 0;
  for (; i + kTileRows <= m; i += kTileRows) {
    for (; byte < bytes * (i + kTileRows) / m; byte += 64) __builtin_prefetch(next + byte);
    add_rows<kTileRows>(block, rows, ld, i, sums);
  }
  if constexpr (kTileRows == 8)
    if (i + 4 <= m) add_rows<4>(block, rows, ld, i, sums), i += 4;
  if (i + 2 <= m) add_rows<2>(block, rows, ld, i, sums), i += 2;
  if (i < m) add_rows<1>(block, rows, ld, i, sums);
}

// √v of rows [first, first + rows), and the counts: how many are > 0, and Σ v. False if one is negative.
bool add_counts(const MomentRows& p, int64_t first, int64_t rows, double* roots, double* counts) {
  for (int64_t i = 0; i < rows; ++i) roots[i] = 1;
  if (p.v.data) load(at(p.v, first), p.v.row_stride, p.v.dtype, rows, roots);
  bool valid = true;
  for (int64_t i = 0; i < rows; ++i) {
    valid &= !(roots[i] < 0);
    counts[0] += roots[i] != 0;
    counts[1] += roots[i];
    roots[i] = __builtin_sqrt(roots[i]);
  }
  return valid;
}

template <class C>
bool moments_of(const MomentRows& p, int64_t begin, int64_t end, int64_t ld, C* block, double* out) {
  double *const counts = out, *const mean = out + kMomentCounts, *const sums = mean + ld;
  const int64_t m = p.d + p.k;
  for (int64_t j = 0; j < kMomentCounts + ld + (m + 1) * ld; ++j) out[j] = 0;
  C* const shift = block + kMomentBlock * ld;
  for (int64_t j = 0; j < ld; ++j) shift[j] = 0;
  double roots[kMomentBlock];
  bool valid = true;
  for (int64_t first = begin; first < end; first += kMomentBlock) {
    const int64_t rows = end - first < kMomentBlock ? end - first : kMomentBlock;
    valid &= add_counts(p, first, rows, roots, counts);
    if (first == begin) {  // the mean of the first block: near enough to the chunk's that little cancels
      double used[kMomentBlock], count = 0;
      for (int64_t i = 0; i < rows; ++i) used[i] = roots[i] != 0;
      load_rows(p, first, rows, used, shift, ld, block);
      for (int64_t i = 0; i < rows; ++i) {
        count += used[i];
        for (int64_t j = 0; used[i] != 0 && j < m; ++j) mean[j] += (double(block[i * ld + j]) - mean[j]) / count;
      }
      for (int64_t j = 0; j < m; ++j) shift[j] = C(mean[j]);
    }
    load_rows(p, first, rows, roots, shift, ld, block);
    const int64_t next_bytes =
        p.x.row_stride <= 2 * p.d ? kMomentBlock * p.x.row_stride * int64_t(size_of(p.x.dtype)) : 0;
    add_block(block, rows, ld, m + 1, static_cast<const char*>(at(p.x, first + rows)), next_bytes, sums);
  }
  const double* const totals = sums + m * ld;  // Σ v z
  for (int64_t i = 0; i < m && counts[1] != 0; ++i) {
    for (int64_t j = 0; j <= i; ++j) sums[i * ld + j] -= totals[i] * totals[j] / counts[1];
    mean[i] = double(shift[i]) + totals[i] / counts[1];
  }
  return valid;
}

// For each target Σ v r z and Σ v r², [k, ld + kLanes], where r = w z and w is [k, ld].
void gradient(const MomentRows& p, const double* w, const double* center, int64_t begin, int64_t end, int64_t ld,
              double* block, double* out) {
  const int64_t width = ld + kMomentCounts;
  for (int64_t j = 0; j < p.k * width; ++j) out[j] = 0;
  double roots[kMomentBlock] = {}, used[kMomentBlock], counts[2];
  for (int64_t first = begin; first < end; first += kLanes) {
    const int64_t rows = end - first < kLanes ? end - first : kLanes;
    add_counts(p, first, rows, roots, counts);
    for (int64_t i = 0; i < rows; ++i) used[i] = roots[i] != 0;
    load_rows(p, first, rows, used, center, ld, block);
    for (int64_t i = rows; i < kLanes; ++i)  // residuals of 0
      for (int64_t j = 0; j < ld; ++j) block[i * ld + j] = 0;
    for (int64_t t = 0; t < p.k; ++t) {
      double* const sums = out + t * width;
      Wide dots[kLanes] = {};
      for (int64_t j = 0; j < ld; j += kLanes) {
        const Wide weights = load_vec<Wide>(w + t * ld + j);
#pragma GCC unroll 8
        for (int i = 0; i < kLanes; ++i) dots[i] += load_vec<Wide>(block + i * ld + j) * weights;
      }
      fold<1, kLanes, kLanes>(dots);
      const Wide r = dots[0], root = load_vec<Wide>(roots), slopes = r * root * root;
      store_vec<Wide>(sums + ld, load_vec<Wide>(sums + ld) + slopes * r);
      for (int64_t j = 0; j < ld; j += kLanes) {
        Wide sum = load_vec<Wide>(sums + j);
#pragma GCC unroll 8
        for (int i = 0; i < kLanes; ++i) sum += broadcast<Wide>(slopes[i]) * load_vec<Wide>(block + i * ld + j);
        store_vec<Wide>(sums + j, sum);
      }
    }
  }
}

// Transposes a square: lane j of v[i] becomes lane i of v[j].
template <int kHalf = 1>
LINREG_INLINE void transpose(Wide (&v)[kLanes]) {
  if constexpr (kHalf < kLanes) {
    constexpr auto low = [](int i) constexpr { return i / kHalf % 2 == 0 ? i : kLanes + i - kHalf; };
    constexpr auto high = [](int i) constexpr { return i / kHalf % 2 == 0 ? i + kHalf : kLanes + i; };
    LINREG_UNROLL
    for (int i = 0; i < kLanes; ++i)
      if (i / kHalf % 2 == 0) {
        const Wide a = v[i], b = v[i + kHalf];
        v[i] = permute(a, b, low), v[i + kHalf] = permute(a, b, high);
      }
    transpose<2 * kHalf>(v);
  }
}

// Columns of a block of rows, kMomentBlock apart, less a shift. Writes whole vectors of rows and of columns: what is
// beyond the last row or column is arbitrary. Prefetches rows that follow each other: 1 GB of 16 columns took 15.3 ns a
// row, and 16.6 without (AVX2, AMD EPYC).
template <class E, class RowAt>
LINREG_INLINE void transpose_rows(const View& from, int64_t width, int64_t rows, RowAt row, bool in_sequence,
                                  const double* shift, double* columns) {
  const E* x[kLanes];
  const E* const next = static_cast<const E*>(at(from, row(0)));
  const int64_t bytes = in_sequence ? kLanes * from.row_stride * int64_t(sizeof(E)) : 0;
  const char* ahead = reinterpret_cast<const char*>(next) + ahead_of(1);
  const auto transpose_columns = [&](int64_t i, int64_t j, auto load) __attribute__((always_inline)) {
    Wide v[kLanes];
    LINREG_UNROLL
    for (int l = 0; l < kLanes; ++l) v[l] = load(x[l] + j);
    transpose(v);
    LINREG_UNROLL
    for (int c = 0; c < kLanes; ++c) store_vec<Wide>(columns + (j + c) * kMomentBlock + i, v[c] - shift[j + c]);
  };
  for (int64_t i = 0; i < rows; i += kLanes, ahead += bytes) {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(ahead + byte);
    const bool whole = in_sequence && i + kLanes <= rows;
    LINREG_UNROLL
    for (int l = 0; l < kLanes; ++l)
      x[l] = whole ? next + (i + l) * from.row_stride
                   : static_cast<const E*>(from.data) + row(i + l < rows ? i + l : rows - 1) * from.row_stride;
    int64_t j = 0;
    for (; j + kLanes <= width; j += kLanes) transpose_columns(i, j, [](const E* at) { return load_vec<Wide>(at); });
    if (j < width) transpose_columns(i, j, [left = width - j](const E* at) { return load_first<Wide>(at, left); });
  }
}

// A column of a block, less a shift.
template <class E>
LINREG_INLINE void shift_column(const E* from, int64_t rows, double shift, double* column) {
  int64_t i = 0;
  for (; i + kLanes <= rows; i += kLanes) store_vec<Wide>(column + i, load_vec<Wide>(from + i) - shift);
  if (i < rows) store_vec<Wide>(column + i, load_first<Wide>(from + i, rows - i) - shift);
}

// sums[a, b] += Σ v · left[a] · right[b], lane by lane, for A and B neighbouring columns.
template <int A, int B, bool kWeighted>
void add_pairs(const double* left, const double* right, const double* v, int64_t rows, Wide* sums, int64_t ld) {
  Wide tile[A][B];
  LINREG_UNROLL
  for (int a = 0; a < A; ++a) LINREG_UNROLL
  for (int b = 0; b < B; ++b) tile[a][b] = sums[a * ld + b];
  for (int64_t i = 0; i < rows; i += kLanes) {
    Wide scaled[A];
    LINREG_UNROLL
    for (int a = 0; a < A; ++a) {
      scaled[a] = load_vec<Wide>(left + a * kMomentBlock + i);
      if constexpr (kWeighted) scaled[a] *= load_vec<Wide>(v + i);
    }
    LINREG_UNROLL
    for (int b = 0; b < B; ++b) {
      Wide z = load_vec<Wide>(right + b * kMomentBlock + i);
#if LINREG_LANES > 2
      asm("" : "+v"(z));  // or GCC loads it again for each product
#endif
      LINREG_UNROLL
      for (int a = 0; a < A; ++a) tile[a][b] += scaled[a] * z;
    }
  }
  LINREG_UNROLL
  for (int a = 0; a < A; ++a) LINREG_UNROLL
  for (int b = 0; b < B; ++b) sums[a * ld + b] = tile[a][b];
}

// The lower triangle of the products of all columns.
template <bool kWeighted>
void add_columns_of(const double* columns, int64_t count, const double* v, int64_t rows, Wide* sums, int64_t ld) {
  const auto tile = [&]<int A, int B>(int64_t a, int64_t b) __attribute__((always_inline)) {
    add_pairs<A, B, kWeighted>(columns + a * kMomentBlock, columns + b * kMomentBlock, v, rows, sums + a * ld + b, ld);
  };
  int64_t a = 0;
  for (; a + 3 <= count; a += 3)
    for (int64_t b = 0; b <= a; b += 3) tile.template operator()<3, 3>(a, b);
  for (int64_t b = 0; a + 2 == count && b < a; b += 3) tile.template operator()<2, 3>(a, b);
  for (int64_t b = 0; a + 1 == count && b < a; b += 3) tile.template operator()<1, 3>(a, b);
  if (a + 2 == count) tile.template operator()<2, 2>(a, a);
  if (a + 1 == count) tile.template operator()<1, 1>(a, a);
}

constexpr int64_t kShiftRows = 16;  // whose mean is subtracted; up to twice as many are read once

// Rows of few columns are transposed, so that lanes run along rows: all arithmetic is in double, and reading takes the
// longest.
bool run(const MomentRows& p, const int32_t* order, int64_t first, int64_t count, int64_t ld, double* out) {
  constexpr int64_t kMost = kRunColumns + 1 + kLanes;
  const int64_t m = p.d + p.k, line = (m + kLanes) / kLanes * kLanes;
  alignas(64) double columns[kMost * kMomentBlock], v[kMomentBlock], shift[kMost] = {};
  Wide sums[(kRunColumns + 1) * kMost];  // Σ v z zᵀ, the lower triangle, where the last column is 1
  for (int64_t i = 0; i < (m + 1) * line; ++i) sums[i] = Wide{};
  double *const mean = out + kMomentCounts, *const moments = mean + ld;
  bool valid = true, shifted = false;
  int64_t used = 0;
  const Wide zero{}, one = broadcast<Wide>(1);
  for (int64_t begin = 0; begin < count; begin += kMomentBlock) {
    const int64_t rows = count - begin < kMomentBlock ? count - begin : kMomentBlock;
    const int64_t padded = (rows + kLanes - 1) / kLanes * kLanes;
    int64_t skipped = 0;
    const auto row = [&](int64_t i) { return first + (order ? order[begin + skipped + i] : begin + skipped + i); };
    const auto load_columns = [&](const View& from, int64_t j, int64_t width, int64_t rows) {
      double* const to = columns + j * kMomentBlock;
      const bool lines = width > 1 && from.col_stride == 1, in_sequence = !order && from.row_stride <= 2 * width;
      if (lines && from.dtype == Dtype::float32)
        return transpose_rows<float>(from, width, rows, row, in_sequence, shift + j, to);
      if (lines && from.dtype == Dtype::float64)
        return transpose_rows<double>(from, width, rows, row, in_sequence, shift + j, to);
      for (int64_t c = 0; c < width; ++c) {
        double* const z = to + c * kMomentBlock;
        const void* const start = at(from, row(0), c);
        const bool dense = !order && from.row_stride == 1;
        if (dense && from.dtype == Dtype::float32) {
          shift_column(static_cast<const float*>(start), rows, shift[j + c], z);
        } else if (dense && from.dtype == Dtype::float64) {
          shift_column(static_cast<const double*>(start), rows, shift[j + c], z);
        } else {
          if (order)
            for (int64_t i = 0; i < rows; ++i) z[i] = load_one<double>(at(from, row(i), c), from.dtype);
          else
            load(start, from.row_stride, from.dtype, rows, z);
          shift_column(z, rows, shift[j + c], z);
        }
      }
    };
    double weight = double(rows);
    if (begin == 0 || p.v.data || rows < kMomentBlock)
      for (int64_t i = 0; i < padded; ++i) v[i] = i < rows;
    if (p.v.data) {
      for (int64_t i = 0; order && i < rows; ++i) v[i] = load_one<double>(at(p.v, row(i)), p.v.dtype);
      if (!order) load(at(p.v, first + begin), p.v.row_stride, p.v.dtype, rows, v);
      weight = 0;
      for (int64_t i = 0; i < rows; ++i) valid &= !(v[i] < 0), used += v[i] != 0, weight += v[i];
    } else {
      used += rows;
    }
    if (weight == 0) continue;
    const auto load_block = [&](int64_t count) {
      load_columns(p.x, 0, p.d, count);
      load_columns(p.y, p.d, p.k, count);
    };
    if (!shifted) {
      // The mean of the first rows is near enough to that of all that little cancels. About a row with a weight, a
      // constant column has exactly its mean.
      while (v[skipped] == 0) ++skipped;
      const int64_t few = rows - skipped < 2 * kShiftRows ? rows - skipped : kShiftRows;
      load_block(few);
      double some = 0;
      for (int64_t i = 0; i < few; ++i) some += v[skipped + i];
      for (int64_t j = 0; j < m; ++j) {
        const double *const z = columns + j * kMomentBlock, base = z[0];
        Wide totals[1] = {};
        int64_t i = 0;
        for (; i + kLanes <= few; i += kLanes) {
          const Wide weights = load_vec<Wide>(v + skipped + i);
          totals[0] += weights == zero ? zero : weights * (load_vec<Wide>(z + i) - base);
        }
        fold<1, kLanes, 1>(totals);
        for (; i < few; ++i)
          if (v[skipped + i] != 0) totals[0][0] += v[skipped + i] * (z[i] - base);
        shift[j] = base + totals[0][0] / some;
      }
      skipped = 0, shifted = true;
      if (few < rows) load_block(rows);
      for (int64_t j = 0; j < m && few == rows; ++j)
        shift_column(columns + j * kMomentBlock, rows, shift[j], columns + j * kMomentBlock);
    } else {
      load_block(rows);
    }
    // A row without weight counts as 0, whatever it holds; without weights, those are at the end.
    const bool masked = p.v.data || rows < padded;
    const auto mask = [&](double* z) __attribute__((always_inline)) {
      for (int64_t i = p.v.data ? 0 : padded - kLanes; i < padded; i += kLanes)
        store_vec<Wide>(z + i, load_vec<Wide>(v + i) == zero ? zero : load_vec<Wide>(z + i));
    };
    for (int64_t j = 0; j < m && masked; ++j) mask(columns + j * kMomentBlock);
    for (int64_t i = 0; i < padded; i += kLanes) store_vec<Wide>(columns + m * kMomentBlock + i, one);
    if (masked) mask(columns + m * kMomentBlock);
    p.v.data ? add_columns_of<true>(columns, m + 1, v, padded, sums, line)
             : add_columns_of<false>(columns, m + 1, v, padded, sums, line);
  }
  for (int64_t a = 0; a <= m; ++a)
    for (int64_t b = 0; b <= a; b += kLanes) {
      fold<1, kLanes, kLanes>(sums + a * line + b);
      sums[a * line + b / kLanes] = sums[a * line + b];
    }
  const double *const lines = reinterpret_cast<const double*>(sums), *const totals = lines + m * line * kLanes;
  const double weight = totals[m];
  out[0] = double(used), out[1] = weight;
  for (int64_t a = 0; a < m && shifted; ++a) {
    const double apart = totals[a] / weight;
    for (int64_t b = 0; b <= a; ++b) moments[a * ld + b] = lines[a * line * kLanes + b] - apart * totals[b];
    mean[a] = shift[a] + apart;
  }
  return valid;
}

bool moments(const MomentRows& p, int64_t begin, int64_t end, int64_t ld, void* block, double* out) {
  if (p.d + p.k <= kRunColumns) return run(p, nullptr, begin, end - begin, ld, out);
  return p.single && p.x.dtype != Dtype::float64 ? moments_of(p, begin, end, ld, static_cast<float*>(block), out)
                                                 : moments_of(p, begin, end, ld, static_cast<double*>(block), out);
}

// SGD's rule for a problem in each lane.
LINREG_INLINE void update(const Sgd& sgd, bool first, Wide lr, Wide grad, Wide& value, Wide& buffer) {
  if (sgd.maximize) grad = -grad;
  if (sgd.weight_decay != 0) grad += sgd.weight_decay * value;
  if (sgd.momentum != 0) {
    buffer = first ? grad : sgd.momentum * buffer + (1 - sgd.dampening) * grad;
    grad = sgd.nesterov ? grad + sgd.momentum * buffer : buffer;
  }
  value -= lr * grad;
}

// The numbers of a target in a descent, a problem in each lane.
struct DescentLanes {
  Wide *xx, *xy, *yy, *mean, *mean_y, *weight, *bias, *buffers;
};

// Takes a step for one target and returns its loss.
template <int D>
LINREG_INLINE Wide descend_target(const Sgd& sgd, int64_t d, bool first, bool has_bias, double scale, Wide lr,
                                  const DescentLanes& to, Wide* line) {
  if constexpr (D > 0) d = D;
  Wide level = *to.bias - *to.mean_y, square = *to.yy;  // the mean residual, and the mean square about it
  LINREG_UNROLL
  for (int64_t j = 0; j < d; ++j) level += to.weight[j] * to.mean[j];
  LINREG_UNROLL
  for (int64_t i = 0; i < d; ++i) {
    Wide sum = -to.xy[i];
    LINREG_UNROLL
    for (int64_t j = 0; j < d; ++j) sum += to.weight[j] * to.xx[i * d + j];
    square += to.weight[i] * (sum - to.xy[i]);
    line[i] = scale * (sum + level * to.mean[i]);
  }
  LINREG_UNROLL
  for (int64_t i = 0; i < d; ++i) update(sgd, first, lr, line[i], to.weight[i], to.buffers[i]);
  if (has_bias) update(sgd, first, lr, scale * level, *to.bias, to.buffers[d]);
  const Wide zero{};
  return (square < zero ? zero : square) + level * level;
}

// D > 0 is d, with one target: all its numbers are in registers.
template <int D>
void descend_lanes(const Descent& p, int64_t first, double* memory) {
  const int64_t d = D > 0 ? D : p.d, k = D > 0 ? 1 : p.k, m = d + k;
  const int64_t count = p.problems - first < kLanes ? p.problems - first : kLanes;
  Wide own[D > 0 ? D * D + 6 * D + 4 : 1], *next = D > 0 ? own : reinterpret_cast<Wide*>(memory);
  const auto take = [&next](int64_t size) { return (next += size) - size; };
  Wide *const xx = take(d * d), *const xy = take(k * d), *const yy = take(k), *const mean = take(m),
              *const weight = take(k * d), *const bias = take(k), *const buffers = take(k * (d + 1)),
              *const line = take(d);
  int64_t of_lane[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) {  // the lanes beyond the last problem repeat it
    const int64_t q = of_lane[l] = first + (l < count ? l : count - 1), g = p.moments.groups == 1 ? 0 : q;
    const double *const from = p.moments.moments + g * m * m, rows = p.moments.counts[2 * g + 1];
    for (int64_t i = 0; i < d; ++i)
      for (int64_t j = 0; j < d; ++j) xx[i * d + j][l] = from[i * m + j] / rows;
    for (int64_t t = 0; t < k; ++t) {
      for (int64_t i = 0; i < d; ++i) xy[t * d + i][l] = from[(d + t) * m + i] / rows;
      yy[t][l] = from[(d + t) * m + d + t] / rows;
    }
    for (int64_t i = 0; i < m; ++i) mean[i][l] = p.moments.mean[g * m + i];
    for (int64_t i = 0; i < k * d; ++i) weight[i][l] = p.weight[q * k * d + i];
    for (int64_t t = 0; t < k; ++t) bias[t][l] = p.bias ? p.bias[q * k + t] : 0;
  }
  const double scale = 2.0 / double(k);
  const bool has_bias = p.bias;
  const auto take_steps = [&](const Sgd& sgd) __attribute__((always_inline)) {
    Wide lr{};
    for (int64_t s = 0; s < p.steps; ++s) {
      if (s == 0 || p.lr_step != 0)
        for (int l = 0; l < kLanes; ++l) lr[l] = p.lr[of_lane[l] * p.lr_problem + s * p.lr_step];
      Wide loss{};
      for (int64_t t = 0; t < k; ++t)
        loss += descend_target<D>(
            sgd, d, s == 0, has_bias, scale, lr,
            {xx, xy + t * d, yy + t, mean, mean + d + t, weight + t * d, bias + t, buffers + t * (d + 1)}, line);
      if (k > 1) loss /= double(k);
      for (int64_t l = 0; l < count; ++l) p.losses[(first + l) * p.steps + s] = loss[l];
    }
  };
  const bool is_plain = p.sgd.momentum == 0 && p.sgd.weight_decay == 0 && !p.sgd.maximize;
  D > 0 && is_plain ? take_steps({}) : take_steps(p.sgd);  // the options of a plain rule are constants
  for (int64_t l = 0; l < count; ++l) {
    for (int64_t i = 0; i < k * d; ++i) p.weight[(first + l) * k * d + i] = weight[i][l];
    for (int64_t t = 0; t < k && p.bias; ++t) p.bias[(first + l) * k + t] = bias[t][l];
  }
}

void descend(const Descent& p, int64_t first, double* memory) {
  [&]<int... D>(std::integer_sequence<int, D...>) {
    const int64_t features = p.k == 1 && p.d <= int64_t(sizeof...(D)) ? p.d : 0;
    ((features == D + 1 ? descend_lanes<D + 1>(p, first, memory) : void()), ...);
    if (features == 0) descend_lanes<0>(p, first, memory);
  }(std::make_integer_sequence<int, 4>());
}

}  // namespace

const MomentKernels LINREG_SET::moment_kernels = {moments, gradient, run, descend, kLanes};

}  // namespace linreg::cpu
