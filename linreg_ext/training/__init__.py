# SPDX-License-Identifier: BSD-3-Clause
"""Training loops that fuse the models, losses and optimizers they recognise and run all others as plain PyTorch."""

from .evaluate import evaluate
from .fit import StopTraining, fit
from .history import DivergenceError, History
from .train_step import TrainStep, make_train_step

__all__ = ["DivergenceError", "History", "StopTraining", "TrainStep", "evaluate", "fit", "make_train_step"]
