# SPDX-License-Identifier: BSD-3-Clause
"""How the variants are called that more than one file speaks of."""

NAME = "linreg_ext"  # all of ours start with it
BWREAD = "read sum"
PRODUCTS = "two matrix products"
