// SPDX-License-Identifier: BSD-3-Clause
// linreg_ext.autograd.LinearLoss in C++ for plain tensors, because Python takes longer to record it and to run it
// backward than a small problem takes. Loss and backward() on [32, 8] take 0.38 times as long as eager PyTorch; with
// LinearLoss, 1.8 times (AMD EPYC).
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>

#include "direct.h"
#include "ops.h"

namespace linreg::torch_ops {
namespace {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

using NodePointer = decltype(torch::autograd::Edge::function);  // a shared_ptr until torch 2.12

template <class T, class Pointer = NodePointer>
Pointer make_node(std::unique_ptr<T> node) {
  if constexpr (std::is_constructible_v<Pointer, T*>)
    return Pointer(node.release());
  else
    return Pointer::unsafe_steal_from_new(node.release());
}

constexpr size_t kGradients = 4;        // in the order of linreg_ext.autograd.OPERANDS: input, weight, bias, target
constexpr int64_t kFewElements = 4096;  // up to here the loop below takes less than the overhead of at::mul, 1.5 µs
constexpr int64_t kRoundedAtOnce = 1 << 18;  // elements, 1 MB of floats

// grad_loss * grad for few elements.
template <class T>
void scale(const at::Tensor& grad_loss, const at::Tensor& grad, const at::Tensor& result) {
  const T factor = *grad_loss.const_data_ptr<T>();
  const T* const from = grad.const_data_ptr<T>();
  T* const to = result.mutable_data_ptr<T>();
  const int64_t count = grad.numel();
  for (int64_t i = 0; i < count; ++i) to[i] = factor * from[i];
}

at::Tensor scaled(const at::Tensor& grad_loss, const at::Tensor& grad, at::ScalarType dtype) {
  const auto own = grad.scalar_type();
  const bool on_cpu = plain({&grad_loss, &grad}) && grad_loss.is_cpu() && grad.is_cpu() && grad.is_contiguous();
  if (on_cpu && dtype != grad_loss.scalar_type() && grad.numel() > kRoundedAtOnce) {  // avoids a copy in float32
    at::Tensor result = at::empty_like(grad, dtype);
    const at::Tensor factor = grad_loss.reshape(1), from = grad.view(-1), to = result.view(-1);
    for (int64_t i = 0; i < grad.numel(); i += kRoundedAtOnce) {
      const int64_t count = std::min(kRoundedAtOnce, grad.numel() - i);
      to.narrow(0, i, count).copy_(at::mul(factor, from.narrow(0, i, count)));
    }
    return result;
  }
  const bool loop = on_cpu && (own == at::kFloat || own == at::kDouble) && grad_loss.scalar_type() == own &&
                    grad.numel() <= kFewElements;
  // A 0-dim grad_loss would be rounded to a 16-bit gradient's dtype first.
  if (!loop) return at::mul(grad_loss.reshape(at::DimVector(grad.dim(), 1)), grad).to(dtype);
  at::Tensor result = backend_of(c10::DeviceType::CPU)->empty(grad.sizes(), own, grad.device());
  own == at::kFloat ? scale<float>(grad_loss, grad, result) : scale<double>(grad_loss, grad, result);
  return result;
}

// The saved state of LinearLoss.setup_context, and LinearLoss.backward. Each gradient is at its operand's index.
struct LinearLossBackward : torch::autograd::Node {
  SavedVariable input, linear_weight, target, linear_bias, weight;
  std::array<SavedVariable, kGradients> gradients;
  std::string loss, reduction;
  double delta = 1;
  std::array<bool, kGradients> wanted{};

  std::string name() const override { return "LinearLossBackward"; }

  variable_list apply(variable_list&& grad_outputs) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const at::Tensor x = input.unpack(), w = linear_weight.unpack(), y = target.unpack(), b = linear_bias.unpack(),
                     v = weight.unpack();  // all of them, because unpacking detects in-place changes
    const at::Tensor grad_loss = std::move(grad_outputs[0]);
    variable_list results(kGradients);
    if (!grad_loss.defined()) return results;
    const at::ScalarType dtypes[kGradients] = {x.scalar_type(), w.scalar_type(), w.scalar_type(), y.scalar_type()};
    const bool batched = grad_loss.key_set().has(c10::DispatchKey::Batched);  // by is_grads_batched
    if (at::GradMode::is_enabled() || transforming() || batched) {  // the result must itself be differentiable
      pybind11::gil_scoped_acquire gil;
      const auto optional = [](const at::Tensor& tensor) {
        return tensor.defined() ? pybind11::cast(tensor) : pybind11::object(pybind11::none());
      };
      const auto function = pybind11::module_::import("linreg_ext.autograd").attr("differentiable_grads");
      const pybind11::list grads =
          function(grad_loss, x, w, y, optional(b), optional(v), loss, delta, reduction, wanted);
      for (size_t i = 0, next = 0; i < kGradients; ++i)
        if (wanted[i]) results[i] = grads[next++].cast<at::Tensor>().to(dtypes[i]);
      return results;
    }
    for (size_t i = 0; i < kGradients; ++i)
      if (wanted[i]) results[i] = scaled(grad_loss, gradients[i].unpack(), dtypes[i]);
    return results;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_saved([](SavedVariable& saved) { saved.reset_data(); });
  }

  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    const_cast<LinearLossBackward*>(this)->for_each_saved([&](SavedVariable& saved) { args.collect(saved, false); });
    args.collect(loss);
    args.collect(delta);
    args.collect(reduction);
    for (const bool one : wanted) args.collect(one);
  }

  variable_list apply_with_saved(const variable_list& grad_outputs,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    for_each_saved([&](SavedVariable& saved) { swap.before(saved); });
    variable_list results = apply(variable_list(grad_outputs));
    for_each_saved([&](SavedVariable& saved) { swap.after(saved); });
    return results;
  }

 private:
  template <class F>
  void for_each_saved(F&& function) {
    for (SavedVariable* saved : {&input, &linear_weight, &target, &linear_bias, &weight}) function(*saved);
    for (SavedVariable& saved : gradients) function(saved);
  }
};

}  // namespace

at::Tensor differentiable_loss(const Operands& o, const Objective& objective) {
  auto node = std::make_unique<LinearLossBackward>();
  const at::Tensor* const operands[kGradients] = {&o.input, &o.linear_weight, o.linear_bias, &o.target};
  for (size_t i = 0; i < kGradients; ++i) {
    node->wanted[i] = operands[i] && operands[i]->requires_grad();
    node->add_next_edge(node->wanted[i] ? torch::autograd::impl::gradient_edge(*operands[i]) : torch::autograd::Edge());
  }
  if (std::none_of(node->wanted.begin(), node->wanted.end(), [](bool one) { return one; }))
    return linear_loss(o, objective);
  auto [value, grads] = linear_loss_grads(o, objective, node->wanted);
  node->input = SavedVariable(o.input, false);
  node->linear_weight = SavedVariable(o.linear_weight, false);
  node->target = SavedVariable(o.target, false);
  if (o.linear_bias) node->linear_bias = SavedVariable(*o.linear_bias, false);
  if (o.weight) node->weight = SavedVariable(*o.weight, false);
  for (size_t i = 0, next = 0; i < kGradients; ++i)
    if (node->wanted[i]) node->gradients[i] = SavedVariable(grads[next++], false);
  node->loss = objective.loss;
  node->delta = objective.delta;
  node->reduction = objective.reduction;
  torch::autograd::set_history(value, make_node(std::move(node)));
  return value;
}

PyObject* linear_loss_entry(PyObject*, PyObject* const* items, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  for (Py_ssize_t i = 0; i < std::min<Py_ssize_t>(count, 5); ++i)  // subclasses and proxies get the Python function
    if (!THPVariable_CheckExact(items[i]) && items[i] != Py_None &&
        PyObject_HasAttrString(reinterpret_cast<PyObject*>(Py_TYPE(items[i])), "__torch_function__"))
      Py_RETURN_NOTIMPLEMENTED;
  Held<const at::Tensor&> x, w, y;
  Held<const OptionalTensor&> b, v;
  Held<std::string_view> loss, reduction;
  Held<double> delta;
  Arguments("linreg_ext::linear_loss", items, count, 8).read(x, w, y, b, v, loss, delta, reduction);
  const Objective objective{loss.value, delta.value, reduction.value};
  const at::Tensor *const input = x.value, *const linear_weight = w.value, *const target = y.value;
  const at::Tensor *const linear_bias = given(b.value), *const weight = given(v.value);
  const at::Tensor* const tensors[] = {input, linear_weight, target, linear_bias, weight};
  if ((!plain(tensors) && !mixed(tensors)) || transforming()) Py_RETURN_NOTIMPLEMENTED;
  if (at::impl::torch_function_mode_enabled()) Py_RETURN_NOTIMPLEMENTED;  // it gets the Python function
  if (at::autocast::is_autocast_enabled(input->device().type())) Py_RETURN_NOTIMPLEMENTED;  // Python casts first

  const Operands operands{*input, *linear_weight, *target, linear_bias, weight};
  bool differentiable = false;
  if (at::GradMode::is_enabled()) {
    if (weight && weight->requires_grad()) Py_RETURN_NOTIMPLEMENTED;  // an error
    for (const at::Tensor* tensor : {input, linear_weight, target, linear_bias})
      differentiable |= tensor && tensor->requires_grad();
    if (differentiable && objective.reduction == "none") Py_RETURN_NOTIMPLEMENTED;  // LinearLoss recomputes gradients
  }

  at::Tensor value;
  {
    std::optional<pybind11::gil_scoped_release> released;
    if (takes_long(*input, *linear_weight)) released.emplace();
    value = recorded(differentiable ? "linreg_ext::linear_loss_grads" : "linreg_ext::linear_loss",
                     [&] { return (differentiable ? differentiable_loss : linear_loss)(operands, objective); });
  }
  return THPVariable_Wrap(std::move(value));
  END_HANDLE_TH_ERRORS
}

}  // namespace linreg::torch_ops
