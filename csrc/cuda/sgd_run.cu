// SPDX-License-Identifier: BSD-3-Clause
// Many steps of a run in one launch, by one block whose rows stay in shared memory; the same for many runs, a block for
// each; and the end of any run.
//
// Reads the rows once per launch, and converts them once: float64 to double, all others to float. Writes a loss per
// step, or of many runs the mean of each epoch, and at the end the parameters.
//
// Launch: one block per run. If one warp is enough, it exchanges sums and weights by shuffles; several warps need two
// barriers per step. Some lanes of a warp share a row. A thread sums at most kMostRows rows in its own type; sums over
// rows of several threads are in double.
//
// Deterministic: the sizes determine each thread's rows, and sums are added in a fixed order. Parameters are rounded to
// their dtype after every step, so that splitting a run into launches does not change its bits.
#include <cmath>

#include "../math/reduction.h"
#include "../math/sgd.h"
#include "../math/single_run.h"
#include "plan.h"

namespace linreg::cuda {

struct ResidentRun {
  Problem problem;
  Run run;  // with order and lr on the device
  Sgd sgd;
  Parameter weight, bias;
  bool stop_nonfinite;
  const void* before;  // the loss of the step before run.begin, which may have ended the run; nullptr: none
  void* losses;        // [run.end - run.begin]
  ResidentLayout layout;
  Many many = {};  // on the device; block i takes run many.begin + i, if there are any
  // Of many runs: `run` begins and ends at epochs, `losses` are those of epochs, [blocks, many.epochs] from epoch 0 on.
  LINREG_DEVICE bool is_many() const { return many.end > many.begin; }
};

// The run of problem p.
LINREG_DEVICE Run run_of(const ResidentRun& call, int64_t p) {
  Run run = call.run;
  if (!call.is_many()) return run;
  if (call.many.offsets) {
    run.rows = call.many.offsets[p + 1] - call.many.offsets[p];
    if (run.order) run.order += call.many.offsets[p];
  }
  run.epoch_steps = steps_of(run.rows, run.batch_size, call.many.drop_last);
  run.begin *= run.epoch_steps;
  run.end *= run.epoch_steps;
  return run;
}

struct Batch {
  int64_t index = 0;               // in its epoch
  int n = 0;                       // its rows
  const int64_t* order = nullptr;  // its epoch's order
};

LINREG_DEVICE Batch batch_of(const Run& run, int64_t step) {
  const int64_t epoch = step / run.epoch_steps, index = step - epoch * run.epoch_steps;
  return {index, int(batch_rows(run, index)), run.order ? run.order + epoch * run.order_stride : nullptr};
}

LINREG_DEVICE Batch following(const Run& run, const Batch& batch) {
  const bool same_epoch = batch.index + 1 < run.epoch_steps;
  const int64_t index = same_epoch ? batch.index + 1 : 0;
  return {index, int(batch_rows(run, index)), !run.order || same_epoch ? batch.order : batch.order + run.order_stride};
}

// Sets the losses from `step` on, which the run does not reach, to nan.
LINREG_DEVICE void leave_unreached(const ResidentRun& call, int64_t step) {
  for (int64_t i = step - call.run.begin + thread_index(); i < call.run.end - call.run.begin; i += thread_count())
    store_nan(call.losses, call.problem.w.dtype, i);
}

constexpr int kAbsent = -1;   // instead of a row: beyond the end of the batch
constexpr int kMissing = -2;  // instead of a row: its index is out of range, so the row is nan

// The sum of `count` numbers, `stride` apart, in a fixed order.
LINREG_DEVICE double sum_apart(const double* numbers, int count, int stride) {
  double sum = numbers[0];
  for (int i = 1; i < count; ++i) sum += numbers[i * stride];
  return sum;
}

template <class T, int kColumns>
class ResidentSteps {
 public:
  static constexpr int kRows = rows_in_flight(kColumns);
  // The sums of a thread: one per column, then the loss, Σ v ℓ' and Σ v.
  static constexpr int kLossSum = kColumns, kBiasSum = kColumns + 1, kWeightSum = kColumns + 2, kSums = kColumns + 3;
  static constexpr int kScattered = kColumns == 1 ? 4 : kColumns == 8 ? 16 : 8;  // kSums, as a power of two
  static constexpr int kShare = kWarp / kScattered;  // the lanes in which a scattered sum ends

  LINREG_DEVICE ResidentSteps(const ResidentRun& call, void* memory)
      : call_(call),
        p_(call.problem),
        l_(call.layout),
        index_(call.many.begin + block_index()),
        run_(run_of(call, index_)),
        sgd_(rule_of(call.many, call.sgd, index_)),
        rows_(call.many.offsets && !run_.order ? int(run_.rows) : l_.rows),
        dtype_(p_.w.dtype),
        columns_(int(p_.d) + 1),
        lane_(thread_index() & (l_.lanes - 1)),
        target_(thread_index() / kWarp % int(p_.k)),
        slot_((thread_index() / kWarp / int(p_.k) * kWarp + thread_index() % kWarp) / l_.lanes),
        slots_(l_.workers * kWarp / l_.lanes),
        lines_(static_cast<double*>(memory)),
        numbers_(reinterpret_cast<Number*>(lines_ + l_.warps * l_.line)),
        x_(reinterpret_cast<T*>(numbers_ + p_.k * columns_)),
        y_(x_ + int(p_.d) * l_.stride),
        v_(y_ + int(p_.k) * l_.rows) {}

  LINREG_DEVICE void run() {
    const Run& run = run_;
    if (run.epoch_steps == 0) return leave_epochs();
    load();
    Sgd sgd = sgd_;
    if (sgd.lr_on_device) sgd.lr = load_as<double>(sgd.lr_on_device, sgd.lr_dtype, 0);
    int64_t step = run.begin;
    Batch batch = batch_of(run, step);
    int scaled = -1;  // the batch size for which scale_ holds: a division takes half as long as a step
    for (; step < run.end; ++step) {
      if (run.lr) sgd.lr = run.lr[step - run.begin];
      if (scaled != batch.n) scale_ = reduction_scale(p_.reduction, double(batch.n) * double(p_.k));
      scaled = batch.n;
      double sums[kScattered];
      add(batch, sums);
      rows_of_batch_ = batch.n;
      epoch_ends_ = batch.index + 1 == run.epoch_steps;
      batch = following(run, batch);
      if (l_.one_warp ? ends_warp(step, sums, sgd) : ends_block(step, sums, sgd)) break;  // in all threads
      first_weight_ = first_bias_ = false;
    }
    if (step > run.begin) store();
    if (!call_.is_many()) leave_unreached(call_, step + 1);
  }

 private:
  // An element of a parameter and of its momentum buffer, in a type that represents their dtype exactly.
  struct Number {
    T p = 0, buffer = 0;
  };

  // A target's parameters are its weights, then its bias.
  LINREG_DEVICE bool is_bias(int column) const { return column == int(p_.d); }
  LINREG_DEVICE const Parameter& parameter(int column) const { return is_bias(column) ? call_.bias : call_.weight; }
  LINREG_DEVICE Rows value_of(int column) const {
    Rows of = parameter(column).value;
    move_bytes(of.data, index_ * (is_bias(column) ? call_.many.b : call_.many.w));
    return of;
  }
  LINREG_DEVICE Rows buffer_of(int column) const {
    Rows of = parameter(column).momentum_buffer;
    move_bytes(of.data, index_ * (is_bias(column) ? call_.many.b_buffer : call_.many.w_buffer));
    return of;
  }
  LINREG_DEVICE int64_t place(const Rows& of, int t, int column) const {
    return is_bias(column) ? t : t * of.row_stride + column;
  }

  // With one warp: the index of the parameter whose sum ends in this lane; -1: none.
  LINREG_DEVICE int number() const {
    const int sum = thread_index() / kShare;
    return sum < int(p_.d) ? sum : sum == kBiasSum ? int(p_.d) : -1;
  }

  LINREG_DEVICE int column(int c) const { return c * l_.lanes + lane_; }

  LINREG_DEVICE void load() {
    const Many& many = call_.many;
    const auto fetch = [&](View from, int64_t apart, int columns, T* to, int stride) {
      move_bytes(from.data, index_ * apart);
      if (many.offsets && !run_.order)
        move_bytes(from.data, many.offsets[index_] * from.row_stride * int64_t(size_of(from.dtype)));
      for (int i = thread_index(); i < rows_ * columns; i += thread_count())
        to[i % columns * stride + i / columns] = load_as<T>(from, i / columns, i % columns);
    };
    fetch(p_.x, many.x, int(p_.d), x_, l_.stride);
    fetch(p_.y, many.y, int(p_.k), y_, l_.rows);
    if (p_.v.data) fetch(p_.v, many.v, l_.weight_columns, v_, l_.rows);
    View w = p_.w, b = p_.b;
    move_bytes(w.data, index_ * many.w), move_bytes(b.data, index_ * many.b);
    for (int i = thread_index(); i < p_.k * columns_; i += thread_count()) {
      const int t = i / columns_, column = i - t * columns_;
      const Rows buffer = buffer_of(column);
      Number number;
      if (!is_bias(column)) number.p = load_as<T>(w, t, column);
      if (is_bias(column) && b.data) number.p = load_as<T>(b, 0, t);
      if (sgd_.momentum != 0 && buffer.data && !parameter(column).first_step)
        number.buffer = load_as<T>(buffer.data, dtype_, place(buffer, t, column));
      numbers_[i] = number;
    }
    sync_block();  // rows and parameters are in shared memory
    if (l_.one_warp && number() >= 0) own_ = numbers_[number()];
    take_weights();
    first_weight_ = call_.weight.first_step, first_bias_ = call_.bias.first_step;
  }

  LINREG_DEVICE void take_weights() {
    const Number* const of_target = numbers_ + target_ * columns_;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) w_[c] = column(c) < p_.d ? of_target[column(c)].p : T(0);
    b_ = of_target[p_.d].p;
  }

  LINREG_DEVICE int row_of(const Batch& batch, int at) const {
    if (at >= batch.n) return kAbsent;
    const int64_t place = batch.index * run_.batch_size + at, row = batch.order ? batch.order[place] : place;
    return 0 <= row && row < rows_ ? int(row) : kMissing;
  }

  // This thread's sums over a batch, for its columns and its target.
  LINREG_DEVICE void add(const Batch& batch, double (&out)[kScattered]) const {
    T sums[kSums] = {};
    for (int from = 0; from < batch.n; from += kRows * slots_) {
      int rows[kRows];
#pragma unroll
      for (int u = 0; u < kRows; ++u) rows[u] = row_of(batch, from + u * slots_ + slot_);
      with_loss(p_.loss, [&]<Loss kLoss>() { add_rows<kLoss>(rows, sums); });
    }
#pragma unroll
    for (int s = 0; s < kScattered; ++s) out[s] = s < kSums ? double(sums[s]) : 0;
  }

  template <Loss kLoss>
  LINREG_DEVICE void add_rows(const int (&rows)[kRows], T (&sums)[kSums]) const {
    T x[kRows][kColumns], dot[kRows];
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      dot[u] = 0;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const bool there = rows[u] >= 0 && column(c) < p_.d;
        x[u][c] = there ? x_[column(c) * l_.stride + rows[u]] : T(0);
        dot[u] += x[u][c] * w_[c];
      }
      dot[u] = sum_lanes(dot[u], 1, l_.lanes);
    }
    const T* const v = v_ + (l_.weight_columns > 1 ? target_ * l_.rows : 0);
#pragma unroll
    for (int u = 0; u < kRows; ++u) {
      if (rows[u] == kAbsent) continue;
      const bool there = rows[u] >= 0;
      const T weight = there && p_.v.data ? v[rows[u]] : T(1), y = there ? y_[target_ * l_.rows + rows[u]] : T(NAN);
      const Residual<T> of = residual<kLoss>(difference(dot[u], b_, y), weight, T(p_.delta));
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sums[c] += x[u][c] * of.dloss;
      sums[kLossSum] += of.loss;
      sums[kBiasSum] += of.dloss;
      sums[kWeightSum] += weight;
    }
  }

  // Adds a warp's sums over the lanes that have different rows of the same columns, and stores them at `line`: column c
  // of lane i at c · lanes + i, then the loss, Σ v ℓ' and Σ v.
  LINREG_DEVICE void leave_sums(const double (&sums)[kScattered], double* line) const {
    const int in_warp = thread_index() % kWarp;
    if (l_.lanes == 1) {
      const double mine = scatter_sums(sums, kWarp);
      const int number = in_warp / kShare;
      if (in_warp % kShare == 0 && number < kSums) line[number] = mine;
      return;
    }
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const double sum = sum_lanes(sums[s], l_.lanes, kWarp);
      if (s < kColumns && in_warp < l_.lanes) line[s * l_.lanes + in_warp] = sum;
      if (s >= kColumns && in_warp == 0) line[kColumns * l_.lanes + s - kColumns] = sum;
    }
  }

  // Writes the loss of a step, or adds it to its epoch's. True if it ends the run.
  LINREG_DEVICE bool ends(int64_t step, double loss_sum, double weight_sum) {
    const double loss = round_to(scale_ * loss_sum, dtype_);
    if (call_.is_many()) {
      if (thread_index() == 0) add_to_epoch(step, loss, p_.v.data ? weight_sum : double(rows_of_batch_));
      return false;
    }
    if (thread_index() == 0) store_number(call_.losses, dtype_, step - run_.begin, loss);
    return call_.stop_nonfinite && !is_finite(loss);
  }

  LINREG_DEVICE void add_to_epoch(int64_t step, double loss, double weight) {
    epoch_loss_ += weight * loss, epoch_weight_ += weight;
    if (!epoch_ends_) return;
    const double mean = run_.epoch_steps == 1 ? loss : epoch_loss_ / epoch_weight_;
    store_number(call_.losses, dtype_, block_index() * call_.many.epochs + step / run_.epoch_steps, mean);
    epoch_loss_ = epoch_weight_ = 0;
  }

  // The losses of a run without steps.
  LINREG_DEVICE void leave_epochs() const {
    for (int64_t epoch = call_.run.begin + thread_index(); epoch < call_.run.end; epoch += thread_count())
      store_nan(call_.losses, dtype_, block_index() * call_.many.epochs + epoch);
  }

  // Applies the rule, rounded to the dtype.
  LINREG_DEVICE void update(Number& number, int column, double sum, const Sgd& sgd) const {
    const Parameter& of = parameter(column);
    if (of.frozen || !of.value.data) return;
    const bool first = is_bias(column) ? first_bias_ : first_weight_;
    const SgdNumber<double> next = sgd_update<double>(number.p, number.buffer, scale_ * sum, sgd, first);
    number.p = T(round_to(next.p, dtype_));
    number.buffer = T(round_to(next.buffer, dtype_));
  }

  // A step of one warp, whose lanes take whole rows. Each sum ends in the lane that owns its parameter.
  LINREG_DEVICE bool ends_warp(int64_t step, const double (&sums)[kScattered], const Sgd& sgd) {
    const double mine = scatter_sums(sums, kWarp);
    const double weight_sum = shuffle(mine, kWeightSum * kShare);
    if (p_.v.data) scale_ = reduction_scale(p_.reduction, weight_sum);
    if (ends(step, shuffle(mine, kLossSum * kShare), weight_sum)) return true;
    if (number() >= 0) update(own_, number(), mine, sgd);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) w_[c] = shuffle(own_.p, c * kShare);
    b_ = shuffle(own_.p, kBiasSum * kShare);
    return false;
  }

  LINREG_DEVICE bool ends_block(int64_t step, const double (&sums)[kScattered], const Sgd& sgd) {
    leave_sums(sums, lines_ + thread_index() / kWarp * l_.line);
    sync_block();  // every warp's sums are stored, and all weights have been read
    const double weight_sum = p_.v.data ? sum_apart(lines_ + l_.columns + 2, l_.warps, l_.line) : 0;
    if (p_.v.data) scale_ = reduction_scale(p_.reduction, weight_sum);
    if (call_.stop_nonfinite || thread_index() == 0)
      if (ends(step, sum_apart(lines_ + l_.columns, l_.warps, l_.line), weight_sum)) return true;
    for (int i = thread_index(); i < p_.k * columns_; i += thread_count()) {
      const int t = i / columns_, column = i - t * columns_;
      const double* const first = lines_ + t * l_.line + (is_bias(column) ? l_.columns + 1 : column);
      update(numbers_[i], column, sum_apart(first, l_.workers, int(p_.k) * l_.line), sgd);
    }
    sync_block();  // every parameter is stored, and all sums have been read
    take_weights();
    return false;
  }

  LINREG_DEVICE void store() const {
    sync_block();  // with one warp: all lanes have read their weights
    if (l_.one_warp && number() >= 0 && thread_index() % kShare == 0) numbers_[number()] = own_;
    sync_block();  // every parameter is in shared memory
    for (int i = thread_index(); i < p_.k * columns_; i += thread_count()) {
      const int t = i / columns_, column = i - t * columns_;
      const Rows value = value_of(column), buffer = buffer_of(column);
      if (parameter(column).frozen || !value.data) continue;
      store_number(value.data, dtype_, place(value, t, column), numbers_[i].p);
      if (sgd_.momentum != 0) store_number(buffer.data, dtype_, place(buffer, t, column), numbers_[i].buffer);
    }
  }

  const ResidentRun& call_;
  const Problem& p_;
  const ResidentLayout& l_;
  const int64_t index_;  // of the run
  const Run run_;
  const Sgd sgd_;
  const int rows_;          // in shared memory
  const Dtype dtype_;       // of the parameters and the losses
  const int columns_;       // the parameters of a target
  const int lane_;          // among the lanes that share a row
  const int target_;        // of this warp
  const int slot_, slots_;  // this thread takes rows slot_, slot_ + slots_, … of a batch
  double* const lines_;     // [warps, line]
  Number* const numbers_;   // [k, d + 1]
  T* const x_;              // [d, stride]
  T* const y_;              // [k, rows]
  T* const v_;              // [weight columns, rows]
  Number own_;              // with one warp: this lane's parameter
  T w_[kColumns], b_;
  double scale_ = 1;
  bool first_weight_ = false, first_bias_ = false;
  int rows_of_batch_ = 0;
  bool epoch_ends_ = false;
  double epoch_loss_ = 0, epoch_weight_ = 0;  // in one thread
};

template <class T, int kColumns>
LINREG_KERNEL(kRunThreads, 1)
resident_kernel(LINREG_PARAMETER ResidentRun call) {
  if (call.before && call.stop_nonfinite && !is_finite(load_as<double>(call.before, call.problem.w.dtype, 0)))
    return leave_unreached(call, call.run.begin);
  ResidentSteps<T, kColumns>(call, shared_memory()).run();
}

// After the last step, one block counts the steps taken and sets the losses of unreached steps to nan.
constexpr int kEndThreads = 256;

LINREG_KERNEL(kEndThreads, 1)
end_kernel(LINREG_PARAMETER Run run, const bool stop_nonfinite, LINREG_PARAMETER Losses losses,
           LINREG_PARAMETER Losses validation_losses, int64_t* const taken) {
  int64_t* const firsts = static_cast<int64_t*>(shared_memory());  // [threads]
  const int64_t steps = run.end - run.begin;
  int64_t first = steps;  // the first of this thread's steps that was not taken
  for (int64_t i = thread_index(); stop_nonfinite && i < first; i += thread_count())
    if (!is_finite(load_as<double>(losses.data, losses.dtype, i))) first = i;
  firsts[thread_index()] = first;
  sync_block();  // every thread has read its losses and stored its result
  for (int i = 0; i < thread_count(); ++i) first = firsts[i] < first ? firsts[i] : first;
  if (thread_index() == 0) *taken = first;
  for (int64_t i = first + 1 + thread_index(); i < steps; i += thread_count()) store_nan(losses.data, losses.dtype, i);
  if (!validation_losses.data) return;
  const int64_t before = run.begin / run.epoch_steps, ended = run.end / run.epoch_steps - before;
  for (int64_t i = (run.begin + first) / run.epoch_steps - before + thread_index(); i < ended; i += thread_count())
    store_nan(validation_losses.data, validation_losses.dtype, i);
}
namespace {

template <class T, int kColumns = 1>
const char* launch_once(const ResidentRun& call, void* stream) {
  if constexpr (kColumns < kMostColumns)
    if (call.layout.columns_of_thread > kColumns) return launch_once<T, 2 * kColumns>(call, stream);
  const int blocks = call.is_many() ? int(call.many.end - call.many.begin) : 1;
  const Launch how{blocks, call.layout.warps * kWarp, call.layout.shared_bytes, stream};
  return launch(resident_kernel<T, kColumns>, how, call);
}

const char* launch_once(const ResidentRun& call, void* stream) {
  return call.problem.x.dtype == Dtype::float64 ? launch_once<double>(call, stream) : launch_once<float>(call, stream);
}

const char* take_launches(ResidentRun call, void* stream) {
  const Run run = call.run;
  char* const losses = static_cast<char*>(call.losses);
  const int64_t size = int64_t(size_of(call.problem.w.dtype)), most = launch_steps(call.problem, run);
  for (int64_t begin = run.begin; begin < run.end; begin = call.run.end) {
    call.run.begin = begin;
    call.run.end = run.end - begin < most ? run.end : begin + most;
    if (run.lr) call.run.lr = run.lr + (begin - run.begin);
    call.losses = losses + (begin - run.begin) * size;
    if (const char* error = launch_once(call, stream)) return error;
    call.weight.first_step = call.bias.first_step = false;
    call.before = losses + (call.run.end - 1 - run.begin) * size;
  }
  return nullptr;
}

}  // namespace

const char* takes_many_steps(const Problem& problem, const Run& run, bool& yes) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentLayout layout;
  yes = lay_out(layout, problem, run, device);
  return nullptr;
}

const char* take_many_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, const void* before, void* losses,
                            void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentRun call{problem, run, sgd, weight, bias, stop_nonfinite, before, losses, {}};
  if (!lay_out(call.layout, problem, run, device)) return "a run whose steps are to be launched one by one";
  return take_launches(call, stream);
}

const char* take_many_runs(const SingleRun& largest, const Many& many, void* losses, void* stream) {
  Limits device;
  if (const char* error = limits(device)) return error;
  ResidentRun call{largest.problem, largest.run, largest.sgd, largest.weight, largest.bias, false, nullptr, losses, {}};
  if (!lay_out(call.layout, largest.problem, largest.run, device)) return "runs that are to be taken one by one";
  // Some runs at a time, and of these some epochs, take the time of a launch.
  const int64_t most = launch_steps(largest.problem, largest.run) / largest.run.epoch_steps;  // epochs
  const int64_t waves = most > 1 ? most : 1, blocks = waves * device.multiprocessors;
  const int64_t size = int64_t(size_of(largest.problem.w.dtype));
  for (int64_t first = many.begin; first < many.end; first = call.many.end) {
    call.many = many;
    call.many.begin = first;
    call.many.end = many.end - first < blocks ? many.end : first + blocks;
    call.losses = static_cast<char*>(losses) + (first - many.begin) * many.epochs * size;
    call.weight.first_step = largest.weight.first_step, call.bias.first_step = largest.bias.first_step;
    const int64_t taken = waves / ceil_div(call.many.end - first, device.multiprocessors);
    for (int64_t epoch = 0; epoch < many.epochs; epoch = call.run.end) {
      call.run.begin = epoch;
      call.run.end = many.epochs - epoch < taken ? many.epochs : epoch + taken;
      if (const char* error = launch_once(call, stream)) return error;
      call.weight.first_step = call.bias.first_step = false;
    }
  }
  return nullptr;
}

const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream) {
  const Launch how{1, kEndThreads, kEndThreads * int(sizeof(int64_t)), stream};
  return launch(end_kernel, how, run, stop_nonfinite, losses, validation_losses, taken);
}

}  // namespace linreg::cuda
