# SPDX-License-Identifier: BSD-3-Clause
"""Fused paths that are wrong by five per cent, which the tests of PyTorch's features must detect.

Unlike other faults, each of these must fail all of its tests.
"""

from .mutant import Mutant

COMPILE = "tests/test_compile.py::"
FUNC = "tests/test_func.py::"
AUTOCAST = "tests/test_autocast.py::"
DEEP = "tests/test_deep_models.py::"
DISTRIBUTED = "tests/test_distributed.py::"
STATE = "tests/test_state.py::"
RECOGNITION = "tests/test_recognition.py::"


def _wrong(name: str, file: str, old: str, new: str, *tests: str, build: str = "cpu") -> Mutant:
    return Mutant(f"fused: {name}", file, old, new, tests, every=True, build=build)


FUSED = (
    _wrong("gradients are too large", "csrc/torch/ops.cpp",
           "compute_loss(op.c_str(), backend, device, checked.problem, gradients, value.data_ptr());",
           "compute_loss(op.c_str(), backend, device, checked.problem, gradients, value.data_ptr());"
           " for (const at::Tensor& grad : grads) grad.mul_(1.05);",
           COMPILE + "test_losses_in_one_graph",
           COMPILE + "test_a_network_with_our_head_by_inductor",
           COMPILE + "test_a_shorter_last_batch_is_not_compiled_anew",
           COMPILE + "test_an_exported_loss_is_trained_like_the_plain_one",
           AUTOCAST + "test_losses_are_those_of_plain_pytorch_under_autocast",
           AUTOCAST + "test_autocast_in_and_around_what_is_compiled_and_transformed",
           AUTOCAST + "test_training_with_a_grad_scaler",
           DEEP + "test_optimizers",
           DEEP + "test_lbfgs_calls_the_loss_as_often_and_gets_the_same",
           DEEP + "test_gradients_of_the_input_and_of_what_lies_between",
           DEEP + "test_micro_batches_add_up",
           DEEP + "test_clipped_gradients",
           DEEP + "test_checkpointed_activations",
           DEEP + "test_tied_weights",
           DEEP + "test_frozen_parts",
           DEEP + "test_two_heads_on_one_body",
           DISTRIBUTED + "test_two_processes",
           STATE + "test_training_goes_on_in_the_other_module",
           STATE + "test_parameters_given_by_functional_call",
           STATE + "test_a_module_that_is_made_without_data",
           RECOGNITION + "test_the_optimizer_steps_for_itself",
           RECOGNITION + "test_random_models_train_as_the_plain_loop_trains_them"),
    _wrong("a loss computed with its gradients is too large", "csrc/torch/ops.cpp",
           "return {std::move(value), std::move(grads)};",
           "value.mul_(1.05); return {std::move(value), std::move(grads)};",
           COMPILE + "test_losses_in_one_graph",
           COMPILE + "test_a_network_with_our_head_by_inductor",
           COMPILE + "test_a_shorter_last_batch_is_not_compiled_anew",
           COMPILE + "test_an_exported_loss_is_trained_like_the_plain_one",
           AUTOCAST + "test_losses_are_those_of_plain_pytorch_under_autocast",
           AUTOCAST + "test_autocast_in_and_around_what_is_compiled_and_transformed",
           DEEP + "test_optimizers",
           DEEP + "test_lbfgs_calls_the_loss_as_often_and_gets_the_same",
           DEEP + "test_checkpointed_activations",
           DEEP + "test_two_heads_on_one_body",
           STATE + "test_copies_of_a_module_are_its_equals_and_nothing_more",
           RECOGNITION + "test_the_optimizer_steps_for_itself"),
    _wrong("a loss alone is too large", "csrc/torch/ops.cpp",
           "compute_loss(op.c_str(), backend, device, checked.problem, {}, value.data_ptr());",
           "compute_loss(op.c_str(), backend, device, checked.problem, {}, value.data_ptr()); value.mul_(1.05);",
           COMPILE + "test_losses_in_one_graph",
           COMPILE + "test_export_is_saved_loaded_and_run",
           COMPILE + "test_aot_inductor_is_packaged_loaded_and_run",
           FUNC + "test_batches",
           AUTOCAST + "test_losses_are_those_of_plain_pytorch_under_autocast",
           AUTOCAST + "test_what_is_rounded_and_what_is_not",
           AUTOCAST + "test_the_reference_and_the_modules_under_autocast",
           AUTOCAST + "test_float64_and_regions_without_autocast_are_left_alone"),
    _wrong("a step is too long", "csrc/torch/ops.cpp",
           "take_step(op.data(), backend, device, checked.problem, rule, w.parameter, b.parameter, {sgd.skip_nonfinite, nullptr},\n"
           "            value.data_ptr());",
           "rule.lr *= 1.05; "
           "take_step(op.data(), backend, device, checked.problem, rule, w.parameter, b.parameter, {sgd.skip_nonfinite, nullptr},\n"
           "            value.data_ptr());",
           COMPILE + "test_a_shorter_last_batch_is_not_compiled_anew",
           COMPILE + "test_steps_on_views_of_one_buffer_by_inductor",
           COMPILE + "test_the_first_step_compiled_hands_over_its_momentum",
           COMPILE + "test_a_learning_rate_is_not_frozen_in_what_is_compiled",
           COMPILE + "test_export_is_saved_loaded_and_run",
           COMPILE + "test_aot_inductor_is_packaged_loaded_and_run",
           AUTOCAST + "test_steps_in_place_are_left_alone",
           STATE + "test_a_step_after_its_parameters_have_changed",
           STATE + "test_a_lazy_layer_is_fused_when_it_has_become_one",
           RECOGNITION + "test_what_changes_nothing_stays_fused",
           RECOGNITION + "test_the_tutorials_models_are_fused",
           RECOGNITION + "test_random_models_train_as_the_plain_loop_trains_them"),
    _wrong("the steps of a run are too long", "csrc/torch/ops.cpp",
           "call.sgd = sgd.rule;",
           "call.sgd = sgd.rule; call.sgd.lr *= 1.05;",
           COMPILE + "test_a_shorter_last_batch_is_not_compiled_anew",
           COMPILE + "test_runs_in_one_graph",
           AUTOCAST + "test_steps_in_place_are_left_alone"),
    _wrong("the loss under transforms is too large", "linreg_ext/autograd.py", "return reference.linear_loss(*arguments)",
           "return 1.05 * reference.linear_loss(*arguments)",
           FUNC + "test_derivatives",
           FUNC + "test_batches",
           FUNC + "test_gradients_of_every_sample",
           FUNC + "test_functional_call_of_a_module_and_of_an_ensemble",
           FUNC + "test_transforms_inside_and_outside_of_each_other_and_of_autograd",
           FUNC + "test_transforms_that_are_compiled",
           FUNC + "test_the_operators_themselves",
           AUTOCAST + "test_autocast_in_and_around_what_is_compiled_and_transformed",
           build="python"),
    _wrong("derivatives of gradients are too large", "linreg_ext/autograd.py",
           "return [grads[name]() for", "return [1.05 * grads[name]() for",
           "tests/test_autograd.py::test_gradcheck_and_gradgradcheck",
           "tests/test_autograd.py::test_gradcheck_of_the_operators_themselves",
           "tests/test_autograd.py::test_many_grad_outputs_at_once",
           FUNC + "test_the_operators_themselves",
           AUTOCAST + "test_second_derivatives_of_a_loss_under_autocast",
           build="python"),
    _wrong("a wrapper is taken for the module that it wraps", "linreg_ext/training/match.py",
           'if not isinstance(model, nn.Module):',
           'model = getattr(model, "module", model)\n    if not isinstance(model, nn.Module):',
           RECOGNITION + "test_a_wrapper_is_not_the_module_that_it_wraps",
           build="python"),
)  # fmt: skip
