// SPDX-License-Identifier: BSD-3-Clause
// The operators of least squares.
#include <ATen/ops/any.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/lt.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include "backend.h"
#include "check.h"

namespace linreg::torch_ops {
namespace {

// Whether rows of a group have to come together, and weights are not looked at.
bool is_asynchronous(const Backend& backend) { return backend.plan; }

void check_dense(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType dtype,
                 at::IntArrayRef sizes) {
  TORCH_CHECK(tensor.scalar_type() == dtype && tensor.is_contiguous(), op, ": ", name, " must be contiguous ",
              c10::getDtypeNames(dtype).first, ", got ", c10::getDtypeNames(tensor.scalar_type()).first,
              " with strides ", tensor.strides());
  TORCH_CHECK(tensor.sizes() == sizes, op, ": ", name, " must have shape ", sizes, ", got ", tensor.sizes());
}

// The rows of a call, with copies of what no View can describe.
struct CheckedRows {
  CheckedRows(const char* op, const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
              bool in_place = false) {
    TORCH_CHECK(input.dim() == 2, op, ": input must have shape [rows, in_features], got ", input.sizes());
    check_target(op, input.sizes().slice(0, 1), {target.size(-1)}, target);
    const auto view = [&](const char* name, const at::Tensor& tensor) {
      const auto dtype = tensor.scalar_type();
      TORCH_CHECK(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf, op, ": ",
                  name, " must have dtype float32, float64, bfloat16 or float16, got ",
                  c10::getDtypeNames(dtype).first);
      TORCH_CHECK(tensor.layout() == at::kStrided && tensor.device() == input.device(), op, ": ", name,
                  " must be a dense tensor on ", input.device(), ", got one on ", tensor.device());
      return View{tensor.const_data_ptr(), tensor.stride(0), tensor.dim() == 1 ? 0 : tensor.stride(1),
                  dtype_of(tensor)};
    };
    in_place |= input.stride(1) == 1 || input.size(1) == 1;
    if (!in_place) copy = input.contiguous();
    rows.n = input.size(0);
    rows.d = input.size(1);
    rows.k = target.size(1);
    rows.x = view("input", in_place ? input : copy);
    rows.y = view("target", target);
    if (weight) {
      TORCH_CHECK(weight->sizes() == at::IntArrayRef{rows.n}, op, ": weight must have shape [", rows.n, "], got ",
                  weight->sizes());
      rows.v = view("weight", *weight);
    }
  }

  MomentRows rows;
  at::Tensor copy;
};

void moments(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
             const OptionalTensor& group, at::Tensor counts, at::Tensor mean, at::Tensor moments, bool single) {
  constexpr const char* op = "moments_";
  const Backend& backend = *backend_of(input.device().type());
  const bool few = input.dim() == 2 && target.dim() == 2 && input.size(1) + target.size(1) <= cpu::kRunColumns;
  CheckedRows checked(op, input, target, weight, !is_asynchronous(backend) && !group && few);
  MomentRows& rows = checked.rows;
  rows.single = single;
  const int64_t groups = counts.size(0), m = rows.d + rows.k;
  check_dense(op, "counts", counts, at::kDouble, {groups, 2});
  check_dense(op, "mean", mean, at::kDouble, {groups, m});
  check_dense(op, "moments", moments, at::kDouble, {groups, m, m});
  TORCH_CHECK_VALUE(group.has_value() || groups == 1, op, ": group must be a tensor with ", groups,
                    " groups, got None");
  at::Tensor order, offsets;
  if (group) {
    check_dense(op, "group", *group, at::kLong, {rows.n});
    if (is_asynchronous(backend)) {
      const auto [sorted, places] = at::sort(*group, std::optional<bool>(true));
      for (const int64_t end : {int64_t(0), rows.n - 1})
        if (rows.n > 0) check_group(op, sorted[end].item<int64_t>(), places[end].item<int64_t>(), groups);
      order = places;
      offsets = at::searchsorted(sorted, at::arange(groups + 1, group->options()));
      rows.order = order.const_data_ptr<int64_t>();
      rows.offsets = offsets.const_data_ptr<int64_t>();
    } else {
      rows.group = group->const_data_ptr<int64_t>();
    }
  }
  if (weight && is_asynchronous(backend))
    TORCH_CHECK_VALUE(!at::lt(*weight, 0).any().item<bool>(), op, ": weight must be >= 0, got a negative number");
  const Moments to{groups, counts.mutable_data_ptr<double>(), mean.mutable_data_ptr<double>(),
                   moments.mutable_data_ptr<double>()};
  backend.add_moments(op, input.device(), rows, to);
}

at::Tensor residual_moments(const at::Tensor& input, const at::Tensor& target, const OptionalTensor& weight,
                            const at::Tensor& linear_weight, const at::Tensor& offset, const at::Tensor& center) {
  constexpr const char* op = "residual_moments";
  CheckedRows checked(op, input, target, weight);
  const MomentRows& rows = checked.rows;
  check_dense(op, "linear_weight", linear_weight, at::kDouble, {rows.k, rows.d});
  check_dense(op, "offset", offset, at::kDouble, {rows.k});
  check_dense(op, "center", center, at::kDouble, {rows.d + rows.k});
  const Backend& backend = *backend_of(input.device().type());
  at::Tensor sums = backend.empty({rows.k, rows.d + 2}, at::kDouble, input.device());
  backend.residual_moments(op, input.device(), checked.rows, linear_weight.const_data_ptr<double>(),
                           offset.const_data_ptr<double>(), center.const_data_ptr<double>(),
                           sums.mutable_data_ptr<double>());
  return sums;
}

at::Tensor descend(const at::Tensor& counts, const at::Tensor& mean, const at::Tensor& moments,
                   at::Tensor linear_weight, std::optional<at::Tensor> linear_bias, const at::Tensor& lr,
                   double momentum, double dampening, double weight_decay, bool nesterov, bool maximize) {
  constexpr const char* op = "descend_";
  const Backend& backend = *backend_of(counts.device().type());
  TORCH_CHECK(backend.descend, op, ": expected tensors on the CPU, got ", counts.device());
  TORCH_CHECK(linear_weight.dim() == 3, op,
              ": linear_weight must have shape [problems, out_features, in_features], got ", linear_weight.sizes());
  TORCH_CHECK(lr.dim() == 2 && lr.scalar_type() == at::kDouble && lr.size(0) == linear_weight.size(0), op,
              ": lr must be float64 [problems, steps], got ", lr.sizes());
  Descent p;
  p.problems = linear_weight.size(0), p.k = linear_weight.size(1), p.d = linear_weight.size(2), p.steps = lr.size(1);
  p.moments.groups = counts.size(0);
  const int64_t m = p.d + p.k;
  TORCH_CHECK(p.moments.groups == 1 || p.moments.groups == p.problems, op, ": counts must have 1 or ", p.problems,
              " groups, got ", p.moments.groups);
  check_dense(op, "counts", counts, at::kDouble, {p.moments.groups, 2});
  check_dense(op, "mean", mean, at::kDouble, {p.moments.groups, m});
  check_dense(op, "moments", moments, at::kDouble, {p.moments.groups, m, m});
  check_dense(op, "linear_weight", linear_weight, at::kDouble, {p.problems, p.k, p.d});
  if (linear_bias) check_dense(op, "linear_bias", *linear_bias, at::kDouble, {p.problems, p.k});
  p.moments.counts = const_cast<double*>(counts.const_data_ptr<double>());
  p.moments.mean = const_cast<double*>(mean.const_data_ptr<double>());
  p.moments.moments = const_cast<double*>(moments.const_data_ptr<double>());
  p.weight = linear_weight.mutable_data_ptr<double>();
  p.bias = linear_bias ? linear_bias->mutable_data_ptr<double>() : nullptr;
  p.lr = lr.const_data_ptr<double>(), p.lr_problem = lr.stride(0), p.lr_step = lr.stride(1);
  p.sgd.momentum = momentum, p.sgd.dampening = dampening, p.sgd.weight_decay = weight_decay;
  p.sgd.nesterov = nesterov, p.sgd.maximize = maximize;
  at::Tensor losses = backend.empty({p.problems, p.steps}, at::kDouble, counts.device());
  p.losses = losses.mutable_data_ptr<double>();
  backend.descend(p);
  return losses;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(linreg_ext, m) {
  m.def(
      "moments_(Tensor input, Tensor target, Tensor? weight, Tensor? group, Tensor(a!) counts, Tensor(b!) mean, "
      "Tensor(c!) moments, bool single) -> ()");
  m.def(
      "residual_moments(Tensor input, Tensor target, Tensor? weight, Tensor linear_weight, Tensor offset, "
      "Tensor center) -> Tensor");
  m.def(
      "descend_(Tensor counts, Tensor mean, Tensor moments, Tensor(a!) linear_weight, Tensor(b!)? linear_bias, "
      "Tensor lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize) -> Tensor");
}

void implement_least_squares(torch::Library& m) {
  m.impl("moments_", &moments);
  m.impl("residual_moments", &residual_moments);
  m.impl("descend_", &descend);
}

TORCH_LIBRARY_IMPL(linreg_ext, Autograd, m) {  // nothing is recorded
  m.impl("moments_", torch::CppFunction::makeFallthrough());
  m.impl("residual_moments", torch::CppFunction::makeFallthrough());
  m.impl("descend_", torch::CppFunction::makeFallthrough());
}

}  // namespace linreg::torch_ops
