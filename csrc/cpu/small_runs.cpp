// SPDX-License-Identifier: BSD-3-Clause
// Small steps of several problems at once (kernels.h): a lane for each problem, with rows of equal numbers, the same
// batches and one target. All rows are converted once, to a vector for each number, and serve every step.
//
// What small_steps.cpp adds in the lanes of a register is added here in as many vectors, and these are added as its
// lanes are: a problem has the same bits. Sums over lanes and the rule are then arithmetic on vectors, too.
//
// Compiled for AVX2 and AVX-512 (../instruction_sets.py), behind target.h.
#include "../math/reduction.h"
#include "../math/with_loss.h"
#include "convert.h"
#include "small_rows.h"

namespace linreg::cpu {
namespace {

// The lanes of a register in small_steps.cpp, compiled for AVX2.
template <class Number>
constexpr int kRowLanes = 32 / sizeof(Number);

// A number of each problem.
template <class V>
struct alignas(sizeof(V)) Each {
  NumberOf<V> of[lanes_of<V>];
};

// The rows of a batch: number j of row i, Y behind X, is numbers[i · (d + 1) + j].
template <class V>
struct Batch {
  const Each<V>* numbers;
  const int64_t* order;  // nullptr: first, first + 1, …
  int64_t first, n;
};

// The sums over a batch in double, [kD + 2]: the loss, Σ G and Gᵀ X.
template <Loss kLoss, int kD, class V>
LINREG_INLINE void sum_rows(const Batch<V>& batch, const Each<V>* weight, const Each<V>& bias, NumberOf<V> delta,
                            double (*totals)[lanes_of<V>]) {
  using Number = NumberOf<V>;
  constexpr int lanes = lanes_of<V>, row_lanes = kRowLanes<Number>, places = row_lanes * kSets<Number, kD>;
  V w[kD];
  for (int j = 0; j < kD; ++j) w[j] = load_vec<V>(weight[j].of);
  const V b = load_vec<V>(bias.of);
  RowSums<kLoss, kD, V> sums[places];
  const int64_t padded = (batch.n + row_lanes - 1) / row_lanes * row_lanes;
  for (int place = 0; place < places; ++place) {
    RowSums<kLoss, kD, V> sum;
    int64_t i = place;
    for (; i < batch.n; i += places) {
      const int64_t row = batch.order ? batch.order[batch.first + i] : batch.first + i;
      const Each<V>* const z = batch.numbers + row * (kD + 1);
      V x[kD];
      for (int j = 0; j < kD; ++j) x[j] = load_vec<V>(z[j].of);
      sum.add(x, residual<kD>(x, w, b, load_vec<V>(z[kD].of)), delta);
    }
    if (i < padded) sum.add(RowSums<kLoss, kD, V>());  // a lane without a row adds 0, which makes -0 to 0
    sums[place] = sum;
  }
  for (int place = row_lanes; place < places; ++place) sums[place - row_lanes].add(sums[place]);
  for (int half = row_lanes / 2; half > 1; half /= 2)
    for (int place = 0; place < half; ++place) sums[place].add(sums[place + half]);
  const auto total = [&](V a, V b, double unit, double* to) __attribute__((always_inline)) {
    for (int l = 0; l < lanes; ++l) to[l] = unit * (double(a[l]) + double(b[l]));
  };
  total(sums[0].loss, sums[1].loss, 1, totals[0]);
  total(sums[0].slope, sums[1].slope, kSlopeUnit<kLoss>, totals[1]);
  for (int j = 0; j < kD; ++j) total(sums[0].products[j], sums[1].products[j], kSlopeUnit<kLoss>, totals[2 + j]);
}

// A parameter of the problems and its momentum buffers during the steps, [kSize].
template <class V, int kSize>
class States {
  using Number = NumberOf<V>;
  static constexpr int lanes = lanes_of<V>;

 public:
  States(SingleRun* runs, Parameter SingleRun::* parameter) : runs_(runs), parameter_(parameter) {
    const Parameter& first = runs[0].*parameter;
    updated_ = first.value.data;
    has_buffer_ = updated_ && runs[0].sgd.momentum != 0;
    first_step_ = first.first_step;
    for (int l = 0; l < lanes; ++l) {
      const Parameter& own = runs[l].*parameter;
      Number numbers[kSize] = {}, buffers[kSize] = {};
      if (updated_) load(own.value.data, 1, own.value.dtype, kSize, numbers);
      if (has_buffer_ && !first_step_) load(own.momentum_buffer.data, 1, own.value.dtype, kSize, buffers);
      for (int i = 0; i < kSize; ++i) p[i].of[l] = numbers[i], buffer_[i].of[l] = buffers[i];
    }
  }

  LINREG_INLINE void update(const double (*sums)[lanes], double scale, const double* lr) {
    if (!updated_) return;
    const Dtype dtype = (runs_[0].*parameter_).value.dtype;
    const auto all = [&](auto round) __attribute__((always_inline)) {
      for (int i = 0; i < kSize; ++i)
        for (int l = 0; l < lanes; ++l) {
          Sgd sgd = runs_[0].sgd;
          sgd.lr = lr[l];
          const SgdNumber<double> next =
              sgd_update<double>(p[i].of[l], buffer_[i].of[l], scale * sums[i][l], sgd, first_step_);
          p[i].of[l] = round(next.p);
          if (has_buffer_) buffer_[i].of[l] = round(next.buffer);
        }
    };
    if (size_of(dtype) == sizeof(Number)) {
      all([](double number) __attribute__((always_inline)) { return Number(number); });
    } else {
      all([dtype](double number) __attribute__((always_inline)) { return rounded<Number>(number, dtype); });
    }
    first_step_ = false;
  }

  void write_back() const {
    for (int l = 0; l < lanes && updated_; ++l) {
      const Parameter& own = runs_[l].*parameter_;
      Number numbers[kSize], buffers[kSize];
      for (int i = 0; i < kSize; ++i) numbers[i] = p[i].of[l], buffers[i] = buffer_[i].of[l];
      store(numbers, kSize, own.value.dtype, own.value.data);
      if (has_buffer_) store(buffers, kSize, own.value.dtype, own.momentum_buffer.data);
    }
  }

  Each<V> p[kSize];

 private:
  SingleRun* const runs_;
  Parameter SingleRun::* const parameter_;
  bool updated_, has_buffer_, first_step_;
  Each<V> buffer_[kSize];
};

template <class V, int kD>
void take_steps(SingleRun* runs, char* losses, int64_t stride, const void* rows) {
  using Number = NumberOf<V>;
  constexpr int lanes = lanes_of<V>;
  const Problem& problem = runs[0].problem;
  const Run& run = runs[0].run;
  const Dtype dtype = loss_dtype(problem);
  States<V, kD> w(runs, &SingleRun::weight);
  States<V, 1> b(runs, &SingleRun::bias);
  double lr[lanes];
  for (int l = 0; l < lanes; ++l) lr[l] = runs[l].sgd.lr;
  alignas(64) double totals[kD + 2][lanes];
  for (int64_t step = run.begin; step < run.end; ++step, losses += size_of(dtype)) {
    const int64_t batch = step % run.epoch_steps, epoch = step / run.epoch_steps;
    const Batch<V> rows_of_step{static_cast<const Each<V>*>(rows),
                                run.order ? run.order + epoch * run.order_stride : nullptr, batch * run.batch_size,
                                batch_rows(run, batch)};
    with_loss(problem.loss, [&]<Loss kLoss>() __attribute__((always_inline)) {
      sum_rows<kLoss, kD, V>(rows_of_step, w.p, b.p[0], Number(problem.delta), totals);
    });
    const double divisor = reduction_divisor(problem.reduction, double(rows_of_step.n)), scale = 1.0 / divisor;
    for (int l = 0; l < lanes; ++l) {
      const Number value = rounded<Number>(totals[0][l] / divisor, dtype);
      store(&value, 1, dtype, losses + l * stride);
    }
    w.update(totals + 2, scale, lr);
    b.update(totals + 1, scale, lr);
  }
  w.write_back();
  b.write_back();
}

template <class V, int kD = 1>
void take_steps_of_width(SingleRun* runs, char* losses, int64_t stride, const void* rows) {
  if constexpr (kD < kSmallFeatures)
    if (runs[0].problem.d > kD) return take_steps_of_width<V, kD + 1>(runs, losses, stride, rows);
  take_steps<V, kD>(runs, losses, stride, rows);
}

// Writes lane `lane` of a column of numbers, `stride` vectors apart.
template <class V, class T, class Convert>
void load_column(const T* from, int64_t from_stride, int64_t n, Convert convert, int lane, int64_t stride,
                 Each<V>* to) {
  for (int64_t i = 0; i < n; ++i) to[i * stride].of[lane] = NumberOf<V>(convert(from[i * from_stride]));
}

template <class V>
void load_column(const void* from, const View& view, int64_t n, int lane, int64_t stride, Each<V>* to) {
  const auto same = [](auto number) { return number; };
  const auto load = [&](auto* typed, auto convert) {
    load_column(typed, view.row_stride, n, convert, lane, stride, to);
  };
  switch (view.dtype) {
    case Dtype::float32:
      return load(static_cast<const float*>(from), same);
    case Dtype::float64:
      return load(static_cast<const double*>(from), same);
    case Dtype::bfloat16:
      return load(static_cast<const uint16_t*>(from), [](uint16_t h) { return from_bfloat16(h); });
    case Dtype::float16:
      return load(static_cast<const uint16_t*>(from), [](uint16_t h) { return from_float16(h); });
  }
}

template <class V>
void load_rows(const SingleRun* runs, void* rows) {
  const int64_t n = runs[0].problem.n, d = runs[0].problem.d;
  Each<V>* const to = static_cast<Each<V>*>(rows);
  for (int l = 0; l < lanes_of<V>; ++l) {
    const Problem& p = runs[l].problem;
    for (int64_t j = 0; j < d; ++j) load_column(at(p.x, 0, j), p.x, n, l, d + 1, to + j);
    load_column(p.y.data, p.y, n, l, d + 1, to + d);
  }
}

}  // namespace

const SmallRuns LINREG_SET::small_runs = {
    kLanes,
    [](const SingleRun* runs, void* rows) {
      runs[0].problem.x.dtype == Dtype::float64 ? load_rows<Wide>(runs, rows) : load_rows<Narrow>(runs, rows);
    },
    [](SingleRun* runs, char* losses, int64_t stride, const void* rows) {
      const auto take =
          runs[0].problem.x.dtype == Dtype::float64 ? take_steps_of_width<Wide> : take_steps_of_width<Narrow>;
      take(runs, losses, stride, rows);
    }};

}  // namespace linreg::cpu
