// SPDX-License-Identifier: BSD-3-Clause
// A thread's part of a pass: groups of rows, from prediction to gradient sums while they are in cache.
//
// Compiled once per instruction set, behind target.h.
#include "columns.h"
#include "convert.h"
#include "narrow.h"
#include "targets.h"
#include "tiles.h"

namespace linreg::cpu {
namespace {

// Where only sums are wanted, most rows take a path of their own: narrow.h, targets.h or add_tiles. They are not worth
// their compile time for processors without AVX2.
constexpr bool kHasFastPaths = kLanes > 2;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

template <class T>
inline void fill(T* to, int64_t count, T value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

inline void* element(void* data, Dtype dtype, int64_t index) {
  return static_cast<char*>(data) + index * int64_t(size_of(dtype));
}

// One thread's part of a pass over rows of E.
template <class E>
class Worker {
  using Weight = std::conditional_t<sizeof(E) == 8, double, float>;
  using Sums = std::conditional_t<sizeof(E) == 8, Wide, Narrow>;  // what gradients of a block of rows are summed in
  using Sum = NumberOf<Sums>;

 public:
  Worker(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale, char* workspace,
         int64_t thread)
      : p_(problem), outputs_(outputs), plan_(plan), scale_(scale) {
    char* scratch = workspace + plan.scratch + thread * plan.scratch_stride;
    const auto part = [scratch](int64_t offset) { return reinterpret_cast<double*>(scratch + offset); };
    features_ = part(plan.features), predictions_ = part(plan.predictions), targets_ = part(plan.targets);
    element_weights_ = part(plan.element_weights), losses_ = part(plan.losses), dloss_ = part(plan.dlosses);
    loss_lanes_ = part(plan.loss_lanes), bias_lanes_ = part(plan.bias_lanes), weight_lanes_ = part(plan.weight_lanes);
    row_ = part(plan.row);
    block_dloss_ = sizeof(E) == 8 ? reinterpret_cast<Sum*>(dloss_) : reinterpret_cast<Sum*>(scratch + plan.float_dloss);
    block_sums_ = reinterpret_cast<Sum*>(scratch + plan.block_sums);
    w_ = reinterpret_cast<const Weight*>(workspace + plan.weights);
    b_ = reinterpret_cast<const double*>(workspace + plan.biases);
    only_sums_ = kHasFastPaths && Plan::gives_only_sums(p_, outputs) &&
                 (plan.towards_targets || (p_.k == 1 && (!plan.columns || p_.x.row_stride == p_.d)));
    if (only_sums_ && plan.towards_targets)
      towards_targets_ = TowardsTargets<E>(p_, plan, scale, w_, b_, scratch, loss_lanes_, bias_lanes_, block_sums_);
  }

  // Writes the sums over rows [begin, end).
  void run(int64_t begin, int64_t end, double* sums) {
    const int64_t k = p_.k, d = p_.d;
    double* const weight_sums = sums + 1 + k;
    fill(sums, Plan::sum_count(p_, outputs_), 0.0);
    fill(loss_lanes_, kLaneSum, 0.0);
    fill(bias_lanes_, k * kLaneSum, 0.0);
    if (outputs_.weight_sum && plan_.columns) fill(weight_lanes_, k * d * kMaxLanes, 0.0);
    if (outputs_.weight_sum && !plan_.columns) fill(block_sums_, plan_.target_sets * plan_.ldw, Sum(0));
    int64_t unflushed = 0;
    if constexpr (kHasFastPaths)
      if (only_sums_)
        begin += plan_.columns ? add_narrow_rows(begin, end - begin)
                 : plan_.towards_targets
                     ? towards_targets_.add(begin, end - begin, ahead_of(p_.x.row_stride), [&] { flush(weight_sums); })
                     : add_tiles(begin, end - begin, weight_sums);
    for (int64_t row = begin; row < end; row += plan_.group_rows) {
      const int64_t rows = smaller(plan_.group_rows, end - row);
      group(row, rows);
      unflushed += rows;
      if (outputs_.weight_sum && !plan_.columns && unflushed + plan_.group_rows > kBlockRows) {
        flush(weight_sums);
        unflushed = 0;
      }
    }
    if (outputs_.weight_sum && !plan_.columns) flush(weight_sums);
    sums[0] = total_of(loss_lanes_);
    for (int64_t t = 0; t < k; ++t) sums[1 + t] = total_of(bias_lanes_ + t * kLaneSum);
    if (outputs_.weight_sum && plan_.columns)
      for (int64_t i = 0; i < k * d; ++i) weight_sums[i] = sum_lanes(load_vec<Wide>(weight_lanes_ + i * kMaxLanes));
  }

 private:
  int64_t add_narrow_rows(int64_t first, int64_t rows) {
    const E *const x = static_cast<const E*>(at(p_.x, first)), *const y = static_cast<const E*>(at(p_.y, first));
    const NarrowSums sums = {loss_lanes_, bias_lanes_, weight_lanes_};
    int64_t done = 0;
    [&]<int... D>(std::integer_sequence<int, D...>) {
      ((p_.d == D + 1 ? void(done = add_narrow<D + 1>(x, y, rows, w_, b_[0], p_.loss, p_.delta, scale_, sums))
                      : void()),
       ...);
    }(std::make_integer_sequence<int, kColumnsMaxD>());
    return done;
  }

  // Whole tiles of rows towards one target, each from prediction to gradient sums; how many rows that were.
  int64_t add_tiles(int64_t first, int64_t rows, double* weight_sums) {
    constexpr int kRows = kMaxLanes;
    const int64_t ldx = p_.x.row_stride, d = p_.d, ldw = plan_.ldw, ahead = ahead_of(ldx);
    const Weight* const w = w_;
    const Loss kind = p_.loss;
    const double bias = b_[0], delta = p_.delta, scale = scale_;
    Wide loss_sum{}, dloss_sum{};
    const auto keep_sums = [&] {
      add_to(loss_lanes_, loss_sum);
      add_to(bias_lanes_, dloss_sum);
      loss_sum = dloss_sum = Wide{};
    };
    int64_t i = 0;
    for (; i + kRows <= rows; i += kRows) {
      const E *const x = static_cast<const E*>(at(p_.x, first + i)), *const y =
                                                                         static_cast<const E*>(at(p_.y, first + i));
      double predictions[kRows];
      Sum dlosses[kRows];
      dots<kRows, 1>(x, ldx, w, ldw, d, predictions, kRows, Prefetcher(x + ahead));
      LINREG_UNROLL
      for (int r = 0; r < kRows; r += kLanes) {
        Wide loss{}, g{};
        loss_and_dloss(kind, (load_vec<Wide>(predictions + r) + bias) - load_vec<Wide>(y + r), delta, loss, g);
        g *= scale;
        loss_sum += loss;
        dloss_sum += g;
        store_narrowed(dlosses + r, g);
      }
      add_rows<Sums, kRows, 1>(x, ldx, dlosses, kRows, d, block_sums_, ldw, Prefetcher(x + ahead + kRows * ldx / 2));
      if ((i + kRows) % kBlockRows == 0) {
        keep_sums();
        flush(weight_sums);
      }
    }
    keep_sums();
    return i;
  }

  // How far ahead to prefetch: not at all where the gaps between rows are wider than the rows.
  int64_t ahead_of(int64_t ldx) const { return ldx <= 2 * p_.d ? kAhead / int64_t(sizeof(E)) : 0; }

  void group(int64_t first, int64_t rows) {
    const E* const x = static_cast<const E*>(at(p_.x, first));
    const int64_t ldx = p_.x.row_stride, ahead = ahead_of(ldx);
    if (plan_.columns) {
      load_features(first, rows);
      predict_columns(rows);
    } else {
      for_tiles(rows, p_.k, [&]<int R, int T>(int64_t r, int64_t t) __attribute__((always_inline)) {
        const E* const tile = x + r * ldx;
        dots<R, T>(tile, ldx, w_ + t * plan_.ldw, plan_.ldw, p_.d, predictions_ + t * plan_.ld + r, plan_.ld,
                   Prefetcher(tile + (t == 0 ? ahead : 0)));
      });
    }
    for (int64_t t = 0; t < p_.k; ++t) residuals(first, rows, t);
    if (outputs_.weight_sum && plan_.columns) add_columns(rows);
    if (outputs_.weight_sum && !plan_.columns)
      for_tiles(rows, p_.k, [&]<int R, int T>(int64_t r, int64_t t) __attribute__((always_inline)) {
        const E* const tile = x + r * ldx;
        add_rows<Sums, R, T>(tile, ldx, block_dloss_ + t * plan_.ld + r, plan_.ld, p_.d, block_sums_ + t * plan_.ldw,
                             plan_.ldw, Prefetcher(tile + (t == 0 ? ahead + R * ldx / 2 : 0)));
      });
    if (outputs_.input_gradient) write_input_gradient(first, rows);
  }

  // From X Wᵀ of one target to losses v ℓ(R), derivatives G = scale · v ℓ'(R), and their sums.
  void residuals(int64_t first, int64_t rows, int64_t t) {
    if (p_.v.data) load(at(p_.v, first, t), p_.v.row_stride, p_.v.dtype, rows, element_weights_);
    if (p_.y.row_stride == 1 && p_.y.dtype == p_.x.dtype) {
      residuals_from(static_cast<const E*>(at(p_.y, first, t)), rows, t);
    } else {
      load(at(p_.y, first, t), p_.y.row_stride, p_.y.dtype, rows, targets_);
      residuals_from(targets_, rows, t);
    }
    const double *const losses = losses_ + t * plan_.ld, *const dlosses = dloss_ + t * plan_.ld;
    if (outputs_.elements) store_strided(losses, rows, outputs_.elements, loss_dtype(p_), first, t, 1.0);
    if (outputs_.target_gradient)
      store_strided(dlosses, rows, outputs_.target_gradient, gradient_dtype(p_.y.dtype), first, t, -1.0);
  }

  template <class Y>
  void residuals_from(const Y* y, int64_t rows, int64_t t) {
    const double *const predictions = predictions_ + t * plan_.ld, *const v = p_.v.data ? element_weights_ : nullptr;
    double *const losses = losses_ + t * plan_.ld, *const dlosses = dloss_ + t * plan_.ld;
    Sum* const block_dloss = block_dloss_ + t * plan_.ld;
    const double bias = b_[t], delta = p_.delta, scale = scale_;
    const Loss kind = p_.loss;
    const bool losses_wanted = outputs_.elements, block_dloss_wanted = sizeof(E) != 8 && !plan_.columns;
    Wide loss_sum{}, dloss_sum{};
    const auto step = [&](int64_t i, Wide target, Wide weight, typename Lanes<Wide>::Index counts)
                          __attribute__((always_inline)) {
                            const Wide residual = (load_vec<Wide>(predictions + i) + bias) - target;
                            Wide loss{}, g{};
                            loss_and_dloss(kind, residual, delta, loss, g);
                            if (v) loss *= weight, g *= weight;
                            g *= scale;
                            loss = counts ? loss : Wide{};
                            g = counts ? g : Wide{};
                            loss_sum += loss;
                            dloss_sum += g;
                            store_vec<Wide>(dlosses + i, g);
                            if (losses_wanted) store_vec<Wide>(losses + i, loss);
                            if (block_dloss_wanted) store_narrowed(block_dloss + i, g);
                          };
    typename Lanes<Wide>::Index all{}, lane;
    for (int l = 0; l < kLanes; ++l) lane[l] = l;
    const auto keep_sums = [&] {
      add_to(loss_lanes_, loss_sum);
      add_to(bias_lanes_ + t * kLaneSum, dloss_sum);
      loss_sum = dloss_sum = Wide{};
    };
    int64_t i = 0;
    for (; i + kLanes <= rows; i += kLanes) {
      step(i, load_vec<Wide>(y + i), v ? load_vec<Wide>(v + i) : Wide{}, all == 0);
      if (kColumnsRows > kChain * kLanes && (i / kLanes + 1) % kChain == 0) keep_sums();
    }
    if (i < rows)
      step(i, load_first<Wide>(y + i, rows - i), v ? load_first<Wide>(v + i, rows - i) : Wide{}, lane < rows - i);
    keep_sums();
  }

  // Into column t of an [n, k] matrix.
  void store_strided(const double* from, int64_t rows, void* to, Dtype dtype, int64_t first, int64_t t, double sign) {
    for (int64_t i = 0; i < rows; ++i) {
      const double value = sign * from[i];
      store(&value, 1, dtype, element(to, dtype, (first + i) * p_.k + t));
    }
  }

  // Adds the block's sums to the chunk's.
  void flush(double* weight_sums) {
    for (int64_t t = 0; t < p_.k; ++t) {
      Sum* const from = block_sums_ + t * plan_.ldw;
      double* const to = weight_sums + t * p_.d;
      int64_t j = 0;
      for (; j + kLanes <= p_.d; j += kLanes)
        store_vec<Wide>(to + j, load_vec<Wide>(to + j) + load_vec<Wide>(from + j));
      for (; j < p_.d; ++j) to[j] += double(from[j]);
      std::memset(from, 0, plan_.ldw * sizeof(Sum));
    }
  }

  void load_features(int64_t first, int64_t rows) {
    load_columns<E>(p_.x, p_.d, first, rows, features_, plan_.ld);
    for (int64_t j = 0; j < p_.d; ++j) fill(features_ + j * plan_.ld + rows, whole_vectors(rows) - rows, 0.0);
  }

  void predict_columns(int64_t rows) {
    const int64_t d = p_.d, ld = plan_.ld;
    for (int64_t t = 0; t < p_.k; ++t) {
      const Weight* const w = w_ + t * plan_.ldw;
      const double* const features = features_;
      double* const predictions = predictions_ + t * ld;
      const auto some = [=]<int N>(int64_t i, std::integral_constant<int, N>) __attribute__((always_inline)) {
        Wide sums[N] = {};
        for (int64_t j = 0; j < d; ++j) LINREG_UNROLL
        for (int m = 0; m < N; ++m) sums[m] += load_vec<Wide>(features + j * ld + i + m * kLanes) * double(w[j]);
        LINREG_UNROLL
        for (int m = 0; m < N; ++m) store_vec<Wide>(predictions + i + m * kLanes, sums[m]);
      };
      int64_t i = 0;
      for (; i + 4 * kLanes <= rows; i += 4 * kLanes) some(i, std::integral_constant<int, 4>());
      for (; i < rows; i += kLanes) some(i, std::integral_constant<int, 1>());
    }
  }

  void add_columns(int64_t rows) {
    const int64_t d = p_.d, ld = plan_.ld;
    for (int64_t t = 0; t < p_.k; ++t) {
      const double* const g = dloss_ + t * ld;
      for (int64_t j = 0; j < d; ++j) {
        const double* const x = features_ + j * ld;
        double* const lanes = weight_lanes_ + (t * d + j) * kMaxLanes;
        Wide sums[4] = {load_vec<Wide>(lanes), {}, {}, {}};
        int64_t i = 0;
        for (; i + 4 * kLanes <= rows; i += 4 * kLanes) LINREG_UNROLL
        for (int m = 0; m < 4; ++m) sums[m] += load_vec<Wide>(g + i + m * kLanes) * load_vec<Wide>(x + i + m * kLanes);
        for (; i < rows; i += kLanes) sums[0] += load_vec<Wide>(g + i) * load_vec<Wide>(x + i);
        store_vec<Wide>(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
      }
    }
  }

  void write_input_gradient(int64_t first, int64_t rows) {
    const Dtype dtype = gradient_dtype(p_.x.dtype);
    for (int64_t i = 0; i < rows; ++i) {
      fill(row_, p_.d, 0.0);
      for (int64_t t = 0; t < p_.k; ++t) {
        const double g = dloss_[t * plan_.ld + i];
        const Weight* const w = w_ + t * plan_.ldw;
        for (int64_t j = 0; j < p_.d; ++j) row_[j] += g * double(w[j]);
      }
      store(row_, p_.d, dtype, element(outputs_.input_gradient, dtype, (first + i) * p_.d));
    }
  }

  const Problem& p_;
  const PassOutputs& outputs_;
  const Plan& plan_;
  const double scale_;
  double *features_, *predictions_, *targets_, *element_weights_, *losses_, *dloss_;
  double *loss_lanes_, *bias_lanes_, *weight_lanes_, *row_;
  Sum *block_dloss_, *block_sums_;
  TowardsTargets<E> towards_targets_;
  const Weight* w_;
  bool only_sums_;  // are wanted, and the operands lie as add_narrow and add_tiles read them
  const double* b_;
};

}  // namespace

void LINREG_SET::run_rows(const Problem& problem, const PassOutputs& outputs, const Plan& plan, double scale,
                          char* workspace, int64_t thread, int64_t begin, int64_t end) {
  const auto run = [&](auto worker) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      worker.run(chunk * plan.chunk_rows, smaller((chunk + 1) * plan.chunk_rows, problem.n),
                 reinterpret_cast<double*>(workspace + chunk * plan.sums_stride));
  };
  switch (problem.x.dtype) {
    case Dtype::float32:
      return run(Worker<float>(problem, outputs, plan, scale, workspace, thread));
    case Dtype::float64:
      return run(Worker<double>(problem, outputs, plan, scale, workspace, thread));
    case Dtype::bfloat16:
      return run(Worker<Bfloat16>(problem, outputs, plan, scale, workspace, thread));
    case Dtype::float16:
      return run(Worker<Float16>(problem, outputs, plan, scale, workspace, thread));
  }
}

}  // namespace linreg::cpu
