# SPDX-License-Identifier: BSD-3-Clause
"""Faults in least squares: the passes on the CPU and in the CUDA kernels, and the linear algebra that follows."""

from .mutant import Mutant

TESTS = "tests/test_least_squares.py::"
SHAPES = (TESTS + "test_every_shape_and_dtype",)
FEW = (f"{TESTS}test_every_shape_and_dtype[100-3-2-dtype0]",)
STATISTICS = (TESTS + "test_statistics",)
RIDGE = (TESTS + "test_ridge", TESTS + "test_a_ridge_path_is_its_solutions")
RANK = (TESTS + "test_rank_deficient_problems_get_the_smallest_coefficients",)
PIECES = (TESTS + "test_any_pieces_in_any_order",)
GROUPS = (TESTS + "test_each_group_is_a_regression_of_its_own",)
OPERATORS = (TESTS + "test_the_operators_are_their_reference",)
CERTIFIED = (TESTS + "test_certified_values",)
SMALL = (TESTS + "test_moments_that_float32_cannot_hold",)
RACE = ("race",)


def _python(name: str, old: str, new: str, tests: tuple[str, ...], within: str = "") -> Mutant:
    return Mutant(f"least squares: {name}", "linreg_ext/least_squares.py", old, new, tests, within, build="python")


LEAST_SQUARES = (
    # The pass on the CPU.
    Mutant("moments: the means of two pieces are averaged", "csrc/cpu/moments.cpp", "share * (other_mean[i] - mean[i])",
           "0.5 * (other_mean[i] - mean[i])", (f"{TESTS}test_every_shape_and_dtype[20000-5-2-dtype1]", *OPERATORS)),
    Mutant("moments: what lies between two means is forgotten", "csrc/cpu/moments.cpp", "apart * (other_mean[j] - mean[j])", "0",
           (f"{TESTS}test_every_shape_and_dtype[20000-5-2-dtype1]", *OPERATORS)),
    Mutant("moments: a group keeps its first mean", "csrc/cpu/moments.cpp", "mean[a] += share * row[a];", "", GROUPS),
    Mutant("moments: rows sorted by group come in any order", "csrc/cpu/moments.cpp", "order.data() + k", "order.data()",
           (TESTS + "test_groups_beyond_the_cache_are_added_in_the_order_of_the_rows",)),
    Mutant("moments: groups without rows are mirrored alone", "csrc/cpu/moments.cpp", "many", "false",
           (TESTS + "test_more_groups_than_rows",), within="if (many) mirror_group(g)"),
    Mutant("moments: few rows that are read once are not shifted", "csrc/cpu/moment_rows.cpp", "few == rows", "false",
           (TESTS + "test_moments_of_few_and_many_columns",)),
    Mutant("descent: the mean residual has no slope", "csrc/cpu/moment_rows.cpp", "scale * (sum + level * to.mean[i])", "scale * sum",
           (TESTS + "test_descent_is_its_reference",)),
    Mutant("moments: rows are weighted twice", "csrc/cpu/moment_rows.cpp", "roots[i] = __builtin_sqrt(roots[i]);", "",
           (*STATISTICS, *OPERATORS)),
    Mutant("moments: the shift is taken for the mean", "csrc/cpu/moment_rows.cpp", "totals[i] / counts[1]", "0", SHAPES,
           within="mean[i] = double(shift[i]) + totals[i] / counts[1];"),
    # On the GPU.
    Mutant("cuda moments: rows are read before they are there", "csrc/cuda/moments.cu", "sync_block();", "", FEW,
           within="sync_block();  // the rows are there", says=RACE, build="races"),
    Mutant("cuda moments: weights are read before they are there", "csrc/cuda/moments.cu", "sync_block();", "", FEW,
           within="sync_block();  // the weights are there", says=RACE, build="races"),
    Mutant("cuda moments: slopes are read before they are there", "csrc/cuda/moments.cu", "sync_block();", "", FEW,
           within="sync_block();  // the slopes are there", says=RACE, build="races"),
    Mutant("cuda moments: counts are replaced while they are read", "csrc/cuda/moments.cu", "sync_block();", "", FEW,
           within="sync_block();  // all threads have the counts", says=RACE, build="races"),
    Mutant("cuda moments: a unit's mean is its shift", "csrc/cuda/moments.cu", "totals[i] / its - mean_i", "-mean_i", OPERATORS,
           build="races", within="shift[i] + totals[i] / its - mean_i"),
    # The linear algebra.
    _python("the bias takes no degree of freedom", "solved.rank - int(self.bias)", "solved.rank", STATISTICS),
    _python("solutions are not refined", "weight -= correction", "pass", CERTIFIED),
    _python("a solution that does not converge is kept", "if not left <= _LEFT:\n        return None", "pass", SMALL),
    _python("the penalty is on scaled coefficients", "l2 / scale.square()", "l2", RIDGE),
    _python("a path's penalties are not squares", "l2 * values.square()", "l2 * values", RIDGE),
    _python("dependent columns have standard errors", "(solved.rank == d) & (freedom > 0)", "(freedom > 0)", RANK),
    _python("the smallest solution is that of scaled columns", "scale.unsqueeze(-1) * basis", "basis", RANK),
    _python("pieces of a factor keep their own centre", "block[:, :1] * (center - self._center).to(block.device)", "0", PIECES),
    Mutant("least squares: a loss ignores the mean residual", "linreg_ext/reference.py", "counts[:, 1:] + level.square()",
           "counts[:, 1:]", (TESTS + "test_loss_of",), build="python"),
    Mutant("least squares: groups by a column begin with their block", "linreg_ext/cli/stream.py", "begin += table.rows", "pass",
           ("tests/test_cli_by.py::test_each_group_is_fitted_as_if_alone",), build="python"),
    _python("the first groups have the last ones' solutions", "[groups] = values", "[: len(values)] = values",
            (TESTS + "test_many_groups_are_solved_like_few",)),
    _python("what lies between the ranks' means is forgotten", "self._moments += between", "pass",
            ("tests/test_process_group.py::test_processes",)),
)  # fmt: skip
