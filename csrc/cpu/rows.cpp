// SPDX-License-Identifier: BSD-3-Clause
// A thread's part of a pass: each group of rows goes from predictions to gradient sums while it is in cache. The loops
// are in tiles.h (both products), columns.h (the same for few features) and residuals.h (losses and their derivatives).
//
// float32 and 16-bit rows are computed in float32, float64 rows in float64. Rows that are not whole vectors of that
// type are first packed and padded with zeros, so that one pair of products serves all. With one target and few
// features, rows are transposed to columns instead, and lanes run along rows.
//
// Problems that share their rows take each group together, which is then read and packed once.
//
// Compiled once per instruction set, behind target.h.
#include <optional>

#include "columns.h"
#include "convert.h"
#include "residuals.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

// Rows read in parallel, for one target. An AMD EPYC then follows several pages, and reads 1 GB of [n, 128] at 0.91 of
// the bandwidth of a plain sum over it; with eight neighbouring rows, which share a page, at 0.73, and with two at
// 0.78.
constexpr int kRowsApart = 4;

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One thread's part of a pass over rows of E.
template <class E>
class Worker {
  using V = std::conditional_t<sizeof(E) == 8, Wide, Narrow>;
  using Number = NumberOf<V>;
  static constexpr int kV = lanes_of<V>;
  static constexpr int kMostTargets = kV < 8 ? kV : 8;                      // targets of X Wᵀ at a time
  static constexpr int kMostOfGradient = smaller(kLanes == 8 ? 8 : 4, kV);  // targets of Gᵀ X at a time

 public:
  // `rows` is memory for a group of rows, which workers share.
  Worker(const Problem& problem, const PassOutputs& outputs, const Plan& plan, const Scale& scale, char* scratch,
         char* rows)
      : p_(problem), outputs_(outputs), plan_(plan), scale_(scale), rows_(reinterpret_cast<Number*>(rows)) {
    const int64_t k = p_.k, line = plan.line, ldw = plan.ldw;
    const auto take = [&scratch](auto*& part, int64_t count) {
      part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(scratch);
      std::memset(scratch, 0, count * sizeof(*part));
      scratch += aligned(count * int64_t(sizeof(*part)));
    };
    take(w_, k * ldw), take(interleaved_, k * ldw), take(bias_, line), take(slopes_, line);
    take(block_sums_, k * ldw), take(predictions_, plan.group_rows * k + kV);
    take(loss_, 2 * kMaxLanes), take(slope_sums_, 2 * line), take(column_sums_, plan.columns ? p_.d * kLanes : 0);
    row_ = reinterpret_cast<Number*>(scratch);
    for (int64_t t = 0; t < k; ++t) load(at(p_.w, t), p_.w.col_stride, p_.w.dtype, p_.d, w_ + t * ldw);
    if (p_.b.data) load(at(p_.b, 0), p_.b.col_stride, p_.b.dtype, k, bias_);
    for (int64_t i = k; i < line; ++i) bias_[i] = bias_[i - k];
    for_target_sets<kMostTargets>(
        k, [&]<int T>(int64_t t) { interleave<T, V>(w_ + t * ldw, ldw, interleaved_ + t * ldw); });
  }

  // Begins the sums over the rows of a chunk. G is scaled by the power of two alone, not by the scale's rest.
  void begin(double* sums) {
    std::memset(sums, 0, Plan::sum_count(p_, outputs_) * sizeof(double));
    std::memset(loss_, 0, 2 * kMaxLanes * sizeof(double));
    std::memset(slope_sums_, 0, 2 * plan_.line * sizeof(double));
    if (plan_.columns) std::memset(column_sums_, 0, p_.d * kLanes * sizeof(double));
    unflushed_ = 0;
  }

  void end(double* sums) {
    const int64_t k = p_.k, line = plan_.line;
    flush(sums + 1 + k);
    sum_places(loss_, loss_ + kMaxLanes, kMaxLanes, 1);
    sum_places(slope_sums_, slope_sums_ + line, line, k);
    sums[0] = *loss_;
    std::memcpy(sums + 1, slope_sums_, k * sizeof(double));
    if (plan_.columns && outputs_.weight_sum)
      for (int64_t i = 0; i < p_.d * kLanes; ++i) sums[1 + k + i / kLanes] += column_sums_[i];
  }

  // A group of rows: contiguous if lanes run along rows, else whole vectors, ldx apart.
  struct Group {
    int64_t first, rows;
    const E* contiguous;
    const Number* x;
    int64_t ldx, ahead;  // how many elements to prefetch ahead
  };

  Group group(int64_t first, int64_t rows) const {
    Group found{first, rows, nullptr, nullptr, p_.x.row_stride, 0};
    if (plan_.columns) {
      found.contiguous = contiguous(first, rows);
    } else {
      found.x = as_vectors(static_cast<const E*>(at(p_.x, first)), rows, found.ldx);
      // Prefetching does not help if the gaps between rows are wider than the rows, or after packing.
      if (found.ldx <= 2 * p_.d && found.x != rows_) found.ahead = ahead_of(p_.k) / int64_t(sizeof(E));
    }
    return found;
  }

  // Adds a group, which any of the workers of the same rows has read, to the sums of T of them.
  template <int T>
  static void add(Worker* const (&workers)[T], Group group, double* const (&sums)[T]) {
    const Plan& plan = workers[0]->plan_;
    if (plan.narrow) {
      [&]<int... C>(std::integer_sequence<int, C...>) {
        const int64_t width = width_of(workers[0]->p_.d);
        ((width == (C + 1) * kV ? add_narrow<C + 1>(workers, group, sums) : void()), ...);
      }(std::make_integer_sequence<int, kNarrow>());
    }
    for (int t = 0; t < T; ++t, group.ahead = 0) {
      if (!plan.narrow) workers[t]->add(group, sums[t]);
      if (workers[t]->outputs_.input_gradient) workers[t]->write_input_gradient(group.first, group.rows);
    }
  }

 private:
  static int64_t width_of(int64_t d) { return (d + kV - 1) / kV * kV; }

  // A group of narrow rows.
  template <int C, int T>
  static void add_narrow(Worker* const (&workers)[T], const Group& group, double* const (&sums)[T]) {
    const int64_t rows = group.rows, whole = rows / kTileRows * kTileRows;
    const Number *w[T], *g[T];
    Number* predictions[T];
    double* weight_sums[T];
    for (int t = 0; t < T; ++t) {
      w[t] = workers[t]->w_, g[t] = predictions[t] = workers[t]->predictions_;
      weight_sums[t] = sums[t] + 2;
    }
    Prefetcher ahead(group.x + group.ahead);
    predict_narrow<V, C, T>(group.x, group.ldx, w, whole, predictions, ahead);
    for (int t = 0; t < T; ++t) {
      for (int64_t r = whole; r < rows; ++r)
        predict<V, 1, 1, 1>(group.x + r * group.ldx, group.ldx, 1, w[t], C * kV, predictions[t] + r, 1, ahead);
      workers[t]->residuals(group.first, rows);
    }
    if (workers[0]->outputs_.weight_sum)
      add_gradient_narrow<V, C, T>(group.x, group.ldx, g, rows, workers[0]->p_.d, weight_sums, ahead);
  }

  // A group of other rows.
  void add(const Group& group, double* sums) {
    const int64_t k = p_.k, ldx = group.ldx, ldw = plan_.ldw, width = width_of(p_.d), rows = group.rows;
    if (plan_.columns) return residuals(group.first, rows, group.contiguous);
    const Number* const x = group.x;
    Prefetcher ahead(x + group.ahead), nothing(x);
    predictions(x, ldx, rows, width, ahead, nothing);
    residuals(group.first, rows);
    if (!outputs_.weight_sum) return;
    if (unflushed_ + rows > kBlockRows) flush(sums + 1 + k);
    unflushed_ += rows;
    for_target_sets<kMostOfGradient>(k, [&]<int T>(int64_t t) __attribute__((always_inline)) {
      add_gradient<V, T>(x, ldx, predictions_ + t, k, rows, width, block_sums_ + t * ldw, ldw,
                         t == 0 ? ahead : nothing);
    });
  }

  // X Wᵀ of a group. Without AVX-512, rows that are read in parallel are far apart in the group.
  void predictions(const Number* x, int64_t ldx, int64_t rows, int64_t width, Prefetcher& ahead, Prefetcher& nothing) {
    const int64_t k = p_.k, whole = rows / kTileRows * kTileRows;
    const auto tile = [&]<int R, int M>(int64_t r, int64_t apart) __attribute__((always_inline)) {
      for_target_sets<kMostTargets>(k, [&]<int T>(int64_t t) __attribute__((always_inline)) {
        predict<V, R, T, M>(x + r * ldx, ldx, apart, interleaved_ + t * plan_.ldw, width, predictions_ + r * k + t, k,
                            t == 0 ? ahead : nothing);
      });
    };
    if (kLanes == 8) {
      for (int64_t r = 0; r < whole; r += kTileRows) tile.template operator()<kTileRows, kTileRows>(r, 1);
    } else if (k > 1) {
      const int64_t apart = whole / kTileRows;
      for (int64_t r = 0; r < apart; ++r) tile.template operator()<kTileRows, kTileRows>(r, apart);
    } else {
      const int64_t apart = whole / kRowsApart;
      for (int64_t r = 0; r < apart; r += kTileRows / kRowsApart)
        tile.template operator()<kTileRows, kRowsApart>(r, apart);
    }
    for (int64_t r = whole; r < rows; ++r) tile.template operator()<1, 1>(r, 1);
  }

  // From predictions to G, which replaces them; with few features, from contiguous rows to G and Gᵀ X.
  void residuals(int64_t first, int64_t rows, const E* x = nullptr) {
    const Piece<Number> piece{first, rows, 0, p_.k, predictions_, bias_, plan_.line, loss_, slopes_, slope_sums_};
    if (p_.k != 1) return residuals_of<V>(p_, outputs_, scale_, piece);
    with_elements<V>(p_, outputs_, scale_, piece, [&](const Number* y, const Number* v, Number* losses) {
      [&]<int... D>(std::integer_sequence<int, D...>) {
        const int64_t features = x ? p_.d : 0;
        ((features == D ? one_target<D, V>(p_, x, w_, piece, y, v, Number(scale_.power), losses, column_sums_)
                        : void()),
         ...);
      }(std::make_integer_sequence<int, kColumnsMaxD + 1>());
    });
  }

  const E* contiguous(int64_t first, int64_t rows) const {
    const E* const from = static_cast<const E*>(at(p_.x, first));
    if (p_.x.row_stride == p_.d) return from;
    E* const to = reinterpret_cast<E*>(rows_);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < p_.d; ++j) to[i * p_.d + j] = from[i * p_.x.row_stride + j];
    return to;
  }

  // The rows in place if possible, else packed.
  const Number* as_vectors(const E* x, int64_t count, int64_t& ldx) const {
    if constexpr (sizeof(E) == sizeof(Number))
      if (p_.d == width_of(p_.d)) return reinterpret_cast<const Number*>(x);
    for (int64_t r = 0; r < count; ++r, x += ldx) {
      Number* const to = rows_ + r * plan_.ldw;
      int64_t j = 0;
      for (; j + kV <= p_.d; j += kV) store_vec<V>(to + j, load_vec<V>(x + j));
      if (j < p_.d) store_vec<V>(to + j, load_first<V>(x + j, p_.d - j));
    }
    ldx = plan_.ldw;
    return rows_;
  }

  // Adds the block's sums to the chunk's and clears them.
  void flush(double* weight_sums) {
    if (!outputs_.weight_sum || plan_.columns) return;
    for (int64_t t = 0; t < p_.k; ++t) {
      add_numbers(block_sums_ + t * plan_.ldw, p_.d, weight_sums + t * p_.d);
    }
    std::memset(block_sums_, 0, p_.k * plan_.ldw * sizeof(Number));
    unflushed_ = 0;
  }

  void write_input_gradient(int64_t first, int64_t rows) {
    const Dtype dtype = gradient_dtype(p_.x.dtype);
    const Number rest = Number(scale_.rest);
    for (int64_t i = 0; i < rows * p_.k; ++i) predictions_[i] /= rest;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < plan_.ldw; j += kV) {
        V even{}, odd{};  // with AVX2, one chain over 40 targets has 1.3 times the error of MKL's products
        const auto term = [&](int64_t t) __attribute__((always_inline)) {
          return predictions_[i * p_.k + t] * load_vec<V>(w_ + t * plan_.ldw + j);
        };
        for (int64_t t = 0; t + 1 < p_.k; t += 2) even += term(t), odd += term(t + 1);
        if (p_.k % 2 != 0) even += term(p_.k - 1);
        store_vec<V>(row_ + j, even + odd);
      }
      store(row_, p_.d, dtype, element(outputs_.input_gradient, dtype, (first + i) * p_.d));
    }
  }

  const Problem& p_;
  const PassOutputs& outputs_;
  const Plan& plan_;
  const Scale scale_;
  Number *w_, *interleaved_, *bias_, *predictions_, *row_, *rows_;
  Number *slopes_, *block_sums_;               // Σ G over few rows, per place in a line; Gᵀ X of a block
  int64_t unflushed_;                          // rows in block_sums_
  double *loss_, *slope_sums_, *column_sums_;  // sums over the chunk's rows, the last per lane
};

}  // namespace

void LINREG_SET::run_rows(const Problem* problems, const Scale* scales, int64_t count, const PassOutputs& outputs,
                          const Plan& plan, char* workspace, int64_t thread, int64_t begin, int64_t end) {
  const auto run = [&]<class E>(E*) {
    char *const scratch = workspace + plan.scratch + thread * plan.scratch_stride, *const rows =
                                                                                       scratch +
                                                                                       count * plan.own_stride;
    std::optional<Worker<E>> workers[kMostTogether];
    for (int64_t i = 0; i < count; ++i)
      workers[i].emplace(problems[i], outputs, plan, scales[i], scratch + i * plan.own_stride, rows);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const auto sums = [&](int64_t i) {
        return reinterpret_cast<double*>(workspace + (i * plan.chunks + chunk) * plan.sums_stride);
      };
      const int64_t last = smaller((chunk + 1) * plan.chunk_rows, problems->n);
      for (int64_t i = 0; i < count; ++i) workers[i]->begin(sums(i));
      for (int64_t row = chunk * plan.chunk_rows; row < last; row += plan.group_rows) {
        auto group = workers[0]->group(row, smaller(plan.group_rows, last - row));
        int64_t i = 0;
        for (; i + 2 <= count; i += 2, group.ahead = 0)
          Worker<E>::template add<2>({&*workers[i], &*workers[i + 1]}, group, {sums(i), sums(i + 1)});
        if (i < count) Worker<E>::template add<1>({&*workers[i]}, group, {sums(i)});
      }
      for (int64_t i = 0; i < count; ++i) workers[i]->end(sums(i));
    }
  };
  switch (problems->x.dtype) {
    case Dtype::float32:
      return run(static_cast<float*>(nullptr));
    case Dtype::float64:
      return run(static_cast<double*>(nullptr));
    case Dtype::bfloat16:
      return run(static_cast<Bfloat16*>(nullptr));
    case Dtype::float16:
      return run(static_cast<Float16*>(nullptr));
  }
}

}  // namespace linreg::cpu
