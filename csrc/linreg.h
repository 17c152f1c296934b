// SPDX-License-Identifier: BSD-3-Clause
// The contract between torch and the kernels: plain structs and entry points. No torch, no CUDA runtime.
//
// Three nouns carry the system. A pass goes once over the rows of X and yields the loss and gradient sums; a rule
// updates a parameter from its gradient; a run is an order of steps, each a pass and a rule.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math/inline.h"

namespace linreg {

enum class Dtype : int8_t { float32, float64, bfloat16, float16 };
enum class Loss : int8_t { mse, l1, huber, smooth_l1 };
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

// What a pass reads. P = X Wᵀ + b, R = P − Y, loss = reduce(v ℓ(R)).
struct Problem {
  int64_t n = 0, d = 0, k = 0;
  View x;  // [n, d], col_stride 1
  View w;  // [k, d], col_stride 1; x's dtype, or float32 beside 16-bit x
  View b;  // [k] as [1, k]; w's dtype
  View y;  // [n, k]
  View v;  // [n, k], strides 0 where one weight serves many elements
  Loss loss = Loss::mse;
  double delta = 1.0;  // huber's δ, smooth_l1's β
  Reduction reduction = Reduction::mean;
  int threads = 1;  // how many a CPU pass may use; the result does not depend on it
};

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

namespace cpu {

// Bytes of 64-byte aligned workspace that the entry points below need.
size_t loss_workspace(const Problem& problem, const Gradients& gradients);
size_t sgd_workspace(const Problem& problem);

// Writes the loss, 0-dim or [n, k] for Reduction::none, in w's dtype, and the gradients that are wanted.
void linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace);

// Writes the loss of before the update, then updates the parameters, which are the problem's w and b. With
// skip_nonfinite nothing but the loss is written when it is nan or inf.
void sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
              bool skip_nonfinite, void* loss, void* workspace);

}  // namespace cpu

// The same on the current CUDA device, on a stream (a cudaStream_t); all memory is the device's. Each returns nullptr,
// or what the CUDA runtime says is wrong. Nothing waits for the device. 8-byte aligned workspace.
namespace cuda {

const char* loss_workspace(const Problem& problem, const Gradients& gradients, size_t& bytes);
const char* sgd_workspace(const Problem& problem, size_t& bytes);

const char* linear_loss(const Problem& problem, const Gradients& gradients, void* loss, void* workspace, void* stream);

const char* sgd_step(const Problem& problem, const Sgd& sgd, const Parameter& weight, const Parameter& bias,
                     bool skip_nonfinite, void* loss, void* workspace, void* stream);

}  // namespace cuda
}  // namespace linreg
