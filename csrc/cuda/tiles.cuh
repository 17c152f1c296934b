// SPDX-License-Identifier: BSD-3-Clause
// The pass: predictions, residuals, losses and gradient sums from one reading of X.
//
// Memory traffic: asynchronous copies read the rows of X, Y and v once, in the given order, into a ring of kStages
// tiles in shared memory. Contiguous rows are copied as flat words, so that any width and alignment reads alike. The
// requested outputs and a line of sums per block are written.
//
// Launch: a block takes every block_count()-th tile. A tile goes through three phases, separated by barriers: dot
// products (some lanes share a row; warps divide the rest), residuals (a thread has one target) and gradients (a thread
// owns some columns of kTargets targets, for every groups-th row).
//
// Accuracy: float32 and 16-bit rows are computed in float. A thread adds at most kChain rows before a sum moves to
// double; sums over rows of several threads and blocks are in double. Deterministic: the plan determines which thread
// adds which rows, and sums are combined in a fixed order.
#pragma once

#include "finish.cuh"
#include "plan.h"

namespace linreg::cuda {

// Copies a tile of rows into shared memory without gaps: element (i, j) is at shift() + (i · columns + j) · size().
struct TileRows {
  const View& view;
  const Problem& of;
  int columns;

  LINREG_DEVICE int size() const { return int(size_of(view.dtype)); }
  LINREG_DEVICE bool flat() const {
    return !of.order && view.row_stride == columns && (view.col_stride == 1 || columns == 1);
  }
  LINREG_DEVICE const char* row(int64_t i) const {
    return static_cast<const char*>(view.data) + i * view.row_stride * size();
  }
  LINREG_DEVICE int shift(int64_t first) const {
    return flat() ? int(reinterpret_cast<uintptr_t>(row(first)) % 16) : 0;
  }

  LINREG_DEVICE void copy(int64_t first, int rows, char* to) const {
    if (!view.data || columns == 0) return;
    flat() ? copy_flat(first, rows, to) : copy_apart(first, rows, to);
  }

 private:
  LINREG_DEVICE void copy_number(char* to, const char* from) const {
    switch (size()) {
      case 8:
        return copy_async<8>(to, from);
      case 4:
        return copy_async<4>(to, from);
      default:  // too narrow for an asynchronous copy
        *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
    }
  }

  // A word may include numbers of the rows before and after, but none from outside the matrix: the words at its two
  // ends are copied by number.
  LINREG_DEVICE void copy_flat(int64_t first, int rows, char* to) const {
    const char* const begin = row(first) - shift(first);
    const int bytes = shift(first) + rows * columns * size(), rounded = (bytes + 15) & ~15;
    const int64_t left = row(of.n) - begin;
    const int low = begin < row(0) ? 16 : 0, high = left < rounded ? int(left) & ~15 : rounded;
#pragma unroll 4
    for (int at = low + thread_index() * 16; at < high; at += thread_count() * 16) copy_async<16>(to + at, begin + at);
    const int lane = thread_index() * size(), step = thread_count() * size();
    for (int at = shift(first) + lane; at < low && at < bytes; at += step) copy_number(to + at, begin + at);
    for (int at = (low < high ? high : low) + lane; at < bytes; at += step) copy_number(to + at, begin + at);
  }

  // Copies rows that have gaps or are in an order: in words if every row consists of aligned words, else by number.
  LINREG_DEVICE void copy_apart(int64_t first, int rows, char* to) const {
    const int64_t row_step = view.row_stride * size();
    const bool words = view.col_stride == 1 && columns * size() % 16 == 0 && row_step % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
    const int bytes = words ? 16 : size(), pieces = columns * size() / bytes;
    const int64_t piece_step = words ? 16 : view.col_stride * size();
    int lanes = 1;
    while (lanes < pieces && lanes < kWarp) lanes *= 2;
    for (int i = thread_index() / lanes; i < rows; i += thread_count() / lanes) {
      const int64_t index = of.order ? of.order[first + i] : first + i;
      const bool there = !of.order || (0 <= index && index < of.rows);
      for (int piece = thread_index() % lanes; piece < pieces; piece += lanes) {
        const char* const from = row(index) + piece * piece_step;
        char* const at = to + (i * pieces + piece) * bytes;
        if (!there) {
          memset(at, 0xff, bytes);  // nan in every dtype
        } else if (words) {
          copy_async<16>(at, from);
        } else {
          copy_number(at, from);
        }
      }
    }
  }
};

template <Dtype kX, bool kVectors, int kTargets>
class TilesPass {
 public:
  using T = Wide<kX>;
  using Number = Stored<kX>;
  static constexpr int kColumns = kVectors ? vector_columns(kX, kTargets) : 1;  // read at once
  static constexpr int kChunks = thread_sums(kX) / (kColumns * kTargets);       // the most that a thread owns
  static constexpr int kDots = kRowsAtOnce * kTargets;
  static constexpr int kBundleLog = log_from(kRowsAtOnce * kWarp);  // rows · lanes of a bundle

  // A thread's sums over the residuals of its target: the loss, Σ v and Σ v ℓ'. They are in shared memory, because
  // registers are scarce.
  struct ResidualSums {
    double totals[3];
    T sums[3];
  };

  // Values that all threads read: two constants in the type of the sums, the number of this block's tiles so far, and
  // whether sums move to double after this tile. In shared memory, because registers are scarce and the compiler would
  // repeat the constants' conversion in every loop.
  struct alignas(16) Common {
    T delta, scale;
    int tiles;
    bool move_sums, move_residuals;
  };

  LINREG_DEVICE TilesPass(const Pass& pass)
      : pass_(pass),
        p_(pass.problem),
        l_(pass.layout),
        columns_(int(p_.d)),
        targets_(int(p_.k)),
        common_(static_cast<Common*>(shared_memory())),
        of_residuals_(reinterpret_cast<ResidualSums*>(common_ + 1) + thread_index()),
        shared_(static_cast<char*>(shared_memory()) + residual_bytes(thread_count())),
        w_(reinterpret_cast<T*>(shared_)),
        dots_(reinterpret_cast<T*>(shared_ + l_.dots_at)),
        group_(thread_index() / l_.span) {
    *of_residuals_ = {};
    if (thread_index() == 0) *common_ = {T(p_.delta), T(pass_scale(pass)), 0, false, false};
  }

  LINREG_DEVICE void run() {
    for (int t = 0; t < targets_there(); ++t)
      for (int j = thread_index(); j < columns_; j += thread_count())
        w_[t * columns_ + j] = t < targets_ ? load_as<T>(p_.w, t, j) : T(0);
    for (int stage = 0; stage < kStages - 1; ++stage) fetch(block_index() + stage * block_count(), stage);
    int stage = 0;
    for (int tile = block_index(); tile < l_.tiles; tile += block_count()) {
      copy_wait<kStages - 2>();  // this thread's copies of the tile are complete
      sync_block();              // so are all others', and no thread still uses the previous tile
      fetch(tile + (kStages - 1) * block_count(), stage == 0 ? kStages - 1 : stage - 1);
      const int64_t first = first_row(tile);
      const int rows = rows_of(tile), at = l_.ring_at + stage * l_.stage_bytes;
      const char* const x = shared_ + at + x_rows().shift(first);
      if (thread_index() == 0) count_tile();
      // Vector loads need an aligned tile.
      const bool words = reinterpret_cast<uintptr_t>(x) % (kColumns * sizeof(Number)) == 0;
      words ? predict<true>(x, rows) : predict<false>(x, rows);
      sync_block();  // every part of every dot product is stored
      with_loss(p_.loss, [&]<Loss kLoss>() { residuals<kLoss>(first, rows, shared_ + at); });
      sync_block();  // every dloss is stored
      if (pass_.weight_sum) words ? add_tile<true>(x, rows) : add_tile<false>(x, rows);
      if (pass_.input_gradient) write_input_gradient(first, rows);
      if (common_->move_sums) go_on_in_double();
      if (common_->move_residuals) go_on_with_residuals();
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    go_on_in_double();
    go_on_with_residuals();
  }

  // Stores this block's sums at `line`.
  LINREG_DEVICE void leave_sums(double* line) {
    sync_block();  // shared memory can be reused
    leave_residual_sums(line);
    if (!pass_.weight_sum) return;
    double* const of_weights = line + weight_sums(p_);
    if (l_.groups == 1) return put_sums([&](int at, double sum) { store_cg(of_weights + at, sum); });
    const int count = targets_ * columns_;
    double* const slots = reinterpret_cast<double*>(shared_) + residual_sums();
    put_sums([&](int at, double sum) { slots[group_ * count + at] = sum; });
    for (int apart = 1; apart < l_.groups; apart *= 2) {
      sync_block();  // the sums of the previous level are stored
      const int pairs = (l_.groups - apart + 2 * apart - 1) / (2 * apart);
      for (int i = thread_index(); i < pairs * count; i += thread_count()) {
        const int at = i / count * 2 * apart * count + i % count;
        slots[at] += slots[at + apart * count];
      }
    }
    sync_block();  // all groups' sums are added
    for (int i = thread_index(); i < count; i += thread_count()) store_cg(of_weights + i, slots[i]);
  }

 private:
  LINREG_DEVICE int lanes() const { return 1 << l_.lanes_log; }
  LINREG_DEVICE int targets_there() const { return 1 << l_.targets_log; }

  LINREG_DEVICE TileRows x_rows() const { return {p_.x, p_, columns_}; }
  LINREG_DEVICE TileRows y_rows() const { return {p_.y, p_, targets_}; }
  LINREG_DEVICE TileRows v_rows() const { return {p_.v, p_, p_.v.col_stride == 0 ? 1 : targets_}; }

  LINREG_DEVICE int64_t first_row(int tile) const { return int64_t(tile) * l_.rows; }
  LINREG_DEVICE int rows_of(int tile) const {
    const int64_t left = p_.n - first_row(tile);
    return left < l_.rows ? int(left) : l_.rows;
  }

  LINREG_DEVICE void fetch(int tile, int stage) const {
    if (tile < l_.tiles) {
      char* const to = shared_ + l_.ring_at + stage * l_.stage_bytes;
      x_rows().copy(first_row(tile), rows_of(tile), to);
      y_rows().copy(first_row(tile), rows_of(tile), to + l_.y_at);
      v_rows().copy(first_row(tile), rows_of(tile), to + l_.v_at);
    }
    copy_commit();
  }

  // Reads columns [j, j + kColumns) of kCount rows from `row` on, `step` apart; rows beyond `last` read as `last`.
  template <bool kWords, int kCount>
  LINREG_DEVICE void read(const char* x, int row, int step, int last, int j, T (&out)[kCount][kColumns]) const {
    Number numbers[kCount][kColumns];
    const Number* at[kCount];
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      const int i = row + u * step;
      at[u] = reinterpret_cast<const Number*>(x) + (i < last ? i : last) * columns_ + j;
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u) {
      if constexpr (kWords) copy_words<kColumns* int(sizeof(Number))>(numbers[u], at[u]);
#pragma unroll
      for (int c = 0; c < kColumns && !kWords; ++c) numbers[u][c] = at[u][c];
    }
#pragma unroll
    for (int u = 0; u < kCount; ++u)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) out[u][c] = widen<kX>(numbers[u][c]);
  }

  // Computes parts of dot products. A warp takes a part of the columns of some rows, for kTargets targets at a time.
  template <bool kWords>
  LINREG_DEVICE void predict(const char* x, int rows) const {
    const int lane = thread_index() % kWarp, in_row = lane & (lanes() - 1), row_step = kWarp >> l_.lanes_log;
    const int parts = 1 << l_.parts_log, target_groups = targets_there() / kTargets;
    const int bundles = (rows + kRowsAtOnce * row_step - 1) >> (kBundleLog - l_.lanes_log);
    for (int unit = thread_index() / kWarp; unit < bundles * target_groups * parts; unit += thread_count() / kWarp) {
      const int part = unit & (parts - 1), rest = unit >> l_.parts_log;
      const int t = (rest & (target_groups - 1)) * kTargets;
      const int row = (rest * kTargets >> l_.targets_log) * kRowsAtOnce * row_step + (lane >> l_.lanes_log);
      if (t > 0 && t >= targets_) continue;
      T dot[kDots] = {};
      const int begin = part * l_.part_columns;
      const int end = begin + l_.part_columns < columns_ ? begin + l_.part_columns : columns_;
#pragma unroll 1
      for (int j = begin + in_row * kColumns; j < end; j += lanes() * kColumns) {
        T numbers[kRowsAtOnce][kColumns];
        read<kWords>(x, row, row_step, rows - 1, j, numbers);
#pragma unroll
        for (int of = 0; of < kTargets; ++of) {
          T w[kColumns];
          copy_words<kColumns* int(sizeof(T))>(w, w_ + (t + of) * columns_ + j);
#pragma unroll
          for (int u = 0; u < kRowsAtOnce; ++u)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) dot[u * kTargets + of] += numbers[u][c] * w[c];
        }
      }
      T* const to = dots_ + (part * l_.rows + row) * targets_there() + t;
      leave_dots(dot, in_row, [&](int i, T sum) {
        const int u = i / kTargets;
        if (row + u * row_step < rows) to[u * row_step * targets_there() + i % kTargets] = sum;
      });
    }
  }

  // Sums the dot products over the lanes of a row. One lane puts each sum.
  template <class Put>
  LINREG_DEVICE void leave_dots(const T (&dot)[kDots], int in_row, const Put& put) const {
    if (lanes() < kDots) {
#pragma unroll
      for (int i = 0; i < kDots; ++i) {
        const T sum = sum_lanes(dot[i], 1, lanes());
        if (in_row == 0) put(i, sum);
      }
    } else {
      const int share = lanes() / kDots;
      const T sum = scatter_sums(dot, lanes());
      if (in_row % share == 0) put(in_row / share, sum);
    }
  }

  // Replaces the dot products by v ℓ'(r).
  template <Loss kLoss>
  LINREG_DEVICE void residuals(int64_t first, int rows, const char* tile) {
    const int t = thread_index() & (targets_there() - 1), parts = 1 << l_.parts_log;
    const char* const y = tile + l_.y_at + y_rows().shift(first);
    const char* const v = tile + l_.v_at + v_rows().shift(first);
    const int weight_columns = v_rows().columns;
    T sums[3] = {};  // over this tile
    const T delta = common_->delta, scale = common_->scale;
    const T bias = p_.b.data && t < targets_ ? load_as<T>(p_.b, 0, t) : T(0);
    for (int i = thread_index() >> l_.targets_log; i < rows; i += thread_count() >> l_.targets_log) {
      T* const at = dots_ + i * targets_there() + t;
      if (t >= targets_) {
        *at = 0;
        continue;
      }
      T dot = *at;
      for (int part = 1; part < parts; ++part) dot += at[part * l_.rows * targets_there()];
      T weight = 1;
      if (p_.v.data) weight = load_like(v, p_.v.dtype, i * weight_columns + (weight_columns > 1 ? t : 0));
      const T target = load_like(y, p_.y.dtype, i * targets_ + t);
      const Residual<T> of = residual<kLoss>(difference(dot, bias, target), weight, delta);
      sums[0] += of.loss;
      sums[1] += weight;
      sums[2] += of.dloss;
      *at = of.dloss;
      write_residual(pass_, scale, first + i, t, of);
    }
    for (int i = 0; i < 3; ++i) of_residuals_->sums[i] += sums[i];
  }

  // Loads a number of X's dtype or, beside 16-bit rows, float32.
  LINREG_DEVICE T load_like(const char* from, Dtype dtype, int i) const {
    if constexpr (sizeof(Number) == 2) {
      if (dtype == Dtype::float32) return reinterpret_cast<const float*>(from)[i];
    }
    return widen<kX>(reinterpret_cast<const Number*>(from)[i]);
  }

  // Calls work(chunk, first column, first target) for the sums that this thread owns.
  template <class Work>
  LINREG_DEVICE void for_chunks(const Work& work) const {
    if (group_ >= l_.groups) return;
    const int across = columns_ / kColumns;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int owned = thread_index() - group_ * l_.span + chunk * l_.span;
      if (owned >= l_.owned) continue;
      const int t = kTargets == 1 ? 0 : owned / across;
      work(chunk, (owned - t * across) * kColumns, t * kTargets);
    }
  }

  template <bool kWords>
  LINREG_DEVICE void add_tile(const char* x, int rows) {
    for_chunks([&](int chunk, int j, int t) {
      constexpr int kBatch = kTargets == 1 ? 4 : 2;
      int i = group_;
      for (; i + (kBatch - 1) * l_.groups < rows; i += kBatch * l_.groups)
        add_rows<kWords, kBatch>(x, i, j, t, sums_[chunk]);
      for (; i < rows; i += l_.groups) add_rows<kWords, 1>(x, i, j, t, sums_[chunk]);
    });
  }

  template <bool kWords, int kCount>
  LINREG_DEVICE void add_rows(const char* x, int row, int j, int t, T (&sums)[kTargets][kColumns]) const {
    T numbers[kCount][kColumns], dloss[kCount][kTargets];
    read<kWords>(x, row, l_.groups, row + (kCount - 1) * l_.groups, j, numbers);
#pragma unroll
    for (int u = 0; u < kCount; ++u)
      copy_words<kTargets* int(sizeof(T))>(dloss[u], dots_ + (row + u * l_.groups) * targets_there() + t);
#pragma unroll
    for (int u = 0; u < kCount; ++u)
#pragma unroll
      for (int of = 0; of < kTargets; ++of)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sums[of][c] += dloss[u][of] * numbers[u][c];
  }

  LINREG_DEVICE void write_input_gradient(int64_t first, int rows) const {
    const T scale = common_->scale;
    for (int i = thread_index() / kWarp; i < rows; i += thread_count() / kWarp)
      for (int j = thread_index() % kWarp; j < columns_; j += kWarp) {
        T sum = 0;
        for (int t = 0; t < targets_; ++t) sum += dots_[i * targets_there() + t] * w_[t * columns_ + j];
        store_number(pass_.input_gradient, gradient_dtype(kX), (first + i) * p_.d + j, scale * sum);
      }
  }

  LINREG_DEVICE void count_tile() const {
    const int tiles = ++common_->tiles;
    common_->move_sums = tiles % l_.chain_tiles == 0;
    common_->move_residuals = tiles % l_.residual_tiles == 0;
  }

  LINREG_DEVICE static void move(T& sum, double& total) {
    total += double(sum);
    sum = 0;
  }

  LINREG_DEVICE void go_on_in_double() {
    for_chunks([&](int chunk, int, int) {
#pragma unroll
      for (int of = 0; of < kTargets; ++of)
#pragma unroll
        for (int c = 0; c < kColumns; ++c) move(sums_[chunk][of][c], totals_[chunk][of][c]);
    });
  }

  LINREG_DEVICE void go_on_with_residuals() const {
    if (thread_index() >> l_.targets_log >= l_.rows) return;
    move(of_residuals_->sums[0], of_residuals_->totals[0]);
    move(of_residuals_->sums[2], of_residuals_->totals[2]);
    if (p_.v.data) move(of_residuals_->sums[1], of_residuals_->totals[1]);
  }

  template <class Put>
  LINREG_DEVICE void put_sums(const Put& put) const {
    for_chunks([&](int chunk, int j, int t) {
#pragma unroll
      for (int of = 0; of < kTargets; ++of)
#pragma unroll
        for (int c = 0; c < kColumns; ++c)
          if (t + of < targets_) put((t + of) * columns_ + j + c, totals_[chunk][of][c]);
    });
  }

  // The number of the warps' residual sums in shared memory: [warps, 3, targets].
  LINREG_DEVICE int residual_sums() const { return thread_count() / kWarp * 3 * targets_there(); }

  LINREG_DEVICE void leave_residual_sums(double* line) {
    double* const lines = reinterpret_cast<double*>(shared_);
    const int lane = thread_index() % kWarp;
    for (int i = 0; i < 3; ++i) {
      const double sum = sum_lanes(of_residuals_->totals[i], targets_there(), kWarp);
      if (lane < targets_there()) lines[(thread_index() / kWarp * 3 + i) * targets_there() + lane] = sum;
    }
    sync_block();  // every warp's sums are stored
    for (int i = thread_index(); i < 3 * targets_there(); i += thread_count()) {
      double sum = 0;
      for (int warp = 0; warp < thread_count() / kWarp; ++warp) sum += lines[warp * 3 * targets_there() + i];
      const int t = i & (targets_there() - 1);
      if (t < targets_) store_cg(line + (i >> l_.targets_log) * p_.k + t, sum);
    }
  }

  const Pass& pass_;
  const Problem& p_;
  const Layout& l_;
  const int columns_, targets_;
  Common* const common_;
  ResidualSums* const of_residuals_;
  char* const shared_;  // shared memory behind both
  T* const w_;          // [targets, d]
  T* const dots_;       // [parts, rows, targets]; the first part becomes v ℓ'(r)
  const int group_;     // of threads, whose rows this thread adds
  T sums_[kChunks][kTargets][kColumns] = {};
  double totals_[kChunks][kTargets][kColumns] = {};
};

template <Dtype kX, bool kVectors, int kTargets>
LINREG_KERNEL(kMaxThreads, 1)
tiles_kernel(LINREG_PARAMETER Pass pass) {
  TilesPass<kX, kVectors, kTargets> tiles(pass);
  tiles.run();
  tiles.leave_sums(pass.partials + block_index() * pass.line_stride);
  finish_last(pass);
}

template <Dtype kX>
const char* launch_pass(const Plan& plan, const Pass& pass, void* stream) {
  const Launch how{plan.blocks, plan.threads, plan.shared_bytes, stream};
  const auto kernel = [&]<int kTargets>() {
    if constexpr (vector_columns(kX, kTargets) > 1)
      if (plan.vectors) return launch(tiles_kernel<kX, true, kTargets>, how, pass);
    return launch(tiles_kernel<kX, false, kTargets>, how, pass);
  };
  return pass.problem.k == 1 ? kernel.template operator()<targets_at_once(1)>()
                             : kernel.template operator()<targets_at_once(2)>();
}

}  // namespace linreg::cuda
