# SPDX-License-Identifier: BSD-3-Clause
"""The accuracy rule, with its problems, its oracle and the plain PyTorch that it compares with.

The norm of a result's error, against an exact oracle that starts from the same bits, may be at most twice that of
same-dtype PyTorch code plus 8 units in the last place of the result's norm. For float64, which has no wider type to
compute in, the units are those of the terms of the result's sum.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import linreg_ext

PLACES = 8  # units in the last place that the rule allows


def quantile_loss(prediction: Tensor, target: Tensor, *, quantile: float, reduction: str = "mean") -> Tensor:
    """As users write it, since PyTorch has none; float32 under autocast, like PyTorch's losses."""
    if torch.is_autocast_enabled(prediction.device.type):
        prediction, target = prediction.float(), target.float()
    r = prediction - target
    value = (1 - quantile) * F.relu(r) + quantile * F.relu(-r)
    return value if reduction == "none" else getattr(value, reduction)()


# Each loss in PyTorch; losses_and_slopes has its formula.
PLAIN = {
    "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss, "smooth_l1": F.smooth_l1_loss, "quantile": quantile_loss,
}  # fmt: skip
LOSSES = tuple(PLAIN)
JUMPS = {"l1", "quantile"}  # losses whose derivative jumps at 0
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
    """The operands of one call."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None
    weight: Tensor | None = None

    def _repr_pretty_(self, printer, cycle) -> None:  # for hypothesis
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
        """Targets that a linear layer explains up to `noise`; small noise is cancellation near convergence.

        `dtypes` are those of rows and parameters.
        """
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


def threshold(loss: str, number: float) -> float:
    """A threshold in the valid range of a loss, from a positive number."""
    if loss == "quantile":
        return number / 2 if number <= 1 else min(1 - 0.5 / number, 1 - 1e-9)
    return number


def option(loss: str, number: float) -> dict[str, float]:
    """The threshold as a keyword argument; empty for a loss without one."""
    return linreg_ext.losses.LOSSES[loss].options(threshold(loss, number))


def plain_loss(problem: Problem, loss: str, delta: float, reduction: str) -> Tensor:
    """What a user would write, in the problem's dtype."""
    x, w, y, b, v = vars(problem).values()
    prediction = F.linear(x.to(w.dtype), w, b)
    y = y.to(torch.promote_types(w.dtype, y.dtype))
    prediction = prediction.to(y.dtype)
    value = PLAIN[loss](prediction, y, reduction="none" if v is not None else reduction, **option(loss, delta))
    if v is None:
        return value
    v = (v.unsqueeze(-1) if v.dim() < value.dim() else v).to(value.dtype).expand_as(value)
    value = value * v
    return {"none": value, "sum": value.sum(), "mean": value.sum() / v.sum()}[reduction]


def loss_and_grads(function, problem: Problem, grad_loss: float = 1.0, of: str = "") -> dict[str, Tensor]:
    """The loss `function(problem)` and its gradients for a grad_output of `grad_loss`, in the operands whose names
    begin with `of`."""
    operands = {name: t for name, t in problem.operands().items() if name.startswith(of)}
    leaves = {name: t.detach().clone().requires_grad_() for name, t in operands.items()}
    value = function(Problem(**{**vars(problem), **leaves}))
    grads = torch.autograd.grad(value, list(leaves.values()), torch.full_like(value, grad_loss))
    return {"loss": value.detach(), **dict(zip(leaves, grads, strict=True))}


@dataclass
class Exact:
    """A result in extended precision, and the absolute sum of its terms."""

    value: np.ndarray
    terms: np.ndarray


def extended(problem: Problem) -> list[np.ndarray | None]:
    """The operands in long double, with a weight for every element."""
    x, w, y, b, v = (
        None if t is None else t.detach().cpu().double().numpy().astype(np.longdouble) for t in vars(problem).values()
    )
    v = np.ones_like(y) if v is None else np.broadcast_to(v[:, None] if v.ndim == 1 else v, y.shape)
    return [x, w, y, b, v]


def residuals(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The residuals, and the absolute sums of their terms."""
    x, w, y, b, _ = extended(problem)
    r = x @ w.T - y + (0 if b is None else b)
    return r, abs(x) @ abs(w).T + abs(y) + (0 if b is None else abs(b))


def losses_and_slopes(problem: Problem, loss: str, delta: float) -> list[Exact]:
    """ℓ and ℓ' of every residual, from the formulas."""
    delta = threshold(loss, delta)
    r, terms = residuals(problem)
    z = abs(r)
    clipped = np.where(np.isinf(terms), delta, terms)  # an infinite residual is clipped exactly
    if loss == "smooth_l1" and delta == 0:
        loss = "l1"
    value, slope, value_terms, slope_terms = {
        "mse": lambda: (r * r, 2 * r, terms**2, 2 * terms),
        "l1": lambda: (z, 1.0 * (r > 0) - (r < 0), terms, 1.0 * (r != 0)),  # sign(nan) is 0, as in PyTorch
        "huber": lambda: (
            np.where(z <= delta, r * r / 2, delta * (z - delta / 2)), np.clip(r, -delta, delta), terms**2, clipped,
        ),
        "smooth_l1": lambda: (
            np.where(z < delta, r * r / (2 * delta), z - delta / 2), np.clip(r / delta, -1, 1), terms + terms**2 / delta,
            clipped / delta,
        ),
        "quantile": lambda: (
            np.where(r < 0, -delta * r, (1 - delta) * r), (1 - delta) * (r > 0) - delta * (r < 0), terms, 1.0 * (r != 0),
        ),
    }[loss]()  # fmt: skip
    return [Exact(value, value_terms), Exact(slope, slope_terms)]


def summed(
    problem: Problem, losses: np.ndarray, slopes: np.ndarray, reduction: str, grad_loss: float, *, sizes: bool = False
) -> dict[str, np.ndarray]:
    """The loss and its gradients from the elementwise ones; with `sizes`, the absolute sums of their terms."""
    x, w, _, _, v = extended(problem)
    once = 1 / (v.sum() if reduction == "mean" else 1)
    if sizes:
        x, w, v, once, grad_loss = abs(x), abs(w), abs(v), abs(once), abs(grad_loss)
    g = grad_loss * once * v * slopes
    return {
        "loss": v * losses if reduction == "none" else np.asarray((v * losses).sum() * once),
        "input": g @ w, "linear_weight": g.T @ x, "target": g if sizes else -g, "linear_bias": g.sum(0),
    }  # fmt: skip


def oracle(problem: Problem, loss: str, delta: float, reduction: str, grad_loss: float = 1.0) -> dict[str, Exact]:
    """The loss and its gradients from the formulas and the same bits."""
    losses, slopes = losses_and_slopes(problem, loss, delta)
    values = summed(problem, losses.value, slopes.value, reduction, grad_loss)
    sizes = summed(problem, losses.terms, slopes.terms, reduction, grad_loss, sizes=True)
    return {name: Exact(value, sizes[name]) for name, value in values.items()}


def assert_same_wherever(ours: Tensor, twin: Tensor) -> None:
    """The same result from operands elsewhere in memory, on a CPU bit for bit. CUDA kernels read aligned rows in larger
    words, which changes the order of a sum in double, by less than a unit in the last place of float32."""
    if ours.is_cuda or "LINREG_EXT_SIMT" in os.environ:
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, twin, rtol=64 * eps, atol=64 * eps * twin.abs().max().item())
    else:
        assert torch.equal(ours, twin)


def assert_as_accurate(name: str, ours: Tensor, plain: Tensor, oracle: Exact, *, allowing: float = 0.0) -> None:
    """The accuracy rule. Where the exact result overflows the dtype, so must ours.

    Args:
        allowing: the norm of an error that is permitted beyond the rule.
    """
    assert ours.dtype == plain.dtype, f"{name}: dtype {ours.dtype}, expected {plain.dtype}"
    assert ours.shape == plain.shape, f"{name}: shape {list(ours.shape)}, expected {list(plain.shape)}"
    info = torch.finfo(ours.dtype)
    ours, plain = (t.cpu().double().numpy().astype(np.longdouble) for t in (ours, plain))
    exact, units = oracle.value, oracle.terms if info.dtype == "float64" else oracle.value
    overflows = abs(exact) > info.max
    if overflows.any():
        assert (np.isinf(ours) == overflows).all(), f"{name}: overflows elsewhere than the exact result"
        ours, plain, exact, units = (np.where(overflows, 0, array) for array in (ours, plain, exact, units))
    error, error_of_plain = np.linalg.norm((ours - exact).ravel()), np.linalg.norm((plain - exact).ravel())
    # No relative accuracy exists below half a unit in the last place of a subnormal number.
    subnormal = info.smallest_normal * info.eps / 2 * exact.size**0.5
    allowed = 2 * error_of_plain + PLACES * info.eps * np.linalg.norm(units.ravel()) + subnormal + allowing
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g} (plain PyTorch {error_of_plain:.3g})"


SEEDS = 64  # problems per case for the rule over seeds


def assert_as_accurate_over_seeds(name: str, ours: list[Tensor], plain: list[Tensor], oracles: list[Exact]) -> None:
    """The accuracy rule over seeds, for results of PyTorch's matrix products, so that rounding errors that happen to
    cancel, above all in a loss, do not decide.

    Both errors come from float32 products that add in different orders, so their root mean squares must agree up to the
    sampling error of n errors. The ratio for n independent normal errors has a relative standard deviation of 1/√n, and
    four of these leave one false alarm in thirty thousand; 1.1 leaves room for heavier tails. PyTorch rounds a 16-bit
    result several times: ours must have half its error, or at most 10 % more than that of rounding once. No single
    error may exceed 4 times PyTorch's by more than 16 units in the last place of the sum of the absolute terms. A
    product's additions cannot lose as much: their error grows with the square root of a few hundred terms, whose
    partial sums are below the sum of all.
    """
    info = torch.finfo(ours[0].dtype)
    assert len(ours) >= SEEDS, f"{name}: {len(ours)} problems, expected at least {SEEDS}"
    assert {t.dtype for t in ours} == {t.dtype for t in plain}, f"{name}: another dtype than PyTorch's"
    exact, terms = (np.stack([getattr(o, field) for o in oracles]) for field in ("value", "terms"))
    rounded = [torch.from_numpy(np.asarray(value, "float64")).to(ours[0].dtype) for value in exact]
    ours, plain, rounded = (torch.stack(results).double().cpu().numpy() for results in (ours, plain, rounded))
    overflows = abs(exact) > info.max
    assert (np.isinf(ours) == overflows).all(), f"{name}: overflows elsewhere than the exact result"
    exact, terms = (np.where(overflows, 0, array) for array in (exact, terms))
    errors, errors_of_plain, errors_of_rounding = (
        abs(np.where(overflows, 0, results) - exact) for results in (ours, plain, rounded)
    )
    rms, rms_of_plain, rms_of_rounding = (
        float(np.sqrt(np.square(e).mean())) for e in (errors, errors_of_plain, errors_of_rounding)
    )
    if info.bits == 16:
        allowed = max(rms_of_plain / 2, 1.1 * rms_of_rounding)
    else:
        allowed = (1.1 + 4 / errors.size**0.5) * rms_of_plain
    assert rms <= allowed, f"{name}: rms of errors {rms:.3g}, allowed {allowed:.3g} (plain PyTorch {rms_of_plain:.3g})"
    beyond = errors - 4 * errors_of_plain - 16 * np.maximum(info.eps * terms, info.smallest_normal * info.eps)
    assert beyond.max() <= 0, f"{name}: an error is {float(beyond.max()):.3g} beyond 4 times PyTorch's and 16 units"
