# SPDX-License-Identifier: BSD-3-Clause
"""Faults in the CUDA kernels, which tests/simt runs on the CPU."""

from .mutant import Mutant

SHAPES = ("tests/test_parity.py::test_shapes",)
PARTS = ("tests/test_run.py::test_a_run_in_chunks_has_the_same_bits",)
FINITE = ("tests/test_run.py::test_a_run_stops_with_the_last_finite_parameters",)
TOGETHER = ("tests/test_run_many.py::test_weights", "tests/test_run_many.py::test_orders")
MANY = (
    "tests/test_run.py::test_towards_many_targets_too",
    "tests/test_run.py::test_weights_are_gathered_with_their_rows",
)
EMPTY = ("tests/test_parity.py::test_a_step_without_rows_does_what_pytorchs_does",)
STEPS = ("tests/test_run.py::test_every_step_is_a_single_step",)
RACE = ("race",)
ORDER = ("race", "allowed")  # a race, or a read before the arrival that allows it
ADDRESS = ("AddressSanitizer",)

CUDA = (
    # Synchronisation.
    Mutant("cuda tiles: a tile is read before its copies are waited for", "csrc/cuda/tiles.cuh",
           "copy_wait<kStages - 2>();", "", SHAPES, build="races"),
    Mutant("cuda tiles: a tile is read before the other threads' copies", "csrc/cuda/tiles.cuh", "sync_block();", "", SHAPES,
           within="sync_block();              // so are all others'", says=RACE, build="races"),
    Mutant("cuda tiles: a barrier after the dot products is missing", "csrc/cuda/tiles.cuh", "sync_block();", "", SHAPES,
           within="sync_block();  // every part of every dot product is stored", says=RACE, build="races"),
    Mutant("cuda tiles: a barrier after the residuals is missing", "csrc/cuda/tiles.cuh", "sync_block();", "", SHAPES,
           within="sync_block();  // every dloss is stored", says=RACE, build="races"),
    Mutant("cuda reduction: the fence before arrival is missing", "csrc/cuda/finish.cuh", "fence();", "", SHAPES,
           within="fence();  // orders the block's stores", says=ORDER, build="races"),
    Mutant("cuda run: a barrier between warps is missing", "csrc/cuda/sgd_run.cu", "sync_block();", "", PARTS,
           within="sync_block();  // every warp's sums are stored, and", says=RACE, build="races"),
    Mutant("cuda run: a barrier after the update is missing", "csrc/cuda/sgd_run.cu", "sync_block();", "", PARTS,
           within="sync_block();  // every parameter is stored, and", says=RACE, build="races"),
    # Sums.
    Mutant("cuda tiles: a row beyond the last is added", "csrc/cuda/tiles.cuh", "i < rows", "i <= rows", SHAPES,
           within="for (; i < rows; i += l_.groups)", build="races"),
    Mutant("cuda tiles: other groups' sums are lost", "csrc/cuda/tiles.cuh", "slots[at] += slots[at + apart * count];", "",
           SHAPES, build="races"),
    Mutant("cuda tiles: a chain of sums is added again", "csrc/cuda/tiles.cuh", "sum = 0;", "", SHAPES,
           within="total += double(sum);\n    sum = 0;", build="races"),
    Mutant("cuda reduction: the last block of a team is skipped", "csrc/cuda/finish.cuh", "row < rows", "row + 1 < rows",
           SHAPES, build="races"),
    Mutant("cuda products: the last rows overwrite the others", "csrc/cuda/products.cu", "wanted.add ? wanted.sums[i] : 0", "0",
           ("tests/test_parity.py::test_several_blocks_of_rows_by_products",), build="races"),
    Mutant("cuda residual: the target's gradient has the wrong sign", "csrc/cuda/pass.cuh",
           "-(scale * of.dloss)", "scale * of.dloss", SHAPES,
           build="races"),
    Mutant("cuda finish: the gradient of no rows is scaled by inf", "csrc/cuda/finish.cuh", "p.n == 0 ? 0 : scale", "scale",
           EMPTY, build="races"),
    # Runs.
    Mutant("cuda finish: a step is taken although its loss is not finite", "csrc/cuda/finish.cuh",
           "if (f.skip.nonfinite && !is_finite(loss)) return;", "", FINITE, build="races"),
    Mutant("cuda run: continues after a loss that is not finite", "csrc/cuda/sgd_run.cu",
           "return call_.stop_nonfinite && !is_finite(loss);", "return false;", FINITE, build="races"),
    Mutant("cuda run: every step is a first step", "csrc/cuda/sgd_run.cu", "first_weight_ = first_bias_ = false;", "",
           STEPS, build="races"),
    Mutant("cuda run: parameters are not rounded between steps", "csrc/cuda/sgd_run.cu",
           "number.p = T(round_to(next.p, dtype_));", "number.p = T(next.p);", STEPS, build="races"),
    Mutant("cuda run: the order is ignored", "csrc/cuda/sgd_run.cu",
           "batch.order ? batch.order[place] : place", "place", STEPS, build="races"),
    Mutant("cuda run: every epoch uses the first epoch's order", "csrc/cuda/sgd_run.cu",
           "batch.order + run.order_stride", "batch.order", STEPS, build="races"),
    Mutant("cuda run: every block reads the first problem's rows", "csrc/cuda/sgd_run.cu", "index_ * apart", "0", TOGETHER,
           build="races"),
    Mutant("cuda run: an epoch's batches count alike", "csrc/cuda/sgd_run.cu",
           "p_.v.data ? weight_sum : double(rows_of_batch_)", "1.0", TOGETHER, build="races"),
    Mutant("cuda run: an unreached loss has 16 bits", "csrc/cuda/number.cuh",
           "store_number<double>(to, dtype, index, NAN);", "store_number<float>(to, dtype, index, NAN);", FINITE,
           build="races"),
    Mutant("cuda tiles: rows are read in sequence", "csrc/cuda/tiles.cuh", "of.order[first + i]", "first + i", STEPS,
           build="races"),
    Mutant("cuda products: every gathered row is the first", "csrc/torch/products.cpp", "order.clamp(0, count - 1)",
           "order.clamp(0, 0)", MANY, build="races"),
    Mutant("cuda pass: X's gradient of a weighted mean is scaled like a sum's", "csrc/cuda/pass.cuh",
           "pass.weighted_scale ? *pass.weighted_scale : pass.scale", "1.0",
           ("tests/test_parity.py::test_losses_reductions_weights",), build="races"),
    Mutant("cuda pass: X's gradient without targets is nan", "csrc/cuda/pass.cu", "problem.k == 0 ? 0 : reduction_scale(problem, 0)",
           "reduction_scale(problem, 0)",
           ("tests/test_parity.py::test_empty_and_odd",), build="races"),
    # Bounds.
    Mutant("cuda tiles: words reach beyond the matrix", "csrc/cuda/tiles.cuh", "left < rounded", "false",
           SHAPES, says=ADDRESS, build="addresses"),
    Mutant("cuda run: columns beyond a row are read", "csrc/cuda/sgd_run.cu", "rows[u] >= 0 && column(c) < p_.d", "true",
           PARTS, says=ADDRESS, build="addresses"),
    Mutant("cuda products: targets beyond the last are read", "csrc/cuda/products.cu", "t < p.k", "true", SHAPES,
           within="worker; i < p.n && t < p.k;", says=ADDRESS, build="addresses"),
)  # fmt: skip
