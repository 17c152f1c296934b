# SPDX-License-Identifier: BSD-3-Clause
"""Where a fit that is killed can be gone on with: its state now and then, in the folder that it will write."""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._version import __version__
from ..training import History
from . import run_folder
from .epochs import Epochs
from .errors import CommandError
from .problem import Problem

_SECONDS = 10.0  # at least, between two checkpoints
_SHARE = 0.05  # of the time, at most, for writing them: each holds the losses of all epochs so far
_NO_MATTER = ("command", "out", "resume", "table", "target")  # to the numbers, or seen in the problem


class Checkpoints:
    """Those of one fit.

    Args:
        place: the folder; there is nothing in it while a fit is shorter than the time between two checkpoints.
        problem, args: what is fitted, and how. A checkpoint of another fit is not gone on with.
    """

    def __init__(self, place: Path, problem: Problem, args: argparse.Namespace) -> None:
        self.path = place / run_folder.CHECKPOINT
        self._problem, self._args = problem, args
        self._next = time.monotonic() + _SECONDS

    def track(self, layer: nn.Module, sgd: Any, scheduler: Any, generator: torch.Generator) -> None:
        """What a fit's state is, beside its history."""
        self._stateful = {"layer": layer, "sgd": sgd, "scheduler": scheduler}
        self._generator = generator
        self._earlier: Epochs | None = None

    def load(self) -> int:
        """Put the state of a checkpoint back, if there is one; how many epochs it has behind it.

        Raises:
            CommandError: the checkpoint is of another fit, or broken.
        """
        if not self.path.exists():
            return 0
        try:
            # On the CPU; what takes the state moves it to where it belongs.
            found = torch.load(self.path, weights_only=True, map_location="cpu")
            different = self._different(found["of"])
            if not different:
                for name, stateful in self._stateful.items():
                    stateful.load_state_dict(found[name])
                self._generator.set_state(found["generator"])
                self._earlier = Epochs(**found["epochs"])
        except Exception:  # a broken file can break its reader in any way
            raise CommandError(f"{self.path}: is damaged, or no checkpoint of a fit; without it, fit begins") from None
        if different:
            raise CommandError(f"--resume: the fit that was interrupted in {self.path.parent} had another {different}")
        return len(self._earlier.epoch_loss)

    def matches(self) -> bool:
        """Whether there is a checkpoint that :meth:`load` would take."""
        try:
            return not self._different(torch.load(self.path, weights_only=True, map_location="cpu")["of"])
        except Exception:
            return False

    def forget(self) -> None:
        """Remove this fit's checkpoint, from which it would diverge again; that of another fit stays."""
        if self.matches():
            self.path.unlink()

    @property
    def steps(self) -> int:
        """How many steps the checkpoint that was loaded has behind it; 0 if none was."""
        return 0 if self._earlier is None else self._earlier.steps

    def whole(self, history: History) -> Epochs:
        """The epochs of the fit, of which `history` is what came after the checkpoint."""
        epochs = Epochs.of(history)
        return epochs if self._earlier is None else self._earlier.then(epochs)

    def after_epoch(self, _: int, history: History) -> None:
        """Write a checkpoint if it is time; for `fit`'s on_epoch_end."""
        began = time.monotonic()
        if began < self._next:
            return
        state: dict[str, Any] = {name: stateful.state_dict() for name, stateful in self._stateful.items()}
        state |= {"generator": self._generator.get_state(), "epochs": vars(self.whole(history)), "of": self._of}
        content = io.BytesIO()
        torch.save(state, content)
        try:
            run_folder.write_file(self.path, content.getvalue())
        except OSError as error:
            print(f"no checkpoint: {self.path}: {error.strerror or error}", file=sys.stderr)
        ended = time.monotonic()
        self._next = ended + max(_SECONDS, (ended - began) / _SHARE)

    @functools.cached_property
    def _of(self) -> dict[str, Any]:
        """What decides the numbers, by the names that a message gives it."""
        problem, args = self._problem, vars(self._args)
        table = hashlib.sha256(repr(problem.features).encode())
        for tensor in (problem.x, problem.y, problem.held_out):
            table.update(tensor.contiguous().numpy())
        options = {f"--{name.replace('_', '-')}": value for name, value in args.items() if name not in _NO_MATTER}
        versions = {"version of torch": str(torch.__version__), "version of linreg_ext": __version__}
        return options | versions | {"table": table.hexdigest(), "--target": list(problem.targets)}

    def _different(self, of: dict[str, Any]) -> str:
        """Names of what a checkpoint's fit had otherwise; "" if nothing."""
        names = [name for name in self._of if of.get(name) != self._of[name]]
        # Another target or split makes another table of the same one.
        return ", ".join(name for name in names if name != "table" or names == ["table"])
