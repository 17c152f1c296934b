# SPDX-License-Identifier: BSD-3-Clause
"""Names and sizes that several files share."""

NAME = "linreg_ext"  # the prefix of our variants
BWREAD = "read sum"
PRODUCTS = "two matrix products"
HALF_PRODUCT = "half a float64 product"
RUN_EPOCHS = 200  # of a GPU run, timed beside a graph of as many steps
RUN_BATCHES = 256  # of a mini-batch run
BARE_REDUCE = "pass and bare all-reduce"
READING = "pyarrow iter_batches"
ONE_BY_ONE = "one by one"  # a loop of sgd_run_ over problems
