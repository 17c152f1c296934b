# SPDX-License-Identifier: BSD-3-Clause
"""The five tutorial programs, each with plain PyTorch and with linreg_ext side by side.

``python -m linreg_ext.examples`` runs them and holds every figure against what the tutorials print.
"""
