# SPDX-License-Identifier: BSD-3-Clause
"""Exact least squares in one pass over data of any size: update, merge, all-reduce, solve.

The pass is `moments` in `csrc/cpu` and `csrc/cuda`. What follows is linear algebra on D × D matrices, by torch.linalg
in float64.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import reference
from ._extension import REFERENCE, has_kernels

_EPS = torch.finfo(torch.float64).eps
_SINGLE = 30  # the condition number up to which float32 products leave four digits of the standard errors
_DOUBLE = 1e7  # and up to which double products do; beyond it, QR
_SPREAD = 1e4  # of the columns' lengths, up to which a ridge path has 11 digits from one factorisation
_REFINEMENTS = 5
_LEFT = 1e-9  # relative error of coefficients after them, at most
_GROUPS = 1 << 14  # that are solved together
_LANE_FEATURES = 128  # up to which a descent takes one problem per lane, with its moments in cache
_BLOCK = 1 << 22  # numbers of a block of rows that is factored, or computed in plain PyTorch


@dataclass(frozen=True, eq=False)
class LeastSquaresSolution:
    """The coefficients that minimise Σ v (y − X w − b)² + l2 ‖w‖², in float64.

    With groups, every field but `method` is a tensor with a leading dimension [groups].

    Attributes:
        weight: [K, D]; of all minimisers, the one with the smallest norm.
        bias: [K]; zeros without a bias.
        rank: of the columns of X, centred if there is a bias.
        condition: an estimate of the condition number of these columns, scaled to length 1; inf if the rank is below D.
        method: `"gram"` or `"qr"`.
        residual_sum_of_squares: [K], Σ v (y − X w − b)².
        r2: [K], 1 − residual_sum_of_squares / Σ v (y − mean)²; without a bias, the mean is 0.
        degrees_of_freedom: the rows with weight > 0, minus rank, minus 1 for a bias.
        weight_stderr, bias_stderr: [K, D], [K], standard errors; nan if l2 > 0, the rank is below D or there are no
            degrees of freedom. Scaling all weights does not change them.
    """

    weight: Tensor
    bias: Tensor
    rank: int | Tensor
    condition: float | Tensor
    method: str
    residual_sum_of_squares: Tensor
    r2: Tensor
    degrees_of_freedom: int | Tensor
    weight_stderr: Tensor
    bias_stderr: Tensor

    def predict(self, input: Tensor) -> Tensor:
        """The predictions [N, K] for `input` [N, D], in float64."""
        return input.double() @ self.weight.mT + self.bias.unsqueeze(-2)

    def copy_to_(self, linear: nn.Linear) -> nn.Linear:
        """Copy the coefficients into a linear layer, and return it.

        Raises:
            ValueError: the layer has another shape, or no bias although the solution's is not zero.
        """
        if linear.weight.shape != self.weight.shape:
            raise ValueError(
                f"copy_to_: linear.weight must have shape {[*self.weight.shape]}, got {[*linear.weight.shape]}"
            )
        if linear.bias is None and self.bias.any():
            raise ValueError("copy_to_: linear must have a bias, got none; solve with bias=False")
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if linear.bias is not None:
                linear.bias.copy_(self.bias)
        return linear


@dataclass(eq=False)
class _Solved:
    """Coefficients, and what their standard errors need; all with a leading [groups]."""

    moments: Tensor  # [D + K, D + K], about 0 without a bias
    scale: Tensor  # [D], the length of each column of X
    inverse: Tensor  # [D, D], of the moments of the columns scaled to length 1
    weight: Tensor  # [K, D]
    rank: Tensor
    condition: Tensor
    offset: Tensor | float = 0.0  # [K], of the predictions at the mean
    rss: Tensor | None = None  # [K]
    correct: Callable[[Tensor], Tensor] | None = None  # from a gradient [K, D] to the coefficients' error
    factor: Tensor | None = None  # [D, D], Cholesky's of the moments of the scaled columns


class LeastSquares:
    """Least squares over any number of rows, added in pieces of any size.

    It keeps the number of rows and, per group, (D + K + 1)² numbers: the centred second moments of [X | Y] in float64,
    or a triangular factor. They can be merged, saved and solved at any time.

    Args:
        in_features: D.
        out_features: K.
        bias: whether to fit a bias.
        groups: the number of groups, each with a regression of its own; None is a single regression.
        method: `"gram"`, the moments, good for condition numbers up to some 1e7; or `"qr"`, LAPACK's accuracy, several
            times slower, without groups.
        device: of the moments and of all rows.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> moments = LeastSquares(8)
        >>> for x, y in loader:
        ...     moments.update(x, y)
        >>> solution = moments.solve()
        >>> solution.weight, solution.weight_stderr
    """

    def __init__(
        self,
        in_features: int,
        out_features: int = 1,
        *,
        bias: bool = True,
        groups: int | None = None,
        method: str = "gram",
        device: torch.device | str | None = None,
    ) -> None:
        for name, value, least in (("in_features", in_features, 0), ("out_features", out_features, 1)):
            if value < least:
                raise ValueError(f"LeastSquares: {name} must be >= {least}, got {value}")
        if groups is not None and groups < 0:
            raise ValueError(f"LeastSquares: groups must be >= 0, got {groups}")
        if method not in ("gram", "qr"):
            raise ValueError(f"LeastSquares: method must be 'gram' or 'qr', got {method!r}")
        if method == "qr" and groups is not None:
            raise ValueError("LeastSquares: groups must be None with method='qr'")
        self.in_features, self.out_features, self.bias = in_features, out_features, bias
        self.groups, self.method = groups, method
        count, width = 1 if groups is None else groups, in_features + out_features
        to = {"dtype": torch.float64, "device": "cpu" if device is None else device}
        self._counts = torch.zeros(count, 2, **to)  # rows with weight > 0, and Σ weight
        self._mean = torch.zeros(count, width, **to)
        self._moments = torch.zeros(count, *(2 * [width] if method == "gram" else [0, 0]), **to)
        self._center = torch.zeros(width, **to)  # for QR: [1 | [X | Y] − center] = Q · factor
        self._factor = torch.zeros(0, 1 + width, **to)

    def update(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, group: Tensor | None = None
    ) -> LeastSquares:
        """Add rows.

        Args:
            input: X, [N, D]; float32, float64, bfloat16 or float16.
            target: Y, [N, K], or [N] if K is 1.
            weight: [N], >= 0; rows of weight 0 are ignored, whatever they hold.
            group: int64 [N], from 0 to groups − 1.

        Returns:
            This object.

        Raises:
            RuntimeError: a shape, dtype or device does not match; nothing is changed.
            ValueError: a weight is negative, or `group` is missing or not expected.
            IndexError: a group is out of range.
        """
        return self._update(input, target, weight, group, single=False)

    def _update(
        self, input: Tensor, target: Tensor, weight: Tensor | None, group: Tensor | None = None, *, single: bool
    ) -> LeastSquares:
        input, target, weight = self._rows("LeastSquares.update", input, target, weight)
        if (group is None) != (self.groups is None):
            expected, got = ("None", "a tensor") if self.groups is None else ("an int64 tensor [N]", "None")
            raise ValueError(f"LeastSquares.update: group must be {expected} with groups={self.groups}, got {got}")
        if group is not None:
            if group.shape != input.shape[:1] or group.dtype.is_floating_point:
                raise RuntimeError(
                    f"LeastSquares.update: group must be integers [{len(input)}], got {group.dtype} {[*group.shape]}"
                )
            if group.device != input.device:
                raise RuntimeError(f"LeastSquares.update: group must be on {input.device}, got {group.device}")
            group = group.to(torch.int64).contiguous()
        if self.method == "qr":
            self._update_factor(input, target, weight)
            return self
        own = not REFERENCE and has_kernels(input.device.type)
        moments_ = torch.ops.linreg_ext.moments_ if own else reference.moments_
        in_place = own and (input.stride(1) == 1 or self.in_features < 2)
        numbers = self.in_features if own else self._moments[0].numel()  # of a row, or of its products
        for rows in _blocks(len(input), None if in_place else max(1, _BLOCK // max(1, numbers))):
            part = (t if t is None else t[rows] for t in (input, target, weight, group))
            moments_(*part, self._counts, self._mean, self._moments, single)
        return self

    def merge(self, other: LeastSquares) -> LeastSquares:
        """Add the rows of another object of the same kind; the order of merges affects only rounding.

        Returns:
            This object.

        Raises:
            ValueError: the other object differs in features, targets, bias, groups or method.
        """
        for name in ("in_features", "out_features", "bias", "groups", "method"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(f"LeastSquares.merge: {name} must be {ours}, got {theirs}")
        if self.method == "qr":
            self._add_factor(other._factor, other._center)
            self._counts += other._counts
        else:
            theirs = (other._counts, other._mean, other._moments)
            reference.merge_moments_(
                self._counts, self._mean, self._moments, *(t.to(self._counts.device) for t in theirs)
            )
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> LeastSquares:
        """Add up the rows of all processes, each of which has added its own, if any.

        The processes exchange their counts and means, and add up their moments; for QR, they exchange their factors.

        Args:
            group: the process group; None is the default one. All its processes must call this, on objects of one kind.

        Returns:
            This object, equal in all processes.
        """
        if self.method == "qr":
            own = {name: t.cpu() if isinstance(t, Tensor) else t for name, t in self.state_dict().items()}
            states: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(states, own, group=group)
            self.load_state_dict(states[0])
            other = copy.copy(self)
            for state in states[1:]:
                other.load_state_dict(state)
                self.merge(other)
            return self
        own = torch.cat([self._counts, self._mean], 1)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group=group)
        dist.all_reduce(self._moments, group=group)
        self._counts, self._mean = torch.zeros_like(self._counts), torch.zeros_like(self._mean)
        between = torch.zeros_like(self._moments)
        for part in parts:
            reference.merge_moments_(self._counts, self._mean, between, part[:, :2], part[:, 2:], between.new_zeros(()))
        self._moments += between
        return self

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` restores: tensors, and the arguments that the object was made with."""
        state = {name: getattr(self, f"_{name}").clone() for name in ("counts", "mean", "moments", "center", "factor")}
        return {**state, **{name: getattr(self, name) for name in ("bias", "groups", "method")}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state.

        Raises:
            ValueError: the state is of an object with other arguments.
        """
        for name in ("bias", "groups", "method"):
            if state[name] != getattr(self, name):
                raise ValueError(f"load_state_dict: {name} must be {getattr(self, name)}, got {state[name]}")
        if state["mean"].shape != self._mean.shape:
            raise ValueError(
                f"load_state_dict: mean must have shape {[*self._mean.shape]}, got {[*state['mean'].shape]}"
            )
        for name in ("counts", "mean", "moments", "center", "factor"):
            setattr(self, f"_{name}", state[name].to(self._counts.device, torch.float64, copy=True))

    def solve(self, l2: float | Sequence[float] = 0.0) -> Any:
        """The least-squares solution for the rows so far.

        Args:
            l2: the penalty on ‖w‖², added to the sum of squares; the bias is not penalised. A list gives a list of
                solutions, a ridge path.

        Returns:
            A `LeastSquaresSolution`, or a list of them.

        Raises:
            ValueError: there is no row with weight > 0, the rows hold nan or inf, or l2 is negative.
        """
        path = [*l2] if isinstance(l2, (list, tuple)) else [l2]
        for penalty in path:
            if not 0 <= penalty < math.inf:
                raise ValueError(f"LeastSquares.solve: l2 must be >= 0, got {penalty}")
        self._require_rows("solve")
        if not path:
            return []
        solutions = self._solve_blocks(path) if (self.groups or 0) > _GROUPS else self._solve_all(path)
        self._warn_of_empty_groups()
        return solutions if isinstance(l2, (list, tuple)) else solutions[0]

    def _solve_blocks(self, path: Sequence[float]) -> list[LeastSquaresSolution]:
        """The solutions of many groups, in blocks that stay in the cache, several at once: LAPACK takes one thread."""
        solutions, blocks = [], [*_blocks(self.groups, _GROUPS)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            each = pool.map if self._counts.device.type == "cpu" else map  # another thread has another CUDA stream
            parts = each(lambda groups: self._part(groups)._solve_all(path), blocks)
            for groups, found in zip(blocks, parts, strict=True):
                solutions = solutions or [_of_groups(part, self.groups) for part in found]
                for solution, part in zip(solutions, found, strict=True):
                    for name, values in _fields(part).items():
                        getattr(solution, name)[groups] = values
        return solutions

    def _part(self, groups: slice) -> LeastSquares:
        """Some of the groups."""
        part = copy.copy(self)
        part._counts, part._mean, part._moments = (t[groups] for t in (self._counts, self._mean, self._moments))
        return part

    def _solve_all(self, path: Sequence[float]) -> list[LeastSquaresSolution]:
        if self.method == "qr":
            solved = [self._solve_qr(penalty) for penalty in path]
        else:
            solved = self._solve_path(path) if len(path) > 1 else [self._solve_gram(path[0])]
        return [self._solution(each, penalty) for each, penalty in zip(solved, path, strict=True)]

    @property
    def rows(self) -> int:
        """The number of rows with weight > 0, of all groups."""
        return int(self._counts[:, 0].sum())

    @property
    def group_rows(self) -> Tensor:
        """[groups], int64: the number of rows with weight > 0."""
        return self._counts[:, 0].to(torch.int64)

    @property
    def weight_sum(self) -> Tensor:
        """Σ v, or [groups]; in float64."""
        return self._counts[:, 1] if self.groups is not None else self._counts[0, 1]

    @property
    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σ v, and the mean [D + K] and covariance [D + K, D + K] of [X | Y], divided by Σ v; per group, if any."""
        counts, mean, moments = self._as_moments()
        parts = mean, moments / counts[:, 1, None, None]
        return self.weight_sum, *(parts if self.groups is not None else (part[0] for part in parts))

    @property
    def variance(self) -> Tensor:
        """[D + K], or [groups, D + K]: the weighted variance of the columns of [X | Y], divided by Σ v, in float64."""
        return self.statistics[2].diagonal(dim1=-2, dim2=-1)

    def select(self, features: Sequence[int]) -> LeastSquares:
        """The same rows with some of the features, in the given order."""
        other = LeastSquares(
            len(features), self.out_features, bias=self.bias, groups=self.groups, method=self.method,
            device=self._counts.device,
        )  # fmt: skip
        kept = [*features, *range(self.in_features, self.in_features + self.out_features)]
        other._counts, other._mean, other._center = self._counts.clone(), self._mean[:, kept], self._center[kept]
        if self.method == "gram":
            other._moments = self._moments[:, kept][:, :, kept]
        else:
            other._factor = torch.linalg.qr(self._factor[:, [0, *(1 + i for i in kept)]], mode="r").R
        return other

    def loss_of(self, linear_weight: Tensor, linear_bias: Tensor | None = None, *, reduction: str = "mean") -> Tensor:
        """The mean squared error of a model over all rows so far, as `F.mse_loss` defines it, without the rows.

        It is accurate to a few units in the last place of mean(y²).

        Args:
            linear_weight: [K, D], or [groups, K, D].
            linear_bias: [K], or [groups, K].
            reduction: `"mean"`, or `"none"` for each target's own mean squared error.

        Returns:
            [] or, unreduced, [K], with groups [groups] or [groups, K]; in float64.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"LeastSquares.loss_of: reduction must be 'mean' or 'none', got {reduction!r}")
        self._require_rows("loss_of")
        bias = None if linear_bias is None else linear_bias.double()
        losses = reference.mean_squares(*self._as_moments(), linear_weight.double(), bias)[0]
        losses = losses.mean(-1) if reduction == "mean" else losses
        return losses if self.groups is not None else losses[0]

    def sgd_run_(
        self,
        linear_weight: Tensor,
        linear_bias: Tensor | None = None,
        *,
        steps: int,
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
    ) -> Tensor:
        """Take full-batch steps of the mean squared error, without the rows: the steps of `sgd_run_` on all of them.

        Parameters follow those of `sgd_run_` up to rounding. A thousand steps over any number of rows cost as much as a
        thousand D × D products.

        Args:
            linear_weight: [K, D]; [groups, K, D] with groups; or [P, K, D], a sweep over one set of rows. Updated in
                place.
            linear_bias: [K], [groups, K] or [P, K]; updated in place.
            steps: how many.
            lr: a float, a tensor [steps] or, for a sweep, [P].
            momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD.

        Returns:
            The losses before each step: [steps], [groups, steps] or [P, steps], in float64.

        Raises:
            ValueError: an argument is out of range, or there are no rows.
            RuntimeError: a shape does not match.
        """
        self._require_rows("sgd_run_")
        k, d, many = self.out_features, self.in_features, linear_weight.dim() == 3
        expected = [[k, d]] if self.groups is None else [[self.groups, k, d]]
        if [*linear_weight.shape[-2:]] != [k, d] or (self.groups is not None and [*linear_weight.shape] != expected[0]):
            raise RuntimeError(
                f"LeastSquares.sgd_run_: linear_weight must have shape {expected[0]}, got {[*linear_weight.shape]}"
            )
        if steps < 0:
            raise ValueError(f"LeastSquares.sgd_run_: steps must be >= 0, got {steps}")
        if linear_bias is not None and linear_bias.shape != linear_weight.shape[:-1]:
            raise RuntimeError(
                f"LeastSquares.sgd_run_: linear_bias must have shape {[*linear_weight.shape[:-1]]}, got "
                f"{[*linear_bias.shape]}"
            )
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("LeastSquares.sgd_run_: nesterov must have a momentum > 0 and no dampening")
        count = len(linear_weight) if many else 1
        rates = torch.as_tensor(lr, dtype=torch.float64, device=self._counts.device).reshape(-1)
        by_problem = many and self.groups is None and len(rates) == count
        if len(rates) not in (1, steps) and not by_problem:
            raise RuntimeError(f"LeastSquares.sgd_run_: lr must be a float or have shape [{steps}], got [{len(rates)}]")
        rates = (rates[:, None] if by_problem else rates).expand(count, steps)
        weight = linear_weight.detach().to(rates).reshape(count, k, d).contiguous()
        bias = None if linear_bias is None else linear_bias.detach().to(rates).reshape(count, k).contiguous()
        own = not REFERENCE and rates.device.type == "cpu" and d <= _LANE_FEATURES
        descend_ = torch.ops.linreg_ext.descend_ if own else reference.descend_
        losses = descend_(
            *self._as_moments(), weight, bias, rates, momentum, dampening, weight_decay, nesterov, maximize
        )
        with torch.no_grad():
            for parameter, value in ((linear_weight, weight), (linear_bias, bias)):
                if parameter is not None:
                    parameter.copy_(value.reshape(parameter.shape))
        return losses if many else losses[0]

    # ---- Rows --------------------------------------------------------------------------------------------------------

    def _rows(
        self, op: str, input: Tensor, target: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check rows; returns them detached, the target as [N, K]."""
        if input.dim() != 2 or input.shape[1] != self.in_features:
            raise RuntimeError(f"{op}: input must have shape [rows, {self.in_features}], got {[*input.shape]}")
        if target.dim() == 1 and self.out_features == 1:
            target = target.unsqueeze(1)
        if target.shape != (len(input), self.out_features):
            raise RuntimeError(f"{op}: target must have shape {[len(input), self.out_features]}, got {[*target.shape]}")
        if weight is not None:
            if weight.shape == (len(input), 1):
                weight = weight[:, 0]
            if weight.shape != (len(input),):
                raise RuntimeError(
                    f"{op}: weight must have shape [{len(input)}], one number per row, got {[*weight.shape]}"
                )
        for name, tensor in (("input", input), ("target", target), ("weight", weight)):
            if tensor is None:
                continue
            if tensor.device != self._counts.device:
                raise RuntimeError(f"{op}: {name} must be on {self._counts.device}, got {tensor.device}")
            if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                raise RuntimeError(f"{op}: {name} must have a floating-point dtype, got {tensor.dtype}")
        return input.detach(), target.detach(), None if weight is None else weight.detach()

    def _require_rows(self, op: str) -> None:
        if self.groups is None and self._counts[0, 1] == 0:
            raise ValueError(f"LeastSquares.{op}: expected rows with weight > 0, got none")

    def _eye(self, size: int) -> Tensor:
        return torch.eye(size, dtype=torch.float64, device=self._counts.device)

    # ---- Moments -----------------------------------------------------------------------------------------------------

    def _as_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.method == "gram":
            return self._counts, self._mean, self._moments
        factor, rest = self._factor, self._factor[1:, 1:]
        return self._counts, (self._center + factor[0, 1:] / factor[0, 0])[None], (rest.T @ rest)[None]

    def _solve_gram(self, l2: float) -> _Solved:
        d, (counts, mean, moments) = self.in_features, self._as_moments()
        if not moments.isfinite().all():
            raise ValueError("LeastSquares.solve: the rows must be finite, got nan or inf in at least one")
        if not self.bias:
            moments = moments + counts[:, 1, None, None] * mean[:, :, None] * mean[:, None]
        squares = moments.diagonal(dim1=1, dim2=2)[:, :d]
        constant = squares <= ((8 * _EPS * mean[:, :d]).square() * counts[:, 1:] if self.bias else 0)
        scale = torch.where(constant, 1.0, squares.sqrt())
        gram = moments[:, :d, :d] / (scale[:, :, None] * scale[:, None])
        gram = torch.where(constant[:, :, None] | constant[:, None], 0.0, gram)
        gram.diagonal(dim1=1, dim2=2).add_(l2 / scale.square())
        right = torch.where(constant[:, :, None], 0.0, moments[:, :d, d:]) / scale[:, :, None]
        factor, failed = torch.linalg.cholesky_ex(gram)
        factor = torch.where((failed > 0)[:, None, None], self._eye(d), factor)
        inverse = torch.cholesky_inverse(factor)
        norm = _norm(gram) * _norm(inverse)
        weight = torch.cholesky_solve(right, factor) / scale[:, :, None]
        rank = torch.full_like(failed, d, dtype=torch.int64)
        deficient = ((failed > 0) | (norm > 1 / (4 * max(d, 1) * _EPS))).nonzero()[:, 0]
        if len(deficient):
            values, vectors = torch.linalg.eigh(gram[deficient])
            ranks = (values > 8 * d * _EPS * values[:, -1:].clamp(min=1e-300)).sum(1)
            rank[deficient] = ranks
            for r in ranks.unique().tolist():  # the last r values, which ascend
                some, g = ranks == r, deficient[ranks == r]
                basis = vectors[some][:, :, d - r :]
                weight[g] = _smallest(basis, scale[g], basis.mT @ right[g] / values[some][:, d - r :, None])

        def correct(gradient: Tensor) -> Tensor:
            return (torch.cholesky_solve(gradient.mT / scale[:, :, None], factor) / scale[:, :, None]).mT

        condition = torch.where(rank < d, math.inf, norm.sqrt())
        return _Solved(moments, scale, inverse, weight.mT, rank, condition, correct=correct, factor=factor)

    def _warn_of_empty_groups(self) -> None:
        empty = self._counts[:, 1] == 0
        if empty.any():
            warnings.warn(
                f"linreg_ext: LeastSquares.solve: {int(empty.sum())} of {len(empty)} groups have no rows (the first is "
                f"{int(empty.nonzero()[0])}); their coefficients are nan",
                UserWarning,
                stacklevel=3,
            )

    def _solve_path(self, path: Sequence[float]) -> list[_Solved]:
        """Solutions for several penalties, from one factorisation unless it would lose digits.

        It would if the columns are nearly dependent or their lengths far apart.
        """
        first = self._solve_gram(0.0)
        spread = first.scale.amax(1) / first.scale.amin(1) if self.in_features else first.scale.new_ones(())
        if not ((first.condition <= _DOUBLE).all() and (spread <= _SPREAD).all()):
            return [self._solve_gram(l2) for l2 in path]
        # The scaled moments are L Lᵀ, and the penalty is l2 S⁻² with S = diag(scale). With L⁻¹ S⁻¹ = Q Σ Vᵀ and
        # B = L⁻ᵀ Q, the inverse of their sum is B (1 + l2 Σ²)⁻¹ Bᵀ.
        factor, scale = first.factor, first.scale.unsqueeze(-1)
        penalty = torch.linalg.solve_triangular(factor, torch.diag_embed(1 / first.scale), upper=False)
        vectors, values, _ = torch.linalg.svd(penalty)
        basis = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
        right = vectors.mT @ (factor.mT @ (scale * first.weight.mT))
        solved = []
        for l2 in path:
            shrunk = basis / (1 + l2 * values.square().unsqueeze(-2))
            inverse, gram = shrunk @ basis.mT, factor @ factor.mT
            gram.diagonal(dim1=1, dim2=2).add_(l2 / first.scale.square())
            condition = _norm(gram).mul(_norm(inverse)).sqrt()
            weight = (shrunk @ right / scale).mT
            solved.append(replace(first, inverse=inverse, weight=weight, condition=condition))
        return solved

    def _solution(self, solved: _Solved, l2: float) -> LeastSquaresSolution:
        """Everything that follows from the coefficients."""
        d, (counts, mean, _) = self.in_features, self._as_moments()
        weight, inverse, scale, weight_sum = solved.weight, solved.inverse, solved.scale, counts[:, 1]
        bias = torch.zeros_like(mean[:, d:])
        if self.bias:
            bias = mean[:, d:] + solved.offset - (weight @ mean[:, :d, None])[:, :, 0]
        rss = solved.rss
        if rss is None:
            both = torch.cat([weight, -self._eye(self.out_features).expand(len(weight), -1, -1)], 2)
            rss = ((both @ solved.moments) * both).sum(2).clamp(min=0)
        freedom = counts[:, 0].to(torch.int64) - solved.rank - int(self.bias)
        valid = (solved.rank == d) & (freedom > 0) & (l2 == 0)
        variance = torch.where(valid[:, None], rss / freedom.clamp(min=1)[:, None], math.nan)
        spread = inverse.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt() / scale
        at_zero = mean[:, :d] / scale  # in the inverse's units
        level = 1 / weight_sum + (at_zero * (inverse @ at_zero[:, :, None])[:, :, 0]).sum(1)
        empty = weight_sum == 0
        if empty.any():
            weight, bias = (torch.where(empty.view(-1, *[1] * (t.dim() - 1)), math.nan, t) for t in (weight, bias))
        fields = {
            "weight": weight,
            "bias": bias,
            "rank": solved.rank,
            "condition": solved.condition,
            "residual_sum_of_squares": rss,
            "r2": 1 - rss / solved.moments[:, d:, d:].diagonal(dim1=1, dim2=2),
            "degrees_of_freedom": freedom.clamp(min=0),
            "weight_stderr": variance.sqrt()[:, :, None] * spread[:, None],
            "bias_stderr": (variance * level[:, None]).sqrt() if self.bias else torch.zeros_like(bias),
        }
        if self.groups is None:
            fields = {name: value[0] if value.dim() > 1 else value[0].item() for name, value in fields.items()}
        return LeastSquaresSolution(method=self.method, **fields)

    # ---- QR ----------------------------------------------------------------------------------------------------------

    def _update_factor(self, input: Tensor, target: Tensor, weight: Tensor | None) -> None:
        if weight is not None and (weight < 0).any():
            raise ValueError("LeastSquares.update: weight must be >= 0, got a negative number")
        for rows in _blocks(len(input), max(256, _BLOCK // self._factor.shape[1])):
            z = torch.cat([input[rows], target[rows]], 1).double()
            v = z.new_ones(len(z)) if weight is None else weight[rows].double()
            z, v = z[v > 0], v[v > 0]
            if not len(z):
                continue
            if not len(self._factor) and self.bias:
                self._center = z.mean(0)
            block = torch.cat([torch.ones_like(z[:, :1]), z - self._center], 1) * v.sqrt()[:, None]
            self._add_factor(block, self._center)
            self._counts += torch.stack([torch.ones_like(v), v], 1).sum(0)

    def _add_factor(self, block: Tensor, center: Tensor) -> None:
        if not len(self._factor):
            self._center = center.clone()
        block = block.to(self._factor.device, copy=True)
        block[:, 1:] += block[:, :1] * (center - self._center).to(block.device)
        if not block.isfinite().all():
            raise ValueError("LeastSquares.update: the rows must be finite, got nan or inf in at least one")
        self._factor = torch.linalg.qr(torch.cat([self._factor, block]), mode="r").R

    def _solve_qr(self, l2: float) -> _Solved:
        d = self.in_features
        factor = self._factor[1:, 1:] if self.bias else torch.linalg.qr(self._factor[:, 1:], mode="r").R
        counts, mean, moments = self._as_moments()
        if not self.bias:
            moments = (factor.T @ factor)[None]
        left, right, below = factor[:d, :d], factor[:d, d:], factor[d:, d:]
        if l2 > 0:
            both = torch.cat([factor[:d], factor.new_zeros(d, factor.shape[1])])
            both[-d:, :d].diagonal().fill_(math.sqrt(l2))
            both = torch.linalg.qr(both, mode="r").R
            solved_left, solved_right = both[:d, :d], both[:d, d:]
        else:
            solved_left, solved_right = left, right
        length = torch.linalg.vector_norm(solved_left, dim=0)
        noise = 8 * _EPS * (mean[0, :d] * counts[0, 1].sqrt()).abs() if self.bias else torch.zeros_like(length)
        constant = length <= noise
        scale = torch.where(constant, 1.0, length)
        scaled = torch.where(constant, 0.0, solved_left / scale)
        u, values, vh = torch.linalg.svd(scaled, full_matrices=False)
        largest = values[0].item() if len(values) else 1.0
        kept = values > d * _EPS * largest
        rank, basis = int(kept.sum()), vh[kept].T
        if rank == d:
            weight = torch.linalg.solve_triangular(solved_left, solved_right, upper=True)
        else:
            weight = _smallest(basis, scale, (u[:, kept].T @ solved_right) / values[kept, None])
        rss = (right - left @ weight).square().sum(0) + below.square().sum(0)
        condition = largest / values[kept].min().item() if 0 < rank == d else (1.0 if d == 0 else math.inf)
        inverse = (basis / values[kept]) @ (basis / values[kept]).T
        rank, condition = counts.new_tensor([rank], dtype=torch.int64), counts.new_tensor([condition])
        return _Solved(moments, scale[None], inverse[None], weight.T[None], rank, condition, rss=rss[None])


def _norm(matrices: Tensor) -> Tensor:
    """The 1-norms of [groups, D, D]; 1 if D is 0."""
    return matrices.abs().sum(1).amax(1) if matrices.shape[1] else matrices.new_ones(len(matrices))


def _smallest(basis: Tensor, scale: Tensor, right: Tensor) -> Tensor:
    """The smallest w [D, K] with basisᵀ (scale · w) = right; the basis [D, rank] is orthonormal. Batches, too."""
    q, r = torch.linalg.qr(scale.unsqueeze(-1) * basis)
    return q @ torch.linalg.solve_triangular(r.mT, right, upper=False)


def _fields(solution: LeastSquaresSolution) -> dict[str, Tensor]:
    return {name: values for name, values in vars(solution).items() if name != "method"}


def _of_groups(solution: LeastSquaresSolution, groups: int) -> LeastSquaresSolution:
    """An unfilled solution of `groups` groups, with the fields of `solution`, which has some of them."""
    fields = {name: values.new_empty(groups, *values.shape[1:]) for name, values in _fields(solution).items()}
    return replace(solution, **fields)


def _blocks(rows: int, size: int | None) -> Iterator[slice]:
    yield from ([slice(None)] if size is None else (slice(i, i + size) for i in range(0, rows, size)))


def lstsq(
    input: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    bias: bool = True,
    l2: float = 0.0,
    method: str = "auto",
) -> LeastSquaresSolution:
    """The linear regression of `target` on `input`, exactly: w and b that minimise Σ v (y − X w − b)² + l2 ‖w‖².

    One pass computes second moments, which are solved; further passes refine the solution until it stops improving. If
    the columns are too close to linear dependence (a condition number beyond some 1e7), the rows are factored by QR.

    Args:
        input: X, [N, D]; float32, float64, bfloat16 or float16, of any row stride.
        target: Y, [N, K] or [N].
        weight: [N], >= 0.
        bias: whether to fit a bias, which is never penalised.
        l2: the penalty on ‖w‖².
        method: `"auto"`; `"gram"`, never QR; or `"qr"`, QR at once.

    Returns:
        The `LeastSquaresSolution`, in float64; its `method` says what was used.

    Raises:
        ValueError: there is no row with weight > 0, the rows hold nan or inf, or an argument is out of range.
        RuntimeError: a shape, dtype or device does not match.

    Equivalent to:
        `torch.linalg.lstsq(torch.cat([input, torch.ones(N, 1)], 1).double(), target.double()).solution`

    Example:
        >>> x = torch.randn(1000, 3)
        >>> solution = lstsq(x, x @ torch.tensor([1.0, 2.0, 3.0]) + 4)
        >>> solution.weight, solution.bias
    """
    if input.dim() != 2:
        raise RuntimeError(f"lstsq: input must have shape [rows, in_features], got {[*input.shape]}")
    return _fit("lstsq", [(input, target, weight)], bias, l2, method)


def lstsq_batches(
    batches: Iterable[Any], *, bias: bool = True, l2: float = 0.0, method: str = "auto"
) -> LeastSquaresSolution:
    """`lstsq` over batches, such as a DataLoader's, which need not fit into memory together.

    Args:
        batches: yields (x [N, D], y [N, K] or [N]) or (x, y, weight [N]), the same rows each time it is iterated.
        bias, l2, method: as in `lstsq`.

    Returns:
        The `LeastSquaresSolution` over all rows.

    Raises:
        TypeError: `batches` is an iterator, which can be iterated only once.
        ValueError, RuntimeError: as in `lstsq`.

    Example:
        >>> solution = lstsq_batches(DataLoader(dataset, batch_size=4096))
    """
    if iter(batches) is batches:
        raise TypeError(
            "lstsq_batches: batches must be iterable several times, got an iterator; pass a list or a DataLoader, or "
            "give each batch to LeastSquares.update"
        )
    return _fit("lstsq_batches", batches, bias, l2, method)


def _fit(op: str, batches: Iterable[Any], bias: bool, l2: float, method: str) -> LeastSquaresSolution:
    if method not in ("auto", "gram", "qr"):
        raise ValueError(f"{op}: method must be 'auto', 'gram' or 'qr', got {method!r}")
    if method != "qr":
        for most in (_SINGLE, _DOUBLE):
            solution = _refined(_gather(op, batches, bias, "gram", most), batches, l2, most)
            if solution is not None:
                return solution
        if method == "gram":
            return _gather(op, batches, bias, "gram", _DOUBLE).solve(l2)
    return _gather(op, batches, bias, "qr", _DOUBLE).solve(l2)


def _triples(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    for batch in batches:
        x, y, *rest = batch
        yield x, y, rest[0] if rest else None


def _gather(op: str, batches: Iterable[Any], bias: bool, method: str, most: float) -> LeastSquares:
    moments = None
    for x, y, weight in _triples(batches):
        if moments is None:
            width = y.shape[1] if y.dim() == 2 else 1
            moments = LeastSquares(x.shape[-1], width, bias=bias, method=method, device=x.device)
        moments._update(x, y, weight, single=most == _SINGLE and x.dtype != torch.float64)
    if moments is None:
        raise ValueError(f"{op}: expected batches, got none")
    return moments


def _refined(moments: LeastSquares, batches: Iterable[Any], l2: float, most: float) -> LeastSquaresSolution | None:
    """The solution, improved by the gradient of the sum of squares until the corrections stop halving.

    Args:
        most: the condition number beyond which this is not tried.

    Returns:
        None if it does not converge.
    """
    moments._require_rows("solve")
    d = moments.in_features
    if (l2 == 0 and moments._counts[0, 0] <= d) or not moments._moments.isfinite().all():  # float32 may overflow
        return None
    solved = moments._solve_gram(l2)
    if not solved.condition.item() <= most:
        return None
    weight, offset = solved.weight[0].clone(), torch.zeros_like(moments._mean[0, d:])
    center = moments._mean[0] if moments.bias else torch.zeros_like(moments._mean[0])
    last, rate, left = math.inf, 1.0, math.inf
    for _ in range(_REFINEMENTS):
        sums = torch.zeros(moments.out_features, d + 2, dtype=torch.float64, device=weight.device)
        for x, y, v in _triples(batches):
            x, y, v = moments._rows("lstsq", x, y, v)
            own = not REFERENCE and has_kernels(x.device.type)
            residual_moments = torch.ops.linreg_ext.residual_moments if own else reference.residual_moments
            sums += residual_moments(x, y, v, weight, offset, center)
        solved.rss = sums[None, :, -1]
        correction = solved.correct((sums[:, :d] + l2 * weight)[None])[0]
        lengths = (t.mul(solved.scale).norm().item() for t in (correction, weight))
        size = next(lengths) / max(next(lengths), 1e-300)
        left = size
        if not size <= last / 2:
            break
        rate, last = size / last if last < math.inf else 1.0, size
        weight -= correction
        if moments.bias:
            offset -= sums[:, d] / moments._counts[0, 1]
        left = size * rate
        if left <= _EPS:
            break
    if not left <= _LEFT:
        return None
    solved.weight, solved.offset = weight[None], offset[None]
    return moments._solution(solved, l2)
