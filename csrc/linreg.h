// SPDX-License-Identifier: BSD-3-Clause
// The contract between torch and the kernels: plain structs and entry points. No torch, no CUDA runtime.
//
// A pass reads the rows of X once and produces the loss and the gradient sums. A rule updates a parameter from its
// gradient. A run is a sequence of steps, each a pass followed by the rule.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/inline.h"
#include "math/losses.h"

namespace linreg {

enum class Dtype : int8_t { float32, float64, bfloat16, float16 };
enum class Reduction : int8_t { none, mean, sum };

// A read-only matrix: element (i, j) is at data[i * row_stride + j * col_stride], strides in elements.
struct View {
  const void* data = nullptr;  // nullptr: operand not given
  int64_t row_stride = 0;
  int64_t col_stride = 0;
  Dtype dtype = Dtype::float32;
};

// A writable matrix with contiguous rows.
struct Rows {
  void* data = nullptr;
  int64_t row_stride = 0;
  Dtype dtype = Dtype::float32;
};

// sum = a b, or sum += a b if `add`: [m, n] from [m, l] and [l, n], all float32 or all float64. a and b each have one
// stride of 1. Runs on the calling thread alone, so that the bits do not depend on the number of threads.
using Multiply = void(int64_t m, int64_t l, int64_t n, const View& a, const View& b, const Rows& sum, bool add);

// The input of a pass. P = X Wᵀ + b, R = P − Y, loss = reduce(v ℓ(R)).
struct Problem {
  int64_t n = 0, d = 0, k = 0;
  View x;                 // [n, d], col_stride 1
  View w;                 // [k, d], col_stride 1; x's dtype, or float32 beside 16-bit x
  View b;                 // [k] as [1, k]; w's dtype
  View y;                 // [n, k]; x's dtype, or float32 beside 16-bit x
  View v;                 // [n, k], stride 0 along broadcast dimensions; x's dtype, or the loss's
  Loss loss = Loss::mse;  // after effective_loss
  double delta = 1.0;     // the loss's threshold, if any
  Reduction reduction = Reduction::mean;
  int threads = 1;               // the limit of a CPU pass; the result does not depend on it
  Multiply* multiply = nullptr;  // for a CPU pass over many targets; nullptr: its own loops
  // [n], on a GPU only: the pass reads row order[i] instead of row i of x, y and v, which have `rows` rows. Rows whose
  // index is out of range are nan.
  const int64_t* order = nullptr;
  int64_t rows = 0;
};

// The dtype of the loss: the promotion of the dtypes of prediction and target.
LINREG_MATH constexpr Dtype loss_dtype(const Problem& p) {
  return p.y.dtype == Dtype::float32 ? Dtype::float32 : p.w.dtype;
}

// The dtype of an operand's gradient. float16 would not do before the product with the gradient of the loss: 1 / n may
// underflow, and a sum over rows may overflow.
LINREG_MATH constexpr Dtype gradient_dtype(Dtype dtype) { return dtype == Dtype::float16 ? Dtype::float32 : dtype; }

// The gradients to write, contiguous, in their operands' gradient_dtype; nullptr: not wanted.
struct Gradients {
  void* input = nullptr;                   // [n, d]
  void* weight = nullptr;                  // [k, d]
  void* bias = nullptr;                    // [k]
  void* target = nullptr;                  // [n, k]
  const double* weighted_scale = nullptr;  // on a GPU, the scale of input and target for a weighted mean: 1 / Σ v
};

// The kernel between the two matrix products of a pass over many targets, for a block of rows.
struct Residuals {
  const void* products = nullptr;         // X Wᵀ, [n, k] contiguous
  Dtype products_dtype = Dtype::float32;  // or float64
  void* dlosses = nullptr;                // v ℓ'(R), [n, k] contiguous; may be `products`; nullptr: not wanted
  Dtype dlosses_dtype = Dtype::float32;
  double* sums = nullptr;                  // the loss, Σ v and Σ v ℓ' of each target: [3, k]
  bool add = false;                        // add to the sums of earlier rows instead of replacing them
  void* elements = nullptr;                // v ℓ(R), [n, k] in the loss_dtype
  void* target_gradient = nullptr;         // [n, k] in y's gradient_dtype
  double scale = 1;                        // the scale of the target's gradient
  const double* weighted_scale = nullptr;  // replaces scale for a weighted mean: 1 / Σ v over all rows
};

// The sums over all rows: Residuals::sums and the second product, Σ (v ℓ')ᵀ X, [k, d] contiguous.
struct ProductSums {
  const double* sums = nullptr;
  const void* weight = nullptr;  // nullptr: not wanted
  Dtype weight_dtype = Dtype::float32;
};

// The hyper-parameters of torch.optim.SGD.
struct Sgd {
  double lr = 0, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false, maximize = false;
  const void* lr_on_device = nullptr;  // replaces lr: one number in GPU memory
  Dtype lr_dtype = Dtype::float32;
};

// A parameter and its momentum buffer, [k, d] or [1, k], in w's dtype.
struct Parameter {
  Rows value;
  Rows momentum_buffer;    // data is nullptr without momentum
  bool first_step = true;  // the buffer is still uninitialised
  bool frozen = false;     // read, not updated
};

// The steps [begin, end) of a run, numbered across epochs. An epoch takes `rows` rows in batches of `batch_size`; the
// last batch may be smaller.
struct Run {
  const int64_t* order = nullptr;  // the rows of an epoch in order; nullptr: 0, 1, 2, …
  int64_t order_stride = 0;        // between the orders of two epochs; 0: all epochs share one
  int64_t rows = 0;                // > 0
  int64_t batch_size = 1;
  int64_t epoch_steps = 0;
  int64_t begin = 0, end = 0;
  const double* lr = nullptr;  // [end - begin]; nullptr: the rule's
};

// The number of steps in an epoch of `rows` rows.
LINREG_MATH constexpr int64_t steps_of(int64_t rows, int64_t batch_size, bool drop_last) {
  return rows / batch_size + (!drop_last && rows % batch_size != 0);
}

// The number of rows in a batch of a run.
LINREG_MATH constexpr int64_t batch_rows(const Run& run, int64_t batch) {
  const int64_t left = run.rows - batch * run.batch_size;
  return left < run.batch_size ? left : run.batch_size;
}

// Many runs of one kind, [begin, end) of them. The operands of problem p lie p strides, in bytes, behind those of the
// first; a stride of 0 shares an operand. Each takes all steps of `epochs` epochs.
struct Many {
  int64_t begin = 0, end = 0, epochs = 0;
  bool drop_last = false;
  // [problems + 1]: problem p takes the rows, or entries of the order, from offsets[p] to offsets[p + 1]; nullptr: all.
  const int64_t* offsets = nullptr;
  int64_t x = 0, y = 0, v = 0, w = 0, b = 0, w_buffer = 0, b_buffer = 0;     // strides
  const double *lr = nullptr, *momentum = nullptr, *weight_decay = nullptr;  // [problems]; nullptr: the rule's
};

// With `nonfinite`, a step whose loss is nan or inf does not change the parameters. In a run, it also ends the run: a
// step is skipped, and its loss set to nan, if the previous step's loss, at `before`, is nan or inf.
struct Skip {
  bool nonfinite = false;
  const void* before = nullptr;  // of w's dtype
};

// The rule of problem p of many.
LINREG_MATH Sgd rule_of(const Many& many, Sgd sgd, int64_t p) {
  if (many.lr) sgd.lr = many.lr[p];
  if (many.momentum) sgd.momentum = many.momentum[p];
  if (many.weight_decay) sgd.weight_decay = many.weight_decay[p];
  return sgd;
}

// The run of a problem alone.
struct SingleRun {
  Problem problem;
  Run run;
  Sgd sgd;
  Parameter weight, bias;
};

// The rows of least squares, all finite or not; v is one number a row.
struct MomentRows {
  int64_t n = 0, d = 0, k = 0;
  View x;                          // [n, d]
  View y;                          // [n, k]
  View v;                          // [n]; data is nullptr: 1
  const int64_t* group = nullptr;  // [n], on the CPU; nullptr: one group
  // On a GPU group g has the rows order[offsets[g]] … order[offsets[g + 1] − 1]; nullptr: one group.
  const int64_t *order = nullptr, *offsets = nullptr;
  bool single = false;  // multiply float32 rows of many columns in float32, 64 at a time, not in double
  int threads = 1;      // at most; the result does not depend on it
};

// Centred second moments of [X | Y], m = d + k columns, which rows are added to.
struct Moments {
  int64_t groups = 1;
  double* counts = nullptr;   // [groups, 2]: rows with v > 0, and Σ v
  double* mean = nullptr;     // [groups, m]
  double* moments = nullptr;  // [groups, m, m]
};

// Full-batch steps of the mean squared error on problems whose rows are known by their moments.
struct Descent {
  Moments moments;  // one for all problems if groups is 1
  int64_t problems = 0, d = 0, k = 0, steps = 0;
  double* weight = nullptr;    // [problems, k, d]
  double* bias = nullptr;      // [problems, k]; nullptr: none
  Sgd sgd;                     // without lr
  const double* lr = nullptr;  // of problem p and step s: lr[p · lr_problem + s · lr_step]
  int64_t lr_problem = 0, lr_step = 0;
  double* losses = nullptr;  // [problems, steps]
  int threads = 1;
};

namespace cpu {

// The size in bytes of the 64-byte aligned workspace for the functions below.
size_t loss_workspace(const Problem& problem, const Gradients& gradients);
size_t sgd_workspace(const Problem& problem);

// Writes the requested gradients and, in the loss_dtype, the loss: a scalar, or [n, k] for Reduction::none.
void linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace);

// Writes the loss before the update, then updates the parameters, the problem's w and b. With skip_nonfinite, a loss
// that is nan or inf leaves them unchanged.
void sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
              bool skip_nonfinite, void* loss, void* workspace);

// Takes the steps of a run over the rows of `problem` and writes their losses [end - begin]. Each step has the bits of
// sgd_step on its batch. After the last step of an epoch, writes the loss of `validation` (nullptr: none) as
// linear_loss does. With stop_nonfinite, the run ends at a loss that is nan or inf: the loss is written, but the step
// is not taken. Returns the number of steps taken.
size_t run_workspace(const Problem& problem, const Run& run, const Problem* validation);
int64_t sgd_run(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                bool stop_nonfinite, void* losses, const Problem* validation, void* validation_losses, void* workspace);

// Takes many runs, each with the bits of sgd_run, and writes the mean loss of each epoch, [end - begin, epochs], in the
// loss_dtype. Batches count by their rows or, if weighted, by the sums of their weights.
size_t many_workspace(const SingleRun& first, const Many& many);
void sgd_run_many(const SingleRun& first, const Many& many, void* losses, void* workspace);

// Adds rows to moments. Returns false, with nothing changed, if a weight is negative or a group out of range. X may
// have columns in place of contiguous rows if it and Y have at most kRunColumns in all.
constexpr int64_t kRunColumns = 33;
size_t moments_workspace(const MomentRows& rows);
bool add_moments(const MomentRows& rows, const Moments& moments, void* workspace);

// For each target Σ v r (x − center), Σ v r and Σ v r², [k, d + 2], where r = w (x − center) + offset − (y − center),
// all in double; w is [k, d], offset [k] and center [d + k].
size_t residual_moments_workspace(const MomentRows& rows);
void residual_moments(const MomentRows& rows, const double* w, const double* offset, const double* center, double* sums,
                      void* workspace);

// Takes the steps of all problems and writes the losses before each.
size_t descent_workspace(const Descent& descent);
void descend(const Descent& descent, void* workspace);

}  // namespace cpu

// The same on the current CUDA device and a stream (a cudaStream_t). All memory is on the device; the workspace is
// 8-byte aligned. Each function returns nullptr or the CUDA runtime's error message. None waits for the device.
namespace cuda {

// The layout of a pass's tiles of rows on threads and in shared memory (cuda/tiles.cuh).
struct Layout {
  int tiles = 0, rows = 0;  // the number of tiles, and the rows of each
  int chain_tiles = 1;      // the tiles after which sums move to double
  int residual_tiles = 1;   // the same for the sums of residuals: a thread has every (threads / targets)-th row
  int lanes_log = 0;        // log2 of the lanes that share a row's dot products
  int parts_log = 0;        // log2 of the parts into which warps split dot products
  int part_columns = 0;     // the columns of a part
  int targets_log = 0;      // log2 of the targets, padded to a power of two
  int owned = 0, span = 1;  // chunks of gradient sums (some columns of some targets), and the threads that own them
  int groups = 1;           // groups of `span` threads, which own the same sums for different rows
  int dots_at = 0, ring_at = 0, stage_bytes = 0, y_at = 0, v_at = 0;  // byte offsets in shared memory and in a stage
};

// The plan of a pass (cuda/plan.h), computed once per problem.
struct Plan {
  int64_t product_rows = 0;  // > 0: the pass uses matrix products (csrc/torch/products.cpp) of this many rows at a time
  bool vectors = false;      // a thread takes several columns at once, whatever the alignment
  Layout layout;
  int threads = 0, blocks = 0, shared_bytes = 0;
  int64_t line_stride = 0;  // between the blocks' lines in the workspace, in doubles
  size_t workspace = 0;     // in bytes
};
const char* plan(const Problem& problem, Plan& plan);

// A pass without matrix products, by its plan. A pass by matrix products has no order.
const char* linear_loss(const Problem& problem, const Plan& plan, const Gradients& gradients, void* loss,
                        void* workspace, void* stream);
const char* sgd_step(const Problem& problem, const Plan& plan, const Sgd& sgd, const Parameter& weight,
                     const Parameter& bias, const Skip& skip, void* loss, void* workspace, void* stream);

// For a pass by matrix products: the kernel between the products, and the kernel after them.
const char* residuals_workspace(const Problem& rows, size_t& bytes);
const char* residuals(const Problem& rows, const Residuals& wanted, void* workspace, void* stream);
const char* finish_linear_loss(const Problem& problem, const ProductSums& sums, const Gradients& gradients, void* loss,
                               void* stream);
const char* finish_sgd_step(const Problem& problem, const ProductSums& sums, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, const Skip& skip, void* loss, void* stream);

// Many steps in one launch, with the rows in the shared memory of one block: takes_many_steps says whether a run can,
// and take_many_steps takes its steps. `run` has order and lr on the device. `before` is the loss of the step before
// run.begin. Once it or a later loss ends the run, the remaining losses are nan.
const char* takes_many_steps(const Problem& problem, const Run& run, bool& yes);
const char* take_many_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, const void* before, void* losses, void* stream);

// Many runs, a block for each, if takes_many_steps is true of the largest, which has steps. What `many` points to is on
// the device. Writes the mean loss of each epoch, [problems, epochs].
const char* take_many_runs(const SingleRun& largest, const Many& many, void* losses, void* stream);

// As on the CPU, but add_moments does not look for negative weights.
const char* moments_workspace(const MomentRows& rows, int64_t groups, size_t& bytes);
const char* add_moments(const MomentRows& rows, const Moments& moments, void* workspace, void* stream);
const char* residual_moments_workspace(const MomentRows& rows, size_t& bytes);
const char* residual_moments(const MomentRows& rows, const double* w, const double* offset, const double* center,
                             double* sums, void* workspace, void* stream);

struct Losses {
  void* data = nullptr;  // one per step, or one per completed epoch; nullptr: none
  Dtype dtype = Dtype::float32;
};

// Follows the steps [begin, end). Counts the steps taken: with stop_nonfinite, those before the first loss that is nan
// or inf. Sets the losses of unreached steps to nan.
const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream);

}  // namespace cuda
}  // namespace linreg
