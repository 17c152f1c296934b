# SPDX-License-Identifier: BSD-3-Clause
"""How the variants are called that more than one file speaks of."""

NAME = "linreg_ext"  # all of ours start with it
BWREAD = "read sum"
PRODUCTS = "two matrix products"
RUN_EPOCHS = 200  # of a run on a GPU that is timed beside a graph of as many steps
RUN_BATCHES = 256  # of a run in mini-batches
