# SPDX-License-Identifier: BSD-3-Clause
"""The accuracy rule, and the problems and twins that the tests judge by it.

A result is right when its error against an exact oracle that starts from the same bits has a norm of at most twice
that of the same-dtype PyTorch code plus 8 units in the last place of the result's norm. In float64, where no wider type
is left to compute in, the units are those of the terms that the result is the sum of.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("mse", "l1", "huber", "smooth_l1")
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "bfloat16 data": (torch.bfloat16, torch.float32),
    "float16 data": (torch.float16, torch.float32),
}


@dataclass
class Problem:
    """The operands of one call; `data` and `parameter` are the dtypes of rows and of weights."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None
    weight: Tensor | None = None

    def _repr_pretty_(self, printer, cycle) -> None:  # as hypothesis prints it
        tensors = ((name, t) for name, t in vars(self).items() if t is not None)
        lines = (
            f"{name}={list(t.tolist()) if t.numel() < 10 else list(t.shape)} {t.dtype} {t.stride()}"
            for name, t in tensors
        )
        printer.text(f"Problem({', '.join(lines)})")

    @staticmethod
    def random(
        n: int, d: int, k: int, dtypes: tuple[torch.dtype, torch.dtype], *, bias: bool = True,
        weight: str | None = None, device: str = "cpu", noise: float = 1.0,
    ) -> Problem:  # fmt: skip
        """Targets that a linear layer explains up to `noise`; small noise is the cancelling regime near convergence."""
        data, parameter = dtypes
        x = torch.randn(n, d, dtype=torch.float64)
        w = torch.randn(k, d, dtype=torch.float64).to(parameter)
        b = torch.randn(k, dtype=torch.float64).to(parameter) if bias else None
        y = x.to(data).double() @ w.double().T + noise * torch.randn(n, k, dtype=torch.float64)
        y = y if b is None else y + b.double()
        v = {None: None, "elements": torch.rand(n, k), "rows": torch.rand(n), "row columns": torch.rand(n, 1)}[weight]
        to = {"device": device, "dtype": data}
        return Problem(
            x.to(**to), w.to(device), y.to(**to), None if b is None else b.to(device), None if v is None else v.to(**to)
        )

    def operands(self) -> dict[str, Tensor]:
        named = {"input": self.input, "linear_weight": self.linear_weight, "target": self.target}
        return named if self.linear_bias is None else {**named, "linear_bias": self.linear_bias}


def plain_loss(problem: Problem, loss: str, delta: float, reduction: str) -> Tensor:
    """What a user writes today, in the problem's own dtype."""
    x, w, y, b, v = vars(problem).values()
    prediction = F.linear(x.to(w.dtype), w, b)
    y = y.to(torch.promote_types(w.dtype, y.dtype))
    prediction = prediction.to(y.dtype)
    if loss in ("mse", "l1"):
        value = getattr(F, f"{loss}_loss")(prediction, y, reduction="none" if v is not None else reduction)
    elif loss == "huber":
        value = F.huber_loss(prediction, y, delta=delta, reduction="none" if v is not None else reduction)
    else:
        value = F.smooth_l1_loss(prediction, y, beta=delta, reduction="none" if v is not None else reduction)
    if v is None:
        return value
    v = (v.unsqueeze(-1) if v.dim() < value.dim() else v).to(value.dtype).expand_as(value)
    value = value * v
    return {"none": value, "sum": value.sum(), "mean": value.sum() / v.sum()}[reduction]


def loss_and_grads(function, problem: Problem, grad_loss: float = 1.0, of: str = "") -> dict[str, Tensor]:
    """The loss under `function(problem)` and its gradients, for a grad_output of `grad_loss`, in every operand whose name
    begins with `of`."""
    operands = {name: t for name, t in problem.operands().items() if name.startswith(of)}
    leaves = {name: t.detach().clone().requires_grad_() for name, t in operands.items()}
    value = function(Problem(**{**vars(problem), **leaves}))
    grads = torch.autograd.grad(value, list(leaves.values()), torch.full_like(value, grad_loss))
    return {"loss": value.detach(), **dict(zip(leaves, grads, strict=True))}


@dataclass
class Exact:
    """A result in extended precision.

    Attributes:
        value: the result, beyond any dtype's range where it is so large.
        terms: the size of the terms that it is computed from, and its rounding errors are in proportion to.
        added: the size of what is added up last, to value.
    """

    value: np.ndarray
    terms: np.ndarray
    added: np.ndarray | None = None


@np.errstate(all="ignore")
def oracle(problem: Problem, loss: str, delta: float, reduction: str, grad_loss: float = 1.0) -> dict[str, Exact]:
    """The loss and its gradients by the formulas, from the same bits."""
    x, w, y, b, v = (
        None if t is None else t.detach().cpu().double().numpy().astype(np.longdouble) for t in vars(problem).values()
    )
    r = x @ w.T - y + (0 if b is None else b)
    terms = abs(x) @ abs(w).T + abs(y) + (0 if b is None else abs(b))
    z = abs(r)
    eps = torch.finfo(torch.promote_types(problem.input.dtype, torch.float32)).eps
    in_doubt = eps * terms  # a residual of this size may have either sign
    if loss == "smooth_l1" and delta == 0:
        loss = "l1"
    value, slope, value_terms, slope_terms = {
        "mse": lambda: (r * r, 2 * r, terms**2, 2 * terms),
        "l1": lambda: (
            z, 1.0 * (r > 0) - (r < 0), terms, np.where(z > in_doubt, 1.0, 2 / eps),  # PyTorch's sign(nan) is 0
        ),
        "huber": lambda: (
            np.where(z <= delta, r * r / 2, delta * (z - delta / 2)), np.clip(r, -delta, delta), terms**2, terms,
        ),
        "smooth_l1": lambda: (
            np.where(z < delta, r * r / (2 * delta), z - delta / 2), np.clip(r / delta, -1, 1), terms + terms**2 / delta,
            terms / delta,
        ),
    }[loss]()  # fmt: skip
    v = np.ones_like(r) if v is None else np.broadcast_to(v[:, None] if v.ndim == 1 else v, r.shape)
    factor = grad_loss / (v.sum() if reduction == "mean" else 1)

    def reduced(values: np.ndarray) -> np.ndarray:
        if reduction == "none":
            return values
        return np.asarray(values.sum() / (v.sum() if reduction == "mean" else 1))

    def grads(slope: np.ndarray, x: np.ndarray, w: np.ndarray) -> dict[str, np.ndarray]:
        return {"input": slope @ w, "linear_weight": slope.T @ x, "target": -slope, "linear_bias": slope.sum(0)}

    values = {"loss": reduced(v * value), **grads(factor * v * slope, x, w)}
    sizes = {"loss": reduced(abs(v) * value_terms), **grads(abs(factor * v) * slope_terms, abs(x), abs(w))}
    once = factor / min(1, abs(grad_loss))  # gradients are computed for a grad_output of 1, and then scaled
    added = {"loss": reduced(abs(v * value)), **grads(abs(once * v * slope), abs(x), abs(w))}
    return {name: Exact(values[name], sizes[name], abs(added[name])) for name in values}


def assert_same_wherever(ours: Tensor, twin: Tensor) -> None:
    """The same result from operands that lie elsewhere: bit for bit on a CPU. CUDA kernels read rows that are aligned in
    larger pieces, which changes the order of a sum in double: by less than a unit in the last place of float32."""
    if ours.is_cuda or "LINREG_EXT_SIMT" in os.environ:
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, twin, rtol=64 * eps, atol=64 * eps * twin.abs().max().item())
    else:
        assert torch.equal(ours, twin)


def kinds(values: np.ndarray, largest: float = np.inf) -> np.ndarray:
    """Of each number: 2 if it is nan, 1 or -1 if its magnitude is `largest` or more, 0 otherwise."""
    return np.where(np.isnan(values), 2, np.sign(values) * (abs(values) >= largest))


@np.errstate(all="ignore")
def assert_as_accurate(name: str, ours: Tensor, plain: Tensor, oracle: Exact, *, cancels: bool = False) -> None:
    """The accuracy rule. What is nan or inf is what is so exactly, is too large for the dtype, or is so in PyTorch; the
    rest is judged without it.

    Args:
        cancels: take the units of the terms in any dtype, since numbers that were chosen to cancel may do so in the
            order in which PyTorch adds, and only there.
    """
    assert ours.dtype == plain.dtype, f"{name}: dtype {ours.dtype}, expected {plain.dtype}"
    assert ours.shape == plain.shape, f"{name}: shape {list(ours.shape)}, expected {list(plain.shape)}"
    info, range_of_sums = torch.finfo(ours.dtype), torch.finfo(torch.promote_types(ours.dtype, torch.float32)).max
    ours, plain = (t.cpu().double().numpy().astype(np.longdouble) for t in (ours, plain))
    exact, units = oracle.value, oracle.terms if cancels or info.dtype == "float64" else oracle.value
    units = np.where(np.isfinite(units), units, exact)
    found, expected = kinds(ours), kinds(exact, info.max * (1 + 8 * info.eps))
    right = (found == expected) | (found == kinds(exact, info.max * (1 - 8 * info.eps))) | (found == kinds(plain))
    if oracle.added is not None:  # a sum may leave the range on its way, to either side
        right |= np.isfinite(exact) & (oracle.added > range_of_sums)
    wrong = np.argwhere(~right)
    if len(wrong):
        where = tuple(wrong[0])
        raise AssertionError(f"{name}: got {ours[where]}, expected {exact[where]} (plain PyTorch {plain[where]})")
    compared = (found == 0) & (expected == 0)
    ours, exact, units = (np.where(compared, array, 0) for array in (ours, exact, units))
    plain = np.where(compared & np.isfinite(plain), plain, exact)
    error, error_of_plain = np.linalg.norm((ours - exact).ravel()), np.linalg.norm((plain - exact).ravel())
    # No relative accuracy exists below half a unit in the last place of a subnormal number.
    subnormal = info.smallest_normal * info.eps / 2 * exact.size**0.5
    allowed = 2 * error_of_plain + 8 * info.eps * np.linalg.norm(units.ravel()) + subnormal
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (plain PyTorch {error_of_plain:.3g})"
