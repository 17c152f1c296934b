# SPDX-License-Identifier: BSD-3-Clause
"""Faults of csrc/torch: checks, what autograd is told, and what steps read of Python."""

from .mutant import Mutant

PARITY = "tests/test_parity.py::"
ERRORS = "tests/test_errors.py::"
AUTOGRAD = "tests/test_autograd.py::"
PLANNED = "tests/test_planned_step.py::"
BAD_LOSS = (ERRORS + "test_bad_arguments_of_a_loss",)
BAD_STEP = (ERRORS + "test_bad_arguments_of_a_step",)
BAD_RUN = (ERRORS + "test_bad_arguments_of_a_run",)
SETTINGS = (PLANNED + "test_settings", PLANNED + "test_what_is_read_at_every_step")
ASIDE = (PLANNED + "test_what_makes_the_plan_stand_aside",)

TENSORS = (
    # Checks.
    Mutant("check: what is written may overlap what is read", "csrc/torch/check.cpp",
           "overlap(extents[i], extents[j])", "false", BAD_STEP),
    Mutant("check: what is written may be expanded", "csrc/torch/check.cpp",
           "tensor.stride(dim) == 0 && tensor.size(dim) > 1 && tensor.numel() > 0", "false", BAD_STEP),
    Mutant("check: rows that interleave overlap", "csrc/torch/check.cpp",
           "begin < b_begin + b.length && b_begin < begin + a.length", "true",
           (ERRORS + "test_memory_that_interleaves_without_overlap_is_accepted",)),
    Mutant("check: a target of any shape", "csrc/torch/check.cpp",
           'if (!is(o.target.sizes(), rows, outputs)) wrong_shape(op, "target", word(joined(rows, outputs)), o.target);',
           "", BAD_LOSS),
    Mutant("check: a target of any dtype", "csrc/torch/check.cpp",
           'check_dtype(op, "target", o.target, dtype, wide);', "", BAD_LOSS),
    Mutant("check: a momentum buffer of any shape", "csrc/torch/check.cpp",
           "if (buffer->sizes() != parameter.sizes()) wrong_shape(op, name, word(parameter.sizes()), *buffer);", "",
           BAD_STEP),
    Mutant("check: a threshold of 0 for huber", "csrc/math/losses.h", "delta > 0", "delta >= 0",
           (*BAD_LOSS, *BAD_STEP), within='LOSS(huber, "delta", delta > 0'),
    Mutant("check: an order may name the row behind the last", "csrc/torch/check.cpp",
           "uint64_t(order[i]) < uint64_t(rows)", "uint64_t(order[i]) <= uint64_t(rows)", BAD_RUN,
           within="inside &= uint64_t(order[i]) < uint64_t(rows)"),
    Mutant("check: negative bits are PyTorch's to see to", "csrc/torch/ops.cpp",
           "refuse_steps<&refuse_negative>(m);", "", BAD_STEP),
    Mutant("check: a batch on another device goes to the dispatcher", "csrc/torch/direct.h", "mixed(tensors)", "false",
           (*BAD_STEP, *BAD_RUN)),
    Mutant("check: a list's element has the list's name", "csrc/torch/direct.h",
           'if (list == "rule" && i < 6) return kRule[i];', "", BAD_STEP),
    # Operands.
    Mutant("operands: leading dimensions of any strides are one", "csrc/torch/check.cpp",
           "tensor.stride(i) != expected", "false", (PARITY + "test_leading_dimensions_and_a_weight_of_one_dimension",)),
    Mutant("operands: a weight a row has a column for each target", "csrc/torch/check.cpp",
           "if (has_columns && o.weight->size(-1) == 1) p.v.col_stride = 0;", "",
           (PARITY + "test_losses_reductions_weights",)),
    Mutant("operands: a bias lies without gaps", "csrc/torch/check.cpp", "o.linear_bias->stride(0)", "1",
           (PARITY + "test_layouts_give_the_bits_of_contiguous_operands",)),
    Mutant("operands: columns that are apart are not updated", "csrc/torch/ops.cpp",
           "if (copy.defined()) tensor->copy_(copy);", "",
           ("tests/test_run.py::test_parameters_whose_columns_are_apart_are_updated",)),
    # Autograd.
    Mutant("node: no version is bumped", "csrc/torch/ops.cpp",
           "if (!tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();", "",
           ("tests/test_registration.py::test_version_counters_are_bumped_by_op_and_direct_entry",)),
    Mutant("node: the loss's gradient is taken for 1", "csrc/torch/autograd.cpp", "factor * from[i]", "from[i]",
           (AUTOGRAD + "test_a_scaled_loss",)),
    Mutant("node: every operand's gradient is computed", "csrc/torch/autograd.cpp",
           "operands[i] && operands[i]->requires_grad()", "operands[i] != nullptr",
           (AUTOGRAD + "test_the_gradients_not_needed_are_not_computed",)),
    Mutant("node: a parameter that changes before backward", "csrc/torch/autograd.cpp",
           "node->linear_weight = SavedVariable(o.linear_weight, false);",
           "node->linear_weight = SavedVariable(o.linear_weight.detach().clone(), false);",
           (AUTOGRAD + "test_any_operand_changed_before_backward_is_an_error",)),
    Mutant("node: a second derivative is not recorded", "csrc/torch/autograd.cpp",
           "at::GradMode::is_enabled() || transforming() || batched", "false",
           (AUTOGRAD + "test_gradcheck_and_gradgradcheck",)),
    Mutant("node: float16 gradients are rounded before they are scaled", "csrc/torch/ops.cpp",
           "of->scalar_type() == at::kHalf ? at::kFloat : of->scalar_type()", "of->scalar_type()",
           (AUTOGRAD + "test_float16_gradients_are_scaled_before_they_are_rounded",)),
    # Steps that go by a plan.
    Mutant("plan: maximize is not read", "csrc/torch/train_step.cpp", "sgd.rule.maximize = maximize == Py_True;", "",
           SETTINGS),
    Mutant("plan: weight_decay is not read", "csrc/torch/train_step.cpp", "sgd.rule.weight_decay = *weight_decay;", "",
           SETTINGS),
    Mutant("plan: a pending gradient is overlooked", "csrc/torch/train_step.cpp",
           "THPVariable_Unpack(parameter).unsafeGetTensorImpl()->grad().defined()", "false", ASIDE),
    Mutant("plan: anomaly detection is overlooked", "csrc/torch/train_step.cpp",
           "torch::autograd::AnomalyMode::is_enabled()", "false", ASIDE),
    Mutant("plan: frozen weights are updated", "csrc/torch/train_step.cpp", "sgd.frozen = {!weight.required, !bias.required};", "",
           SETTINGS),
    Mutant("plan: schedulers do not see the step", "csrc/torch/train_step.cpp",
           "plan.scheduled && PyObject_SetAttr(optimizer, names().opt_called, Py_True) != 0", "false",
           (PLANNED + "test_a_scheduler",)),
    # Runs.
    Mutant("run: a stretch has the first one's rates", "csrc/torch/ops.cpp", "(run.begin + i) * lr.stride(0)",
           "i * lr.stride(0)",
           ("tests/test_run.py::test_same_bits_for_any_number_of_threads_and_stretch",)),
    Mutant("run: what was not reached has a loss", "csrc/torch/cpu.cpp",
           "call.losses.narrow(0, taken + 1, run.end - run.begin - taken - 1).fill_(kNan);", "",
           ("tests/test_run.py::test_a_run_stops_with_the_last_finite_parameters",)),
    Mutant("run: MKL's products depend on the threads", "csrc/torch/cpu.cpp", "MKL_Set_Num_Threads_Local(1)", "0",
           ("tests/test_determinism.py::test_same_bits_for_any_number_of_threads[cpu-(4096, 1024, 64)-float32]",),
           within="before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0)"),
)  # fmt: skip
