# SPDX-License-Identifier: BSD-3-Clause
"""Faults in the CUDA kernels, which tests/simt runs on the CPU."""

from .mutant import Mutant

SHAPES = ("tests/test_parity.py::test_shapes",)
PARTS = ("tests/test_run.py::test_a_run_in_chunks_has_the_same_bits",)
FINITE = ("tests/test_run.py::test_a_run_stops_with_the_last_finite_parameters",)
MANY = (
    "tests/test_run.py::test_towards_many_targets_too",
    "tests/test_run.py::test_weights_are_gathered_with_their_rows",
)
EMPTY = ("tests/test_parity.py::test_a_step_without_rows_does_what_pytorchs_does",)
STEPS = ("tests/test_run.py::test_every_step_is_a_single_step",)
RACE = ("race",)
ORDER = ("race", "allowed")  # a race, or memory read before the arrival that allows it
ADDRESS = ("AddressSanitizer",)

CUDA = (
    # Synchronisation.
    Mutant("cuda rows: a barrier between warps is missing", "csrc/cuda/rows.cuh", "sync_block();", "", SHAPES,
           within="sync_block();  // every warp's part is there", says=RACE, build="races"),
    Mutant("cuda reduction: the fence before arrival is missing", "csrc/cuda/reduce.cuh", "fence();", "", SHAPES,
           within="fence();  // of what the block has stored", says=ORDER, build="races"),
    Mutant("cuda run: a barrier between warps is missing", "csrc/cuda/run.cuh", "sync_block();", "", PARTS,
           within="sync_block();  // every warp's sums are there, and", says=RACE, build="races"),
    Mutant("cuda run: a barrier after the update is missing", "csrc/cuda/run.cuh", "sync_block();", "", PARTS,
           within="sync_block();  // every parameter is there, and", says=RACE, build="races"),
    Mutant("cuda rows: the sums of two rows share a buffer", "csrc/cuda/rows.cuh", "slots * parity", "0", SHAPES,
           says=RACE, build="races"),
    # Sums.
    Mutant("cuda rows: a row beyond the last is added", "csrc/cuda/rows.cuh", "i < p_.n && t < p_.k", "t < p_.k", SHAPES,
           build="races"),
    Mutant("cuda rows: a worker's sums overwrite the others'", "csrc/cuda/rows.cuh", "*at + sum", "sum", SHAPES, build="races"),
    Mutant("cuda reduction: the last block of a team is skipped", "csrc/cuda/reduce.cuh", "row < rows", "row + 1 < rows",
           SHAPES, build="races"),
    Mutant("cuda streamed: a block's last rows overwrite the others", "csrc/cuda/streamed.cuh",
           "if (thread_index() % kWarp == 0) line_[i] += sum;", "if (thread_index() % kWarp == 0) line_[i] = sum;",
           SHAPES, build="races"),
    Mutant("cuda products: the last rows overwrite the others", "csrc/cuda/products.cu", "wanted.add ? wanted.sums[i] : 0", "0",
           ("tests/test_parity.py::test_several_blocks_of_rows_by_products",), build="races"),
    Mutant("cuda residual: the target's gradient has the wrong sign", "csrc/cuda/residual.cuh",
           "-(scale * of.dloss)", "scale * of.dloss", SHAPES,
           build="races"),
    Mutant("cuda finish: the gradient of no rows is scaled by inf", "csrc/cuda/finish.cuh", "p.n == 0 ? 0 : scale", "scale",
           EMPTY, build="races"),
    # Runs.
    Mutant("cuda finish: a step is taken although its loss is not finite", "csrc/cuda/finish.cuh",
           "if (f.skip.nonfinite && !is_finite(loss)) return;", "", FINITE, build="races"),
    Mutant("cuda run: continues after a loss that is not finite", "csrc/cuda/run.cuh",
           "return call_.stop_nonfinite && !is_finite(loss);", "return false;", FINITE, build="races"),
    Mutant("cuda run: every step is a first step", "csrc/cuda/run.cuh", "first_weight_ = first_bias_ = false;", "",
           STEPS, build="races"),
    Mutant("cuda run: parameters are not rounded between steps", "csrc/cuda/run.cuh",
           "number.p = T(round_to(next.p, p_.w.dtype));", "number.p = T(next.p);", STEPS, build="races"),
    Mutant("cuda run: the order is ignored", "csrc/cuda/run.cuh",
           "batch.order ? batch.order[first + at] : first + at", "first + at", STEPS, build="races"),
    Mutant("cuda run: every epoch uses the first epoch's order", "csrc/cuda/run.cuh",
           "batch.order + run.order_stride", "batch.order", STEPS, build="races"),
    Mutant("cuda gather: rows are gathered in sequence", "csrc/cuda/sgd_run.cu", "row * of.row_stride", "i * of.row_stride", MANY,
           build="races"),
    # Bounds.
    Mutant("cuda rows: columns beyond a row are read", "csrc/cuda/rows.cuh", "valid && j < columns_", "valid", SHAPES,
           says=ADDRESS, build="addresses"),
    Mutant("cuda run: columns beyond a row are read", "csrc/cuda/run.cuh", "rows[u] >= 0 && column(c) < p_.d", "true",
           PARTS, says=ADDRESS, build="addresses"),
    Mutant("cuda products: targets beyond the last are read", "csrc/cuda/products.cu", "t < p.k", "true", SHAPES,
           within="i < p.n && t < p.k; i += block_count()", says=ADDRESS, build="addresses"),
)  # fmt: skip
