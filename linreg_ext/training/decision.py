# SPDX-License-Identifier: BSD-3-Clause
"""What a model, a loss and an optimizer are together, and whether they still are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizer_hooks

from .._extension import _C, REFERENCE
from .affine import Affine, recognise_model
from .evidence import ABSENT, Evidence, Watched, is_pytorchs
from .regression_loss import RegressionLoss, recognise_loss
from .tracing import Unrecognised


@dataclass(frozen=True)
class Decision:
    """All that is known of a model, a loss and an optimizer without looking at numbers and tensors.

    Attributes:
        model, loss_fn, optimizer: what it is about.
        affine, loss: what the model and the loss compute; None where that is not known.
        not_affine: why not, if either is not.
        not_sgd: why the optimizer's step is more than the rule of `torch.optim.SGD`, if it is.
        watched: what it was made from.
    """

    model: nn.Module
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    affine: Affine | None
    loss: RegressionLoss | None
    not_affine: str
    not_sgd: str
    watched: tuple[Watched, ...]

    def stands(self, model: nn.Module, loss_fn: Any, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it is about these three, and they are as they were."""
        if model is not self.model or loss_fn is not self.loss_fn or optimizer is not self.optimizer:
            return False
        if REFERENCE or torch.compiler.is_compiling():
            return all(watched.unchanged() for watched in self.watched)
        return _C.unchanged(self.watched)


def decide(model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor], optimizer: torch.optim.Optimizer) -> Decision:
    """Find out what the three are."""
    evidence = Evidence()
    affine, loss, not_affine, not_sgd = None, None, "", ""
    try:
        loss = recognise_loss(loss_fn, evidence)
        affine = recognise_model(model, evidence)
        if not is_pytorchs(evidence.method(Tensor, "backward"), "Tensor.backward"):
            raise Unrecognised("Tensor has a backward that is not PyTorch's")
    except Unrecognised as reason:
        affine, not_affine = None, str(reason)
    if affine is not None:
        not_sgd = _not_sgd(optimizer, evidence)
    return Decision(model, loss_fn, optimizer, affine, loss, not_affine, not_sgd, evidence.watched())


def _not_sgd(optimizer: torch.optim.Optimizer, evidence: Evidence) -> str:
    """Why calling the optimizer's step and zero_grad is more than SGD's rule; empty if it is not."""
    cls = evidence.type_of(optimizer)
    if cls is not torch.optim.SGD:
        return f"the optimizer is {cls.__name__}, not torch.optim.SGD"
    for name in ("step", "zero_grad"):
        function, own = evidence.method(cls, name), evidence.entry(optimizer, name)
        if not is_pytorchs(function, "SGD.step", "Optimizer.zero_grad"):
            return f"torch.optim.SGD has a {name} that is not PyTorch's"
        if own is not ABSENT and not (name == "step" and _is_schedulers(own, function)):
            return f"the optimizer's {name} has been replaced"
    if any(evidence.contents(optimizer, f"_optimizer_step_{when}_hooks") != {} for when in ("pre", "post")):
        return "the optimizer has hooks"
    if any(evidence.contents(optimizer_hooks, f"_global_optimizer_{when}_hooks") != {} for when in ("pre", "post")):
        return "optimizers have global hooks"
    if any(evidence.entry(optimizer, name) not in (ABSENT, None) for name in ("grad_scale", "found_inf")):
        return "the optimizer has been given a gradient scale"
    return ""


def _is_schedulers(step: Any, function: Any) -> bool:
    """Whether a step that was set on SGD is the one by which a learning-rate scheduler watches `function`."""
    wraps = hasattr(step, "_wrapped_by_lr_sched") and getattr(step, "__wrapped__", None) is function
    return wraps and is_pytorchs(step, "SGD.step")
