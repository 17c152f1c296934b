// SPDX-License-Identifier: BSD-3-Clause
// The rows that stream through a block's shared memory, and a pass over those that it has of a batch.
//
// A thread copies the numbers that it will use, sixteen bytes at a time where rows allow, so that it waits for nobody;
// what a row has once, its place in the order, its target and its weight, one thread copies for all that share the row,
// which have it after the barrier that a step has anyway. Deterministic: which thread adds which rows follows from the
// sizes.
#pragma once

#include "run_sums.cuh"

namespace linreg::cuda {

// Goes through the batches of a launch; empty ones follow.
class Batches {
 public:
  LINREG_DEVICE Batches(const Run& run) : run_(run), left_(run.end - run.begin), now_(batch_of(run, run.begin)) {}
  LINREG_DEVICE const Batch& now() const { return now_; }
  LINREG_DEVICE void advance() {
    --left_;
    now_ = left_ > 0 ? following(run_, now_) : Batch{};
  }

 private:
  const Run& run_;
  int64_t left_;
  Batch now_;
};

// Where things lie in the shared memory of a block, the same in every block.
template <class S>
struct StreamedMemory {
  static constexpr int kSize = int(sizeof(Stored<S::kX>));
  static constexpr int kOfThread = S::kColumns * kSize;  // bytes of a row
  static constexpr int kSlotBytes = slot_bytes(S::kX);

  LINREG_DEVICE StreamedMemory(const StreamedRun& call, void* shared) {
    const StreamedLayout& l = call.layout;
    const int threads = thread_count(), rows = l.turns * (threads / l.lanes);
    boxes = static_cast<uint64_t*>(shared);
    x = static_cast<char*>(shared) + kBoxBytes;
    order = reinterpret_cast<int64_t*>(x + kStages * l.turns * threads * kOfThread);
    weights = reinterpret_cast<double*>(order + (call.run.order ? kPlaces * rows : 0));
    sums = weights + l.columns;
    lines = sums + 2 * l.cluster * (l.own + 3);
    y = reinterpret_cast<char*>(lines + 2 * l.warps * l.line);
    v = y + kStages * rows * kSlotBytes;
  }

  uint64_t* boxes;  // for weights, and for sums two in turn
  char* x;          // [kStages, turns, of a thread's bytes in pieces, threads]
  int64_t* order;   // [kPlaces, rows]
  double* weights;  // [columns]
  double* sums;     // [2, cluster, own + 3]
  double* lines;    // [2, warps, line]
  char *y, *v;      // [kStages, rows] slots
};

template <class S>
class StreamedRows {
 public:
  using Number = Stored<S::kX>;
  using Memory = StreamedMemory<S>;

  LINREG_DEVICE StreamedRows(const StreamedRun& call, const Memory& memory)
      : call_(call),
        p_(call.problem),
        l_(call.layout),
        memory_(memory),
        lane_(thread_index() & (l_.lanes - 1)),
        slot_(thread_index() / l_.lanes),
        slots_(thread_count() / l_.lanes),
        added_(call.run),
        fetched_(call.run),
        found_(call.run) {}

  // Asks for the first batches. The very first is there when all threads have passed a barrier after this.
  LINREG_DEVICE void start() {
    clear();
    for (int place = 0; place < kPlaces; ++place) find(place);
    end_copies();
    wait_copies<0>();
    sync_block();  // the orders of these batches are there
    for (int stage = 0; stage < kStages; ++stage) {
      fetch(stage, stage);
      end_copies();
    }
    wait_copies<kStages - 1>();
  }

  // Leaves the warp's sums of a batch at `line`.
  LINREG_DEVICE void add(const double* weights, double b, double* line) {
    double w[S::kColumns], sums[S::kScattered] = {};
#pragma unroll
    for (int c = 0; c < S::kColumns; ++c) w[c] = weights[c * l_.lanes + lane_];
    const Batch& batch = added_.now();
    for (int turn = 0; position(turn, 0) < batch.n; turn += S::kRows)
      with_loss(p_.loss, [&]<Loss kLoss>() { add_turns<kLoss>(batch, turn, w, b, sums); });
    leave_sums<S>(sums, l_.lanes, line);
  }

  // Waits for this thread's share of the next batch.
  LINREG_DEVICE void wait() const { wait_copies<kStages - 2>(); }

  // After a barrier: no thread needs the batch that has been added any more.
  LINREG_DEVICE void go_on() {
    fetch(stage_, place_ + kStages < kPlaces ? place_ + kStages : place_ + kStages - kPlaces);
    find(place_);
    end_copies();
    added_.advance();
    stage_ = stage_ + 1 < kStages ? stage_ + 1 : 0;
    place_ = place_ + 1 < kPlaces ? place_ + 1 : 0;
  }

  LINREG_DEVICE int rows_of_batch() const { return added_.now().n; }

  // Which column the number at `place` of a line is of.
  LINREG_DEVICE int column(int place) const { return column(place / l_.lanes, place & (l_.lanes - 1)); }

 private:
  // Column c of a lane's: neighbours are copied at once.
  LINREG_DEVICE int column(int c, int lane) const {
    const int at_once = l_.copy_bytes / Memory::kSize;
    return (c / at_once * l_.lanes + lane) * at_once + c % at_once;
  }

  // Where in a batch a row of this block stands.
  LINREG_DEVICE int position(int turn, int slot) const { return (turn * l_.cluster + block_index()) * slots_ + slot; }

  LINREG_DEVICE int64_t row(const Batch& batch, int place, int turn, int slot) const {
    if (batch.order) return memory_.order[place * (l_.turns * slots_) + turn * slots_ + slot];
    return batch.index * call_.run.batch_size + position(turn, slot);
  }

  LINREG_DEVICE bool is_there(int64_t row) const { return 0 <= row && row < p_.n; }

  // Bytes of a row that this thread has, from byte `at` on: in pieces of 16, so that neighbours read neighbours.
  static constexpr int kPiece = Memory::kOfThread < 16 ? Memory::kOfThread : 16;
  LINREG_DEVICE char* place_of(int stage, int turn, int at) const {
    const int pieces = Memory::kOfThread / kPiece, piece = (stage * l_.turns + turn) * pieces + at / kPiece;
    return memory_.x + (piece * thread_count() + thread_index()) * kPiece + at % kPiece;
  }

  LINREG_DEVICE char* slot_of(char* slots, int stage, int turn, int slot) const {
    return slots + ((stage * l_.turns + turn) * slots_ + slot) * Memory::kSlotBytes;
  }

  // Columns that there are not stay zero.
  LINREG_DEVICE void clear() const {
    for (int i = 0; i < kStages * l_.turns; ++i)
#pragma unroll
      for (int at = 0; at < Memory::kOfThread; at += kPiece)
        *reinterpret_cast<Words<kPiece>*>(place_of(0, i, at)) = Words<kPiece>{};
  }

  // Asks for the order of a batch.
  LINREG_DEVICE void find(int place) {
    const Batch& batch = found_.now();
    if (batch.order) {
      const int64_t* const from = batch.order + batch.index * call_.run.batch_size;
      for (int i = thread_index(); i < l_.turns * slots_; i += thread_count()) {
        const int at = position(i / slots_, i % slots_);
        if (at < batch.n) copy_async<8>(memory_.order + place * (l_.turns * slots_) + i, from + at);
      }
    }
    found_.advance();
  }

  // Asks for the rows of a batch, whose order is there.
  LINREG_DEVICE void fetch(int stage, int place) {
    const Batch& batch = fetched_.now();
    if (l_.copy_bytes == 16) fetch_rows<16>(batch, stage, place);
    if (l_.copy_bytes == 8) fetch_rows<8>(batch, stage, place);
    if (l_.copy_bytes == 4) fetch_rows<4>(batch, stage, place);
    for (int i = thread_index(); i < l_.turns * slots_; i += thread_count()) {
      const int turn = i / slots_, slot = i % slots_;
      if (position(turn, slot) >= batch.n) break;
      const int64_t from = row(batch, place, turn, slot);
      if (!is_there(from)) continue;
      fetch_number(p_.y, from, slot_of(memory_.y, stage, turn, slot));
      if (p_.v.data) fetch_number(p_.v, from, slot_of(memory_.v, stage, turn, slot));
    }
    fetched_.advance();
  }

  template <int kBytes>
  LINREG_DEVICE void fetch_rows(const Batch& batch, int stage, int place) const {
    if constexpr (kBytes <= kPiece && kBytes >= Memory::kSize) {
      constexpr int kAtOnce = kBytes / Memory::kSize;
      for (int turn = 0; position(turn, slot_) < batch.n; ++turn) {
        const int64_t from = row(batch, place, turn, slot_);
        if (!is_there(from)) continue;
        const auto* const x = static_cast<const Number*>(p_.x.data) + from * p_.x.row_stride;
#pragma unroll
        for (int c = 0; c < S::kColumns; c += kAtOnce)
          if (column(c, lane_) < p_.d)
            copy_async<kBytes>(place_of(stage, turn, c * Memory::kSize), x + column(c, lane_));
      }
    }
  }

  // A number of 16 bits comes with its neighbour, since no fewer than 4 bytes are copied at once; unless there is none.
  LINREG_DEVICE void fetch_number(const View& from, int64_t row, char* to) const {
    const auto* const numbers = static_cast<const Number*>(from.data);
    const int64_t i = row * from.row_stride;
    if constexpr (Memory::kSize >= 4) {
      copy_async<Memory::kSize>(to, numbers + i);
    } else {
      const int half = half_of(numbers + i);
      if (i - half >= 0 && i - half + 1 <= (p_.n - 1) * from.row_stride) {
        copy_async<4>(to, numbers + i - half);
      } else {
        reinterpret_cast<Number*>(to)[half] = numbers[i];
      }
    }
  }

  LINREG_DEVICE static int half_of(const Number* number) {
    return Memory::kSize < 4 ? int(reinterpret_cast<uintptr_t>(number) / 2 & 1) : 0;
  }

  LINREG_DEVICE double number_of(const View& of, int64_t row, const char* slot) const {
    const int half = half_of(static_cast<const Number*>(of.data) + row * of.row_stride);
    return widen<S::kX>(reinterpret_cast<const Number*>(slot)[half]);
  }

  template <Loss kLoss>
  LINREG_DEVICE void add_turns(const Batch& batch, int first, const double (&w)[S::kColumns], double b,
                               double (&sums)[S::kScattered]) const {
    int state[S::kRows];
    int64_t rows[S::kRows];
#pragma unroll
    for (int u = 0; u < S::kRows; ++u) {
      state[u] = kAbsent;
      if (position(first + u, slot_) >= batch.n) continue;
      rows[u] = row(batch, place_, first + u, slot_);
      state[u] = is_there(rows[u]) ? u : kMissing;
    }
    const auto read = [&](int u, double (&x)[S::kColumns]) {
#pragma unroll
      for (int c = 0; c < S::kColumns; c += kPiece / Memory::kSize) {
        Words<kPiece> words = {};
        if (state[u] >= 0)
          words = *reinterpret_cast<const Words<kPiece>*>(place_of(stage_, first + u, c * Memory::kSize));
        Wide<S::kX> numbers[kPiece / Memory::kSize];
        widen<S::kX>(words, numbers);
#pragma unroll
        for (int i = 0; i < kPiece / Memory::kSize; ++i) x[c + i] = numbers[i];
      }
    };
    const auto target = [&](int u) { return number_of(p_.y, rows[u], slot_of(memory_.y, stage_, first + u, slot_)); };
    const auto weight = [&](int u) {
      return p_.v.data ? number_of(p_.v, rows[u], slot_of(memory_.v, stage_, first + u, slot_)) : 1;
    };
    add_rows<S, kLoss>(state, read, target, weight, w, b, l_.lanes, p_.delta, sums);
  }

  const StreamedRun& call_;
  const Problem& p_;
  const StreamedLayout& l_;
  const Memory& memory_;
  const int lane_;          // of those that share a row
  const int slot_, slots_;  // which rows of a turn this thread has: one, of as many
  Batches added_, fetched_, found_;
  int stage_ = 0, place_ = 0;  // of the batch that is added
};

}  // namespace linreg::cuda
