# SPDX-License-Identifier: BSD-3-Clause
"""The accuracy rule, with its problems, its oracle and the plain PyTorch code for comparison.

An error is the difference from a result in wider arithmetic on the same operands: float64, or long double for float64.
Our errors and those of PyTorch in the same dtype are rounding errors of the same arithmetic in different orders. They
have similar distributions but are uncorrelated. So the rule has two parts:

(a) Over the n errors of a case, from at least 64 problems, the root mean square is at most 1.1 + 4/√n times PyTorch's.
    The ratio of root mean squares of n normal errors has a standard deviation of 1/√n; four of these allow one false
    alarm in thirty thousand. The 1.1 leaves room for errors that are not normal. If a few problems dominate the error,
    n is the number of equal errors whose sum of squares varies as much. PyTorch rounds 16-bit intermediate results, and
    we do not: the bound for 16-bit results is half of PyTorch's error, or 1.1 times that of the exact result rounded.
    With float32 parameters and 16-bit data PyTorch does not round them either, so the first bound holds for gradients.
(b) No error exceeds 4 times PyTorch's by more than 16 units in the last place of the sum of absolute terms, propagated
    through the residual. A float32 chain has at most 64 additions, each with an error of 0.29 units of its partial sum.
    √64 times 0.29 is 2.3 units, even if every partial sum were as large as the sum of all terms; 16 units are seven
    such standard deviations. PyTorch's own error is larger if its chains are longer or its intermediate results have
    16 bits; 4 times that error are four standard deviations.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import linreg_ext

SEEDS = 64  # problems of a case, for part (a); with 16, a few of them decide
# Without fused multiply-adds, each product is rounded before it is added. That doubles the number of rounding errors
# and multiplies their root mean square by √2. On any recent processor, PyTorch's matrix products have them.
WITHOUT_FMA = 2**0.5 if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else 1.0
TIMES, UNITS = 4, 16  # of part (b)


def quantile_loss(prediction: Tensor, target: Tensor, *, quantile: float, reduction: str = "mean") -> Tensor:
    """The loss as users write it, because PyTorch has none. Under autocast it is float32, like PyTorch's losses."""
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
        """Targets that a linear layer explains up to `noise`; small noise causes cancellation, as near convergence.

        `dtypes` are the dtypes of rows and parameters.
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
    """The loss as a user would write it, in the problem's dtype."""
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
    """The loss `function(problem)` and, for a grad_output of `grad_loss`, its gradients with respect to the operands
    whose names begin with `of`."""
    operands = {name: t for name, t in problem.operands().items() if name.startswith(of)}
    leaves = {name: t.detach().clone().requires_grad_() for name, t in operands.items()}
    value = function(Problem(**{**vars(problem), **leaves}))
    grads = torch.autograd.grad(value, list(leaves.values()), torch.full_like(value, grad_loss))
    return {"loss": value.detach(), **dict(zip(leaves, grads, strict=True))}


@dataclass
class Exact:
    """A result in wider arithmetic, and the sum of the absolute values of its terms."""

    value: np.ndarray
    terms: np.ndarray


def extended(problem: Problem) -> list[np.ndarray | None]:
    """The operands in wider arithmetic, with a weight for every element."""
    wider = np.longdouble if problem.input.dtype == torch.float64 else np.float64  # the rest is exact enough in double
    x, w, y, b, v = (
        None if t is None else t.detach().cpu().double().numpy().astype(wider) for t in vars(problem).values()
    )
    v = np.ones_like(y) if v is None else np.broadcast_to(v[:, None] if v.ndim == 1 else v, y.shape)
    return [x, w, y, b, v]


def residuals(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """The residuals, and the sums of the absolute values of their terms."""
    x, w, y, b, _ = extended(problem)
    r = x @ w.T - y + (0 if b is None else b)
    return r, abs(x) @ abs(w).T + abs(y) + (0 if b is None else abs(b))


def losses_and_slopes(problem: Problem, loss: str, delta: float) -> list[Exact]:
    """ℓ and ℓ' of every residual, by the formulas."""
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
    """The loss and its gradients from elementwise losses and slopes; with `sizes`, the sums of absolute terms."""
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
    """The loss and its gradients by the formulas, from the same operands."""
    losses, slopes = losses_and_slopes(problem, loss, delta)
    values = summed(problem, losses.value, slopes.value, reduction, grad_loss)
    sizes = summed(problem, losses.terms, slopes.terms, reduction, grad_loss, sizes=True)
    return {name: Exact(value, sizes[name]) for name, value in values.items()}


def assert_same_wherever(ours: Tensor, twin: Tensor) -> None:
    """Assert that operands elsewhere in memory give the same result: bit for bit on a CPU, and up to rounding on a GPU,
    whose matrix products may depend on alignment."""
    if ours.is_cuda or "LINREG_EXT_SIMT" in os.environ:
        eps = torch.finfo(ours.dtype).eps
        torch.testing.assert_close(ours, twin, rtol=64 * eps, atol=64 * eps * twin.abs().max().item())
    else:
        assert torch.equal(ours, twin)


def assert_as_accurate(
    name: str, ours: Tensor, plain: Tensor, exact: Exact, *, allowing: np.ndarray | float = 0.0
) -> None:
    """Part (b) of the rule, for one problem. If the exact result overflows the dtype, ours must overflow, too.

    Args:
        allowing: an additional error that is permitted.
    """
    errors_of(name, [ours], [plain], [exact], allowing)


def assert_as_accurate_over_seeds(
    name: str, ours: list[Tensor], plain: list[Tensor], exact: list[Exact], *, independent: int, in_16_bits: bool = True
) -> None:
    """Both parts of the rule, for the problems of a case.

    Args:
        independent: the maximum number of independent errors of a problem; the others follow from them.
        in_16_bits: whether PyTorch rounds the intermediate results of 16-bit results, as with 16-bit parameters.
    """
    assert len(ours) >= SEEDS, f"{name}: {len(ours)} problems, expected at least {SEEDS}"
    errors, errors_of_plain, errors_of_rounding = errors_of(name, ours, plain, exact)
    judged = np.isfinite(errors_of_plain)  # PyTorch may overflow in 16 bits, or by its order of additions
    rms, rms_of_plain, rms_of_rounding = (
        float(np.sqrt(np.square(np.where(judged, e, 0)).mean())) for e in (errors, errors_of_plain, errors_of_rounding)
    )
    if ours[0].itemsize == 2 and in_16_bits:
        allowed = max(rms_of_plain / 2, 1.1 * rms_of_rounding)
    else:
        count = equal_errors(np.where(judged, errors_of_plain, 0), min(independent, ours[0].numel()))
        allowed = (1.1 + 4 / count**0.5) * WITHOUT_FMA * rms_of_plain
    assert rms <= allowed, f"{name}: rms of errors {rms:.3g}, allowed {allowed:.3g} (plain PyTorch {rms_of_plain:.3g})"


def equal_errors(errors: np.ndarray, independent: int) -> float:
    """The number of equal normal errors whose sum of squares varies as much as that of `errors`. Each problem has
    `independent` independent errors.

    The sum S of m squares of normal errors of variance s has the variance 2 s² m, and the mean of S² is s² m (m + 2).
    So relative to its size, Σ S varies as much as the sum of (m + 2) (Σ S)² / Σ S² equal errors. If all problems have
    the same s, that is m times the number of problems.
    """
    squares = np.square(errors).reshape(len(errors), -1).mean(1)
    if not squares.any():
        return len(errors) * independent
    return min(len(errors) * independent, float((independent + 2) * squares.sum() ** 2 / np.square(squares).sum()))


def errors_of(
    name: str, ours: list[Tensor], plain: list[Tensor], exact: list[Exact], allowing: np.ndarray | float = 0.0
) -> list[np.ndarray]:
    """The errors, after a check of part (b): ours, PyTorch's, and those of rounding the exact result once."""
    for o, p in zip(ours, plain, strict=True):
        assert o.dtype == p.dtype, f"{name}: dtype {o.dtype}, expected {p.dtype}"
        assert o.shape == p.shape, f"{name}: shape {list(o.shape)}, expected {list(p.shape)}"
    info = torch.finfo(ours[0].dtype)
    value, terms = (np.stack([getattr(e, field) for e in exact]) for field in ("value", "terms"))
    rounded = [torch.from_numpy(np.asarray(v, "float64")).to(ours[0].dtype) for v in value]
    # A GPU's matrix products take slopes rounded to 16 bits; other 16-bit results are float32 until the last rounding.
    arithmetic = torch.finfo(torch.float32) if info.bits == 16 and not ours[0].is_cuda else info
    results = [
        np.stack([t.detach().cpu().double().numpy().astype(np.longdouble) for t in ts]) for ts in (ours, plain, rounded)
    ]
    overflows = abs(value) > info.max
    assert (np.isinf(results[0]) == overflows).all(), f"{name}: overflows elsewhere than the exact result"
    value, terms, *results = (np.where(overflows, 0, array) for array in (value, terms, *results))
    with np.errstate(invalid="ignore"):
        errors = [abs(r - value) for r in results]
    of_plain = np.where(np.isfinite(errors[1]), errors[1], np.inf)
    allowed = TIMES * of_plain + UNITS * in_last_place(arithmetic, terms) + allowing
    if info.bits == 16:  # rounded, and once more after a factor
        allowed = allowed + in_last_place(info, abs(value))
    if not (errors[0] <= allowed).all():
        worst = np.unravel_index(np.argmax(np.nan_to_num(errors[0] - allowed, nan=np.inf)), value.shape)
        raise AssertionError(
            f"{name}: error {errors[0][worst]:.3g}, allowed {allowed[worst]:.3g} (plain PyTorch {errors[1][worst]:.3g})"
        )
    return errors


def in_last_place(info: torch.finfo, numbers: np.ndarray) -> np.ndarray:
    """A unit in the last place of positive numbers; for subnormal ones, the smallest subnormal number."""
    return np.maximum(info.eps * numbers, info.smallest_normal * info.eps)
