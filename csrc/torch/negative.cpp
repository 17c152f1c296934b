// SPDX-License-Identifier: BSD-3-Clause
// What the steps in place do with tensors that have the negative bit, as z.conj().imag has: what lies in their memory
// is not their numbers but those times -1. PyTorch's own answer for all operators does not know one that returns
// something else than what it writes, and finds that out when the step is taken.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

namespace linreg::torch_ops {
namespace {

// Goes on with copies of what is read, and refuses what is written. check_sgd in linreg_ext/check.py says the same.
void resolve_read(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const std::string& full_name = op.operator_name().name;
  const size_t count = op.schema().arguments().size();
  c10::IValue* const arguments = stack->data() + stack->size() - count;
  const auto argument = [&](const char* name) -> const c10::IValue& {
    return arguments[*op.schema().argumentIndexWithName(name)];
  };
  const auto refuse = [&](const char* argument_name, const char* name) {
    const c10::IValue& value = argument(argument_name);
    TORCH_CHECK(!value.isTensor() || !value.toTensor().is_neg(), full_name.substr(full_name.find("::") + 2), ": ", name,
                " must not have the negative bit, since it is written to; pass its resolve_neg(), which is a copy");
  };
  const bool momentum = argument("momentum").toDouble() != 0;
  if (!argument("weight_frozen").toBool()) {
    refuse("linear_weight", "linear_weight");
    if (momentum) refuse("weight_momentum_buffer", "momentum_buffers[0]");
  }
  if (!argument("bias_frozen").toBool()) {
    refuse("linear_bias", "linear_bias");
    if (momentum) refuse("bias_momentum_buffer", "momentum_buffers[1]");
  }
  for (size_t i = 0; i < count; ++i)
    if (arguments[i].isTensor()) arguments[i] = arguments[i].toTensor().resolve_neg();
  op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, c10::DispatchKey::Negative), stack);
}

}  // namespace

TORCH_LIBRARY_IMPL(linreg_ext, Negative, m) {
  m.impl("sgd_step_", torch::CppFunction::makeFromBoxedFunction<&resolve_read>());
  m.impl("sgd_run_", torch::CppFunction::makeFromBoxedFunction<&resolve_read>());
}

}  // namespace linreg::torch_ops
