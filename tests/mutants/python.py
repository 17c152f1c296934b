# SPDX-License-Identifier: BSD-3-Clause
"""Faults in the Python package."""

from .mutant import Mutant

AUTOGRAD = "tests/test_autograd.py::"
STEP = "tests/test_train_step.py::"
TRAINING = "tests/test_training.py::"
RUN = "tests/test_run.py::"
FIT = "tests/test_fit.py::"
LOADERS = "tests/test_loader_order.py::"
CLI = "tests/test_cli.py::"
STOPPING = "tests/test_stopping.py::"

LOADER = (LOADERS + "test_every_loader",)
DIVERGENCE = (LOADERS + "test_divergence_at_step_3_of_epoch_7",)
HISTORY = (FIT + "test_history_and_epoch_loss_by_rows", FIT + "test_every_loader")
UNITS = (
    CLI + "test_coefficients_are_least_squares_in_the_tables_units",
    CLI + "test_the_intercept_is_in_the_tables_units",
)


def _python(name: str, file: str, old: str, new: str, tests: tuple[str, ...], within: str = "") -> Mutant:
    return Mutant(name, f"linreg_ext/{file}", old, new, tests, within, build="python")


PYTHON = (
    # Derivatives.
    _python("autograd: the loss's gradient is taken to be 1", "autograd.py",
            "grad_loss.reshape([1] * saved_grad.dim()) * saved_grad", "saved_grad",
            (AUTOGRAD + "test_both_recorders_give_the_same_bits", AUTOGRAD + "test_a_scaled_loss")),
    _python("autograd: mse's second derivative lacks the 2", "losses.py", "dloss=lambda r, _: 2 * r", "dloss=lambda r, _: r",
            (AUTOGRAD + "test_second_derivative_is_the_hessian",)),
    _python("autograd: huber is quadratic at its threshold, too", "losses.py", "r.abs() < delta", "r.abs() <= delta",
            (AUTOGRAD + "test_second_derivative_at_the_threshold_is_pytorchs",),
            within="torch.where(r.abs() < delta, r, r.detach()"),
    _python("autograd: a weighted mean divides by the number of elements", "autograd.py",
            "(r.numel() if weight is None else v.sum())", "r.numel()",
            (AUTOGRAD + "test_gradcheck_and_gradgradcheck",)),
    _python("autograd: elementwise gradients ignore weights", "autograd.py",
            "grad_loss if weight is None else grad_loss * _like(weight, grad_loss)", "grad_loss",
            (AUTOGRAD + "test_any_grad_output_of_an_unreduced_loss",)),
    _python("losses: a threshold may belong to another loss", "losses.py", "if value is not None and name != own:", "if False:",
            ("tests/test_errors.py::test_bad_arguments_of_a_step",)),
    _python("losses: a threshold is always the default", "losses.py", "if given[own] is None else given[own]", "",
            (RUN + "test_the_reference_is_the_same_run", TRAINING + "test_losses_follow_pytorch")),
    # Functions.
    _python("operators: the input is never differentiated", "autograd.py", "t is not None and t.requires_grad",
            "t is not None and t.requires_grad and t is not input",
            (AUTOGRAD + "test_both_recorders_give_the_same_bits", "tests/test_compile.py::test_losses_in_one_graph")),
    _python("operators: a weight may require grad", "autograd.py",
            "weight is not None and weight.requires_grad", "False",
            ("tests/test_errors.py::test_a_weight_that_requires_grad_is_refused",)),
    _python("functional: a step's momentum is dropped", "functional.py", "momentum_buffers[: len(parameters)] = state[0]", "pass",
            ("tests/test_values.py::test_sgd_rule_by_hand",),
            within="if state[1]:\n        momentum_buffers[: len(parameters)] = state[0]"),
    _python("functional: every chunk of a run begins with a first step", "functional.py",
            "0, *step[11:]", "*step[10:]",
            (RUN + "test_same_bits_for_any_number_of_threads_and_stretch",)),
    _python("functional: a run does not return the loss that ended it", "functional.py", "steps_taken(chunks) + 1",
            "steps_taken(chunks)", (RUN + "test_a_run_stops_with_the_last_finite_parameters",)),
    _python("functional: a full batch of an order has all rows", "functional.py",
            "input.shape[0] if order is None else order.shape[-1]", "input.shape[0]",
            (RUN + "test_rows_may_come_several_times_or_not_at_all",)),
    _python("autocast: targets are rounded", "autocast.py", "_to(torch.float32, target)", "_to(lower, target)",
            ("tests/test_autocast.py::test_what_is_rounded_and_what_is_not",)),
    _python("modules: the reduction is always a mean", "modules.py", "reduction=self.reduction", 'reduction="mean"',
            (AUTOGRAD + "test_modules",), within="weight=weight, reduction=self.reduction"),
    # What is recognised.
    _python("recognition: a loss's weights are overlooked", "training/match.py",
            'any(options.get(name) is not None for name in ("weight", "size_average", "reduce"))', "False",
            (STEP + "test_losses_that_are_not_fused_train_as_they_are",)),
    _python("recognition: a threshold is always the default", "training/match.py",
            "getattr(loss_fn, loss.threshold.name)", "loss.threshold.default", (STEP + "test_losses_that_are_fused",)),
    _python("recognition: a bias is broadcast over targets", "training/match.py",
            "shape not in ([affine.targets], []) or affine.bias.numel() != affine.targets", "False",
            (STEP + "test_a_bias_that_is_broadcast_over_targets_is_not_fused",)),
    _python("recognition: a subclass of SGD is SGD", "training/match.py", "cls is not torch.optim.SGD",
            "not issubclass(cls, torch.optim.SGD)",
            (STEP + "test_what_makes_sgd_step_for_itself",)),
    # Steps.
    _python("step: gradients accumulate from step to step", "training/train_step.py", "self.optimizer.zero_grad()", "pass",
            (STEP + "test_another_optimizer_gets_its_gradients_from_one_pass",)),
    _python("step: an eager step is taken although its loss is not finite", "training/train_step.py",
            "if not (skip_nonfinite and not math.isfinite(loss.detach().sum().item())):", "if True:",
            (FIT + "test_divergence_stops_with_the_last_finite_parameters",)),
    _python("step: the loss keeps its graph", "training/train_step.py", "return loss.detach()", "return loss",
            (STEP + "test_models_that_are_not_fused_train_as_they_are",)),
    # Training.
    _python("fit: a short last batch counts as a whole one", "training/fit.py",
            "rows[-1] = min(train.batch_size, train.length - train.batch_size * (train.epoch_steps - 1))", "pass",
            HISTORY),
    _python("fit: an iterated batch counts as a row", "training/fit.py", "skip_nonfinite=stop), len(x), rate)",
            "skip_nonfinite=stop), 1, rate)", (FIT + "test_levels_below_fused", *HISTORY)),
    _python("fit: the loss that ended it is not recorded", "training/fit.py", "losses[: taken + 1]", "losses[:taken]",
            DIVERGENCE),
    _python("fit: generators are not rewound", "training/fit.py", "self._rewind(before, taken, 1)", "pass",
            DIVERGENCE),
    _python("fit: a summed validation loss is not made a mean", "training/fit.py",
            'self._val_rows is not None and step.reduction == "sum"', "False",
            (FIT + "test_every_loss",)),
    _python("fit: changed rows are not copied to the device again", "training/batches.py",
            "self._copies[key][0] == _identity(tensor)", "True",
            (LOADERS + "test_a_data_set_is_brought_to_the_device_once",)),
    _python("fit: schedulers step before the last epochs", "training/fit.py",
            "watched = scheduler is not None or", "watched =",
            (LOADERS + "test_schedulers_step_after_every_epoch",)),
    _python("fit: a plateau is seen in the training loss", "training/fit.py",
            "recorder.val_loss[-1] if recorder.val_loss else recorder.epoch_loss[-1]", "recorder.epoch_loss[-1]",
            (LOADERS + "test_schedulers_step_after_every_epoch", FIT + "test_schedulers_step_once_an_epoch")),
    _python("recorder: an epoch's loss is the mean over its batches", "training/history.py", "by_epoch @ rows",
            "by_epoch.mean(1) * rows.sum()", HISTORY),
    _python("recorder: the step that diverged is counted from 0", "training/history.py", "step = len(self.step_loss)",
            "step = len(self.step_loss) - 1",
            DIVERGENCE),
    _python("recorder: a learning rate tensor is not copied", "training/history.py",
            "lr.detach().clone() if isinstance(lr, Tensor) else lr", "lr",
            (FIT + "test_history_keeps_the_rates_that_a_tensor_had",)),
    _python("evaluate: batches have equal weight", "training/evaluate.py", "torch.tensor(rows, dtype=torch.float64)",
            "torch.full((len(rows),), sum(rows) / len(rows), dtype=torch.float64)",
            (FIT + "test_evaluate_is_the_mean_over_rows_and_restores_the_mode",)),
    _python("evaluate: modules stay in eval mode", "training/evaluate.py", "module.training = training", "pass",
            (FIT + "test_evaluate_is_the_mean_over_rows_and_restores_the_mode",)),
    _python("early stopping: the last parameters are kept", "training/fit.py", "stopping.restore()", "pass",
            (STOPPING + "test_patience_ends_the_run_and_restores_the_best_parameters",)),
    _python("early stopping: patience is one epoch longer", "training/fit.py",
            "self._waited >= self._patience", "self._waited > self._patience",
            (STOPPING + "test_patience_ends_the_run_and_restores_the_best_parameters",)),
    # The order of loaders.
    _python("loader order: no base seed is drawn", "training/batches.py",
            "torch.empty((), dtype=torch.int64).random_(generator=self._loader.generator)\n        else:",
            "pass\n        else:", LOADER),
    _python("loader order: validation draws nothing", "training/batches.py",
            "val.draw(for_validation, wanted=False)", "pass", (LOADERS + "test_every_loader_validates", *LOADER)),
    _python("loader order: a subset's rows are those of the whole", "training/batches.py",
            "order if self._rows is None else self._rows[order]", "order", LOADER),
    _python("loader order: a custom collate_fn is overlooked", "training/batches.py",
            "loader.collate_fn is not default_collate or ", "", (LOADERS + "test_loaders_that_are_not_followed",)),
    _python("loader order: negative indices are not resolved", "training/batches.py",
            "torch.where(rows < 0, rows + size, rows) if low < 0 else rows", "rows", LOADER),
    # The command line.
    _python("cli: statistics are those of all rows", "cli/standardize.py", "values[~held_out]", "values",
            (CLI + "test_statistics_come_from_the_training_rows_alone",)),
    _python("cli: the intercept is for scaled features", "cli/train.py", " - weight @ of_x.mean", "", UNITS),
    _python("cli: coefficients are for scaled features", "cli/train.py", " / of_x.std", "", UNITS),
    _python("cli: a coefficient that underflows is accepted", "cli/train.py",
            "(weight == 0) & (scaled_weight != 0)", "weight.isnan()", (CLI + "test_bad_input_is_one_line",)),
    _python("cli: validation rows are trained on", "cli/train.py", "t[training] for t in data", "t for t in data",
            (CLI + "test_statistics_come_from_the_training_rows_alone",)),
    _python("cli: the first rows are held out", "cli/dataset.py",
            "held_out[torch.randperm(rows, generator=generator)[:count]] = True", "held_out[:count] = True",
            (CLI + "test_bad_input_is_one_line",)),
    _python("cli: R² is 1 minus the sum of squares", "cli/fit_table.py", "1 - squared / variance", "1 - squared",
            (CLI + "test_the_default_job_fits_the_shipped_table",)),
    _python("cli: predict takes columns by position", "cli/predict.py", "read_table(args.table).select(model.features)",
            "read_table(args.table).values[:, : len(model.features)]",
            (CLI + "test_predict_finds_its_columns_by_name",)),
    _python("tables: 1_000 is accepted as a number", "tables.py", ' or "_" in cell', "", ("tests/test_tables.py::test_bad_files",)),
    _python("tables: a byte order mark is part of a name", "tables.py", '"utf-8-sig"', '"utf-8"',
            ("tests/test_tables.py::test_text_tables_read_the_same",)),
)  # fmt: skip
