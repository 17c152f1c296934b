# SPDX-License-Identifier: BSD-3-Clause
"""Faults in the mathematics of csrc/math and the CPU kernels of csrc/cpu."""

from .mutant import Mutant

VALUES = "tests/test_values.py::"
PARITY = "tests/test_parity.py::"
RUN = "tests/test_run.py::"
DETERMINISM = "tests/test_determinism.py::"

BY_HAND = (VALUES + "test_loss_and_gradients_by_hand",)
RULE = (VALUES + "test_sgd_rule_by_hand",)
WEIGHTS = (PARITY + "test_losses_reductions_weights",)
LAYOUTS = (PARITY + "test_layouts_give_the_bits_of_contiguous_operands",)
OFFSETS = (PARITY + "test_any_storage_offset_and_nothing_written_outside",)
GAPS = (PARITY + "test_rows_with_gaps_give_the_same_bits_where_only_sums_are_wanted",)
MANY_ROWS = (PARITY + "test_a_large_row_hides_few_others_from_a_sum",)
ROUNDED = (PARITY + "test_a_result_is_rounded_to_16_bits_once",)
STEPS = (RUN + "test_every_step_is_a_single_step[cpu-plain-float32]",)
STEPS_IN_16_BITS = (RUN + "test_every_step_is_a_single_step[cpu-plain-bfloat16]",)
NESTEROV = (RUN + "test_every_step_is_a_single_step[cpu-momentum, weight decay, nesterov-float32]",)
OPTION = ("tests/test_training.py::test_every_step_of_every_option[plain-float32]",)
STOPS = (RUN + "test_a_run_stops_with_the_last_finite_parameters",)
PIECES = ("tests/test_training.py::test_steps_of_many_parameters",)
MANY = "tests/test_run_many.py::"
LEAST_SQUARES = "tests/test_least_squares.py::"
FEW_COLUMNS = (LEAST_SQUARES + "test_moments_of_few_and_many_columns",)
SHARED_ROWS = (MANY + "test_shared_rows",)
TOGETHER = (MANY + "test_problems_that_share_a_reading",)
THREADS = (DETERMINISM + "test_same_bits_for_any_number_of_threads[cpu-(100003, 1, 1)-float64]",)


def shape(n: int, d: int, k: int) -> tuple[str, ...]:
    """The parity test of one shape."""
    return (f"{PARITY}test_shapes[cpu-({n}, {d}, {k})-float32]",)


KERNELS = (
    # Losses. (GCC 12 cannot compile a conditional expression with vector comparisons on both sides.)
    Mutant("loss: mse's derivative lacks the 2", "csrc/math/losses.h", "S(2)", "S(1)", BY_HAND),
    Mutant("loss: the derivative of an absolute error is 2", "csrc/math/losses.h", "S(1)", "S(2)", BY_HAND,
           within="const T one = filled(r, S(1))"),
    Mutant("loss: quantile weighs residuals above 0 like those below", "csrc/math/losses.h", "(one - bound)", "bound",
           BY_HAND, within="r < T{} ? -bound * r : (one - bound) * r"),
    Mutant("loss: huber's square part is too wide", "csrc/math/losses.h", "delta", "S(2) * delta", BY_HAND,
           within="z <= delta"),
    Mutant("loss: smooth_l1's derivative is not divided by beta", "csrc/math/losses.h", "delta", "S(1)", BY_HAND,
           within="one : r / delta"),
    Mutant("loss: smooth_l1 with beta 0 divides by 0", "csrc/math/losses.h", "delta == 0", "false",
           (VALUES + "test_derivatives_at_zero_and_at_nan_are_pytorchs",)),
    # Reductions.
    Mutant("reduction: a mean is a sum", "csrc/math/reduction.h", "total", "1.0", BY_HAND,
           within="? total : 1.0"),
    Mutant("reduction: a weighted mean divides by the number of elements", "csrc/math/reduction.h",
           "p.v.data ? weight_total : double(p.n) * double(p.k)", "double(p.n) * double(p.k)",
           (VALUES + "test_weighted_mean_divides_by_the_sum_of_weights",)),
    Mutant("reduction: the last weights of a row are skipped", "csrc/cpu/pass.cpp",
           "for (; i < count; ++i) lanes[i & 3] += values[i];", "",
           (VALUES + "test_weighted_mean_divides_by_the_sum_of_weights",)),
    Mutant("reduction: a small step's mean divides by the rows alone", "csrc/cpu/small_steps.cpp",
           "double(columns.n) * double(k)", "double(columns.n)", OPTION),
    # The rule.
    Mutant("rule: weight decay is applied before maximize", "csrc/math/sgd.h",
           "if (sgd.maximize) g = -g;\n  if (sgd.weight_decay != 0) g += T(sgd.weight_decay) * p;",
           "if (sgd.weight_decay != 0) g += T(sgd.weight_decay) * p; if (sgd.maximize) g = -g;", RULE),
    Mutant("rule: the first step is dampened", "csrc/math/sgd.h",
           "first_step ? g : T(sgd.momentum) * buffer + (T(1) - T(sgd.dampening)) * g",
           "T(sgd.momentum) * buffer + (T(1) - T(sgd.dampening)) * g", RULE),
    Mutant("rule: nesterov forgets the momentum", "csrc/math/sgd.h", "g + T(sgd.momentum) * buffer", "g + buffer",
           RULE),
    # 16-bit numbers.
    Mutant("convert: bfloat16 is truncated", "csrc/math/convert.h", "bits + 0x7fff + (bits >> 16 & 1)", "bits", ROUNDED),
    Mutant("convert: float16 ties round up", "csrc/math/convert.h", "magnitude >> 13 & 1", "1", ROUNDED),
    Mutant("convert: a double is rounded twice", "csrc/math/convert.h", "(away ? bits - 1 : bits) | 1", "bits",
           ROUNDED),
    # Rows.
    Mutant("rows: the last row is skipped", "csrc/cpu/rows.cpp",
           "smaller((chunk + 1) * plan.chunk_rows, problems->n)", "smaller((chunk + 1) * plan.chunk_rows, problems->n - 1)",
           shape(1, 5, 1)),
    Mutant("rows: the width is used as the stride", "csrc/cpu/rows.cpp", "p_.x.row_stride", "p_.d", LAYOUTS,
           within="nullptr, nullptr, p_.x.row_stride, 0}"),
    Mutant("rows: problems that share rows share a divisor", "csrc/cpu/rows.cpp", "scales[i]", "scales[0]", TOGETHER),
    Mutant("rows: problems that share rows share targets", "csrc/cpu/rows.cpp", "problems[i]", "problems[0]", TOGETHER),
    Mutant("rows: the last feature is not packed", "csrc/cpu/rows.cpp", "p_.d - j", "p_.d - j - 1", shape(1, 17, 3)),
    Mutant("rows: the rows of an incomplete tile are skipped", "csrc/cpu/rows.cpp",
           "for (int64_t r = whole; r < rows; ++r) tile.template operator()<1, 1>(r, 1);", "", shape(1, 17, 3)),
    Mutant("rows: float sums are not flushed", "csrc/cpu/rows.cpp", "unflushed_ + rows > kBlockRows", "false", MANY_ROWS),
    Mutant("plan: without features, predictions are those before", "csrc/cpu/plan.h", "p.d > 0", "true", shape(300, 0, 1),
           within="p.d > 0 && p.d * size"),
    Mutant("rows: the last narrow rows are not predicted", "csrc/cpu/rows.cpp", "r < rows", "r < whole", shape(67, 17, 1),
           within="r = whole; r < rows; ++r)\n        predict<V, 1, 1, 1>"),
    Mutant("tiles: narrow rows repeat their first vector", "csrc/cpu/tiles.h", "c * lanes", "0", shape(67, 17, 1),
           within="load_vec<V>(row + c * lanes)"),
    Mutant("tiles: the last narrow rows have no gradient", "csrc/cpu/tiles.h", "while (r < end) row(0);", "r = end;",
           shape(67, 17, 1)),
    Mutant("tiles: problems that share rows share weights", "csrc/cpu/tiles.h", "w[t]", "w[0]", TOGETHER,
           within="ws[t][c] = load_vec<V>(w[t]"),
    Mutant("tiles: problems that share rows share slopes", "csrc/cpu/tiles.h", "g[t][r]", "g[0][r]", TOGETHER,
           within="return g[t][r];"),
    Mutant("rows: the input's gradient uses the first target's slope", "csrc/cpu/rows.cpp",
           "predictions_[i * p_.k + t]", "predictions_[i * p_.k]", WEIGHTS),
    Mutant("rows: the bias is taken to be contiguous", "csrc/cpu/rows.cpp", "p_.b.col_stride", "1", LAYOUTS),
    Mutant("tiles: only the last chain of additions counts", "csrc/cpu/tiles.h", "totals[i] += double(sums[i])",
           "totals[i] = double(sums[i])", shape(3, 70001, 1)),
    Mutant("tiles: a row of an incomplete set is skipped", "csrc/cpu/tiles.h", "for (; r < count; ++r) row(0);", "",
           shape(1, 17, 3)),
    Mutant("columns: the last row is not loaded", "csrc/cpu/columns.h", "end - i", "end - i - 1", shape(1, 5, 1),
           within="(i, end - i)"),
    Mutant("columns: rows with gaps are read as contiguous", "csrc/cpu/rows.cpp", "p_.x.row_stride == p_.d", "true",
           LAYOUTS),
    Mutant("columns: the bias is missing", "csrc/cpu/columns.h", "load(piece.bias)", "V{}", shape(31, 5, 1)),
    Mutant("columns: weights are not scaled", "csrc/cpu/residuals.h", "scaled", "weight", shape(31, 5, 1),
           within="dloss<kLoss>(r, delta) * scaled"),
    Mutant("columns: missing rows meet an infinite weight", "csrc/cpu/columns.h",
           "load_first<V>(first, left)", "load_vec<V>(first)",
           ("tests/test_parity.py::test_special_values_where_only_sums_are_wanted",)),
    # Residuals.
    Mutant("residuals: a lane beyond the last row is added", "csrc/cpu/residuals.h", "line - i", "line - i + 1",
           shape(1, 17, 3)),
    Mutant("residuals: the bias is missing", "csrc/cpu/residuals.h", "load(bias + i)", "V{}", shape(1, 17, 3),
           within=": (load(p + begin + i) + load(bias + i))"),
    Mutant("residuals: the slope is not scaled", "csrc/cpu/residuals.h", "power", "NumberOf<V>(1)", shape(1, 17, 3),
           within="dloss<kLoss>(r, delta) * power}"),
    Mutant("residuals: the bias's gradient ignores weights", "csrc/cpu/residuals.h", "terms.slope",
           "power * dloss<kLoss>(r, delta)", WEIGHTS, within="(slopes + i) + terms.slope)"),
    Mutant("residuals: the target's gradient has the wrong sign", "csrc/cpu/residuals.h", "-piece.predictions[i]", "piece.predictions[i]", WEIGHTS),
    Mutant("residuals: rows of targets with gaps are read as contiguous", "csrc/cpu/residuals.h",
           "view.row_stride == targets", "true", GAPS),
    Mutant("residuals: rows of a piece of targets are written without gaps", "csrc/cpu/residuals.h",
           "piece.targets == p.k", "true", WEIGHTS),
    Mutant("residuals: every piece of targets uses the first piece's bias", "csrc/cpu/residuals.h", "all.bias + t",
           "all.bias", shape(9, 6, 700)),
    # The pass.
    Mutant("pass: chunks depend on the threads", "csrc/cpu/plan.h", "ceil_div(p.n, wanted)",
           "ceil_div(p.n, std::min<int64_t>(wanted, p.threads))", THREADS),
    Mutant("pass: sums overwrite instead of adding", "csrc/math/sum.h", "to[i] += from[i]", "to[i] = from[i]",
           (PARITY + "test_every_element_of_many_rows",)),
    Mutant("pass: the compensation stays 0", "csrc/math/sum.h",
           "compensation += (sum - (total - added)) + (value - added);", "",
           ("tests/test_cancellation.py::test_a_weighted_mean_over_many_equal_rows",)),
    Mutant("pass: a mean is scaled by a power of two alone", "csrc/cpu/pass.cpp", "total[j] /= scales[i].rest;", "", BY_HAND),
    Mutant("pass: threads do not get the caller's float mode", "csrc/cpu/threads.h", "set_float_mode(mode);", "",
           (DETERMINISM + "test_same_bits_for_any_number_of_threads_when_subnormals_are_flushed",)),
    # Matrix products.
    Mutant("products: only the last row block is summed", "csrc/cpu/products.cpp", "row > first", "false", shape(5003, 9, 34)),
    Mutant("products: rows with gaps are not packed", "csrc/cpu/products.cpp", "view.row_stride == columns",
           "view.row_stride >= columns", LAYOUTS),
    Mutant("products: unaligned rows are not packed", "csrc/cpu/products.cpp",
           "reinterpret_cast<uintptr_t>(view.data) % kAlign == 0", "true", OFFSETS),
    Mutant("products: blocks do not begin at a cache line", "csrc/cpu/products.cpp",
           "fitting / kMinBlockRows * kMinBlockRows", "fitting", GAPS),
    Mutant("products: the memory for packing is sized for the first batch", "csrc/cpu/products.cpp",
           "x = take(block_rows * p.d * size);", "x = take(copy_x ? block_rows * p.d * size : 0);",
           (RUN + "test_batches_that_begin_anywhere_in_a_cache_line",)),
    Mutant("products: a mean is scaled by a power of two alone", "csrc/cpu/product_rows.cpp", "sums[i] / divisor", "sums[i]",
           shape(300, 65, 257)),
    Mutant("products: a sum over chunks skips the last", "csrc/cpu/product_rows.cpp", "part < parts",
           "part + (parts > 1) < parts", shape(300, 65, 257)),
    # Steps.
    Mutant("step: taken although its loss is not finite", "csrc/cpu/sgd_step.cpp",
           "skip_nonfinite && !std::isfinite(load_one<double>(loss, loss_dtype(problem)))", "false", STOPS),
    Mutant("step: every piece of columns reads the first piece", "csrc/cpu/sgd_step.cpp",
           "j * int64_t(size_of(dtype))", "0", PIECES),
    Mutant("step: a thread skips its last row", "csrc/cpu/sgd_step.cpp", "rows * (thread + 1) / count",
           "rows * (thread + 1) / count - (count > 1)", PIECES),
    Mutant("small step: lanes without a row are added", "csrc/cpu/small_steps.cpp", "i + lanes > batch.n", "false",
           ("tests/test_train_step.py::test_losses_that_are_fused",)),
    Mutant("small step: full batches keep the first epoch's order", "csrc/cpu/small_steps.cpp",
           "run.epoch_steps == 1 && run.order_stride == 0", "run.epoch_steps == 1",
           (RUN + "test_rows_may_come_several_times_or_not_at_all",)),
    Mutant("small step: parameters are not rounded between steps", "csrc/cpu/small_steps.cpp",
           "p[i] = rounded<Number>(next.p, dtype_);", "p[i] = Number(next.p);", STEPS_IN_16_BITS),
    Mutant("small step: every step is a first step", "csrc/cpu/small_steps.cpp", "first_step_ = false;", "", NESTEROV),
    Mutant("small step: a loss that is not finite does not end the run", "csrc/cpu/small_steps.cpp",
           "if (stop_nonfinite && !__builtin_isfinite(value)) break;", "", STOPS),
    # Runs.
    Mutant("run: every step uses the first learning rate", "csrc/cpu/small_steps.cpp", "run.lr[step - run.begin]",
           "run.lr[0]", (RUN + "test_a_learning_rate_for_every_step",)),
    Mutant("run: a short last batch lacks its last row", "csrc/cpu/sgd_run.cpp",
           "batch_rows(run, step % run.epoch_steps)",
           "batch_rows(run, step % run.epoch_steps) - (run.rows % run.batch_size != 0)", STEPS),
    Mutant("run: weights are not gathered with their rows", "csrc/cpu/sgd_run.cpp",
           "batches[i].v = batch_of(problem.v, problem.k);", "",
           (RUN + "test_weights_are_gathered_with_their_rows",)),
    Mutant("run: continues after a loss that is not finite", "csrc/cpu/sgd_run.cpp",
           "if (stop_nonfinite && !std::isfinite(load_one<double>(loss, dtype))) return step - run.begin;", "", STOPS),
    Mutant("run: every step is a first step", "csrc/cpu/sgd_run.cpp",
           "runs[i].weight.first_step = runs[i].bias.first_step = false;", "", NESTEROV),
    Mutant("run: momentum restarts after validation", "csrc/cpu/sgd_run.cpp",
           "one.weight.first_step = one.bias.first_step = false;", "", ("tests/test_batches.py::test_every_loader[cpu-in order-True-torch.float32]",)),
    Mutant("run: every epoch uses the first epoch's learning rates", "csrc/cpu/sgd_run.cpp", "run.lr + (part.begin - run.begin)",
           "run.lr", (RUN + "test_validation_after_every_epoch",)),
    # Many runs.
    Mutant("many: every problem has the first learning rate", "csrc/linreg.h", "many.lr[p]", "many.lr[0]", SHARED_ROWS),
    Mutant("many: all problems share a momentum buffer", "csrc/math/single_run.h", "p * many.w_buffer", "0",
           (MANY + "test_every_problem_is_a_run_alone[momentum, weight decay, nesterov-float32]",)),
    Mutant("many: an epoch's batches count alike", "csrc/cpu/sgd_run_many.cpp", "double(rows)", "1.0",
           (MANY + "test_every_problem_is_a_run_alone[plain-float32]",)),
    Mutant("many: an epoch is weighted by another problem's weights", "csrc/cpu/sgd_run_many.cpp",
           "weight_of(runs[i], run.begin + step)", "weight_of(runs[0], run.begin + step)", TOGETHER),
    Mutant("many: problems of two sizes are taken together", "csrc/cpu/sgd_run_many.cpp", "a.problem.n == b.problem.n", "true",
           (MANY + "test_groups_of_few_sizes",)),
    Mutant("many: problems with another momentum are taken together", "csrc/cpu/sgd_run_many.cpp",
           "a.sgd.momentum == b.sgd.momentum", "true", SHARED_ROWS),
    Mutant("many: problems with another weight decay are taken together", "csrc/cpu/sgd_run_many.cpp",
           "a.sgd.weight_decay == b.sgd.weight_decay", "true", SHARED_ROWS),
    Mutant("small runs: every lane has the first learning rate", "csrc/cpu/small_runs.cpp", "sgd.lr = lr[l];", "sgd.lr = lr[0];",
           (MANY + "test_learning_rates_in_lanes",)),
    Mutant("small runs: sums are added in another order", "csrc/cpu/small_runs.cpp", "sums[place + half]",
           "sums[2 * half - 1 - place]", (MANY + "test_every_loss_in_lanes",)),
    Mutant("small runs: an order is not followed", "csrc/cpu/small_runs.cpp", "batch.order[batch.first + i]", "batch.first + i",
           (MANY + "test_orders",)),
    # Least squares.
    Mutant("moments: rows beyond the last one count", "csrc/cpu/moment_rows.cpp", "p.v.data || rows < padded", "p.v.data != nullptr",
           FEW_COLUMNS),
    Mutant("moments: a weight counts twice", "csrc/cpu/moment_rows.cpp", "store_vec<Wide>(columns + m * kMomentBlock + i, one);",
           "store_vec<Wide>(columns + m * kMomentBlock + i, load_vec<Wide>(v + i));", FEW_COLUMNS),
    Mutant("moments: rows beyond the last one count as ones", "csrc/cpu/moment_rows.cpp",
           "if (masked) mask(columns + m * kMomentBlock);", ";", FEW_COLUMNS),
    Mutant("moments: a column alone keeps its mean", "csrc/cpu/moment_rows.cpp",
           "store_vec<Wide>(column + i, load_vec<Wide>(from + i) - shift)", "store_vec<Wide>(column + i, load_vec<Wide>(from + i))",
           FEW_COLUMNS),
    Mutant("moments: the mean lacks the shift", "csrc/cpu/moment_rows.cpp", "shift[a] + apart", "apart",
           FEW_COLUMNS),
    Mutant("moments: the last columns lack their products", "csrc/cpu/moment_rows.cpp", "a + 2 == count && b < a", "b < 0",
           FEW_COLUMNS),
    Mutant("moments: a negative weight is taken", "csrc/cpu/moment_rows.cpp", "valid &= !(v[i] < 0)", "valid &= true",
           (LEAST_SQUARES + "test_errors_change_nothing",)),
    Mutant("moments: a wide block is about 0", "csrc/cpu/moment_rows.cpp", "shift[j] = C(mean[j]);", "shift[j] = C(0);",
           (LEAST_SQUARES + "test_a_constant_column_has_no_variance",)),
    Mutant("moments: parts are added as if their means were the same", "csrc/cpu/moments.cpp", "factor * (other_mean[i] - mean[i])",
           "0", (LEAST_SQUARES + "test_the_operators_are_their_reference",)),
    Mutant("moments: a row moves its group's mean too late", "csrc/cpu/moments.cpp", "before * share * row[a]", "v * row[a]",
           FEW_COLUMNS),
    Mutant("moments: a descent forgets the dampening", "csrc/cpu/moment_rows.cpp", "(1 - sgd.dampening) * grad", "grad",
           (LEAST_SQUARES + "test_descent_is_its_reference",)),
)  # fmt: skip
