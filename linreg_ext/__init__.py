# SPDX-License-Identifier: BSD-3-Clause
"""Fused linear regression for PyTorch: loss, gradient and SGD update in one pass over the data."""

from ._extension import build_info
from ._version import __version__
from .functional import (
    linear_huber_loss,
    linear_l1_loss,
    linear_mse_loss,
    linear_smooth_l1_loss,
    sgd_run_,
    sgd_step_,
)
from .modules import LinearHuberLoss, LinearL1Loss, LinearMSELoss, LinearSmoothL1Loss
from .training import History, TrainStep, evaluate, fit, make_train_step

__all__ = [
    "History",
    "LinearHuberLoss",
    "LinearL1Loss",
    "LinearMSELoss",
    "LinearSmoothL1Loss",
    "TrainStep",
    "__version__",
    "build_info",
    "evaluate",
    "fit",
    "linear_huber_loss",
    "linear_l1_loss",
    "linear_mse_loss",
    "linear_smooth_l1_loss",
    "make_train_step",
    "sgd_run_",
    "sgd_step_",
]
