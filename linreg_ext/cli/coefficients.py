# SPDX-License-Identifier: BSD-3-Clause
"""A fitted model in its table's own units, and its weights file."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..tables import Encoding, first_line
from .errors import CommandError
from .run_folder import COEFFICIENTS, ENCODING, WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS


@dataclass(frozen=True)
class Coefficients:
    """A linear model in its table's own units: target = bias + Σ weight·feature."""

    features: tuple[str, ...]
    targets: tuple[str, ...]
    weight: Tensor  # [K, D], float64
    bias: Tensor  # [K], float64
    weight_stderr: Tensor | None = None  # [K, D]; of an exact solution, and nan where it has none
    bias_stderr: Tensor | None = None  # [K]

    def predict(self, x: Tensor) -> Tensor:
        """Predictions [N, K] from features [N, D]."""
        return torch.addmm(self.bias, x, self.weight.T)


def require_in_range(model: Coefficients, vanished: Tensor) -> None:
    """Raise if a coefficient is out of float64's range in the table's own units.

    Args:
        vanished: [K, D], the weights that became 0.
    """
    lost = (vanished | ~model.weight.isfinite()).nonzero().tolist()
    if lost:
        target, feature = model.targets[lost[0][0]], model.features[lost[0][1]]
        size, mend = "large", f"multiply '{feature}' or divide '{target}'"
        if vanished[tuple(lost[0])]:
            size, mend = "small", f"divide '{feature}' or multiply '{target}'"
        raise CommandError(
            f"the coefficient of '{feature}' for '{target}' is too {size} for a float64 in the table's own units; "
            f"{mend} by a power of ten"
        )
    if not model.bias.isfinite().all():
        target = model.targets[int(model.bias.isfinite().int().argmin())]
        raise CommandError(
            f"the intercept of '{target}' is too large for a float64; divide '{target}' by a power of ten"
        )


def weights_file(model: Coefficients) -> dict[str, bytes]:
    """The name and content of the file that `load_weights` reads."""
    tensors = {"weight": model.weight.contiguous(), "bias": model.bias.contiguous()}
    names = {"features": list(model.features), "targets": list(model.targets)}
    try:
        from safetensors.torch import save
    except ImportError:
        buffer = io.BytesIO()
        torch.save({**tensors, **names}, buffer)
        return {WEIGHTS_WITHOUT_SAFETENSORS: buffer.getvalue()}
    return {WEIGHTS: save(tensors, {key: json.dumps(value) for key, value in names.items()})}


def load_weights(folder: Path) -> Coefficients:
    """Load the model that an earlier fit wrote to `folder`."""
    path = next((folder / n for n in (WEIGHTS, WEIGHTS_WITHOUT_SAFETENSORS) if (folder / n).is_file()), None)
    if path is None:
        what = "contains no weights of an earlier fit" if folder.exists() else "no such folder"
        if found := next((name for name in COEFFICIENTS.values() if (folder / name).is_file()), None):
            what = f"was fitted with --by, and predict knows only one model; {found} has those of all groups"
        raise CommandError(f"{folder}: {what}")
    with _reading(path, "weights"):
        found = _read_safetensors(path) if path.name == WEIGHTS else torch.load(path, weights_only=True)
        features, targets = (tuple(found[key]) for key in ("features", "targets"))
        weight, bias = found["weight"], found["bias"]
        if not all(isinstance(name, str) for name in features + targets):
            raise ValueError("a name is not a string")
        for tensor, shape in ((weight, [len(targets), len(features)]), (bias, [len(targets)])):
            if list(tensor.shape) != shape or tensor.dtype != torch.float64 or not tensor.isfinite().all():
                raise ValueError(f"expected finite float64 of shape {shape}, got {tensor.dtype} {list(tensor.shape)}")
    return Coefficients(features, targets, weight, bias)


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise CommandError(f"{path}: reading it needs safetensors (`pip install safetensors`)") from None
    with safe_open(path, "pt") as file:
        names = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
        return {**names, "weight": file.get_tensor("weight"), "bias": file.get_tensor("bias")}


def load_encoding(folder: Path, model: Coefficients) -> Encoding:
    """Load the encoding that an earlier fit wrote beside the weights of `model`."""
    path = folder / ENCODING
    if not path.is_file():
        raise CommandError(f"{path}: no such file; run fit again")
    with _reading(path, "encoding"):
        encoding = Encoding.from_json(json.loads(path.read_text(encoding="utf-8")))
        if (encoding.names, encoding.targets) != (model.features, model.targets):
            raise ValueError("it does not match the weights beside it")
    return encoding


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Convert any error from a corrupt file into a `CommandError`."""
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        raise CommandError(f"{path}: expected the {what} of an earlier fit ({first_line(error)})") from None
