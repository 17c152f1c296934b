// SPDX-License-Identifier: BSD-3-Clause
// The entry points of the kernels that are compiled once per instruction set (instruction_sets.py).
#pragma once

#include "plan.h"

namespace linreg::cpu {

// Chunks [begin, end) of a pass, on one thread (rows.cpp).
using RunRows = void(const Problem* problems, const Scale* scales, int64_t count, const PassOutputs& outputs,
                     const Plan& plan, char* workspace, int64_t thread, int64_t begin, int64_t end);

// A block of rows [first, first + rows) and targets [target, target + targets), between its two matrix products.
struct ResidualBlock {
  int64_t first, rows, target, targets;
  void* predictions;   // X Wᵀ, [rows, targets]; replaced by G
  Dtype dtype;         // of the predictions
  const double* bias;  // [targets]
  void* line;          // scratch for two lines of the dtype
  double* loss;        // accumulates Σ ℓ per lane, then the compensations: [2 kMaxLanes]
  double* slope_sums;  // accumulates Σ G per place in a line, then the compensations: [2, line]
};

// The element-wise kernels around the matrix products (product_rows.cpp). A `dtype` is float32 or float64.
struct ProductRows {
  // to[i, j] = from(first + i, j), [rows, columns], converted.
  void (*convert)(const View& from, int64_t first, int64_t rows, int64_t columns, Dtype dtype, void* to);
  void (*residuals)(const Problem& problem, const PassOutputs& outputs, const Scale& scale, const ResidualBlock& block);
  // to[i] = Σ_part from[part · stride + i] / divisor for i in [begin, end). The parts are added in order.
  void (*add)(const void* from, Dtype dtype, int64_t parts, int64_t stride, int64_t begin, int64_t end, double divisor,
              double* to);
  // to[first + i] = from[i] / divisor, rounded once.
  void (*store_converted)(const void* from, Dtype dtype, int64_t count, double divisor, Dtype to_dtype, int64_t first,
                          void* to);
};

// Takes the steps of a run for cpu::sgd_run (small_steps.cpp). Writes losses [end - begin] and returns the number of
// steps taken.
using SmallSteps = int64_t(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                           const Parameter& bias, bool stop_nonfinite, void* losses);

// Steps of small runs, one problem a lane (small_runs.cpp). The runs have one target, no weights, as many rows, the
// same batches and rules that differ in the learning rate alone. `rows` is memory for all their numbers, 64-byte
// aligned.
constexpr int64_t kLaneNumbers = 4096;  // of a problem: up to 256 KB for all lanes, in the second-level cache
struct SmallRuns {
  int wide_lanes;  // for float64; twice as many otherwise
  void (*load_rows)(const SingleRun* runs, void* rows);
  // Takes the steps of runs[0].run. The losses of problem l begin at losses + l · stride.
  void (*take_steps)(SingleRun* runs, char* losses, int64_t stride, const void* rows);
};

// Least squares (moment_rows.cpp): rows [begin, end), with a block of (kMomentBlock + 1) · ld doubles as workspace.
constexpr int64_t kMomentBlock = 64, kMomentCounts = 16;  // the latter padded to a cache line or two
struct MomentKernels {
  // Counts [kMomentCounts], mean [ld] and the lower triangle of the moments [m + 1, ld]; false if a weight is negative.
  bool (*moments)(const MomentRows& rows, int64_t begin, int64_t end, int64_t ld, void* block, double* out);
  // For each target Σ v r z, [ld], and Σ v r² in some lanes of [kMomentCounts], for r = w z; w is [k, ld].
  void (*gradient)(const MomentRows& rows, const double* w, const double* center, int64_t begin, int64_t end,
                   int64_t ld, double* block, double* out);
  // Two counts, the mean and the moments [m, ld] of rows [first, first + count), or rows first + order[0] …
  // first + order[count - 1], of at most kRunColumns columns.
  bool (*run)(const MomentRows& rows, const int32_t* order, int64_t first, int64_t count, int64_t ld, double* out);
  // Takes the steps of problems [first, first + lanes) of a descent, fewer if there are not as many; `memory` has
  // descent_numbers for each lane, 64-byte aligned.
  void (*descend)(const Descent& descent, int64_t first, double* memory);
  int lanes;
};

// The numbers that a problem of a descent keeps: moments, mean, parameters, their buffers, and a line.
inline int64_t descent_numbers(const Descent& p) {
  return p.d * p.d + p.k * (p.d + 1) + p.d + p.k + 2 * p.k * (p.d + 1) + p.d;
}

#define LINREG_DECLARE_KERNELS(set)          \
  namespace set {                            \
  RunRows run_rows;                          \
  extern const ProductRows product_rows;     \
  extern const MomentKernels moment_kernels; \
  }
LINREG_DECLARE_KERNELS(portable)
LINREG_DECLARE_KERNELS(avx2)
LINREG_DECLARE_KERNELS(avx512)
#undef LINREG_DECLARE_KERNELS
namespace avx2 {
SmallSteps small_steps;
extern const SmallRuns small_runs;
}  // namespace avx2
namespace avx512 {
extern const SmallRuns small_runs;
}

struct Kernels {
  int vector_bytes;  // of a register
  RunRows* run_rows;
  const ProductRows* product_rows;
  const MomentKernels* moments;
  SmallSteps* small_steps;      // nullptr: small batches take the general path
  const SmallRuns* small_runs;  // nullptr if small_steps is
};

// The kernels of the widest instruction set that this machine has and ATEN_CPU_CAPABILITY allows: default, avx2 or
// avx512, as in torch.
const Kernels& kernels();

// A step is small if setting up a pass would take longer than the pass. Its batch fits in the first-level cache even as
// doubles, and its parameters fit in registers. sgd_step and sgd_run share this test, so that their bits agree.
constexpr int64_t kSmallFeatures = 8;
constexpr int64_t kSmallTargets = 8;
constexpr int64_t kSmallNumbers = 2048;  // in X and Y together: 8 or 16 KB
constexpr int64_t kSmallPadding = 8;     // rows: the floats in an AVX2 register

// Whether Kernels::small_steps takes steps on batches of `rows` rows.
inline bool is_small(const Problem& problem, int64_t rows) {
  if (problem.v.data || problem.d < 1 || problem.d > kSmallFeatures) return false;
  if (problem.k < 1 || problem.k > kSmallTargets || rows < 1 || rows > kSmallNumbers) return false;
  const int64_t padded = (rows + kSmallPadding - 1) / kSmallPadding * kSmallPadding;
  return (problem.d + problem.k) * padded <= kSmallNumbers && kernels().small_steps;
}

}  // namespace linreg::cpu
