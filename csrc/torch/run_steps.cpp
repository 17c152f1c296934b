// SPDX-License-Identifier: BSD-3-Clause
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <limits>

#include "../math/single_run.h"
#include "backend.h"
#include "check.h"
#include "ops.h"

namespace linreg::torch_ops {
namespace {

// The view through which a step reads a parameter: that of the previous step's result.
View current(const Parameter& parameter, const View& view) {
  if (!parameter.value.data || parameter.frozen) return view;
  return {parameter.value.data, parameter.value.row_stride, 1, parameter.value.dtype};
}

View shifted(View view, int64_t rows) {
  if (view.data)
    view.data = static_cast<const char*>(view.data) + rows * view.row_stride * int64_t(size_of(view.dtype));
  return view;
}

// The rows of a step: a slice of all rows, or those that the order selects.
Problem batch_of(const RunCall& call, int64_t step) {
  const Run& run = call.run;
  const int64_t first = step % run.epoch_steps * run.batch_size;
  Problem batch = call.problem;
  batch.n = batch_rows(run, step % run.epoch_steps);
  if (run.order) {
    batch.order = run.order + step / run.epoch_steps * run.order_stride + first;
    batch.rows = call.problem.n;
  } else {
    batch.x = shifted(batch.x, first);
    batch.y = shifted(batch.y, first);
    batch.v = shifted(batch.v, first);
  }
  return batch;
}

// Makes the rule use learning rate i.
void set_rate(Sgd& sgd, const at::Tensor& rates, int64_t i) {
  const double* const rate = rates.const_data_ptr<double>() + i;
  if (rates.is_cpu()) {
    sgd.lr = *rate;
  } else {
    sgd.lr_on_device = rate;
    sgd.lr_dtype = Dtype::float64;
  }
}

}  // namespace

at::Tensor on_device(const at::Tensor& tensor, c10::Device device) {
  if (tensor.device() == device) return tensor;
  // A copy from pageable memory would wait for the stream, and memory that is already pinned may change before the
  // stream reaches the copy.
  const auto pinned = at::empty(tensor.sizes(), tensor.options().pinned_memory(true)).copy_(tensor);
  return pinned.to(device, /*non_blocking=*/true);
}

namespace {

void validate(const Backend& backend, RunCall& call, char*& loss) {
  compute_loss(call.op, backend, call.device, *call.validation, {}, loss);
  loss += size_of(loss_dtype(*call.validation));
}

void launch_one_by_one(const Backend& backend, RunCall& call) {
  const Run& run = call.run;
  char* loss = static_cast<char*>(call.losses.data_ptr());
  char* validation_loss = static_cast<char*>(call.validation_losses.data_ptr());
  Skip skip{call.stop_nonfinite, nullptr};
  for (int64_t step = run.begin; step < run.end; ++step, loss += size_of(loss_dtype(call.problem))) {
    Problem batch = batch_of(call, step);
    if (call.rates.defined()) set_rate(call.sgd, call.rates, step - run.begin);
    take_step(call.op, backend, call.device, batch, call.sgd, call.weight, call.bias, skip, loss);
    if (call.stop_nonfinite) skip.before = loss;
    call.weight.first_step = call.bias.first_step = false;
    if (call.validation && (step + 1) % run.epoch_steps == 0) validate(backend, call, validation_loss);
  }
}

// All steps up to the next validation in one launch.
void launch_together(const Backend& backend, RunCall& call) {
  at::Tensor rates;
  if (call.rates.defined()) rates = on_device(call.rates, call.device);
  const int64_t size = int64_t(size_of(loss_dtype(call.problem)));
  char* const losses = static_cast<char*>(call.losses.data_ptr());
  char* validation_loss = static_cast<char*>(call.validation_losses.data_ptr());
  Run part = call.run;
  while (part.begin < call.run.end) {
    const int64_t epoch_end = (part.begin / part.epoch_steps + 1) * part.epoch_steps,
                  done = part.begin - call.run.begin;
    part.end = call.validation ? std::min(call.run.end, epoch_end) : call.run.end;
    if (rates.defined()) part.lr = rates.const_data_ptr<double>() + done;
    const void* const before = done > 0 ? losses + (done - 1) * size : nullptr;
    backend.take_many_steps(call, part, before, losses + done * size);
    call.weight.first_step = call.bias.first_step = false;
    if (call.validation && part.end == epoch_end) validate(backend, call, validation_loss);
    part.begin = part.end;
  }
}

}  // namespace

void take_steps(const Backend& backend, RunCall& call) {
  Problem& problem = call.problem;
  problem.w = current(call.weight, problem.w);
  problem.b = current(call.bias, problem.b);
  if (call.validation) call.validation->w = problem.w, call.validation->b = problem.b;
  at::Tensor order;
  if (call.order.defined()) {
    order = on_device(call.order, call.device);
    call.run.order = order.const_data_ptr<int64_t>();
  }
  if (backend.takes_many_steps(call)) {
    launch_together(backend, call);
  } else {
    launch_one_by_one(backend, call);
  }
  backend.end_run(call);
}

namespace {

at::Tensor tensor_of(const void* data, at::IntArrayRef sizes, at::IntArrayRef strides, at::ScalarType dtype,
                     c10::Device device) {
  return at::for_blob(const_cast<void*>(data), sizes)
      .strides(strides)
      .options(at::dtype(dtype).device(device))
      .target_device(device)
      .make_tensor();
}

// The mean of each epoch's losses [epochs, steps], weighted by the rows or weights of the batches.
at::Tensor epoch_means(const SingleRun& one, const at::Tensor& losses) {
  const Run& run = one.run;
  const View& v = one.problem.v;
  const int64_t epochs = losses.size(0), steps = losses.size(1), taken = std::min(run.rows, steps * run.batch_size);
  const auto doubles = losses.options().dtype(at::kDouble);
  at::Tensor rows = at::ones({one.problem.n}, doubles);
  if (v.data)
    rows = tensor_of(v.data, {one.problem.n, v.col_stride == 0 ? 1 : one.problem.k}, {v.row_stride, v.col_stride},
                     scalar_type_of(v.dtype), losses.device())
               .to(at::kDouble)
               .sum(1);
  at::Tensor weights = rows.narrow(0, 0, run.order ? 0 : taken).expand({epochs, run.order ? 0 : taken});
  if (run.order)
    weights = rows.index({tensor_of(run.order, {epochs, taken}, {run.order_stride, 1}, at::kLong, losses.device())});
  weights = at::constant_pad_nd(weights, {0, steps * run.batch_size - taken}).view({epochs, steps, -1}).sum(2);
  return losses.mul(weights).sum(1).div(weights.sum(1));
}

}  // namespace

namespace {

RunCall call_of(const ManyCall& call, const SingleRun& one, const at::Tensor& losses, const at::Tensor& none,
                const at::Tensor& done) {
  return {call.op,    call.device, one.problem, one.run, {},     {},   one.sgd,
          one.weight, one.bias,    false,       nullptr, losses, none, done};
}

// The first run, with the sizes of that with the most rows.
SingleRun largest_of(const ManyCall& call) {
  const Many& many = call.many;
  int64_t largest = many.begin;
  const auto rows = [&](int64_t p) { return many.offsets[p + 1] - many.offsets[p]; };
  for (int64_t p = many.begin; many.offsets && p < many.end; ++p)
    if (rows(p) > rows(largest)) largest = p;
  SingleRun one = call.first;
  const SingleRun other = single_run(one, many, largest);
  one.problem.n = other.problem.n;
  one.run.rows = other.run.rows, one.run.epoch_steps = other.run.epoch_steps, one.run.end = other.run.end;
  one.problem.w = current(one.weight, one.problem.w);
  one.problem.b = current(one.bias, one.problem.b);
  return one;
}

template <class T>
at::Tensor to_device(const T*& data, int64_t count, c10::Device device) {
  if (!data) return {};
  const at::Tensor copy =
      on_device(tensor_of(data, {count}, {1}, c10::CppTypeToScalarType<T>::value, at::kCPU), device);
  data = copy.const_data_ptr<T>();
  return copy;
}

}  // namespace

void take_runs(const Backend& backend, ManyCall& call) {
  const at::Tensor order = call.order.defined() ? on_device(call.order, call.device) : at::Tensor();
  if (order.defined()) call.first.run.order = order.const_data_ptr<int64_t>();
  const at::Tensor none = backend.empty({0}, call.losses.scalar_type(), call.device),
                   done = backend.empty({}, at::kLong, call.device);
  if (call.many.begin == call.many.end) return;
  const SingleRun largest = largest_of(call);
  if (largest.run.end > 0 && backend.takes_many_steps(call_of(call, largest, none, none, done))) {
    Many many = call.many;
    const at::Tensor copies[] = {
        to_device(many.offsets, many.end + 1, call.device), to_device(many.lr, many.end, call.device),
        to_device(many.momentum, many.end, call.device), to_device(many.weight_decay, many.end, call.device)};
    return backend.take_many_runs(call, largest, many);
  }
  for (int64_t p = call.many.begin; p < call.many.end; ++p) {
    const SingleRun one = single_run(call.first, call.many, p);
    at::Tensor losses = call.losses.select(0, p - call.many.begin);
    if (one.run.end == 0) {
      losses.fill_(std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    const bool whole = one.run.epoch_steps == 1;
    RunCall run = call_of(call, one, whole ? losses : backend.empty({one.run.end}, losses.scalar_type(), call.device),
                          none, done);
    backend.sgd_run(run);
    if (!whole) losses.copy_(epoch_means(one, run.losses.view({call.many.epochs, -1})));
  }
}

}  // namespace linreg::torch_ops
