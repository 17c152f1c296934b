# SPDX-License-Identifier: BSD-3-Clause
"""`LinearRegressor`: least squares and SGD behind scikit-learn's interface.

scikit-learn checks the arguments, `least_squares` solves and `sgd_run_` trains. SGD works in coordinates of its own, in
which the features are uncorrelated and features and targets have variance 1.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from sklearn import get_config
    from sklearn.base import BaseEstimator, RegressorMixin, _fit_context
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import assert_all_finite, check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(f"LinearRegressor needs scikit-learn >= 1.6: pip install scikit-learn ({error})") from error

from .functional import linear_loss, sgd_run_
from .least_squares import LeastSquares, lstsq
from .losses import LOSSES, threshold_of
from .standardize import steady_lr

_ILL_CONDITIONED = 1e3  # from here on, moments alone leave less than ten digits
_MOST_FEATURES = 500  # with more, decorrelating takes longer than training
_SMALLEST = 1e-10  # eigenvalue of the correlations, relative to the largest; smaller ones are rounding errors
_BLOCK = 8192  # rows decorrelated at a time
_FULL_BATCH = 4096  # rows up to which batch_size="auto" takes all
_STEPS = 32  # at least, between two looks at the loss
_WAY = 32  # of a block's steps at the first rate, in curvatures; from 16 to 128, fits ended within 0.6 % of the minimum
_SLOWER, _SLOWEST = 10.0, 1e-3  # the adaptive schedule's factor, and its last rate relative to the stable one
_SQUARED = ("mse", "huber")  # scaling residuals and threshold by s scales these losses by s², the others by s


class LinearRegressor(RegressorMixin, BaseEstimator):
    """Linear regression for scikit-learn: exact for the squared error, by SGD for every loss.

    It minimises, summed over rows and targets, with ℓ as in `linear_mse_loss` and its siblings and weights v of rows,

        Σ v ℓ(X wᵀ + b − y) + alpha ‖w‖²

    `alpha` and the thresholds are in the units of the data. The arguments from `standardize` to `random_state`,
    `verbose` and `warm_start` are for SGD.

    Args:
        loss: `"mse"`, `"l1"`, `"huber"`, `"smooth_l1"` or `"quantile"`.
        delta, beta, quantile: the threshold of the loss that has one of this name; None is its default.
        solver: `"exact"`, least squares; `"sgd"`; or `"auto"`, exact for `"mse"` and SGD for the others.
        alpha: the penalty on ‖w‖²; the intercept is not penalised.
        fit_intercept: whether to fit b.
        standardize: whether SGD decorrelates and scales the features (scales only, from 501 features on) and scales the
            targets. Coefficients are always in the units of the data.
        max_iter: epochs, at most.
        tol: the relative decrease of the loss below which it counts as no longer falling.
        learning_rate: of SGD, in its coordinates; `"auto"` derives a stable one from the features.
        schedule: `"adaptive"` divides the learning rate by ten whenever the loss no longer falls, and ends at a
            thousandth; `"constant"` ends the first time.
        batch_size: the rows of a step; None is all. `"auto"` is all of up to 4096 rows, else a thousandth, at least 64.
        momentum: as in `torch.optim.SGD`; `partial_fit` has none, since its coordinates change.
        early_stopping: whether the loss that must fall is that of held-out rows.
        validation_fraction: the share of these rows.
        n_iter_no_change: the epochs after which the loss must have fallen; None is the fewest with 32 steps.
        shuffle: whether every epoch takes the rows in a new order.
        random_state: an int, a RandomState or None, for the order and the rows set aside.
        device: where to compute; None is where X is.
        dtype: `"float32"` or `"float64"`, in which to compute; None is the dtype of the answers: float64, or float32 if
            X has 32 bits or fewer.
        verbose: whether SGD prints its loss.
        warm_start: whether SGD starts at the coefficients of the last fit.

    Attributes:
        coef_: [D], or [K, D] if y is [N, K].
        intercept_: a number, or [K].
        coef_stderr_: the standard errors of `coef_`; nan by SGD, and as in `LeastSquaresSolution`.
        loss_: the weighted mean of ℓ over the rows of the fit.
        n_iter_: epochs, of the target that took most; 1 if exact.
        converged_: whether SGD met `tol` within `max_iter`.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Equivalent to:
        `sklearn.linear_model.LinearRegression()`, and `Ridge(alpha)`, by default.

    Example:
        >>> model = LinearRegressor(loss="quantile", quantile=0.9).fit(X, y, sample_weight=v)
        >>> model.predict(X), model.coef_, model.intercept_
    """

    _parameter_constraints = {  # noqa: RUF012
        "loss": [StrOptions({*LOSSES})],
        "delta": [Interval(Real, 0, None, closed="neither"), None],
        "beta": [Interval(Real, 0, None, closed="left"), None],
        "quantile": [Interval(Real, 0, 1, closed="neither"), None],
        "solver": [StrOptions({"auto", "exact", "sgd"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "fit_intercept": ["boolean"],
        "standardize": ["boolean"],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "schedule": [StrOptions({"adaptive", "constant"})],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), None],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), None],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "device": [str, torch.device, None],
        "dtype": [StrOptions({"float32", "float64"}), None],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
    }

    def __init__(
        self,
        loss: str = "mse",
        *,
        delta: float | None = None,
        beta: float | None = None,
        quantile: float | None = None,
        solver: str = "auto",
        alpha: float = 0.0,
        fit_intercept: bool = True,
        standardize: bool = True,
        max_iter: int = 1000,
        tol: float = 1e-3,
        learning_rate: float | str = "auto",
        schedule: str = "adaptive",
        batch_size: int | str | None = "auto",
        momentum: float = 0.9,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int | None = None,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        dtype: str | None = None,
        verbose: int = 0,
        warm_start: bool = False,
    ) -> None:
        self.loss = loss
        self.delta = delta
        self.beta = beta
        self.quantile = quantile
        self.solver = solver
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.max_iter = max_iter
        self.tol = tol
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.batch_size = batch_size
        self.momentum = momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.shuffle = shuffle
        self.random_state = random_state
        self.device = device
        self.dtype = dtype
        self.verbose = verbose
        self.warm_start = warm_start

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        tags.array_api_support = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LinearRegressor:
        """Fit to all rows.

        Args:
            X: [N, D]: an array, a torch tensor, or a pandas, polars or Arrow frame, whose columns' names are kept.
            y: [N] or [N, K].
            sample_weight: v, [N], >= 0.

        Returns:
            This object. Its coefficients are torch tensors on X's device if X is a tensor, and NumPy arrays otherwise;
            under array API dispatch, arrays of X's namespace.

        Raises:
            ValueError: an argument, a shape or a weight is out of range, X or y holds nan or inf, or a loss other than
                `"mse"` is to be solved exactly.
            TypeError: X is sparse.

        Warns:
            ConvergenceWarning: SGD has not met `tol` within `max_iter`.
        """
        start = (self.coef_, self.intercept_) if self.warm_start and hasattr(self, "coef_") else None
        self._moments = None
        return self._fit(X, y, sample_weight, start)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> LinearRegressor:
        """Add rows to those of the last `fit` and all calls since: exactly, or by one epoch of SGD on them.

        The exact solver keeps the second moments of all rows, so that the answer does not depend on how they are split.
        SGD goes on from the current coefficients, at a learning rate that falls with the share of the new rows.

        Args, returns and raises: as in `fit`. It does not warn.
        """
        first = not hasattr(self, "coef_")
        if first:
            self._moments = None
        return self._fit(X, y, sample_weight, None if first else (self.coef_, self.intercept_), reset=first, part=True)

    def predict(self, X: Any) -> Any:
        """The predictions [N] or [N, K] for X [N, D], of the same kind as X.

        Raises:
            NotFittedError: the estimator is not fitted.
            ValueError: X does not have the features of the fit.
        """
        check_is_fitted(self)
        x, kind = self._tensors(X, reset=False)
        if get_config()["array_api_dispatch"] and type(kind) is not type(self.coef_):
            raise ValueError(
                "Inputs passed to LinearRegressor.predict() must use the same namespace as those passed to fit(), "
                f"that of {type(self.coef_).__name__}, got {type(kind).__name__}"
            )
        weight, bias = (_tensor(t).to(x) for t in (self.coef_, self.intercept_))
        return _like(x @ (weight.T if weight.dim() == 2 else weight) + bias, kind)

    def _is_exact(self) -> bool:
        if self.solver == "exact" and self.loss != "mse":
            raise ValueError(f"LinearRegressor: loss must be 'mse' with solver='exact', got '{self.loss}'")
        return self.loss == "mse" and self.solver != "sgd"

    def _tensors(self, X: Any, *y: Any, reset: bool, finite: bool = True) -> tuple[Any, ...]:
        """Validated X and y as tensors for the computation, and what the answers should look like.

        Args:
            finite: whether to look for nan and inf in X, which takes a quarter of an exact fit.
        """
        kind = X
        if not get_config()["array_api_dispatch"]:  # scikit-learn then takes NumPy arrays alone
            X, *y = (_on_host(t) for t in (X, *y))
        options = {"multi_output": True, "y_numeric": True} if y else {}
        arrays = validate_data(self, X, *y, reset=reset, ensure_all_finite=finite, **options)
        X, *y = arrays if y else (arrays,)
        kind, x = kind if isinstance(kind, Tensor) else X, _tensor(X)
        device = self.device or (kind.device if isinstance(kind, Tensor) else "cpu")
        single = x.is_floating_point() and x.dtype != torch.float64
        x = x.to(device, torch.float32 if single else torch.float64)
        return x, *(_tensor(t).to(x) for t in y), kind

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, start: Any, *, reset: bool = True, part: bool = False
    ) -> LinearRegressor:
        # Moments are finite only if the rows are; but not all rows count with weights.
        exact = self._is_exact()
        x, y, kind = self._tensors(X, y, reset=reset, finite=not exact or sample_weight is not None)
        v = None
        if sample_weight is not None:
            v = sample_weight if get_config()["array_api_dispatch"] else _on_host(sample_weight)
            v = _tensor(_check_sample_weight(v, kind)).to(x)
            if (v < 0).any() or not v.any():
                raise ValueError("LinearRegressor: sample_weight must be >= 0 and not all zero")
        shape, many = (*y.shape[1:], x.shape[1]), y.dim() == 2
        if start is not None and start[0].shape != shape:
            raise ValueError(f"LinearRegressor: coef_ must have shape {shape} to go on with it, got {start[0].shape}")
        fit = self._solve if exact else self._train
        y = y if many else y[:, None]
        computed = (t if t is None or self.dtype is None else t.to(getattr(torch, self.dtype)) for t in (x, y, v))
        found = fit(*computed, start, part)
        for name, value in zip(("coef_", "intercept_", "coef_stderr_"), found, strict=True):
            value = _like((value if many else value[0]).to(x.dtype), kind)
            setattr(self, name, value[()] if isinstance(value, np.ndarray) else value)
        return self

    def _solve(self, x: Tensor, y: Tensor, v: Tensor | None, start: Any, part: bool) -> tuple[Tensor, Tensor, Tensor]:
        moments = LeastSquares(x.shape[1], y.shape[1], bias=self.fit_intercept, device=x.device).update(x, y, v)
        if not moments.statistics[2].isfinite().all():
            assert_all_finite(_on_host(x), input_name="X", estimator_name="LinearRegressor")
        self._moments = moments if self._moments is None else self._moments.merge(moments)
        solution = self._moments.solve(self.alpha)
        if not part and not solution.condition < _ILL_CONDITIONED:
            solution = lstsq(x, y, weight=v, bias=self.fit_intercept, l2=self.alpha)
        self.n_iter_, self.converged_ = 1, True
        self.loss_ = (solution.residual_sum_of_squares.mean() / self._moments.weight_sum).item()
        return solution.weight, solution.bias, solution.weight_stderr

    def _train(self, x: Tensor, y: Tensor, v: Tensor | None, start: Any, part: bool) -> tuple[Tensor, Tensor, Tensor]:
        random = torch.Generator(device="cpu").manual_seed(int(check_random_state(self.random_state).randint(2**31)))
        moments = _moments_of(x, y, v)
        self._moments = moments if self._moments is None else self._moments.merge(moments)
        scale = _Scale.of(self._moments, x.shape[1], self)
        rows = _Rows(self, scale.features(x), scale.targets(y), v, random, part)
        u, c = x.new_zeros(y.shape[1], rows.z.shape[1]), x.new_zeros(y.shape[1])
        if start is not None:
            weight, bias = (_tensor(value).to(scale.mean) for value in start)
            u, c = (p.to(x) for p in scale.enter(weight.reshape(len(u), -1), bias.reshape(-1)))
        elif scale.start is not None and self.loss != "mse":
            u = scale.start.to(u)
        targets = [_Target(self, scale, rows, k, u[[k]], c[[k]]) for k in range(len(u))]
        for target in targets:
            target.take_part() if part else target.converge()
        self.n_iter_ = max(target.epochs for target in targets)
        self.loss_ = sum(target.loss() for target in targets) / len(targets)
        moving = [target.change for target in targets if not target.converged]
        self.converged_ = not moving
        if moving and not part:
            last = min(rows.block, self.n_iter_)
            warnings.warn(
                f"LinearRegressor: SGD did not converge in {self.n_iter_} epochs: the last {last} changed the "
                f"loss by {100 * max(moving, key=abs):+.2g} %; raise max_iter or tol, or lower learning_rate",
                ConvergenceWarning,
                stacklevel=5,  # that of whoever calls fit
            )
        weight, bias = scale.leave(*(torch.cat([getattr(t, name) for t in targets]).double() for name in ("u", "c")))
        return weight, bias, torch.full_like(weight, math.nan)


def _on_host(array: Any) -> Any:
    """A tensor as a NumPy array; anything else as it is."""
    if not isinstance(array, Tensor):
        return array
    array = array.detach().cpu()
    return (array.float() if array.dtype in (torch.float16, torch.bfloat16) else array).numpy()


def _tensor(array: Any) -> Tensor:
    """A real array, of any library, as a tensor: of its own memory if it is a NumPy array of floats."""
    if isinstance(array, Tensor):
        return array.detach()
    if not isinstance(array, (np.ndarray, np.generic)):
        from sklearn.utils._array_api import move_to  # under array API dispatch, which came with it

        array = move_to(array, xp=np, device="cpu")
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float64) or any(stride < 0 for stride in array.strides):
        array = array.astype(np.float32 if array.dtype == np.float32 else np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nobody writes to it
        return torch.from_numpy(array)


def _like(tensor: Tensor, kind: Any) -> Any:
    """The tensor as an array of the same library and on the same device as `kind`."""
    if isinstance(kind, Tensor):
        return tensor.to(kind.device)
    array = tensor.cpu().numpy()
    return array if isinstance(kind, np.ndarray) else kind.__array_namespace__().asarray(array, device=kind.device)


def _moments_of(x: Tensor, y: Tensor, v: Tensor | None) -> LeastSquares:
    """The moments of [X | Y], or, for many features, those of each column alone."""
    (n, d), k = x.shape, y.shape[1]
    if d <= _MOST_FEATURES:
        return LeastSquares(d, k, device=x.device).update(x, y, v)
    columns = LeastSquares(0, groups=d + k, device=x.device)
    for i, column in enumerate((*x.T, *y.T)):
        columns.update(x.new_empty(n, 0), column, v, group=torch.full((n,), i, device=x.device))
    return columns


@dataclass
class _Scale:
    """The coordinates of SGD: z = (x − mean) · basis, with variance 1 and uncorrelated, and t = (y − level) / unit."""

    mean: Tensor  # [D]
    basis: Tensor  # [D, R] with orthogonal columns if there is a penalty; [D] if each column is scaled on its own
    inverse: Tensor  # [R, D] or [D]
    level: Tensor  # [K]
    unit: Tensor  # [K]
    total: float  # Σ v
    start: Tensor | None = None  # [K, R], least squares in these coordinates, for which they need all moments

    @classmethod
    def of(cls, moments: LeastSquares, d: int, model: LinearRegressor) -> _Scale:
        total, mean, covariance = moments.statistics
        if moments.groups is not None:
            total, mean, covariance = total[0], mean[:, 0], covariance[:, 0, 0]
        variance = covariance if moments.groups is not None else covariance.diagonal()
        noise = (8 * torch.finfo(torch.float64).eps * mean).square()  # of the mean of a constant column
        if not model.fit_intercept:
            covariance = covariance + (mean.square() if moments.groups is not None else torch.outer(mean, mean))
            variance, noise, mean = variance + mean.square(), 0 * noise, 0 * mean
        constant = variance <= noise
        length = torch.where(constant, 1.0, variance.sqrt())
        if not model.standardize:
            one, zero = torch.ones_like(mean), torch.zeros_like(mean)
            return cls(zero[:d], one[:d], one[:d], zero[d:], one[d:], total.item())
        unit = length[d:]
        penalty = model.alpha / total * (1 if model.loss in _SQUARED else unit.mean())
        length, constant = (length[:d].square() + penalty).sqrt(), constant[:d]
        if moments.groups is not None:
            return cls(mean[:d], 1 / length, length, mean[d:], unit, total.item())
        correlation = (covariance[:d, :d] + penalty * torch.eye(d, dtype=mean.dtype, device=mean.device)) / torch.outer(
            length, length
        )
        correlation[constant], correlation[:, constant] = 0.0, 0.0
        values, vectors = torch.linalg.eigh(correlation)
        kept = values > _SMALLEST * values[-1:]
        roots, vectors = values[kept].sqrt(), vectors[:, kept]
        basis, inverse = vectors / roots / length[:, None], (vectors * roots).T * length
        if model.alpha > 0:  # turned, so that ‖w‖² is a sum over coordinates
            turn = torch.linalg.svd(basis, full_matrices=False).Vh
            basis, inverse = basis @ turn.T, turn @ inverse
        start = covariance[d:, :d] @ basis / unit[:, None]
        return cls(mean[:d], basis, inverse, mean[d:], unit, total.item(), start)

    def features(self, x: Tensor) -> Tensor:
        """z [N, R]."""
        mean, basis = self.mean.to(x), self.basis.to(x)
        if basis.dim() == 1:
            return (x - mean).mul_(basis)
        z = x.new_empty(len(x), basis.shape[1])
        for rows, out in zip(x.split(_BLOCK), z.split(_BLOCK), strict=True):
            torch.mm(rows - mean, basis, out=out)
        return z

    def targets(self, y: Tensor) -> Tensor:
        """t [N, K]."""
        return (y - self.level.to(y)) / self.unit.to(y)

    def lengths(self) -> Tensor:
        """‖w‖² is unit² Σ lengths · u²; [R]."""
        return self.basis.square() if self.basis.dim() == 1 else self.basis.square().sum(0)

    def enter(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [K, D], [K] in these coordinates: [K, R], [K]."""
        u = weight * self.inverse if self.inverse.dim() == 1 else weight @ self.inverse.T
        return u / self.unit[:, None], (bias + weight @ self.mean - self.level) / self.unit

    def leave(self, u: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients [K, R], [K] in the units of the data."""
        weight = (u * self.basis if self.basis.dim() == 1 else u @ self.basis.T) * self.unit[:, None]
        return weight, c * self.unit + self.level - weight @ self.mean


class _Rows:
    """The rows of a fit in the coordinates of SGD, and how they are taken."""

    def __init__(
        self, model: LinearRegressor, z: Tensor, t: Tensor, v: Tensor | None, random: torch.Generator, part: bool
    ) -> None:
        self.z, self.t, self.v, self.held_out = z, t, v, None
        self.random, self.shuffle = random, model.shuffle
        if model.early_stopping and not part:
            order = torch.randperm(len(z), generator=random, device="cpu").to(z.device)
            parts = order.tensor_split([math.ceil(model.validation_fraction * len(z))])
            self.held_out, rows = ([z[i], t[i], None if v is None else v[i]] for i in parts)
            for name, (its_z, _, its_v) in (("training", rows), ("validation", self.held_out)):
                if not len(its_z) or (its_v is not None and not its_v.any()):
                    raise ValueError(
                        f"LinearRegressor: early_stopping needs {name} rows of weight > 0, got n_samples={len(z)}"
                    )
            self.z, self.t, self.v = rows
        n, size = len(self.z), model.batch_size
        if size == "auto":
            size = None if n <= _FULL_BATCH and not part else max(64, n >> 10)
        self.batch = n if size is None else min(size, n)
        steps = -(-n // self.batch)
        self.block = 1 if part else model.n_iter_no_change or -(-_STEPS // steps)
        share = (torch.ones_like(self.t[:, 0]) if self.v is None else self.v).double()
        self.weight = share.sum().item()
        self.share = share / self.weight
        self.momentum = 0.0 if part else model.momentum
        self.rate = self.stable = model.learning_rate
        if self.rate == "auto":
            self.stable = steady_lr(self.z, self.share, self.batch, 1, self.momentum, 0.0)
            self.rate = min(self.stable, _WAY * (1 - self.momentum) / (self.block * steps))

    def order(self) -> Tensor | None:
        """The rows of an epoch, each as often as its weight asks for; None for all, as they are."""
        n = len(self.z)
        if self.batch == n:
            return None
        rows = torch.arange(n, device="cpu")
        if self.v is not None:  # at evenly spaced points of Σ share
            points = (rows + torch.rand((), generator=self.random, device="cpu")).to(self.share) / n
            rows = torch.searchsorted(self.share.cumsum(0), points, right=True).clamp(max=n - 1).cpu()
        return rows[torch.randperm(n, generator=self.random, device="cpu")] if self.shuffle else rows


class _Target:
    """The training of one target, which has its own threshold and pace."""

    def __init__(self, model: LinearRegressor, scale: _Scale, rows: _Rows, k: int, u: Tensor, c: Tensor) -> None:
        self.model, self.rows, self.t, self.u, self.c = model, rows, rows.t[:, [k]], u, c  # [N, 1], [1, R], [1]
        self.held_out = rows.held_out and (rows.held_out[0], rows.held_out[1][:, [k]], rows.held_out[2])
        unit = scale.unit[k].item()
        self.unit = unit**2 if model.loss in _SQUARED else unit  # of the loss
        given = {"delta": model.delta, "beta": model.beta, "quantile": model.quantile}
        threshold = threshold_of("LinearRegressor", model.loss, **given)
        self.threshold = threshold / unit if model.loss in ("huber", "smooth_l1") else threshold
        self.penalty = (model.alpha / scale.total * unit**2 / self.unit * scale.lengths()).to(u)  # of u², per row
        self.in_proportion = math.sqrt(rows.weight / scale.total)
        self.buffers: list[Tensor | None] = [None, None]
        self.epochs, self.change, self.converged = 0, 0.0, False

    def loss(self) -> float:
        """The mean loss of the training rows, in the units of the data."""
        return self._mean(self.rows.z, self.t, self.rows.v) * self.unit

    def take_part(self) -> None:
        """One epoch on some rows of a stream, whose noise has to average out."""
        adaptive = self.model.schedule == "adaptive"
        self._train(1, self.rows.rate * (self.in_proportion if adaptive else 1))

    def converge(self) -> None:
        """Train until the loss no longer falls."""
        model, rate = self.model, self.rows.rate
        first = best = self._look()
        kept = self.u.clone(), self.c.clone()
        while not self.converged and self.epochs < model.max_iter:
            self._train(min(self.rows.block, model.max_iter - self.epochs), rate)
            loss = self._look()
            if model.verbose:
                print(f"Epoch [{self.epochs}/{model.max_iter}], Loss: {loss * self.unit:.6g}")
            self.change = loss / best - 1 if best > 0 else 0.0
            if loss < best:
                best, kept = loss, (self.u.clone(), self.c.clone())
            if -self.change > model.tol:
                continue
            self._restore(kept)
            if model.schedule == "constant":
                self.converged = loss <= 10 * max(first, 1e-6)  # nor does it diverge
                return
            self.converged = rate <= 1.01 * _SLOWEST * self.rows.stable
            rate /= _SLOWER
        self._restore(kept)

    def _restore(self, kept: tuple[Tensor, Tensor]) -> None:
        self.u.copy_(kept[0])
        self.c.copy_(kept[1])
        self.buffers = [None, None]

    def _mean(self, z: Tensor, t: Tensor, v: Tensor | None) -> float:
        return linear_loss(self.model.loss, self.threshold, z, self.u, t, self.c, v, "mean").item()

    def _look(self) -> float:
        """What has to fall."""
        if self.held_out:
            return self._mean(*self.held_out)
        return self._mean(self.rows.z, self.t, self.rows.v) + (self.penalty * self.u.square()).sum().item()

    def _pace(self) -> float:
        """How much longer the steps may be than those of the squared error, whose slopes are 2 |r|."""
        if self.model.loss == "mse":
            return 1.0
        r = (F.linear(self.rows.z, self.u, self.c) - self.t)[:, 0]
        slopes = LOSSES[self.model.loss].dloss(r, self.threshold).abs()
        residuals, slopes = ((self.rows.share @ t.double()).item() for t in (r.abs(), slopes))
        return 2 * residuals / slopes if slopes > 0 else 0.0

    def _train(self, epochs: int, rate: float) -> None:
        model, rows, lr = self.model, self.rows, rate * self._pace()
        options = {
            "linear_bias": self.c if model.fit_intercept else None, "batch_size": rows.batch, "loss": model.loss,
            **LOSSES[model.loss].options(self.threshold), "lr": lr, "momentum": rows.momentum,
            "momentum_buffers": self.buffers,
        }  # fmt: skip
        orders = [rows.order() for _ in range(epochs)]
        whole = orders[0] is None
        weight = rows.v if whole else None
        self.epochs += epochs
        if not model.alpha:
            order = None if whole else torch.stack(orders) if epochs > 1 else orders[0]
            sgd_run_(rows.z, self.u, self.t, weight=weight, order=order, epochs=epochs if whole else None, **options)
            return
        shrink = 1 + 2 * lr / (1 - rows.momentum) * self.penalty
        for order in orders:
            for part in [None] if whole else order.split(rows.batch):
                sgd_run_(rows.z, self.u, self.t, weight=weight, order=part, **options)
                self.u.div_(shrink)  # the penalty's implicit step: stable, however large
