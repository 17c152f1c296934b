# SPDX-License-Identifier: BSD-3-Clause
"""Where a fit that is killed can be gone on with: its state now and then, in the folder that it will write."""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tables import first_line
from ..training import History
from . import run_folder
from .errors import CommandError
from .problem import Problem

_SECONDS = 10.0  # between two checkpoints, each of which takes milliseconds
_NO_MATTER = ("command", "table", "target", "out", "resume")  # to the numbers, or seen in the problem


class Checkpoints:
    """Those of one fit.

    Args:
        place: the folder; there is nothing in it while a fit is shorter than the time between two checkpoints.
        problem, args: what is fitted, and how. A checkpoint of another fit is not gone on with.
    """

    def __init__(self, place: Path, problem: Problem, args: argparse.Namespace) -> None:
        self.path = place / run_folder.CHECKPOINT
        self._of = {name: value for name, value in vars(args).items() if name not in _NO_MATTER}
        self._of["table"] = _digest(problem)
        self._last = time.monotonic()

    def track(self, layer: nn.Module, sgd: Any, scheduler: Any, generator: torch.Generator) -> None:
        """What a fit's state is, beside its history."""
        self._stateful = {"layer": layer, "sgd": sgd, "scheduler": scheduler}
        self._generator = generator
        self._earlier: History | None = None

    def load(self) -> int:
        """Put the state of a checkpoint back, if there is one; how many epochs it has behind it.

        Raises:
            CommandError: the checkpoint is of another fit, or broken.
        """
        if not self.path.exists():
            return 0
        try:
            found = torch.load(self.path, weights_only=True)
            of, history = found["of"], found["history"]
            different = [name for name in self._of if of[name] != self._of[name]]
            if not different:
                for name, stateful in self._stateful.items():
                    stateful.load_state_dict(found[name])
                self._generator.set_state(found["generator"])
                self._earlier = History(**history)
        except Exception as error:  # a broken file can break its reader in any way
            raise CommandError(f"{self.path}: expected the checkpoint of a fit ({first_line(error)})") from None
        if different:
            names = ", ".join("the table" if n == "table" else f"--{n.replace('_', '-')}" for n in different)
            raise CommandError(f"--resume: the fit that was interrupted in {self.path.parent} had another {names}")
        return len(self._earlier.epoch_loss)

    def whole(self, history: History) -> History:
        """The history of the fit, of which `history` is what came after the checkpoint."""
        if self._earlier is None:
            return history
        parts = {f.name: (getattr(self._earlier, f.name), getattr(history, f.name)) for f in fields(History)}
        return History(**{name: None if b is None else torch.cat([a, b]) for name, (a, b) in parts.items()})

    def after_epoch(self, _: int, history: History) -> None:
        """Write a checkpoint if it is time; for `fit`'s on_epoch_end."""
        if time.monotonic() - self._last < _SECONDS:
            return
        state: dict[str, Any] = {name: stateful.state_dict() for name, stateful in self._stateful.items()}
        state |= {"generator": self._generator.get_state(), "history": vars(self.whole(history)), "of": self._of}
        content = io.BytesIO()
        torch.save(state, content)
        try:
            run_folder.write_file(self.path, content.getvalue())
        except OSError as error:
            print(f"no checkpoint: {self.path}: {error.strerror or error}", file=sys.stderr)
        self._last = time.monotonic()


def _digest(problem: Problem) -> str:
    digest = hashlib.sha256(repr((problem.features, problem.targets)).encode())
    tensor: Tensor
    for tensor in (problem.x, problem.y):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()
