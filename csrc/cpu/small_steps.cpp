// SPDX-License-Identifier: BSD-3-Clause
// Small steps (kernels.h), one after another. Each batch is converted to columns of float or double, and lanes run
// along rows. Parameters and momentum buffers stay on the stack, rounded to their dtype after every step as if stored.
//
// Sums over lanes and the rule are in double. Their order depends on the batch's size alone. A batch is so small that
// no lane adds more than kChain floats.
//
// Compiled for AVX2 alone (../instruction_sets.py), behind target.h.
#include "../math/reduction.h"
#include "../math/with_loss.h"
#include "convert.h"
#include "small_rows.h"

namespace linreg::cpu {
namespace {

// A batch: column j of X begins at x + j · stride, target t of Y at y + t · stride, padded with zeros.
template <class Number>
struct Columns {
  int64_t n, stride;
  const Number *x, *y;
};

// Writes rows `first`, `first` + 1, … of `from`, or of `order` if given, as columns.
template <class T, class Number, class Convert>
inline void load_columns(const View& from, int64_t columns, const int64_t* order, int64_t first, int64_t n,
                         int64_t stride, Number* to, Convert convert) {
  for (int64_t j = 0; j < columns; ++j, to += stride) {
    const T* column = static_cast<const T*>(from.data) + j * from.col_stride;
    if (order) {
      for (int64_t i = 0; i < n; ++i) to[i] = Number(convert(column[order[first + i] * from.row_stride]));
    } else if (from.row_stride == 1) {
      for (int64_t i = 0; i < n; ++i) to[i] = Number(convert(column[first + i]));
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = Number(convert(column[(first + i) * from.row_stride]));
    }
    for (int64_t i = n; i < stride; ++i) to[i] = 0;
  }
}

template <class Number>
inline void load_columns(const View& from, int64_t columns, const int64_t* order, int64_t first, int64_t n,
                         int64_t stride, Number* to) {
  const auto same = [](auto number) { return number; };
  switch (from.dtype) {
    case Dtype::float32:
      return load_columns<float>(from, columns, order, first, n, stride, to, same);
    case Dtype::float64:
      return load_columns<double>(from, columns, order, first, n, stride, to, same);
    case Dtype::bfloat16:
      return load_columns<uint16_t>(from, columns, order, first, n, stride, to,
                                    [](uint16_t h) { return from_bfloat16(h); });
    case Dtype::float16:
      return load_columns<uint16_t>(from, columns, order, first, n, stride, to,
                                    [](uint16_t h) { return from_float16(h); });
  }
}

// The sum over lanes: halves are added until two lanes are left. A template, so that only the branch taken is compiled.
template <class V>
LINREG_INLINE double sum_halves(V v) {
  constexpr int half = sizeof(V) / sizeof(v[0]) / 2;
  if constexpr (half == 1) {
    return double(v[0]) + double(v[1]);
  } else {
    return [v]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
      return sum_halves(__builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + half)...));
    }(std::make_integer_sequence<int, half>());
  }
}

// The sums over a batch for one target: the loss, Σ G, and Gᵀ X [kD].
template <Loss kLoss, int kD, class V>
LINREG_INLINE void sum_rows(const Columns<NumberOf<V>>& batch, const NumberOf<V>* y, const NumberOf<V>* weight,
                            NumberOf<V> bias, NumberOf<V> delta, double& loss_sum, double& bias_sum,
                            double* weight_sums) {
  using Number = NumberOf<V>;
  constexpr int lanes = lanes_of<V>;
  constexpr int sets = kSets<Number, kD>;
  RowSums<kLoss, kD, V> sums[sets];
  V w[kD];
  for (int j = 0; j < kD; ++j) w[j] = weight[j] - V{};
  const V b = bias - V{};
  const auto add = [&](int64_t i, int set) __attribute__((always_inline)) {
    V x[kD];
    for (int j = 0; j < kD; ++j) x[j] = load_vec<V>(batch.x + j * batch.stride + i);
    V r = residual<kD>(x, w, b, load_vec<V>(y + i));
    if (i + lanes > batch.n) {  // residuals beyond the last row become 0, where every loss and slope is 0
      V lane;
      for (int l = 0; l < lanes; ++l) lane[l] = Number(l);
      r = lane < Number(batch.n - i) ? r : V{};
    }
    sums[set].add(x, r, delta);
  };
  int64_t i = 0;
  for (; i + sets * lanes <= batch.n; i += sets * lanes)
    for (int set = 0; set < sets; ++set) add(i + set * lanes, set);
#pragma GCC unroll 2  // a variable index would keep the sums in memory
  for (int set = 0; set < sets; ++set) {
    if (i >= batch.n) break;
    add(i, set);
    i += lanes;
  }
  for (int set = 1; set < sets; ++set) sums[0].add(sums[set]);
  loss_sum += sum_halves(sums[0].loss);
  bias_sum = kSlopeUnit<kLoss> * sum_halves(sums[0].slope);
  for (int j = 0; j < kD; ++j) weight_sums[j] = kSlopeUnit<kLoss> * sum_halves(sums[0].products[j]);
}

// A parameter and its momentum buffer during the steps: [rows, columns].
template <class Number, int kSize>
class State {
 public:
  State(const Parameter& parameter, const View& value, int64_t rows, int64_t columns, const Sgd& sgd)
      : parameter_(parameter), rows_(rows), columns_(columns), dtype_(value.dtype), first_step_(parameter.first_step) {
    updated_ = value.data && !parameter.frozen;
    has_buffer_ = updated_ && sgd.momentum != 0;
    for (int i = 0; i < kSize; ++i) p[i] = buffer_[i] = 0;
    for (int64_t i = 0; i < rows; ++i) {
      if (value.data) load(at(value, i), value.col_stride, dtype_, columns, p + i * columns);
      if (has_buffer_ && !first_step_)
        load(at(parameter.momentum_buffer, i), 1, dtype_, columns, buffer_ + i * columns);
    }
  }

  // `count` is rows · columns; with one target it is known at compile time.
  LINREG_INLINE void update(int64_t count, const double* sums, double scale, const Sgd& sgd) {
    if (!updated_) return;
    for (int64_t i = 0; i < count; ++i) {
      const SgdNumber<double> next = sgd_update<double>(p[i], buffer_[i], scale * sums[i], sgd, first_step_);
      p[i] = rounded<Number>(next.p, dtype_);
      if (has_buffer_) buffer_[i] = rounded<Number>(next.buffer, dtype_);
    }
    first_step_ = false;
  }

  void write_back() const {
    if (!updated_) return;
    for (int64_t i = 0; i < rows_; ++i) {
      store(p + i * columns_, columns_, dtype_, at(parameter_.value, i));
      if (has_buffer_) store(buffer_ + i * columns_, columns_, dtype_, at(parameter_.momentum_buffer, i));
    }
  }

  Number p[kSize];

 private:
  const Parameter& parameter_;
  const int64_t rows_, columns_;
  const Dtype dtype_;
  bool first_step_, updated_, has_buffer_;
  Number buffer_[kSize];
};

// kK is 1 for one target, which keeps all state between steps in registers; else it is the maximum number of targets.
template <class V, int kD, int kK>
int64_t take_steps(const Problem& problem, const Run& run, const Sgd& settings, const Parameter& weight,
                   const Parameter& bias, bool stop_nonfinite, void* losses) {
  using Number = NumberOf<V>;
  const int64_t k = kK == 1 ? 1 : problem.k;
  State<Number, kK * kD> w(weight, problem.w, k, kD, settings);
  State<Number, kK> b(bias, problem.b, 1, k, settings);
  alignas(64) Number numbers[kSmallNumbers];
  Sgd sgd = settings;
  double weight_sums[kK * kD], bias_sums[kK];

  int64_t epoch = run.begin / run.epoch_steps, batch = run.begin % run.epoch_steps;
  const bool one_batch = run.epoch_steps == 1 && run.order_stride == 0;
  Columns<Number> columns{0, 0, numbers, nullptr};
  int64_t step = run.begin;
  char* loss = static_cast<char*>(losses);
  for (; step < run.end; ++step, loss += size_of(loss_dtype(problem))) {
    if (columns.n == 0 || !one_batch) {
      const int64_t first = batch * run.batch_size;
      const int64_t* order = run.order ? run.order + epoch * run.order_stride : nullptr;
      columns.n = batch_rows(run, batch);
      columns.stride = (columns.n + kSmallPadding - 1) / kSmallPadding * kSmallPadding;
      columns.y = numbers + kD * columns.stride;
      load_columns(problem.x, kD, order, first, columns.n, columns.stride, numbers);
      load_columns(problem.y, k, order, first, columns.n, columns.stride, numbers + kD * columns.stride);
      if (++batch == run.epoch_steps) batch = 0, ++epoch;
    }
    double loss_sum = 0;
    for (int64_t t = 0; t < k; ++t)
      with_loss(problem.loss, [&]<Loss kLoss>() __attribute__((always_inline)) {
        sum_rows<kLoss, kD, V>(columns, columns.y + t * columns.stride, w.p + t * kD, b.p[t], Number(problem.delta),
                               loss_sum, bias_sums[t], weight_sums + t * kD);
      });
    const double divisor = reduction_divisor(problem.reduction, double(columns.n) * double(k)), scale = 1.0 / divisor;
    const Number value = rounded<Number>(loss_sum / divisor, loss_dtype(problem));
    store(&value, 1, loss_dtype(problem), loss);
    if (stop_nonfinite && !__builtin_isfinite(value)) break;
    if (run.lr) sgd.lr = run.lr[step - run.begin];
    w.update(k * kD, weight_sums, scale, sgd);
    b.update(k, bias_sums, scale, sgd);
  }
  if (step > run.begin) {
    w.write_back();
    b.write_back();
  }
  return step - run.begin;
}

template <class V, int kD = 1>
int64_t take_steps_of_width(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, void* losses) {
  if constexpr (kD < kSmallFeatures)
    if (problem.d > kD) return take_steps_of_width<V, kD + 1>(problem, run, sgd, weight, bias, stop_nonfinite, losses);
  if (problem.k == 1) return take_steps<V, kD, 1>(problem, run, sgd, weight, bias, stop_nonfinite, losses);
  return take_steps<V, kD, kSmallTargets>(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace

int64_t LINREG_SET::small_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                                const Parameter& bias, bool stop_nonfinite, void* losses) {
  const auto take = problem.x.dtype == Dtype::float64 ? take_steps_of_width<Wide> : take_steps_of_width<Narrow>;
  return take(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace linreg::cpu
