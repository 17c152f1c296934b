// SPDX-License-Identifier: BSD-3-Clause
// One pass over the rows: prediction, residual, loss and gradient sums while the rows are in cache.
//
// Fused: X is read from memory once, n·d elements, and Y and v once, n·k; the second use of a row, for the gradient,
// finds it in cache because rows go through in groups of at most kGroupBytes. Nothing of size n is written unless a
// gradient of that size is asked for.
//
// Accuracy: sums run in the compute type (float, or double for float64 data) inside a block of kBlockRows rows and in
// double across blocks.
//
// Deterministic: the rows are cut into chunks by the problem's sizes alone. A chunk has its own sums, a thread takes
// whole chunks, and the chunks' sums are added in their order.
#include "pass.h"

#include <algorithm>

#include "../math/loss.h"
#include "convert.h"
#include "threads.h"
#include "vector.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kBlockRows = 64;            // rows whose gradients are summed in the compute type
constexpr int64_t kGroupBytes = 16 << 10;     // of X between its two uses: a third of a 48 KB first-level cache
constexpr int64_t kWideGroupBytes = 512 << 10;  // the same for rows so wide that kGroupBytes holds few of them
constexpr int64_t kGroupResiduals = 16384;    // residuals of a group
constexpr int64_t kColumnsMaxD = 8;           // up to here lanes run along rows, not along features
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kSumsBytes = 4 << 20;       // of all chunks' sums; wider problems still get kMinChunks
constexpr int64_t kMinChunks = 4;
constexpr int64_t kChunkElements = 1 << 15;   // fewer elements of work than this do not pay for waking a thread
constexpr int64_t kAlign = 64;                // a cache line, so that threads do not write to each other's

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

// How a problem is cut up, and where in the workspace its parts lie. All of it follows from the problem and the wishes.
template <class C>
struct Plan {
  int64_t group_rows, chunk_rows, chunks, threads;
  bool columns, convert_x, convert_w;
  int64_t sums_stride, weights, biases, scratch, scratch_stride;                      // bytes
  int64_t gradient, rows, predictions, residuals, losses, targets, weighted;          // bytes within a scratch
  int64_t bytes;

  Plan(const Problem& p, const PassOutputs& outputs) {
    constexpr Dtype compute = sizeof(C) == 8 ? Dtype::float64 : Dtype::float32;
    const int64_t row_bytes = std::max<int64_t>(1, p.d * int64_t(sizeof(C)));
    const int64_t by_cache = std::max(kGroupBytes / row_bytes, std::min<int64_t>(8, kWideGroupBytes / row_bytes));
    const int64_t by_targets = kGroupResiduals / std::max<int64_t>(1, p.k);
    group_rows = std::clamp<int64_t>(std::min(by_cache, by_targets), 1, kBlockRows);
    columns = p.d <= kColumnsMaxD;
    if (columns) group_rows = kBlockRows;
    convert_x = p.x.dtype != compute || columns;
    convert_w = p.w.dtype != compute;

    const int64_t sums = aligned((1 + p.k + (outputs.weight_sum ? p.k * p.d : 0)) * int64_t(sizeof(double)));
    const int64_t by_memory = std::max(kMinChunks, kSumsBytes / sums);
    const int64_t work = p.n * std::max<int64_t>(1, p.k * p.d);
    const int64_t wanted = std::clamp<int64_t>(work / kChunkElements, 1, std::min(kMaxChunks, by_memory));
    chunk_rows = std::max<int64_t>(1, ceil_div(ceil_div(p.n, wanted), kBlockRows)) * kBlockRows;
    chunks = std::max<int64_t>(1, ceil_div(p.n, chunk_rows));
    threads = std::min<int64_t>(std::max(1, p.threads), chunks);

    int64_t end = 0;
    const auto take = [&end](int64_t bytes) {
      const int64_t begin = end;
      end += aligned(bytes);
      return begin;
    };
    const int64_t c = sizeof(C), lanes = columns ? kLanes<C> : 1, group_k = group_rows * p.k;
    gradient = take(outputs.weight_sum ? p.k * p.d * lanes * c : 0);
    rows = take(convert_x || outputs.input_gradient ? group_rows * std::max<int64_t>(p.d, 1) * c : 0);
    predictions = take(group_k * c);
    residuals = take(group_k * c);
    losses = take(group_k * c);
    targets = take(group_k * c);
    weighted = take(p.v.data ? group_k * c : 0);
    scratch_stride = end;

    end = 0;
    sums_stride = sums;
    take(chunks * sums);
    weights = take(convert_w ? p.k * p.d * c : 0);
    biases = take(p.k * c);
    scratch = take(threads * scratch_stride);
    bytes = end;
  }
};

// --- Products of a group of rows with the weights ---------------------------------------------------------------------

// p[r, t] = x[r] · w[t] for R rows and T targets; R T chains of additions in flight hide their latency.
template <class C, int R, int T>
inline __attribute__((always_inline)) void dots(const C* x, int64_t ldx, const C* w, int64_t ldw, int64_t d, C* p, int64_t k) {
  Vec<C> sums[R][T] = {};
  int64_t j = 0;
  for (; j + kLanes<C> <= d; j += kLanes<C>) {
    Vec<C> wj[T];
    for (int t = 0; t < T; ++t) wj[t] = load_vec(w + t * ldw + j);
    for (int r = 0; r < R; ++r) {
      const Vec<C> xj = load_vec(x + r * ldx + j);
      for (int t = 0; t < T; ++t) sums[r][t] += xj * wj[t];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) {
      C tail = 0;
      for (int64_t i = j; i < d; ++i) tail += x[r * ldx + i] * w[t * ldw + i];
      p[r * k + t] = sum_lanes<C>(sums[r][t]) + tail;
    }
}

// Sums R terms in pairs.
template <int R, class Term>
inline __attribute__((always_inline)) auto pairwise(Term term, int first = 0) {
  if constexpr (R == 1) {
    return term(first);
  } else {
    const auto left = pairwise<R / 2>(term, first);
    return left + pairwise<R - R / 2>(term, first + R / 2);
  }
}

// dw[t] += Σ_r g[r, t] x[r] for R rows and T targets.
template <class C, int R, int T>
inline __attribute__((always_inline)) void add_rows(const C* x, int64_t ldx, const C* g, int64_t k, int64_t d, C* dw) {
  int64_t j = 0;
  for (; j + kLanes<C> <= d; j += kLanes<C>) {
    Vec<C> xj[R];
    for (int r = 0; r < R; ++r) xj[r] = load_vec(x + r * ldx + j);
    for (int t = 0; t < T; ++t) {
      const Vec<C> sum = pairwise<R>([&](int r) __attribute__((always_inline)) { return xj[r] * g[r * k + t]; });
      store_vec(dw + t * d + j, load_vec(dw + t * d + j) + sum);
    }
  }
  for (; j < d; ++j)
    for (int t = 0; t < T; ++t)
      dw[t * d + j] += pairwise<R>([&](int r) __attribute__((always_inline)) { return x[r * ldx + j] * g[r * k + t]; });
}

// Calls tile(first row, first target, rows, targets) over a group: 8 rows at a time for one target, 4 by 2 for several.
template <class Tile>
inline void for_tiles(int64_t rows, int64_t k, Tile tile) {
  using std::integral_constant;
  const integral_constant<int, 1> one;
  const integral_constant<int, 2> two;
  const integral_constant<int, 4> four;
  const integral_constant<int, 8> eight;
  int64_t t = 0;
  for (; t + 2 <= k; t += 2) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) tile(r, t, four, two);
    for (; r < rows; ++r) tile(r, t, one, two);
  }
  if (t < k) {
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8) tile(r, t, eight, one);
    for (; r < rows; ++r) tile(r, t, one, one);
  }
}

// --- Residuals of a group --------------------------------------------------------------------------------------------

template <class C, Loss kLoss>
void losses_and_slopes(const C* __restrict__ residuals, int64_t count, C delta, C* __restrict__ losses, C* __restrict__ slopes) {
  for (int64_t i = 0; i < count; ++i) {
    losses[i] = loss_value<kLoss>(residuals[i], delta);
    slopes[i] = loss_slope<kLoss>(residuals[i], delta);
  }
}

template <class C>
void losses_and_slopes(Loss loss, const C* residuals, int64_t count, C delta, C* losses, C* slopes) {
  switch (loss) {
    case Loss::mse: return losses_and_slopes<C, Loss::mse>(residuals, count, delta, losses, slopes);
    case Loss::l1: return losses_and_slopes<C, Loss::l1>(residuals, count, delta, losses, slopes);
    case Loss::huber: return losses_and_slopes<C, Loss::huber>(residuals, count, delta, losses, slopes);
    case Loss::smooth_l1: return losses_and_slopes<C, Loss::smooth_l1>(residuals, count, delta, losses, slopes);
  }
}

template <class C>
double sum_in_double(const C* values, int64_t count) {
  double lanes[4] = {};  // four chains, so that an addition need not wait for the one before it
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    for (int lane = 0; lane < 4; ++lane) lanes[lane] += double(values[i + lane]);
  for (; i < count; ++i) lanes[i & 3] += double(values[i]);
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// to[i, j] = from(first + i, j), converted.
template <class C>
void load_block(const View& from, int64_t first, int64_t rows, int64_t columns, C* to) {
  if (columns == 1) return load(at(from, first), from.row_stride, from.dtype, rows, to);
  for (int64_t i = 0; i < rows; ++i) load(at(from, first + i), from.col_stride, from.dtype, columns, to + i * columns);
}

// --- A chunk ---------------------------------------------------------------------------------------------------------

template <class C>
class Worker {
 public:
  Worker(const Problem& problem, const PassOutputs& outputs, const Plan<C>& plan, double scale, char* workspace, int64_t thread)
      : p_(problem), outputs_(outputs), plan_(plan), scale_(C(scale)), loss_(effective_loss(problem.loss, problem.delta)) {
    char* scratch = workspace + plan.scratch + thread * plan.scratch_stride;
    const auto part = [scratch](int64_t offset) { return reinterpret_cast<C*>(scratch + offset); };
    gradient_ = part(plan.gradient), rows_ = part(plan.rows), predictions_ = part(plan.predictions);
    residuals_ = part(plan.residuals), losses_ = part(plan.losses), targets_ = part(plan.targets);
    weighted_ = part(plan.weighted);
    w_ = plan.convert_w ? reinterpret_cast<const C*>(workspace + plan.weights) : static_cast<const C*>(problem.w.data);
    ldw_ = plan.convert_w ? problem.d : problem.w.row_stride;
    b_ = reinterpret_cast<const C*>(workspace + plan.biases);
  }

  // Adds rows [begin, end) to sums: the loss, then Σ G [k], then Gᵀ X [k, d].
  void run(int64_t begin, int64_t end, double* sums) {
    const int64_t lanes = plan_.columns ? kLanes<C> : 1, size = p_.k * p_.d;
    double* bias_sums = sums + 1;
    double* weight_sums = sums + 1 + p_.k;
    std::fill_n(sums, 1 + p_.k + (outputs_.weight_sum ? size : 0), 0.0);
    for (int64_t block = begin; block < end; block += kBlockRows) {
      const int64_t block_end = std::min(block + kBlockRows, end);
      if (outputs_.weight_sum) std::fill_n(gradient_, size * lanes, C(0));
      for (int64_t row = block; row < block_end; row += plan_.group_rows)
        group(row, std::min(plan_.group_rows, block_end - row), sums, bias_sums);
      if (!outputs_.weight_sum) continue;
      if (plan_.columns) {
        for (int64_t i = 0; i < size; ++i) weight_sums[i] += double(sum_lanes<C>(load_vec(gradient_ + i * lanes)));
      } else {
        for (int64_t i = 0; i < size; ++i) weight_sums[i] += double(gradient_[i]);
      }
    }
  }

 private:
  void group(int64_t first, int64_t rows, double* loss_sum, double* bias_sums) {
    const int64_t n_residuals = rows * p_.k;
    const C* x = static_cast<const C*>(p_.x.data) + first * p_.x.row_stride;
    int64_t ldx = p_.x.row_stride;
    if (plan_.columns) {
      load_columns(first, rows);
      predict_columns();
    } else {
      if (plan_.convert_x) {
        load_block(p_.x, first, rows, p_.d, rows_);
        x = rows_, ldx = p_.d;
      }
      for_tiles(rows, p_.k, [&](int64_t r, int64_t t, auto R, auto T) __attribute__((always_inline)) {
        dots<C, R, T>(x + r * ldx, ldx, w_ + t * ldw_, ldw_, p_.d, predictions_ + r * p_.k + t, p_.k);
      });
    }

    residuals(first, rows);
    *loss_sum += sum_in_double(losses_, n_residuals);
    if (outputs_.elements)
      store(losses_, n_residuals, p_.w.dtype, element(outputs_.elements, p_.w.dtype, first * p_.k));
    const C* g = predictions_;
    if (outputs_.bias_sum) {
      if (p_.k == 1) {
        bias_sums[0] += sum_in_double(g, rows);
      } else {
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t j = 0; j < p_.k; ++j) bias_sums[j] += double(g[i * p_.k + j]);
      }
    }
    if (outputs_.weight_sum) {
      if (plan_.columns) {
        add_columns();
      } else {
        for_tiles(rows, p_.k, [&](int64_t r, int64_t t, auto R, auto T) __attribute__((always_inline)) {
          add_rows<C, R, T>(x + r * ldx, ldx, g + r * p_.k + t, p_.k, p_.d, gradient_ + t * p_.d);
        });
      }
    }
    if (outputs_.input_gradient) write_input_gradient(first, rows);
    if (outputs_.target_gradient) {
      for (int64_t i = 0; i < n_residuals; ++i) residuals_[i] = -(scale_ * g[i]);
      const Dtype dtype = gradient_dtype(p_.y.dtype);
      store(residuals_, n_residuals, dtype, element(outputs_.target_gradient, dtype, first * p_.k));
    }
  }

  // From predictions_ without bias to losses_ = v ℓ(r) and predictions_ = G = v ℓ'(r).
  void residuals(int64_t first, int64_t rows) {
    const int64_t k = p_.k, count = rows * k;
    load_block(p_.y, first, rows, k, targets_);
    // The residual is a small difference of large numbers near convergence: taken in double, rounded once.
    if (k == 1) {
      const double b = b_[0];
      for (int64_t i = 0; i < rows; ++i) residuals_[i] = C((double(predictions_[i]) + b) - double(targets_[i]));
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < k; ++j)
          residuals_[i * k + j] = C((double(predictions_[i * k + j]) + double(b_[j])) - double(targets_[i * k + j]));
    }
    losses_and_slopes(loss_, residuals_, count, C(p_.delta), losses_, predictions_);
    if (p_.v.data) {
      load_block(p_.v, first, rows, k, weighted_);
      for (int64_t i = 0; i < count; ++i) losses_[i] *= weighted_[i];
      for (int64_t i = 0; i < count; ++i) predictions_[i] *= weighted_[i];
    }
  }

  // With few features, rows_ holds a group as [d, kBlockRows], rows beyond the data as zeros, and lanes run along rows.
  void load_columns(int64_t first, int64_t rows) {
    for (int64_t j = 0; j < p_.d; ++j) {
      C* column = rows_ + j * kBlockRows;
      load(at(p_.x, first, j), p_.x.row_stride, p_.x.dtype, rows, column);
      std::fill(column + rows, column + kBlockRows, C(0));
    }
    rows_in_columns_ = rows;
  }

  void predict_columns() {
    const int64_t k = p_.k;
    for (int64_t t = 0; t < k; ++t) {
      C sums[kBlockRows] = {};
      for (int64_t j = 0; j < p_.d; ++j) {
        const C wj = w_[t * ldw_ + j];
        const C* column = rows_ + j * kBlockRows;
        for (int64_t i = 0; i < kBlockRows; ++i) sums[i] += column[i] * wj;
      }
      for (int64_t i = 0; i < rows_in_columns_; ++i) predictions_[i * k + t] = sums[i];
    }
  }

  void add_columns() {
    const int64_t k = p_.k;
    for (int64_t t = 0; t < k; ++t) {
      C g[kBlockRows] = {};
      for (int64_t i = 0; i < rows_in_columns_; ++i) g[i] = predictions_[i * k + t];
      for (int64_t j = 0; j < p_.d; ++j) {
        const C* column = rows_ + j * kBlockRows;
        C* lanes = gradient_ + (t * p_.d + j) * kLanes<C>;
        Vec<C> sum = load_vec(lanes);
        for (int64_t i = 0; i < kBlockRows; i += kLanes<C>) sum += load_vec(g + i) * load_vec(column + i);
        store_vec(lanes, sum);
      }
    }
  }

  void write_input_gradient(int64_t first, int64_t rows) {
    const int64_t d = p_.d, k = p_.k;
    const Dtype dtype = gradient_dtype(p_.x.dtype);
    for (int64_t i = 0; i < rows; ++i) {
      std::fill_n(rows_, d, C(0));  // the rows of X have been used
      for (int64_t t = 0; t < k; ++t) {
        const C g = scale_ * predictions_[i * k + t];
        const C* w = w_ + t * ldw_;
        for (int64_t j = 0; j < d; ++j) rows_[j] += g * w[j];
      }
      store(rows_, d, dtype, element(outputs_.input_gradient, dtype, (first + i) * d));
    }
  }

  static void* element(void* data, Dtype dtype, int64_t index) {
    return static_cast<char*>(data) + index * int64_t(size_of(dtype));
  }

  const Problem& p_;
  const PassOutputs& outputs_;
  const Plan<C>& plan_;
  const C scale_;
  const Loss loss_;
  C *gradient_, *rows_, *predictions_, *residuals_, *losses_, *targets_, *weighted_;
  const C *w_, *b_;
  int64_t ldw_, rows_in_columns_ = 0;
};

template <class C>
PassSums run_as(const Problem& problem, const PassOutputs& outputs, double scale, char* workspace) {
  const Plan<C> plan(problem, outputs);
  if (plan.convert_w) load_block(problem.w, 0, problem.k, problem.d, reinterpret_cast<C*>(workspace + plan.weights));
  C* biases = reinterpret_cast<C*>(workspace + plan.biases);
  std::fill_n(biases, problem.k, C(0));
  if (problem.b.data) load_block(problem.b, 0, 1, problem.k, biases);

  const auto chunk_sums = [&](int64_t chunk) { return reinterpret_cast<double*>(workspace + chunk * plan.sums_stride); };
  const auto run_chunks = [&](int64_t thread, int64_t threads) {
    Worker<C> worker(problem, outputs, plan, scale, workspace, thread);
    const int64_t end = plan.chunks * (thread + 1) / threads;
    for (int64_t chunk = plan.chunks * thread / threads; chunk < end; ++chunk)
      worker.run(chunk * plan.chunk_rows, std::min((chunk + 1) * plan.chunk_rows, problem.n), chunk_sums(chunk));
  };
  if (plan.threads == 1) {
    run_chunks(0, 1);
  } else {
    run_threaded(plan.threads, run_chunks);
  }

  double* sums = chunk_sums(0);
  const int64_t size = 1 + problem.k + (outputs.weight_sum ? problem.k * problem.d : 0);
  for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
    const double* more = chunk_sums(chunk);
    for (int64_t i = 0; i < size; ++i) sums[i] += more[i];
  }
  return {sums[0], sums + 1 + problem.k, sums + 1};
}

}  // namespace

size_t pass_workspace(const Problem& problem, const PassOutputs& outputs) {
  return size_t(problem.x.dtype == Dtype::float64 ? Plan<double>(problem, outputs).bytes
                                                  : Plan<float>(problem, outputs).bytes);
}

PassSums run_pass(const Problem& problem, const PassOutputs& outputs, double scale, void* workspace) {
  char* bytes = static_cast<char*>(workspace);
  return problem.x.dtype == Dtype::float64 ? run_as<double>(problem, outputs, scale, bytes)
                                           : run_as<float>(problem, outputs, scale, bytes);
}

double reduction_scale(const Problem& problem) {
  if (problem.reduction != Reduction::mean) return 1.0;
  if (!problem.v.data) return 1.0 / (double(problem.n) * double(problem.k));
  double total = 0;
  double row[kBlockRows];
  for (int64_t i = 0; i < problem.n; ++i)
    for (int64_t j = 0; j < problem.k; j += kBlockRows) {
      const int64_t count = std::min(kBlockRows, problem.k - j);
      load(at(problem.v, i, j), problem.v.col_stride, problem.v.dtype, count, row);
      total += sum_in_double(row, count);
    }
  return 1.0 / total;
}

}  // namespace linreg::cpu
