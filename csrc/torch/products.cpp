// SPDX-License-Identifier: BSD-3-Clause
#include "products.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logical_or.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <cmath>

#include "../math/convert.h"
#include "../math/reduction.h"

namespace linreg::torch_ops {
namespace {

const void* rows_from(const View& view, int64_t first) {
  return view.data ? static_cast<const char*>(view.data) + first * view.row_stride * int64_t(size_of(view.dtype))
                   : nullptr;
}

void* rows_from(void* data, int64_t first, int64_t columns, Dtype dtype) {
  return data ? static_cast<char*>(data) + first * columns * int64_t(size_of(dtype)) : nullptr;
}

// A tensor on existing memory. Passing the device spares torch a query of the driver.
at::Tensor view(const void* data, Dtype dtype, at::IntArrayRef sizes, at::IntArrayRef strides, c10::Device device) {
  return at::for_blob(const_cast<void*>(data), sizes)
      .strides(strides)
      .target_device(device)
      .options(at::TensorOptions().dtype(scalar_type_of(dtype)).device(device))
      .make_tensor();
}

// The same as a matrix.
at::Tensor matrix(const void* data, Dtype dtype, int64_t rows, int64_t columns, int64_t stride, c10::Device device) {
  return view(data, dtype, {rows, columns}, {stride, 1}, device);
}

// Replaces an operand by a contiguous copy of the rows that the order selects, and returns the copy. Rows whose index
// is out of range are nan.
at::Tensor gather(View& rows, int64_t columns, const at::Tensor& order, int64_t count) {
  if (!rows.data) return {};
  if (rows.col_stride == 0) columns = std::min<int64_t>(1, columns);
  const at::Tensor all =
      view(rows.data, rows.dtype, {count, columns}, {rows.row_stride, rows.col_stride}, order.device());
  const at::Tensor missing = at::logical_or(order.lt(0), order.ge(count)).unsqueeze(1);
  at::Tensor gathered = all.index_select(0, order.clamp(0, count - 1)).masked_fill_(missing, NAN);
  rows = {gathered.const_data_ptr(), columns, rows.col_stride == 0 ? 0 : 1, rows.dtype};
  return gathered;
}

// sum = a · b, or sum += a · b. Products of 16-bit operands are accumulated in float32.
void multiply(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool add) {
  if (a.scalar_type() == sum.scalar_type()) {
    at::addmm_out(sum, sum, a, b, add ? 1 : 0);
  } else {
    at::addmm_out(sum, sum, a, b, sum.scalar_type(), add ? 1 : 0);
  }
}

}  // namespace

at::Tensor weighted_scale(const Problem& p, const Gradients& gradients, c10::Device device) {
  if (p.reduction != Reduction::mean || !p.v.data || !(gradients.input || gradients.target)) return {};
  const at::Tensor v = view(p.v.data, p.v.dtype, {p.n, p.k}, {p.v.row_stride, p.v.col_stride}, device);
  return at::sum(v, at::kDouble).reciprocal_();
}

Products::Products(const char* op, const Backend& backend, c10::Device device, const Problem& problem, const Plan& plan,
                   const Gradients& gradients, void* elements) {
  run(op, backend, device, problem, plan, gradients, elements);
}

Products::Products(const char* op, const Backend& backend, c10::Device device, const Problem& p, const Plan& plan,
                   const Sgd& sgd, const Parameter& weight, bool skip_nonfinite) {
  const bool same_dtype = p.w.dtype == p.x.dtype && (p.w.dtype == Dtype::float32 || p.w.dtype == Dtype::float64);
  if (same_dtype && !weight.frozen && sgd.momentum == 0 && !sgd.lr_on_device && !skip_nonfinite && !p.v.data &&
      p.n > 0 && p.n <= plan.product_rows) {
    update_ = {matrix(weight.value.data, weight.value.dtype, p.k, p.d, weight.value.row_stride, device),
               1 - sgd.lr * sgd.weight_decay, (sgd.maximize ? sgd.lr : -sgd.lr) * reduction_scale(p, 0)};
  }
  Gradients gradients;
  gradients.weight = weight.value.data;  // not nullptr: wanted; nothing is written there
  run(op, backend, device, p, plan, gradients, nullptr);
}

void Products::run(const char* op, const Backend& backend, c10::Device device, Problem p, const Plan& plan,
                   const Gradients& gradients, void* elements) {
  at::Tensor gathered[3];
  if (p.order) {
    const at::Tensor order = at::from_blob(const_cast<int64_t*>(p.order), {p.n}, at::device(device).dtype(at::kLong));
    gathered[0] = gather(p.x, p.d, order, p.rows);
    gathered[1] = gather(p.y, p.k, order, p.rows);
    gathered[2] = gather(p.v, p.k, order, p.rows);
  }
  const Dtype wide = p.x.dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  // On a GPU, bfloat16 products accumulate in float32. On the CPU and with float32 parameters, bfloat16 is widened
  // first. float16 always is: derivatives not yet divided by the number of elements may exceed its range.
  const Dtype factor = device.is_cuda() && p.w.dtype == p.x.dtype && p.x.dtype == Dtype::bfloat16 ? p.x.dtype : wide;
  const auto factors = scalar_type_of(factor), sums = scalar_type_of(wide);
  const at::Tensor w = matrix(p.w.data, p.w.dtype, p.k, p.d, p.w.row_stride, device).to(factors);

  const int64_t rows = std::min(p.n, plan.product_rows);
  sums_ = backend.empty({3, p.k}, at::kDouble, device);
  if (gradients.weight && !update_) weight_ = backend.empty({p.k, p.d}, sums, device);
  if (p.n == 0) {
    sums_.zero_();
    if (weight_.defined()) weight_.zero_();
  }
  at::Tensor predictions = backend.empty({rows, p.k}, sums, device);
  at::Tensor dlosses = factor == wide ? predictions : backend.empty({rows, p.k}, factors, device);

  Residuals wanted;
  wanted.products = predictions.data_ptr();
  wanted.products_dtype = wide;
  wanted.dlosses = gradients.weight || gradients.input ? dlosses.data_ptr() : nullptr;
  wanted.dlosses_dtype = factor;
  wanted.sums = sums_.mutable_data_ptr<double>();
  wanted.scale = reduction_scale(p, 0);  // weighted_scale replaces it for a weighted mean
  wanted.weighted_scale = gradients.weighted_scale;

  for (int64_t first = 0; first < p.n; first += rows) {
    const int64_t count = std::min(rows, p.n - first);
    const at::Tensor x = matrix(rows_from(p.x, first), p.x.dtype, count, p.d, p.x.row_stride, device).to(factors);
    at::Tensor block = predictions.narrow(0, 0, count);
    multiply(block, x, w.t(), false);

    Problem block_problem = p;
    block_problem.n = count;
    block_problem.y.data = rows_from(p.y, first);
    block_problem.v.data = rows_from(p.v, first);
    wanted.add = first > 0;
    wanted.elements = rows_from(elements, first, p.k, loss_dtype(p));
    wanted.target_gradient = rows_from(gradients.target, first, p.k, gradient_dtype(p.y.dtype));
    backend.residuals(op, device, block_problem, wanted);

    const at::Tensor dloss = dlosses.narrow(0, 0, count);
    if (update_) {
      at::addmm_out(update_->weight, update_->weight, dloss.t(), x, update_->beta, update_->alpha);
    } else if (gradients.weight) {
      multiply(weight_, dloss.t(), x, first > 0);
    }
    if (gradients.input) {
      at::Tensor gradient = backend.empty({count, p.d}, sums, device);
      multiply(gradient, dloss, w, false);
      if (gradients.weighted_scale) {
        gradient.mul_(view(gradients.weighted_scale, Dtype::float64, {}, {}, device));
      } else {
        gradient.mul_(wanted.scale);
      }
      const Dtype dtype = gradient_dtype(p.x.dtype);
      matrix(rows_from(gradients.input, first, p.d, dtype), dtype, count, p.d, p.d, device).copy_(gradient);
    }
  }
}

ProductSums Products::sums() const {
  ProductSums sums;
  sums.sums = sums_.const_data_ptr<double>();
  if (weight_.defined()) {
    sums.weight = weight_.const_data_ptr();
    sums.weight_dtype = dtype_of(weight_);
  }
  return sums;
}

}  // namespace linreg::torch_ops
