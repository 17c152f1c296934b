# SPDX-License-Identifier: BSD-3-Clause
"""Fused linear regression for PyTorch: loss, gradient and SGD update in one pass over the data."""

from typing import TYPE_CHECKING, Any

from ._extension import build_info
from ._version import __version__
from .functional import FUNCTIONS, sgd_run_, sgd_run_many_, sgd_step_
from .least_squares import LeastSquares, LeastSquaresSolution, lstsq, lstsq_batches
from .modules import MODULES
from .training import History, StopTraining, TrainStep, evaluate, fit, make_train_step

if TYPE_CHECKING:
    from .estimator import LinearRegressor as LinearRegressor

linear_mse_loss, LinearMSELoss = FUNCTIONS["mse"], MODULES["mse"]
linear_l1_loss, LinearL1Loss = FUNCTIONS["l1"], MODULES["l1"]
linear_huber_loss, LinearHuberLoss = FUNCTIONS["huber"], MODULES["huber"]
linear_smooth_l1_loss, LinearSmoothL1Loss = FUNCTIONS["smooth_l1"], MODULES["smooth_l1"]
linear_quantile_loss, LinearQuantileLoss = FUNCTIONS["quantile"], MODULES["quantile"]

__all__ = [
    "History",
    "LeastSquares",
    "LeastSquaresSolution",
    "LinearHuberLoss",
    "LinearL1Loss",
    "LinearMSELoss",
    "LinearQuantileLoss",
    "LinearSmoothL1Loss",
    "StopTraining",
    "TrainStep",
    "__version__",
    "build_info",
    "evaluate",
    "fit",
    "linear_huber_loss",
    "linear_l1_loss",
    "linear_mse_loss",
    "linear_quantile_loss",
    "linear_smooth_l1_loss",
    "lstsq",
    "lstsq_batches",
    "make_train_step",
    "sgd_run_",
    "sgd_run_many_",
    "sgd_step_",
]


def __getattr__(name: str) -> Any:
    if name == "LinearRegressor":  # on first use, since it needs scikit-learn
        from .estimator import LinearRegressor

        return LinearRegressor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
