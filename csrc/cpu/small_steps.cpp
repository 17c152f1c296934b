// SPDX-License-Identifier: BSD-3-Clause
// Small steps (kernels.h), one after the other. A batch is converted to columns of doubles, and lanes run along its
// rows. Parameters and momentum buffers stay on the stack, rounded to their dtype after every step as if they were
// stored.
//
// All arithmetic is in double, in an order that depends on the batch's size alone. A step of 80 rows of one feature
// takes about 90 cycles, half of them for one chain of dependent operations: sum over lanes, rule, rounding,
// prediction.
//
// Compiled once per instruction set, behind target.h.
#include "../math/with_loss.h"
#include "convert.h"

namespace linreg::cpu {
namespace {

#define LINREG_INLINE inline __attribute__((always_inline))

inline constexpr int kLanes = LINREG_LANES;

typedef double Vec __attribute__((vector_size(kLanes * sizeof(double))));
typedef int64_t Mask __attribute__((vector_size(kLanes * sizeof(int64_t))));

LINREG_INLINE Vec load_vec(const double* from) {
  Vec v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

// A template, so that the branch not taken is not compiled.
template <class V>
LINREG_INLINE double sum_lanes(V v) {
  if constexpr (sizeof(V) == 4 * sizeof(double)) {
    return sum_lanes(__builtin_shufflevector(v, v, 0, 1) + __builtin_shufflevector(v, v, 2, 3));
  } else {
    return v[0] + v[1];
  }
}

// The nearest number that a dtype has.
LINREG_INLINE double rounded(double number, Dtype dtype) {
  switch (dtype) {
    case Dtype::float32:
      return double(float(number));
    case Dtype::bfloat16:
      return from_bfloat16(to_bfloat16(to_odd(number)));
    case Dtype::float16:
      return from_float16(to_float16(to_odd(number)));
    default:
      return number;
  }
}

// A batch: column j of X from x + j · stride, target t of Y from y + t · stride, zeros behind the last row.
struct Columns {
  int64_t n, stride;
  const double *x, *y;
};

// Rows `first`, `first` + 1, … of `from`, or those that `order` names, as columns.
template <class T, class Convert>
inline void load_columns(const View& from, int64_t columns, const int64_t* order, int64_t first, int64_t n,
                         int64_t stride, double* to, Convert convert) {
  for (int64_t j = 0; j < columns; ++j, to += stride) {
    const T* column = static_cast<const T*>(from.data) + j * from.col_stride;
    if (order) {
      for (int64_t i = 0; i < n; ++i) to[i] = convert(column[order[first + i] * from.row_stride]);
    } else if (from.row_stride == 1) {
      for (int64_t i = 0; i < n; ++i) to[i] = convert(column[first + i]);
    } else {
      for (int64_t i = 0; i < n; ++i) to[i] = convert(column[(first + i) * from.row_stride]);
    }
    for (int64_t i = n; i < stride; ++i) to[i] = 0;
  }
}

inline void load_columns(const View& from, int64_t columns, const int64_t* order, int64_t first, int64_t n,
                         int64_t stride, double* to) {
  const auto same = [](auto number) { return double(number); };
  switch (from.dtype) {
    case Dtype::float32:
      return load_columns<float>(from, columns, order, first, n, stride, to, same);
    case Dtype::float64:
      return load_columns<double>(from, columns, order, first, n, stride, to, same);
    case Dtype::bfloat16:
      return load_columns<uint16_t>(from, columns, order, first, n, stride, to,
                                    [](uint16_t h) { return double(from_bfloat16(h)); });
    case Dtype::float16:
      return load_columns<uint16_t>(from, columns, order, first, n, stride, to,
                                    [](uint16_t h) { return double(from_float16(h)); });
  }
}

// Loss and gradient sums of one target, by lanes.
template <int kD>
struct Sums {
  Vec loss = {}, bias = {}, weight[kD] = {};
};

// What derivatives are summed in: halves of those of the squared loss, 2r, which are doubled after the last row, to the
// bit.
template <Loss kLoss>
constexpr double kDlossUnit = kLoss == Loss::mse ? 2 : 1;

// Adds kLanes rows. With `mask` the residuals of lanes that have no row are taken for 0, at which every loss and
// derivative is 0.
template <Loss kLoss, int kD>
LINREG_INLINE void add_rows(const Columns& batch, const double* y, int64_t i, const Vec (&w)[kD], Vec b, double delta,
                            const Mask* mask, Sums<kD>& sums) {
  Vec x[kD], r{};
  for (int j = 0; j < kD; ++j) x[j] = load_vec(batch.x + j * batch.stride + i);
  for (int j = 0; j < kD; ++j) r += x[j] * w[j];
  r = (r + b) - load_vec(y + i);
  if (mask) r = Vec(Mask(r) & *mask);
  const Vec g = kLoss == Loss::mse ? r : dloss<kLoss>(r, delta);
  sums.loss += loss_value<kLoss>(r, delta);
  sums.bias += g;
  for (int j = 0; j < kD; ++j) sums.weight[j] += x[j] * g;
}

// The sums over a batch for one target: the loss, Σ G, and Gᵀ X [kD].
template <Loss kLoss, int kD>
LINREG_INLINE void sum_rows(const Columns& batch, const double* y, const double* weight, double bias, double delta,
                            double& loss_sum, double& bias_sum, double* weight_sums) {
  // With few features two sets of sums, so that an addition need not wait for the one before it.
  constexpr int kSets = kD < 3 ? 2 : 1;
  constexpr int64_t kBlock = kChain * kSets * kLanes;  // rows
  Sums<kD> sums[kSets];
  Vec earlier_loss{}, earlier_bias{};  // blocks'
  Vec w[kD];
  for (int j = 0; j < kD; ++j) w[j] = weight[j] - Vec{};
  const Vec b = bias - Vec{};
  int64_t i = 0;
  for (;;) {
    const int64_t end = batch.n - i <= kBlock ? batch.n : i + kBlock;
    for (; i + kSets * kLanes <= end; i += kSets * kLanes)
      for (int set = 0; set < kSets; ++set)
        add_rows<kLoss, kD>(batch, y, i + set * kLanes, w, b, delta, nullptr, sums[set]);
    if (end == batch.n) break;
    for (auto& [loss, bias, _] : sums) {
      earlier_loss += loss;
      earlier_bias += bias;
      loss = bias = Vec{};
    }
  }
  for (; i + kLanes <= batch.n; i += kLanes) add_rows<kLoss, kD>(batch, y, i, w, b, delta, nullptr, sums[0]);
  if (i < batch.n) {
    Mask lanes;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane;
    const Mask mask = lanes < (batch.n - i);
    add_rows<kLoss, kD>(batch, y, i, w, b, delta, &mask, sums[kSets - 1]);
  }
  for (int set = 1; set < kSets; ++set) {
    sums[0].loss += sums[set].loss;
    sums[0].bias += sums[set].bias;
    for (int j = 0; j < kD; ++j) sums[0].weight[j] += sums[set].weight[j];
  }
  if (batch.n > kBlock) {
    sums[0].loss += earlier_loss;
    sums[0].bias += earlier_bias;
  }
  loss_sum += sum_lanes(sums[0].loss);
  bias_sum = kDlossUnit<kLoss> * sum_lanes(sums[0].bias);
  for (int j = 0; j < kD; ++j) weight_sums[j] = kDlossUnit<kLoss> * sum_lanes(sums[0].weight[j]);
}

// A parameter while steps are taken, and its momentum buffer: [rows, columns].
template <int kSize>
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

  // `count` numbers, which is rows · columns.
  LINREG_INLINE void update(int64_t count, const double* sums, double scale, const Sgd& sgd) {
    if (!updated_) return;
    for (int64_t i = 0; i < count; ++i) {
      const SgdNumber<double> next = sgd_update(p[i], buffer_[i], scale * sums[i], sgd, first_step_);
      p[i] = rounded(next.p, dtype_);
      if (has_buffer_) buffer_[i] = rounded(next.buffer, dtype_);
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

  double p[kSize];

 private:
  const Parameter& parameter_;
  const int64_t rows_, columns_;
  const Dtype dtype_;
  bool first_step_, updated_, has_buffer_;
  double buffer_[kSize];
};

// With one target, kK = 1, everything that a step hands to the next one is in registers; else kK is the most that there
// may be.
template <int kD, int kK>
int64_t take_steps(const Problem& problem, const Run& run, const Sgd& settings, const Parameter& weight,
                   const Parameter& bias, bool stop_nonfinite, void* losses) {
  const int64_t k = kK == 1 ? 1 : problem.k;
  State<kK * kD> w(weight, problem.w, k, kD, settings);
  State<kK> b(bias, problem.b, 1, k, settings);
  alignas(64) double numbers[kSmallNumbers];
  Sgd sgd = settings;
  double weight_sums[kK * kD], bias_sums[kK];

  int64_t epoch = run.begin / run.epoch_steps, batch = run.begin % run.epoch_steps;
  const bool one_batch = run.epoch_steps == 1 && run.order_stride == 0;
  Columns columns{0, 0, numbers, nullptr};
  int64_t step = run.begin;
  char* loss = static_cast<char*>(losses);
  for (; step < run.end; ++step, loss += size_of(loss_dtype(problem))) {
    if (columns.n == 0 || !one_batch) {
      const int64_t first = batch * run.batch_size;
      const int64_t* order = run.order ? run.order + epoch * run.order_stride : nullptr;
      columns.n = batch_rows(run, batch);
      columns.stride = (columns.n + kLanes - 1) / kLanes * kLanes;
      columns.y = numbers + kD * columns.stride;
      load_columns(problem.x, kD, order, first, columns.n, columns.stride, numbers);
      load_columns(problem.y, k, order, first, columns.n, columns.stride, numbers + kD * columns.stride);
      if (++batch == run.epoch_steps) batch = 0, ++epoch;
    }
    double loss_sum = 0;
    for (int64_t t = 0; t < k; ++t)
      with_loss(problem.loss, [&]<Loss kLoss>() __attribute__((always_inline)) {
        sum_rows<kLoss, kD>(columns, columns.y + t * columns.stride, w.p + t * kD, b.p[t], problem.delta, loss_sum,
                            bias_sums[t], weight_sums + t * kD);
      });
    const double scale = problem.reduction == Reduction::mean ? 1.0 / (double(columns.n) * double(k)) : 1.0;
    const double value = rounded(scale * loss_sum, loss_dtype(problem));
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

template <int kD = 1>
int64_t take_steps_of_width(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, void* losses) {
  if constexpr (kD < kSmallFeatures)
    if (problem.d > kD) return take_steps_of_width<kD + 1>(problem, run, sgd, weight, bias, stop_nonfinite, losses);
  if (problem.k == 1) return take_steps<kD, 1>(problem, run, sgd, weight, bias, stop_nonfinite, losses);
  return take_steps<kD, kSmallTargets>(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace

int64_t LINREG_SET::small_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                                const Parameter& bias, bool stop_nonfinite, void* losses) {
  return take_steps_of_width(problem, run, sgd, weight, bias, stop_nonfinite, losses);
}

}  // namespace linreg::cpu
