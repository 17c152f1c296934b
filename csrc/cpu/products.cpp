// SPDX-License-Identifier: BSD-3-Clause
// The pass over many targets: blocks of rows stay in cache for both matrix products and the residuals between them.
//
// Memory traffic: X, Y and v are read once. Predictions and G exist for one block at a time.
//
// Deterministic: the problem's sizes alone divide the rows into chunks and, if these are few, the targets into groups.
// A task is one chunk for one group. A thread takes whole tasks and multiplies alone, because a product shared among
// threads rounds differently for each number of threads. Each chunk has its own sums, added in a fixed order.
#include <algorithm>

#include "../math/sum.h"
#include "convert.h"
#include "kernels.h"
#include "pass.h"
#include "threads.h"

namespace linreg::cpu {
namespace {

// The fewest targets for which products beat the loops of rows.cpp. On 8192 × 128, products took 0.71 ms with 8
// targets, 0.83 with 16, 1.2 with 32 and 1.7 with 48. Loops two to three times slower than today's took 1.38, 2.7, 5.4
// and 8.1. Today both take the same time with 8 targets.
constexpr int64_t kManyTargets = 16;
constexpr int64_t kLeastWork = 1 << 15;  // multiplications: both take 9 µs

// The most rows of a block. On 16384 × 1024 with 64 targets and two threads, a pass takes 21.1 ms with blocks of 256 or
// 512 rows, 24.5 with 1024 and 25.3 with 2048; the two whole products alone take 22.4. Smaller blocks make the library
// pack the weights more often.
constexpr int64_t kRows = 512, kMinBlockRows = 64;
constexpr int64_t kBlockBytes = 4 << 20;  // for X and the predictions of a block

// The fewest tasks of a large problem, and so the threads that every large problem can use. With 1024 targets and
// features, half as many would save 2 %: the fewer targets a task has, the more often the library packs its rows.
constexpr int64_t kTasks = 8;
constexpr int64_t kMinChunkRows = 256, kMaxChunkRows = 2048, kMostChunks = 64;
constexpr int64_t kMinGroupTargets = 32;
constexpr int64_t kPartsBytes = 16 << 20;   // for all chunks' sums: malloc keeps this much for the next step
constexpr int64_t kTaskWork = 1 << 18;      // multiplications: less work does not pay for waking a thread
constexpr int64_t kSumsOfThread = 1 << 15;  // sums over chunks: fewer do not pay for waking a thread

// Whether a product can read a matrix in place; other matrices are packed first. The bits of MKL's products depend on
// the row stride and the alignment, so every product gets contiguous rows that begin at a cache line. On an AMD EPYC
// with AVX2, packing rows with gaps or at an offset of one number costs a step on 16384 × 1024 with 64 or 1024 targets
// at most the measurement noise, 5 %. Packing rows with gaps costs a step on 8192 × 128 with 16 targets 3 to 15 %.
bool is_packed(const View& view, Dtype dtype, int64_t columns) {
  return view.dtype == dtype && view.row_stride == columns && reinterpret_cast<uintptr_t>(view.data) % kAlign == 0;
}

// The partition of a problem and the layout of the workspace.
struct ProductPlan {
  Dtype dtype;  // of the products
  int64_t size;
  bool copy_x, copy_w;  // memory is reserved for both anyway: later batches of a run may have another alignment
  int64_t chunk_rows, chunks, group_targets, groups, block_rows, threads;
  // Offsets in bytes: first those in the workspace, then those in a thread's scratch memory.
  int64_t lines, line_stride, weight_sums, parts, part_stride, w, bias, scratch, scratch_stride, bytes;
  int64_t predictions, x, input_gradient, loss, slopes, line;

  ProductPlan(const Problem& p, const PassOutputs& outputs) {
    dtype = p.x.dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
    size = int64_t(size_of(dtype));
    copy_x = !is_packed(p.x, dtype, p.d);
    copy_w = !is_packed(p.w, dtype, p.d);

    // The input's gradient is a sum over all targets, so it does not divide them into groups.
    const int64_t by_memory =
        std::max<int64_t>(outputs.input_gradient ? kTasks / 2 : 1, kPartsBytes / (p.k * p.d * size));
    const int64_t rows = std::clamp(ceil_div(p.n, kTasks), kMinChunkRows, kMaxChunkRows);
    const int64_t wanted = std::min({ceil_div(p.n, rows), kMostChunks, by_memory});
    chunk_rows = ceil_div(ceil_div(p.n, wanted), kMinBlockRows) * kMinBlockRows;
    chunks = ceil_div(p.n, chunk_rows);
    const int64_t more = chunks >= kTasks || outputs.input_gradient ? 1 : ceil_div(kTasks, chunks);
    group_targets = std::max(kMinGroupTargets, ceil_div(p.k, more * kMinGroupTargets) * kMinGroupTargets);
    groups = ceil_div(p.k, group_targets);
    group_targets = std::min(group_targets, p.k);
    const int64_t fitting = kBlockBytes / ((p.d + group_targets) * size);
    block_rows = std::clamp(fitting / kMinBlockRows * kMinBlockRows, kMinBlockRows, kRows);
    threads = std::clamp<int64_t>(p.n * p.k * p.d / kTaskWork, 1, std::min<int64_t>(p.threads, chunks * groups));

    const int64_t most_of_line = std::max(line_of(group_targets), line_of(kLineRows - 1));
    int64_t end = 0;
    const auto take = [&end](int64_t bytes) {
      const int64_t begin = end;
      end += aligned(bytes);
      return begin;
    };
    predictions = take(block_rows * group_targets * size);
    x = take(block_rows * p.d * size);
    input_gradient = take(outputs.input_gradient ? block_rows * p.d * size : 0);
    loss = take(2 * kMaxLanes * int64_t(sizeof(double)));
    slopes = take(2 * most_of_line * int64_t(sizeof(double)));
    line = take(2 * most_of_line * size);
    scratch_stride = end;

    end = 0;
    line_stride = p.k + groups;
    lines = take(chunks * line_stride * int64_t(sizeof(double)));
    part_stride = outputs.weight_sum ? p.k * p.d : 0;
    weight_sums = take(part_stride * int64_t(sizeof(double)));
    parts = take(chunks * part_stride * size);
    w = take(p.k * p.d * size);
    bias = take(p.k * int64_t(sizeof(double)));
    scratch = take(threads * scratch_stride);
    bytes = end;
  }
};

View transposed(const View& view) { return {view.data, view.col_stride, view.row_stride, view.dtype}; }

class Products {
 public:
  Products(const Problem& problem, const PassOutputs& outputs, const Scale& scale, char* workspace)
      : p_(problem), outputs_(outputs), scale_(scale), plan_(problem, outputs), workspace_(workspace) {}

  PassSums run() {
    double* const bias = reinterpret_cast<double*>(workspace_ + plan_.bias);
    std::fill_n(bias, p_.k, 0.0);
    if (p_.b.data) load(at(p_.b, 0), p_.b.col_stride, p_.b.dtype, p_.k, bias);
    w_ = plan_.copy_w ? copied(p_.w, 0, p_.k, workspace_ + plan_.w) : p_.w;

    const int64_t tasks = plan_.chunks * plan_.groups;
    run_threaded(plan_.threads, [&](int64_t thread, int64_t threads) {
      char* const scratch = workspace_ + plan_.scratch + thread * plan_.scratch_stride;
      for (int64_t i = tasks * thread / threads; i < tasks * (thread + 1) / threads; ++i)
        task(i / plan_.groups, i % plan_.groups, scratch);
    });

    double* const weight = reinterpret_cast<double*>(workspace_ + plan_.weight_sums);
    const int64_t count = plan_.part_stride;
    const int64_t adders = std::clamp<int64_t>(count / kSumsOfThread, 1, plan_.threads);
    run_threaded(adders, [&](int64_t thread, int64_t threads) {
      rows_.add(workspace_ + plan_.parts, plan_.dtype, plan_.chunks, count, count * thread / threads,
                count * (thread + 1) / threads, scale_.rest, weight);
    });
    double* const line = reinterpret_cast<double*>(workspace_ + plan_.lines);
    pairwise_sum(line, plan_.chunks, plan_.line_stride, plan_.line_stride);
    for (int64_t t = 0; t < p_.k; ++t) line[t] /= scale_.rest;
    double loss = 0;
    for (int64_t group = 0; group < plan_.groups; ++group) loss += line[p_.k + group];
    return {loss, weight, line};
  }

 private:
  View copied(const View& from, int64_t first, int64_t rows, void* to) const {
    rows_.convert(from, first, rows, p_.d, plan_.dtype, to);
    return {to, p_.d, 1, plan_.dtype};
  }

  void task(int64_t chunk, int64_t group, char* scratch) const {
    const int64_t target = group * plan_.group_targets, targets = std::min(plan_.group_targets, p_.k - target);
    const int64_t first = chunk * plan_.chunk_rows, last = std::min(p_.n, first + plan_.chunk_rows);
    double* const line = reinterpret_cast<double*>(workspace_ + plan_.lines) + chunk * plan_.line_stride;
    double* const loss = reinterpret_cast<double*>(scratch + plan_.loss);
    double* const slopes = reinterpret_cast<double*>(scratch + plan_.slopes);
    const int64_t length = line_of(targets);
    std::fill_n(loss, 2 * kMaxLanes, 0.0);
    std::fill_n(slopes, 2 * length, 0.0);

    const View w = {at(w_, target), p_.d, 1, plan_.dtype};
    const Rows weight = {workspace_ + plan_.parts + (chunk * plan_.part_stride + target * p_.d) * plan_.size, p_.d,
                         plan_.dtype};
    const Rows dlosses = {scratch + plan_.predictions, targets, plan_.dtype};
    const View factor = {dlosses.data, targets, 1, plan_.dtype};
    const Rows input_gradient = {scratch + plan_.input_gradient, p_.d, plan_.dtype};
    for (int64_t row = first; row < last; row += plan_.block_rows) {
      const int64_t rows = std::min(plan_.block_rows, last - row);
      View x = {at(p_.x, row), p_.d, 1, plan_.dtype};
      if (plan_.copy_x) x = copied(p_.x, row, rows, scratch + plan_.x);
      p_.multiply(rows, p_.d, targets, x, transposed(w), dlosses, false);
      rows_.residuals(
          p_, outputs_, scale_,
          {row, rows, target, targets, dlosses.data, plan_.dtype,
           reinterpret_cast<const double*>(workspace_ + plan_.bias) + target, scratch + plan_.line, loss, slopes});
      if (outputs_.weight_sum) p_.multiply(targets, rows, p_.d, transposed(factor), x, weight, row > first);
      if (outputs_.input_gradient) {
        p_.multiply(rows, targets, p_.d, factor, w, input_gradient, false);
        rows_.store_converted(input_gradient.data, plan_.dtype, rows * p_.d, scale_.rest, gradient_dtype(p_.x.dtype),
                              row * p_.d, outputs_.input_gradient);
      }
    }
    sum_places(loss, loss + kMaxLanes, kMaxLanes, 1);
    sum_places(slopes, slopes + length, length, targets);
    line[p_.k + group] = *loss;
    std::copy_n(slopes, targets, line + target);
  }

  const Problem& p_;
  const PassOutputs& outputs_;
  const Scale scale_;
  const ProductPlan plan_;
  char* const workspace_;
  const ProductRows& rows_ = *kernels().product_rows;
  View w_;
};

}  // namespace

bool by_products(const Problem& p, const PassOutputs&) {
  return p.multiply && p.k >= kManyTargets && p.n * p.k * p.d >= kLeastWork;
}

size_t products_workspace(const Problem& problem, const PassOutputs& outputs) {
  return size_t(ProductPlan(problem, outputs).bytes);
}

PassSums run_products(const Problem& problem, const PassOutputs& outputs, const Scale& scale, void* workspace) {
  return Products(problem, outputs, scale, static_cast<char*>(workspace)).run();
}

}  // namespace linreg::cpu
