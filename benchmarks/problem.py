# SPDX-License-Identifier: BSD-3-Clause
"""The regressions to measure, and their exact answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# The permitted error of a result, relative to the change that the exact answer makes: for ours, and for peers, which
# need only compute the same function. (Plain float32 sums of 2²⁴ terms, which some peers make, are 0.3 % off.)
TOLERANCE = {
    torch.float64: (1e-9, 1e-7),
    torch.float32: (2e-5, 1e-2),
    torch.bfloat16: (2e-2, 5e-2),
    torch.float16: (2e-3, 2e-2),
}

Answer = dict[str, Tensor]


class WrongAnswerError(AssertionError):
    """A variant does not compute the function it is measured for."""


@dataclass
class Expected:
    """An exact result, and the value before it."""

    value: Tensor
    start: Tensor | None = None


@dataclass
class Problem:
    """A linear regression under the mean squared error, with initial parameters and a learning rate."""

    x: Tensor  # [n, d]
    y: Tensor  # [n, k]
    weight: Tensor  # [k, d]
    bias: Tensor  # [k]
    lr: float

    @staticmethod
    def random(
        n: int, d: int, k: int = 1, dtype: torch.dtype = torch.float32, device: str = "cpu", noise: float = 0.5
    ) -> Problem:
        """Random rows, and targets that a linear layer explains up to `noise`.

        Gradient descent stays stable: 2/k · n/3 · (1 + √(d/n))² bounds the curvature for rows uniform on [−1, 1], and
        the learning rate keeps lr · curvature below 0.1.
        """
        torch.manual_seed(0)
        x = torch.empty(n, d, dtype=dtype, device=device).uniform_(-1, 1)
        truth = torch.empty(k, d, dtype=dtype, device=device).normal_()
        y = torch.empty(n, k, dtype=dtype, device=device).normal_(0, noise)
        y = y.addmm_(x, truth.t()) if k > 1 else y.add_(torch.mv(x, truth[0])[:, None])
        bound = 1 / d**0.5
        weight = torch.empty(k, d, dtype=dtype, device=device).uniform_(-bound, bound)
        bias = torch.empty(k, dtype=dtype, device=device).uniform_(-bound, bound)
        return Problem(x, y, weight, bias, 0.1 * k / (1 + (d / n) ** 0.5) ** 2)

    @property
    def n(self) -> int:
        return self.x.shape[0]

    @property
    def d(self) -> int:
        return self.x.shape[1]

    @property
    def k(self) -> int:
        return self.y.shape[1]

    @property
    def bytes(self) -> int:
        """The least that one pass must move: rows and targets read once, parameters read and written."""
        return self.x.nbytes + self.y.nbytes + 2 * (self.weight.nbytes + self.bias.nbytes)

    def wait(self) -> None:
        """Wait for the device that the rows are on."""
        if self.x.is_cuda:
            torch.cuda.synchronize()

    def gradients(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss and gradients in float64 from the formulas, in row blocks."""
        rows = max(1, 2**24 // max(self.d, self.k))
        loss, of_weight, of_bias = torch.zeros_like(bias[0]), torch.zeros_like(weight), torch.zeros_like(bias)
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            x = x.double()
            r = (x @ weight.t()).add_(bias).sub_(y)
            loss += r.square().sum()
            of_weight.addmm_(r.t(), x)
            of_bias += r.sum(0)
        scale = 2 / (self.n * self.k)
        return loss * (scale / 2), of_weight * scale, of_bias * scale

    def after_steps(self, steps: int = 1) -> dict[str, Expected]:
        """The loss of the last of `steps` steps, and the parameters after it."""
        weight, bias = self.weight.double(), self.bias.double()
        for _ in range(steps):
            loss, of_weight, of_bias = self.gradients(weight, bias)
            weight, bias = weight - self.lr * of_weight, bias - self.lr * of_bias
        return {
            "loss": Expected(loss),
            "weight": Expected(weight, self.weight.double()),
            "bias": Expected(bias, self.bias.double()),
        }

    def loss_and_gradients(self) -> dict[str, Expected]:
        """The results of forward and backward."""
        loss, of_weight, of_bias = self.gradients(self.weight.double(), self.bias.double())
        return {"loss": Expected(loss), "weight": Expected(of_weight), "bias": Expected(of_bias)}


def verify(name: str, answer: Answer, expected: dict[str, Expected], tolerance: float) -> None:
    """Raise unless every part of the answer is exact within `tolerance` and the rounding of its dtype."""
    for part, value in answer.items():
        exact, start = expected[part].value, expected[part].start
        change = exact if start is None else exact - start
        rounding = 2 * torch.finfo(value.dtype).eps * exact.norm()
        value = value.detach().to(exact.device, torch.float64)
        error = (value.reshape(exact.shape) - exact).norm()
        allowed = tolerance * change.norm() + rounding
        if not error <= allowed:
            raise WrongAnswerError(f"{name}: {part} is {error:.2g} from the exact answer, {allowed:.2g} is allowed")
