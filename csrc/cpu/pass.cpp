// SPDX-License-Identifier: BSD-3-Clause
// One pass over the rows: prediction, residual, loss and gradient sums while the rows are in cache.
//
// Fused: X is read from memory once, n·d elements, and Y and v once, n·k; the second use of a row, for the gradient,
// finds it in cache because rows go through in groups of few bytes. Nothing of size n is written unless asked for.
//
// Accuracy: all arithmetic is in double, whatever the data. Near convergence a residual is the small difference of
// large numbers and the gradient the small sum of large terms of both signs; in float32 their errors would be as large
// as PyTorch's and as often larger, and the products are waiting for memory anyway.
//
// Deterministic: the rows are cut into chunks by the problem's sizes alone. A chunk has its own sums, a thread takes
// whole chunks, and the chunks' sums are added in their order.
#include "pass.h"

#include <algorithm>

#include "convert.h"
#include "residuals.h"
#include "threads.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

constexpr int64_t kGroupRows = 64;              // at most, between the two uses of a row
constexpr int64_t kGroupBytes = 16 << 10;       // of X in a group: with w and dw, a 32 KB first-level cache
constexpr int64_t kWideGroupBytes = 512 << 10;  // the same for 8 rows so wide that they need the second level
constexpr int64_t kGroupResiduals = 16384;      // residuals of a group: 128 KB each of four arrays
constexpr int64_t kColumnsMaxD = 8;             // up to here lanes run along rows, not along features
constexpr int64_t kMaxChunks = 64;
constexpr int64_t kSumsBytes = 4 << 20;         // of all chunks' sums; wider problems still get kMinChunks
constexpr int64_t kMinChunks = 4;
constexpr int64_t kChunkElements = 1 << 15;     // less work than this does not pay for waking a thread
constexpr int64_t kAlign = 64;                  // a cache line, so that threads do not write to each other's

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t aligned(int64_t bytes) { return ceil_div(bytes, kAlign) * kAlign; }

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
    const int64_t by_cache = std::max(kGroupBytes / row_bytes, std::min<int64_t>(8, kWideGroupBytes / row_bytes));
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
    lanes = take(columns && outputs.weight_sum ? p.k * p.d * kLanes : 0, sizeof(double));
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

// to[i, j] = from(first + i, j), converted.
template <class C>
void load_block(const View& from, int64_t first, int64_t rows, int64_t columns, C* to) {
  if (columns == 1) return load(at(from, first), from.row_stride, from.dtype, rows, to);
  for (int64_t i = 0; i < rows; ++i) load(at(from, first + i), from.col_stride, from.dtype, columns, to + i * columns);
}

void* element(void* data, Dtype dtype, int64_t index) {
  return static_cast<char*>(data) + index * int64_t(size_of(dtype));
}

// One thread's part of a pass. S is what the rows are read as: double for float64, else float.
template <class S>
class Worker {
 public:
  Worker(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale, char* workspace, int64_t thread)
      : p_(problem), outputs_(outputs), plan_(plan), scale_(scale) {
    char* scratch = workspace + plan.scratch + thread * plan.scratch_stride;
    const auto part = [scratch](int64_t offset) { return reinterpret_cast<double*>(scratch + offset); };
    rows_ = part(plan.rows), slopes_ = part(plan.slopes), residuals_ = part(plan.residuals);
    losses_ = part(plan.losses), targets_ = part(plan.targets), weighted_ = part(plan.weighted);
    lanes_ = part(plan.lanes);
    w_ = reinterpret_cast<const double*>(workspace + plan.weights);
    b_ = reinterpret_cast<const double*>(workspace + plan.biases);
  }

  // Writes the sums over rows [begin, end).
  void run(int64_t begin, int64_t end, double* sums) {
    loss_sum_ = sums, bias_sums_ = sums + 1, weight_sums_ = sums + 1 + p_.k;
    std::fill_n(sums, Plan::sum_count(p_, outputs_), 0.0);
    const bool by_lanes = plan_.columns && outputs_.weight_sum;
    if (by_lanes) std::fill_n(lanes_, p_.k * p_.d * kLanes, 0.0);
    for (int64_t row = begin; row < end; row += plan_.group_rows) group(row, std::min(plan_.group_rows, end - row));
    if (by_lanes)
      for (int64_t i = 0; i < p_.k * p_.d; ++i) weight_sums_[i] = sum_lanes(load_vec(lanes_ + i * kLanes));
  }

 private:
  void group(int64_t first, int64_t rows) {
    if (plan_.columns) {
      load_columns(first, rows);
      predict_columns(rows);
      residuals(first, rows);
      if (outputs_.weight_sum) add_columns(rows);
    } else {
      const S* x = static_cast<const S*>(at(p_.x, first));
      int64_t ldx = p_.x.row_stride;
      if (plan_.widen) {
        S* widened = reinterpret_cast<S*>(rows_);
        load_block(p_.x, first, rows, p_.d, widened);
        x = widened, ldx = p_.d;
      }
      for_tiles(rows, p_.k, [&](int64_t r, int64_t t, auto R, auto T) __attribute__((always_inline)) {
        dots<S, R, T>(x + r * ldx, ldx, w_ + t * p_.d, p_.d, residuals_ + r * p_.k + t, p_.k);
      });
      residuals(first, rows);
      if (outputs_.weight_sum)
        for_tiles(rows, p_.k, [&](int64_t r, int64_t t, auto R, auto T) __attribute__((always_inline)) {
          add_rows<S, R, T>(x + r * ldx, ldx, slopes_ + r * p_.k + t, p_.k, p_.d, weight_sums_ + t * p_.d);
        });
    }
    if (outputs_.elements)
      store(losses_, rows * p_.k, p_.w.dtype, element(outputs_.elements, p_.w.dtype, first * p_.k));
    if (outputs_.target_gradient) write_target_gradient(first, rows);
    if (outputs_.input_gradient) write_input_gradient(first, rows);
  }

  // From residuals_ = X Wᵀ to losses_ = v ℓ(R) and slopes_ = G = v ℓ'(R), and their sums.
  void residuals(int64_t first, int64_t rows) {
    const int64_t k = p_.k, count = rows * k;
    load_block(p_.y, first, rows, k, targets_);
    if (k == 1) {
      for (int64_t i = 0; i < rows; ++i) residuals_[i] = (residuals_[i] + b_[0]) - targets_[i];
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < k; ++j) residuals_[i * k + j] = (residuals_[i * k + j] + b_[j]) - targets_[i * k + j];
    }
    losses_and_slopes(p_.loss, residuals_, count, p_.delta, losses_, slopes_);
    if (p_.v.data) {
      load_block(p_.v, first, rows, k, weighted_);
      for (int64_t i = 0; i < count; ++i) losses_[i] *= weighted_[i];
      for (int64_t i = 0; i < count; ++i) slopes_[i] *= weighted_[i];
    }
    *loss_sum_ += sum(losses_, count);
    if (!outputs_.bias_sum) return;
    if (k == 1) {
      bias_sums_[0] += sum(slopes_, rows);
    } else {
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < k; ++j) bias_sums_[j] += slopes_[i * k + j];
    }
  }

  // With few features rows_ holds a group as [d, kGroupRows], zeros beyond the data.
  void load_columns(int64_t first, int64_t rows) {
    for (int64_t j = 0; j < p_.d; ++j) {
      double* column = rows_ + j * kGroupRows;
      load(at(p_.x, first, j), p_.x.row_stride, p_.x.dtype, rows, column);
      std::fill(column + rows, column + kGroupRows, 0.0);
    }
  }

  void predict_columns(int64_t rows) {
    for (int64_t t = 0; t < p_.k; ++t) {
      double sums[kGroupRows] = {};
      for (int64_t j = 0; j < p_.d; ++j) {
        const double w = w_[t * p_.d + j];
        const double* column = rows_ + j * kGroupRows;
        for (int64_t i = 0; i < kGroupRows; ++i) sums[i] += column[i] * w;
      }
      for (int64_t i = 0; i < rows; ++i) residuals_[i * p_.k + t] = sums[i];
    }
  }

  void add_columns(int64_t rows) {
    for (int64_t t = 0; t < p_.k; ++t) {
      double g[kGroupRows] = {};
      for (int64_t i = 0; i < rows; ++i) g[i] = slopes_[i * p_.k + t];
      for (int64_t j = 0; j < p_.d; ++j) {
        double* lanes = lanes_ + (t * p_.d + j) * kLanes;
        Vec sum = load_vec(lanes);
        for (int64_t i = 0; i < kGroupRows; i += kLanes) sum += load_vec(g + i) * load_vec(rows_ + j * kGroupRows + i);
        store_vec(lanes, sum);
      }
    }
  }

  void write_target_gradient(int64_t first, int64_t rows) {
    const int64_t count = rows * p_.k;
    const Dtype dtype = gradient_dtype(p_.y.dtype);
    for (int64_t i = 0; i < count; ++i) residuals_[i] = -(scale_ * slopes_[i]);
    store(residuals_, count, dtype, element(outputs_.target_gradient, dtype, first * p_.k));
  }

  void write_input_gradient(int64_t first, int64_t rows) {
    const Dtype dtype = gradient_dtype(p_.x.dtype);
    for (int64_t i = 0; i < rows; ++i) {
      std::fill_n(rows_, p_.d, 0.0);  // the rows of X have been used
      for (int64_t t = 0; t < p_.k; ++t) {
        const double g = scale_ * slopes_[i * p_.k + t];
        const double* w = w_ + t * p_.d;
        for (int64_t j = 0; j < p_.d; ++j) rows_[j] += g * w[j];
      }
      store(rows_, p_.d, dtype, element(outputs_.input_gradient, dtype, (first + i) * p_.d));
    }
  }

  const Problem& p_;
  const PassOutputs& outputs_;
  const Plan& plan_;
  const double scale_;
  double *rows_, *slopes_, *residuals_, *losses_, *targets_, *weighted_, *lanes_;
  double *loss_sum_, *bias_sums_, *weight_sums_;
  const double *w_, *b_;
};

template <class S>
void run_chunks(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale, char* workspace) {
  run_threaded(plan.threads, [&](int64_t thread, int64_t threads) {
    Worker<S> worker(problem, outputs, plan, scale, workspace, thread);
    const int64_t end = plan.chunks * (thread + 1) / threads;
    for (int64_t chunk = plan.chunks * thread / threads; chunk < end; ++chunk)
      worker.run(chunk * plan.chunk_rows, std::min((chunk + 1) * plan.chunk_rows, problem.n),
                 reinterpret_cast<double*>(workspace + chunk * plan.sums_stride));
  });
}

}  // namespace

size_t pass_workspace(const Problem& problem, const PassOutputs& outputs) {
  return size_t(Plan(problem, outputs).bytes);
}

PassSums run_pass(const Problem& problem, const PassOutputs& outputs, double scale, void* workspace) {
  const Plan plan(problem, outputs);
  char* bytes = static_cast<char*>(workspace);
  load_block(problem.w, 0, problem.k, problem.d, reinterpret_cast<double*>(bytes + plan.weights));
  double* biases = reinterpret_cast<double*>(bytes + plan.biases);
  std::fill_n(biases, problem.k, 0.0);
  if (problem.b.data) load_block(problem.b, 0, 1, problem.k, biases);

  if (problem.x.dtype == Dtype::float64) {
    run_chunks<double>(problem, outputs, plan, scale, bytes);
  } else {
    run_chunks<float>(problem, outputs, plan, scale, bytes);
  }

  double* sums = reinterpret_cast<double*>(bytes);
  for (int64_t chunk = 1; chunk < plan.chunks; ++chunk) {
    const double* more = reinterpret_cast<const double*>(bytes + chunk * plan.sums_stride);
    for (int64_t i = 0; i < Plan::sum_count(problem, outputs); ++i) sums[i] += more[i];
  }
  return {sums[0], sums + 1 + problem.k, sums + 1};
}

double reduction_scale(const Problem& problem) {
  if (problem.reduction != Reduction::mean) return 1.0;
  if (!problem.v.data) return 1.0 / (double(problem.n) * double(problem.k));
  double total = 0;
  double part[kGroupRows];
  for (int64_t i = 0; i < problem.n; ++i)
    for (int64_t j = 0; j < problem.k; j += kGroupRows) {
      const int64_t count = std::min(kGroupRows, problem.k - j);
      load(at(problem.v, i, j), problem.v.col_stride, problem.v.dtype, count, part);
      total += sum(part, count);
    }
  return 1.0 / total;
}

}  // namespace linreg::cpu
