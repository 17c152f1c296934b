# SPDX-License-Identifier: BSD-3-Clause
"""An SGD step in JAX."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .availability import installed, needs_all_threads
from .clocks import Variant
from .problem import Answer, Problem


def with_jax(problem: Problem) -> Variant:
    """jax.jit of value_and_grad and the update, with donated parameters."""
    jax, step = jax_step(problem.x)
    problem.wait()  # JAX uses its own streams
    x, y, *parameters = (jax.dlpack.from_dlpack(t) for t in jax_operands(problem))
    state: dict[str, Any] = {"parameters": tuple(parameters)}
    jitted = jax.jit(step, donate_argnums=0)

    def run() -> None:
        state["parameters"], state["loss"] = jitted(state["parameters"], x, y, problem.lr)

    def answer() -> Answer:
        weight, bias = (torch.from_dlpack(p) for p in state["parameters"])
        return {"loss": torch.from_dlpack(state["loss"]), "weight": weight, "bias": bias}

    return Variant(run, answer, clock="wall", finish=lambda: jax.block_until_ready(state))


def jax_step(x: Tensor) -> tuple[ModuleType, Callable[..., Any]]:
    """JAX on x's device, and a step as a function of (weight, bias), rows, targets and learning rate."""
    needs_all_threads("JAX")
    os.environ.setdefault("JAX_PLATFORMS", x.device.type)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = installed("jax")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32, as in torch

    def loss_of(parameters: Any, x: Any, y: Any) -> Any:
        weight, bias = parameters
        return ((x @ weight.T + bias - y) ** 2).mean()

    def step(parameters: Any, x: Any, y: Any, lr: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, x, y)
        return jax.tree.map(lambda p, g: (p - lr * g).astype(p.dtype), parameters, gradients), loss

    return jax, step


def jax_operands(problem: Problem) -> tuple[Tensor, ...]:
    """Rows and targets, and copies of the parameters, since JAX overwrites what is donated."""
    return problem.x, problem.y, problem.weight.clone(), problem.bias.clone()
