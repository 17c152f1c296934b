// SPDX-License-Identifier: BSD-3-Clause
// The contract between torch and the kernels: plain structs and entry points. No torch, no CUDA runtime.
//
// Three nouns carry the system. A pass goes once over the rows of X and yields the loss and gradient sums; a rule
// updates a parameter from its gradient; a run is an order of steps, each a pass and a rule.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/inline.h"
#include "math/losses.h"

namespace linreg {

enum class Dtype : int8_t { float32, float64, bfloat16, float16 };
enum class Reduction : int8_t { none, mean, sum };

// A matrix that is only read: element (i, j) is at data[i * row_stride + j * col_stride], strides in elements.
struct View {
  const void* data = nullptr;  // nullptr: this operand was not given
  int64_t row_stride = 0;
  int64_t col_stride = 0;
  Dtype dtype = Dtype::float32;
};

// A matrix that is written, rows of contiguous elements.
struct Rows {
  void* data = nullptr;
  int64_t row_stride = 0;
  Dtype dtype = Dtype::float32;
};

// sum = a b, or sum + a b where `add`: [m, n] from [m, l] and [l, n], all float32 or all float64, of which one stride
// of a and of b is 1. On the calling thread alone, so that the bits do not depend on how many there are.
using Multiply = void(int64_t m, int64_t l, int64_t n, const View& a, const View& b, const Rows& sum, bool add);

// What a pass reads. P = X Wᵀ + b, R = P − Y, loss = reduce(v ℓ(R)).
struct Problem {
  int64_t n = 0, d = 0, k = 0;
  View x;                 // [n, d], col_stride 1
  View w;                 // [k, d], col_stride 1; x's dtype, or float32 beside 16-bit x
  View b;                 // [k] as [1, k]; w's dtype
  View y;                 // [n, k]; x's dtype, or float32 beside 16-bit x
  View v;                 // [n, k], strides 0 where one weight serves many elements; x's dtype, or the loss's
  Loss loss = Loss::mse;  // after effective_loss
  double delta = 1.0;     // the loss's threshold, if it has one
  Reduction reduction = Reduction::mean;
  int threads = 1;               // how many a CPU pass may use; the result does not depend on it
  Multiply* multiply = nullptr;  // for a CPU pass over many targets; nullptr: by loops of its own
};

// The dtype of the loss, as PyTorch promotes those of prediction and target.
LINREG_MATH constexpr Dtype loss_dtype(const Problem& p) {
  return p.y.dtype == Dtype::float32 ? Dtype::float32 : p.w.dtype;
}

// The dtype that the gradient of an operand of this dtype has. It is yet to be multiplied by the gradient of the loss,
// and until then may lie outside of float16's range: 1 / n below it, a sum over rows above it.
LINREG_MATH constexpr Dtype gradient_dtype(Dtype dtype) { return dtype == Dtype::float16 ? Dtype::float32 : dtype; }

// Gradients to be written, contiguous, each of its operand's gradient_dtype; nullptr: not wanted.
struct Gradients {
  void* input = nullptr;   // [n, d]
  void* weight = nullptr;  // [k, d]
  void* bias = nullptr;    // [k]
  void* target = nullptr;  // [n, k]
};

// What stands between the two matrix products of a pass over many targets, for a block of its rows.
struct Residuals {
  const void* products = nullptr;         // X Wᵀ, [n, k] contiguous
  Dtype products_dtype = Dtype::float32;  // or float64
  void* dlosses = nullptr;                // v ℓ'(R), [n, k] contiguous; may be `products`; nullptr: not wanted
  Dtype dlosses_dtype = Dtype::float32;
  double* sums = nullptr;                  // of each target the loss, Σ v and Σ v ℓ', [3, k]
  bool add = false;                        // to what is there, from the rows before; else instead
  void* elements = nullptr;                // v ℓ(R), [n, k] in its loss_dtype
  void* target_gradient = nullptr;         // [n, k] in y's gradient_dtype
  double scale = 1;                        // of the target's gradient
  const double* weighted_scale = nullptr;  // in its place, for a weighted mean: 1 / Σ v of all rows
};

// What is known after all rows: Residuals::sums and the second product, Σ (v ℓ')ᵀ X, [k, d] contiguous.
struct ProductSums {
  const double* sums = nullptr;
  const void* weight = nullptr;  // nullptr: not wanted
  Dtype weight_dtype = Dtype::float32;
};

// torch.optim.SGD's settings.
struct Sgd {
  double lr = 0, momentum = 0, dampening = 0, weight_decay = 0;
  bool nesterov = false, maximize = false;
  const void* lr_on_device = nullptr;  // a number that a GPU has, in place of lr
  Dtype lr_dtype = Dtype::float32;
};

// A parameter and its momentum buffer, [k, d] or [1, k], both of w's dtype.
struct Parameter {
  Rows value;
  Rows momentum_buffer;    // data is nullptr without momentum
  bool first_step = true;  // the buffer holds nothing yet
  bool frozen = false;     // read, not updated
};

// The order of a run's steps. An epoch goes through `rows` rows in batches of `batch_size`, the last one shorter; steps
// are numbered through all epochs, and those from `begin` to `end` are to be taken.
struct Run {
  const int64_t* order = nullptr;  // the rows of an epoch in their order; nullptr: 0, 1, 2, …
  int64_t order_stride = 0;        // from one epoch's to the next one's; 0: all have the same
  int64_t rows = 0;                // > 0
  int64_t batch_size = 1;
  int64_t epoch_steps = 0;
  int64_t begin = 0, end = 0;
  const double* lr = nullptr;  // [end - begin], of each step; nullptr: the rule's
};

// Rows that a batch of a run has.
LINREG_MATH constexpr int64_t batch_rows(const Run& run, int64_t batch) {
  const int64_t left = run.rows - batch * run.batch_size;
  return left < run.batch_size ? left : run.batch_size;
}

// When a step leaves the parameters as they are: its loss is nan or inf, or the loss at `before`, of the step before it
// in a run, which then is over: the step's own loss is written as nan.
struct Skip {
  bool nonfinite = false;
  const void* before = nullptr;  // of w's dtype
};

namespace cpu {

// Bytes of 64-byte aligned workspace that the entry points below need.
size_t loss_workspace(const Problem& problem, const Gradients& gradients);
size_t sgd_workspace(const Problem& problem);

// Writes the loss, 0-dim or [n, k] for Reduction::none, in its loss_dtype, and the gradients that are wanted.
void linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace);

// Writes the loss before the update, then updates the parameters, which are the problem's w and b. With
// skip_nonfinite nothing but the loss is written when it is nan or inf.
void sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
              bool skip_nonfinite, void* loss, void* workspace);

// Takes the steps of a run over the rows of `problem`, each as sgd_step takes it on the batch, bit for bit, and writes
// their losses [end - begin]. After the last step of each epoch the loss on the rows of `validation`, unless it is
// nullptr, is written, as linear_loss writes it. With stop_nonfinite a loss that is nan or inf is written, its step not
// taken, and the run is over. Returns how many steps were taken.
size_t run_workspace(const Problem& problem, const Run& run, const Problem* validation);
int64_t sgd_run(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                bool stop_nonfinite, void* losses, const Problem* validation, void* validation_losses, void* workspace);

}  // namespace cpu

// The same on the current CUDA device, on a stream (a cudaStream_t); all memory is the device's. Each returns nullptr,
// or what the CUDA runtime says is wrong. Nothing waits for the device. 8-byte aligned workspace.
namespace cuda {

const char* loss_workspace(const Problem& problem, const Gradients& gradients, size_t& bytes);
const char* sgd_workspace(const Problem& problem, size_t& bytes);

const char* linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace, void* stream);

const char* sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                     const Skip& skip, void* loss, void* workspace, void* stream);

// For a pass by matrix products (csrc/torch/products.cpp): whether that is the way for a problem, what comes between
// the products, and what comes after them.
const char* by_products(const Problem& problem, const Gradients& gradients, bool& yes);
const char* residuals_workspace(const Problem& rows, size_t& bytes);
const char* residuals(const Problem& rows, const Residuals& wanted, void* workspace, void* stream);
const char* finish_linear_loss(const Problem& problem, const ProductSums& sums, const Gradients& gradients, void* loss,
                               void* stream);
const char* finish_sgd_step(const Problem& problem, const ProductSums& sums, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, const Skip& skip, void* loss, void* stream);

// A run of which a launch takes many steps: its rows stay in the shared memory of one block. Whether that is the way
// for a run, and its steps. `run` has order and lr on the device. The step before run.begin left its loss at `before`;
// if that ended the run, or a loss of these steps does, those that are not reached get nan as their loss.
const char* takes_many_steps(const Problem& problem, const Run& run, bool& yes);
const char* take_many_steps(const Problem& problem, const Run& run, const Sgd& sgd, const Parameter& weight,
                            const Parameter& bias, bool stop_nonfinite, const void* before, void* losses, void* stream);

// For a run whose steps are launched one by one (csrc/torch/run_steps.cpp): copies the rows of x, y and v that `order`
// names to where the views of `batch` are, contiguous; a row that there is not is nan.
const char* gather(const Problem& problem, const int64_t* order, const Problem& batch, void* stream);

struct Losses {
  void* data = nullptr;  // one a step, or one an epoch that ends; nullptr: none
  Dtype dtype = Dtype::float32;
};

// Ends the steps [begin, end): finds how many were taken, all or with stop_nonfinite those before the first whose loss
// is nan or inf, and makes what was not reached nan.
const char* end_run(const Run& run, bool stop_nonfinite, const Losses& losses, const Losses& validation_losses,
                    int64_t* taken, void* stream);

}  // namespace cuda
}  // namespace linreg
