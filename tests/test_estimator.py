# SPDX-License-Identifier: BSD-3-Clause
"""`LinearRegressor`: scikit-learn's checks, its own estimators' answers, and every kind of input."""

import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import cases

import linreg_ext

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # SciPy reads it when it is first imported; dispatch needs it

pytest.importorskip("sklearn", minversion="1.6")

import sklearn
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import HuberRegressor, LinearRegression, QuantileRegressor, Ridge, SGDRegressor
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import check_dataframe_column_names_consistency, check_estimator

from linreg_ext.estimator import LinearRegressor
from linreg_ext.losses import LOSSES

# ---- scikit-learn's checks -------------------------------------------------------------------------------------------

SETTINGS = [
    *({"solver": "exact", "alpha": alpha} for alpha in (0.0, 1.0)),
    *(
        {"solver": "sgd", "loss": loss, "batch_size": size, "alpha": alpha}
        for loss in LOSSES
        for size in ("auto", None, 8)
        for alpha in (0.0, 0.1)
    ),
    {"solver": "sgd", "standardize": False},
    {"loss": "huber", "fit_intercept": False, "momentum": 0.0},
    {"loss": "l1", "schedule": "constant", "shuffle": False},
    {"loss": "quantile", "early_stopping": True},
    {"loss": "mse", "dtype": "float32", "device": "cpu"},
]
CORE = [0, 1, *range(2, 2 + 6 * len(LOSSES), 10), *range(2 + 6 * len(LOSSES), len(SETTINGS))]
DUPLICATED = "check_sample_weight_equivalence_on_dense_data"


def id_of(setting):
    return "-".join(str(value) for value in setting.values())


@pytest.mark.parametrize(
    "setting",
    cases(core=[SETTINGS[i] for i in CORE], extended=[s for i, s in enumerate(SETTINGS) if i not in CORE]),
    ids=id_of,
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_every_check_of_scikit_learn(setting):
    expected = {}
    if setting.get("batch_size") == 8 or setting.get("early_stopping"):
        expected = {DUPLICATED: "a weight of 2 is a row twice, which a shuffle places anew"}
    model = LinearRegressor(**setting)
    results = check_estimator(model, expected_failed_checks=expected, on_fail=None)
    failed = [(r["check_name"], repr(r["exception"])) for r in results if r["status"] == "failed"]
    assert failed == []
    assert len([r for r in results if r["status"] == "passed"]) > 55
    check_dataframe_column_names_consistency("LinearRegressor", model)


def test_the_dispatch_of_arrays_is_checked():
    """Else scikit-learn skips its checks with torch."""
    results = check_estimator(LinearRegressor(), on_skip=None)
    assert any(r["check_name"] == "check_array_api_input" and r["status"] == "passed" for r in results)


# ---- Right answers ---------------------------------------------------------------------------------------------------


def diabetes():
    return load_diabetes(return_X_y=True, scaled=False)


def houses(rows=6000):
    """Like the Californian houses: skewed, correlated and unscaled columns, a skewed target that is cut off."""
    r = np.random.default_rng(0)
    income, age = np.exp(r.normal(1.2, 0.45, rows)), r.integers(1, 53, rows)
    rooms = np.exp(r.normal(1.65, 0.25, rows)) * (1 + 0.1 * income)
    bedrooms, people = rooms * np.exp(r.normal(-1.6, 0.1, rows)), np.exp(r.normal(7, 0.8, rows))
    latitude = 35.6 + 2.1 * r.standard_normal(rows)
    longitude = -119.6 - 0.93 * (latitude - 35.6) + 0.7 * r.standard_normal(rows)
    price = 0.44 * income - 0.1 * rooms + 0.6 * bedrooms - 0.42 * (latitude - 36) - 0.43 * (longitude + 119)
    price += np.exp(r.normal(-0.6, 0.7, rows)) * (0.4 + 0.1 * income)
    x = np.column_stack([income, age, rooms, bedrooms, people, latitude, longitude])
    return x, 1e5 * np.minimum(price, 5)


def made(rows=800, scale=1.0):
    """Columns of very different lengths, far from 0; heavy tails."""
    r = np.random.default_rng(1)
    x = r.standard_normal((rows, 12)) @ r.standard_normal((12, 12)) * np.logspace(-2, 2, 12) + 50
    return x, scale * (x @ r.standard_normal(12) + r.standard_t(2, rows))


TABLES = {"diabetes": diabetes, "houses": houses, "made": made, "tiny units": lambda: made(scale=1e-6)}
EACH_TABLE = pytest.mark.parametrize("table", TABLES)


def mean_loss(loss, residual, **threshold):
    value = next(iter(threshold.values()), 1.0)
    return LOSSES[loss].plain(torch.from_numpy(residual), torch.zeros(len(residual)).double(), value).mean().item()


@EACH_TABLE
def test_least_squares_and_ridge(table):
    """Coefficients to 1e-8, and penalised ones; by SGD the objective to 1 %."""
    x, y = TABLES[table]()
    for bias in (True, False):
        for alpha in (0.0, 0.1, 100.0):
            theirs = Ridge(alpha, fit_intercept=bias) if alpha else LinearRegression(tol=1e-12, fit_intercept=bias)
            theirs.fit(x, y)
            ours = LinearRegressor(alpha=alpha, fit_intercept=bias).fit(x, y)
            np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-8, atol=1e-8 * np.abs(theirs.coef_).max())
            np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-8, atol=1e-8 * np.ptp(y))
            assert ours.loss_ == pytest.approx(np.square(y - ours.predict(x)).mean(), rel=1e-9)
            trained = LinearRegressor(solver="sgd", alpha=alpha, fit_intercept=bias, random_state=0).fit(x, y)
            theirs, ours = (
                np.square(y - model.predict(x)).sum() + alpha * np.square(model.coef_).sum()
                for model in (theirs, trained)
            )
            assert ours <= 1.01 * theirs, (bias, alpha)


@EACH_TABLE
@pytest.mark.parametrize("quantile", [0.05, 0.5, 0.9])
def test_quantiles(table, quantile):
    x, y = TABLES[table]()
    x, y = x[:2000], y[:2000]  # the linear program takes seconds for more
    standard, unit = StandardScaler().fit_transform(x), y.std()
    theirs = QuantileRegressor(quantile=quantile, alpha=0).fit(standard, y / unit)
    least = mean_loss("quantile", unit * theirs.predict(standard) - y, quantile=quantile)
    for batch_size in ("auto", 64):
        ours = LinearRegressor("quantile", quantile=quantile, batch_size=batch_size, random_state=0).fit(x, y)
        assert ours.loss_ == pytest.approx(mean_loss("quantile", ours.predict(x) - y, quantile=quantile), rel=1e-9)
        assert ours.loss_ <= 1.01 * least
        assert ours.converged_
    if quantile == 0.5:
        assert LinearRegressor("l1", random_state=0).fit(x, y).loss_ <= 1.01 * 2 * least


@EACH_TABLE
def test_huber(table):
    x, y = TABLES[table]()
    standard, unit = StandardScaler().fit_transform(x), y.std()
    theirs = HuberRegressor(alpha=0, max_iter=1000, tol=1e-7).fit(standard, y / unit)
    delta = unit * theirs.scale_ * theirs.epsilon
    least = mean_loss("huber", unit * theirs.predict(standard) - y, delta=delta)
    ours = LinearRegressor("huber", delta=delta, random_state=0).fit(x, y)
    assert ours.loss_ <= 1.01 * least
    smooth = LinearRegressor("smooth_l1", beta=delta, random_state=0).fit(x, y)
    assert smooth.loss_ * delta <= 1.01 * least  # the same objective, divided by delta
    if table == "houses":  # a threshold far below the residuals: the absolute error
        tiny = LinearRegressor("huber", delta=1.0, random_state=0).fit(x, y)
        absolute = LinearRegressor("l1", random_state=0).fit(x, y)
        assert tiny.loss_ == pytest.approx(absolute.loss_, rel=0.01)


@pytest.mark.parametrize("loss", ["l1", "huber", "smooth_l1", "quantile"])
def test_the_penalty_of_other_losses(loss):
    """The objective is not above that of its neighbours, and the intercept is not penalised."""
    x, y = made(300)
    alpha = 30.0

    def objective(model, step=0.0):
        residual = x @ (model.coef_ + step) + model.intercept_ - y
        residual -= {"l1": np.median(residual)}.get(loss, 0.0)
        threshold = LOSSES[loss].threshold
        named = {} if threshold is None else {threshold.name: threshold.default}
        return len(x) * mean_loss(loss, residual, **named) + alpha * np.square(model.coef_ + step).sum()

    model = LinearRegressor(loss, alpha=alpha).fit(x, y)
    free = LinearRegressor(loss).fit(x, y)
    assert np.square(model.coef_).sum() < np.square(free.coef_).sum()
    assert objective(model) < objective(free)
    r = np.random.default_rng(0)
    for size in np.repeat([1e-3, 1e-2, 0.1], 50):
        assert objective(model) <= 1.01 * objective(
            model, size * r.standard_normal(12) / np.linalg.norm(x - 50, axis=0)
        )


def test_factors_between_penalties():
    """Those of docs/sklearn.md."""
    x, y = diabetes()
    x = StandardScaler().fit_transform(x)
    options = {"alpha": 0.3, "max_iter": 1000, "tol": None, "average": True, "random_state": 0}
    n, trained = len(x), lambda *args, **more: SGDRegressor(*args, **options, **more).fit(x, y)
    huber = HuberRegressor(epsilon=1.2, alpha=20.0, max_iter=1000).fit(x, y)
    pairs = (
        (Ridge(30.0).fit(x, y), LinearRegressor(alpha=30.0)),
        (trained(), LinearRegressor(alpha=n * 0.3)),
        (trained("huber", epsilon=20.0), LinearRegressor("huber", delta=20.0, alpha=n * 0.3 / 2)),
        (trained("epsilon_insensitive", epsilon=0, eta0=1.0), LinearRegressor("l1", alpha=n * 0.3 / 2)),
        (huber, LinearRegressor("huber", delta=1.2 * huber.scale_, alpha=20.0 * huber.scale_ / 2)),
    )
    for theirs, ours in pairs:
        ours.fit(x, y)
        error = np.linalg.norm(ours.coef_ - theirs.coef_) / np.linalg.norm(theirs.coef_)
        assert error < 0.02, (theirs, error)


def test_standard_errors_are_those_of_least_squares():
    x, y = diabetes()
    expected = linreg_ext.lstsq(torch.from_numpy(x), torch.from_numpy(y)).weight_stderr[0]
    np.testing.assert_allclose(LinearRegressor().fit(x, y).coef_stderr_, expected, rtol=1e-8)
    for unknown in (LinearRegressor(alpha=1.0), LinearRegressor("l1")):
        assert np.isnan(unknown.fit(x, y).coef_stderr_).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_several_targets_are_fitted_as_each_alone(loss):
    x, y = diabetes()
    y = np.column_stack([y, 1e3 * np.log(y), -1e-3 * y])
    model = LinearRegressor(loss, alpha=0.1, batch_size=None).fit(x, y)
    assert model.coef_.shape == model.coef_stderr_.shape == (3, 10)
    assert model.intercept_.shape == (3,)
    assert model.predict(x).shape == y.shape
    alone = [LinearRegressor(loss, alpha=0.1, batch_size=None).fit(x, column) for column in y.T]
    same = pytest.approx(np.mean([one.loss_ for one in alone]), rel=1e-3)  # SGD scales the penalty for all
    assert model.loss_ == same
    for k, one in enumerate(alone):
        assert np.square(model.predict(x)[:, k] - one.predict(x)).mean() < 1e-3 * y[:, k].var()


@pytest.mark.parametrize(
    "model", [LinearRegressor(), LinearRegressor("l1"), LinearRegressor("quantile", quantile=0.95, batch_size=32)]
)
def test_a_weight_of_k_is_k_rows(model):
    """Exactly, except that a shuffle places the rows anew; rows of weight 0 are ignored."""
    x, y = diabetes()
    v = np.random.default_rng(0).integers(0, 4, len(x))
    x[v == 0] = 1e6
    weighted = clone(model).set_params(random_state=0).fit(x, y, sample_weight=v)
    repeated = clone(model).set_params(random_state=0).fit(x.repeat(v, axis=0), y.repeat(v))
    if model.batch_size == 32:
        assert weighted.loss_ == pytest.approx(repeated.loss_, rel=0.01)
    else:
        np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-7)
        assert weighted.loss_ == pytest.approx(repeated.loss_, rel=1e-9)


# ---- Parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [[442], [1, 2, 439], [200, 242], [50] * 8 + [42]])
def test_the_exact_answer_does_not_depend_on_the_split(split):
    x, y = diabetes()
    v = np.random.default_rng(0).uniform(0.1, 1, 442)
    whole = LinearRegressor(alpha=0.5).fit(x, y, v)
    ends = np.cumsum(split)[:-1]
    parts = list(zip(*(np.split(t, ends) for t in (x, y, v)), strict=True))
    for first in ("fit", "partial_fit"):
        model = LinearRegressor(alpha=0.5)
        getattr(model, first)(*parts[0])
        for part in parts[1:]:
            model.partial_fit(*part)
        np.testing.assert_allclose(model.coef_, whole.coef_, rtol=1e-8)
        np.testing.assert_allclose(model.intercept_, whole.intercept_, rtol=1e-8)
        assert model.loss_ == pytest.approx(whole.loss_, rel=1e-9)
    assert model.fit(*parts[0]).loss_ == LinearRegressor(alpha=0.5).fit(*parts[0]).loss_  # fit starts over


@pytest.mark.parametrize("loss", LOSSES)
def test_a_stream_approaches_the_fit(loss):
    """One epoch for each part, at any signal-to-noise ratio."""
    r = np.random.default_rng(0)
    x = r.standard_normal((8000, 5)) * np.logspace(-2, 2, 5) + 10
    for signal in (1, 100):
        y = signal * x @ np.logspace(2, -2, 5) + r.standard_normal(8000)
        least = LinearRegressor(loss, random_state=0).fit(x, y).loss_
        model = LinearRegressor(loss, solver="sgd", random_state=0)
        for part in np.split(np.arange(8000), 40):
            assert model.partial_fit(x[part], y[part]).n_iter_ == 1
        threshold = LOSSES[loss].threshold
        named = {} if threshold is None else {threshold.name: threshold.default}
        assert mean_loss(loss, model.predict(x) - y, **named) < 1.05 * least


def test_the_noise_of_a_stream_averages_out():
    r = np.random.default_rng(0)
    x = r.standard_normal((4000, 10))
    y = x.sum(1) + r.standard_normal(4000)
    model = LinearRegressor(solver="sgd", random_state=0)
    for part in np.split(np.arange(4000), 200):
        model.partial_fit(x[part], y[part])
    assert np.square(model.predict(x) - y).mean() < 1.03 * LinearRegressor().fit(x, y).loss_


def test_a_warm_start_goes_on():
    x, y = diabetes()
    model = LinearRegressor("l1", warm_start=True).fit(x, y)
    again = clone(model).fit(x, y)
    before = model.loss_
    assert model.fit(x, y).n_iter_ <= again.n_iter_
    assert model.loss_ <= before * (1 + 1e-9)
    with pytest.raises(ValueError, match=r"coef_ must have shape \(2, 10\) to go on with it, got \(10,\)"):
        model.fit(x, np.column_stack([y, y]))


# ---- SGD's options ---------------------------------------------------------------------------------------------------


def test_without_convergence_it_warns_with_the_number():
    x, y = diabetes()
    with pytest.warns(
        ConvergenceWarning, match=r"in 1 epochs: the last 1 changed the loss by -\d[\d.e+]* %; raise max"
    ) as caught:
        model = LinearRegressor(solver="sgd", max_iter=1, learning_rate=0.1).fit(x, y)
    assert caught[0].filename == __file__
    assert not model.converged_
    assert model.n_iter_ == 1
    with pytest.warns(ConvergenceWarning, match="lower learning_rate"):
        model = LinearRegressor(solver="sgd", schedule="constant", learning_rate=10.0).fit(x, y)
    assert model.loss_ <= 1.01 * y.var()  # the best coefficients are kept
    assert LinearRegressor(solver="sgd", learning_rate=10.0).fit(x, y).loss_ < 0.6 * y.var()  # it is lowered


def test_the_same_seed_gives_the_same_bits():
    x, y = houses(5000)
    first, second, other = (
        LinearRegressor("l1", batch_size=64, random_state=seed, tol=0.1).fit(x, y).coef_ for seed in (0, 0, 1)
    )
    assert (first == second).all()
    assert (first != other).any()
    in_order = [
        LinearRegressor("l1", batch_size=64, shuffle=False, random_state=seed, tol=0.1).fit(x, y) for seed in (0, 1)
    ]
    assert (in_order[0].coef_ == in_order[1].coef_).all()


def test_early_stopping_watches_rows_set_aside():
    r = np.random.default_rng(0)
    x, y = r.standard_normal((60, 50)), r.standard_normal(60)  # 50 rows of noise are interpolated
    options = {"solver": "sgd", "random_state": 0, "learning_rate": 0.01, "validation_fraction": 0.15}
    stopped = LinearRegressor(early_stopping=True, **options).fit(x, y)
    assert stopped.loss_ > 1.2 * LinearRegressor(**options).fit(x, y).loss_
    with pytest.raises(ValueError, match="early_stopping needs training rows of weight > 0, got n_samples=1"):
        LinearRegressor("l1", early_stopping=True).fit(x[:1], y[:1])


def test_many_features_are_scaled_one_by_one():
    r = np.random.default_rng(0)
    x = r.standard_normal((1200, 501)) * np.logspace(-3, 3, 501) + 5
    y = x @ (r.standard_normal(501) / np.logspace(-3, 3, 501)) + r.standard_normal(1200)
    exact = LinearRegressor().fit(x, y)
    model = LinearRegressor(solver="sgd", tol=1e-4).fit(x, y)
    assert model.loss_ < 1.05 * exact.loss_
    parts = LinearRegressor(solver="sgd").partial_fit(x[:600], y[:600]).partial_fit(x[600:], y[600:])
    assert np.isfinite(parts.coef_).all()


def test_standardize_and_verbose(capsys):
    x, y = diabetes()
    raw = LinearRegressor(solver="sgd", standardize=False, learning_rate=1e-6, momentum=0.0, batch_size=None, max_iter=3, n_iter_no_change=3, verbose=1, fit_intercept=False)  # fmt: skip
    with pytest.warns(ConvergenceWarning):
        raw.fit(x, y)
    w = torch.zeros(1, 10, dtype=torch.float64)
    linreg_ext.sgd_run_(torch.from_numpy(x), w, torch.from_numpy(y)[:, None], epochs=3, lr=1e-6)
    np.testing.assert_allclose(raw.coef_, w[0], rtol=1e-12)
    assert capsys.readouterr().out == f"Epoch [3/3], Loss: {raw.loss_:.6g}\n"


def test_dependent_columns_are_refined():
    """Where moments alone leave few digits, the rows are read again."""
    x, y = diabetes()
    x = np.column_stack([x, x[:, 0] + 1e-4 * np.random.default_rng(0).standard_normal(442)])
    theirs = np.linalg.lstsq(np.column_stack([x, np.ones(442)]), y, rcond=None)[0]
    np.testing.assert_allclose(LinearRegressor().fit(x, y).coef_, theirs[:-1], rtol=1e-8)


def test_constant_columns_and_targets():
    x, y = diabetes()
    x[:, 3] = 0.1
    for model in (LinearRegressor(), LinearRegressor("l1"), LinearRegressor("huber", alpha=0.1)):
        assert abs(model.fit(x, y).coef_[3]) < 1e-12
        assert model.fit(x, np.full(442, 0.1)).intercept_ == pytest.approx(0.1)


# ---- Inputs and answers ----------------------------------------------------------------------------------------------

MODELS = [LinearRegressor(), LinearRegressor("l1")]
EACH_MODEL = pytest.mark.parametrize("model", MODELS, ids=["exact", "sgd"])


@EACH_MODEL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_tensors_are_answered_by_tensors(model, dtype, device):
    x, y = (torch.from_numpy(t).to(dtype).to(device) for t in diabetes())
    model = clone(model).fit(x.requires_grad_(dtype.is_floating_point), y, sample_weight=torch.ones(442))
    for answer in (model.coef_, model.intercept_, model.coef_stderr_, model.predict(x)):
        assert isinstance(answer, torch.Tensor)
        assert answer.dtype == (torch.float32 if dtype.is_floating_point and dtype.itemsize < 8 else torch.float64)
        assert answer.device == x.device
    assert model.intercept_.shape == ()
    plain = clone(model).fit(x.detach().double().cpu().numpy(), y.double().cpu().numpy())
    np.testing.assert_allclose(model.predict(x).cpu(), plain.predict(x.detach().double().cpu().numpy()), rtol=0.02)
    assert isinstance(model.score(x.detach(), y.double()), float)
    assert isinstance(model.predict(x.detach().cpu().double().numpy()), np.ndarray)


@EACH_MODEL
def test_dispatch_of_arrays(model):
    x, y = diabetes()
    plain = clone(model).fit(x, y, sample_weight=y)
    with sklearn.config_context(array_api_dispatch=True):
        tensor = torch.from_numpy(x)
        for target in (y, torch.from_numpy(y)):  # everything follows X
            found = clone(model).fit(tensor, target, sample_weight=target)
            torch.testing.assert_close(found.coef_, torch.from_numpy(plain.coef_))
            assert isinstance(found.predict(tensor), torch.Tensor)
        with pytest.raises(ValueError, match="must use the same namespace"):
            found.predict(x)


def frames():
    x, y = diabetes()
    names = [f"x{i}" for i in range(10)]
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    yield pandas.DataFrame(x, columns=names), pandas.Series(y)
    yield polars.DataFrame(x, schema=names), polars.Series(y)
    yield pyarrow.table(dict(zip(names, x.T, strict=True))), pyarrow.array(y)


@EACH_MODEL
def test_frames_name_their_features(model):
    plain = clone(model).fit(*diabetes())
    for x, y in frames():
        found = clone(model).fit(x, y)
        assert [*found.feature_names_in_] == [f"x{i}" for i in range(10)], type(x)
        np.testing.assert_allclose(found.coef_, plain.coef_, rtol=1e-6)
        assert found.predict(x).shape == (442,)


@EACH_MODEL
def test_arrays_of_every_layout(model):
    x, y = diabetes()
    plain = clone(model).fit(x, y)
    readonly = x.copy()
    readonly.setflags(write=False)
    for other in (
        np.asfortranarray(x),
        x[::-1][::-1],
        x.astype(">f8"),
        readonly,
        x.tolist(),
        np.repeat(x, 2, 1)[:, ::2],
    ):
        np.testing.assert_allclose(clone(model).fit(other, y[::-1][::-1]).coef_, plain.coef_, rtol=1e-6)
    assert clone(model).fit(x.astype(np.float32), y).coef_.dtype == np.float32
    assert clone(model).set_params(dtype="float32").fit(x, y).coef_.dtype == np.float64


def test_what_is_refused():
    x, y = diabetes()
    refused = {
        r"loss must be 'mse' with solver='exact', got 'l1'": LinearRegressor("l1", solver="exact"),
        r"delta \(of loss 'huber'\) must be None with loss 'l1', got 2": LinearRegressor("l1", delta=2.0),
        r"The 'alpha' parameter of LinearRegressor must be": LinearRegressor(alpha=-1.0),
        r"The 'schedule' parameter of LinearRegressor must be": LinearRegressor(schedule="cosine"),
    }
    for message, model in refused.items():
        with pytest.raises(ValueError, match=message):
            model.fit(x, y)
    for weight in (-np.ones(442), np.zeros(442)):
        with pytest.raises(ValueError, match=r"sample_weight must be >= 0 and not all zero|non-zero"):
            LinearRegressor().fit(x, y, weight)
    with pytest.raises(NotFittedError):
        LinearRegressor().predict(x)
    with pytest.raises(ValueError, match="X has 9 features"):
        LinearRegressor().fit(x, y).predict(x[:, :9])
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        LinearRegressor().fit(pytest.importorskip("scipy.sparse").csr_array(x), y)


# ---- In scikit-learn's company ---------------------------------------------------------------------------------------


@EACH_MODEL
def test_copies_predict_the_same(model):
    x, y = diabetes()
    model = clone(model).fit(x, y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict(x) == model.predict(x)).all()
    assert again.partial_fit(x, y).coef_.shape == (10,)
    assert clone(model).get_params() == model.get_params()
    assert repr(LinearRegressor("huber", alpha=1.0)) == "LinearRegressor(alpha=1.0, loss='huber')"


@pytest.mark.extended  # seconds to start them
@EACH_MODEL
def test_processes_of_joblib(model):
    scores = [cross_val_score(clone(model), *diabetes(), cv=3, n_jobs=jobs) for jobs in (1, 2)]
    np.testing.assert_allclose(*scores, rtol=1e-9)


@EACH_MODEL
def test_searches_and_pipelines(model):
    x, y = diabetes()
    grid = GridSearchCV(clone(model), {"alpha": [0.0, 1.0], "fit_intercept": [True, False]}, cv=3).fit(x, y)
    assert grid.best_params_["fit_intercept"]
    assert cross_val_score(clone(model), x, y, cv=3).min() > 0.3
    assert cross_val_score(clone(model), *(torch.from_numpy(t) for t in (x, y)), cv=3).min() > 0.3
    columns = ColumnTransformer(
        [("sex", OneHotEncoder(drop="first"), [1])], remainder=StandardScaler(), sparse_threshold=0
    )
    pipe = make_pipeline(columns, clone(model)).fit(x, y)
    assert pipe.score(x, y) > 0.45
    logarithm = TransformedTargetRegressor(clone(model), func=np.log, inverse_func=np.exp).fit(x, y)
    assert logarithm.score(x, y) > 0.4
    importance = permutation_importance(pipe, x, y, n_repeats=2, random_state=0).importances_mean
    assert importance.argmax() in (4, 8)  # cholesterol, the logarithm of triglycerides
    curve = partial_dependence(pipe, x, [2], kind="average", grid_resolution=5)["average"][0]
    assert (np.diff(curve) > 0).all()


def test_weights_are_routed():
    x, y = diabetes()
    v = np.arange(442.0)
    with sklearn.config_context(enable_metadata_routing=True):
        model = LinearRegressor().set_fit_request(sample_weight=True)
        search = GridSearchCV(model.set_score_request(sample_weight=True), {"alpha": [0.0]}, cv=3).fit(
            x, y, sample_weight=v
        )
    np.testing.assert_allclose(search.best_estimator_.coef_, LinearRegressor().fit(x, y, v).coef_, rtol=1e-9)


@pytest.mark.extended
def test_the_library_does_not_need_scikit_learn():
    code = """
import sys
sys.modules["sklearn"] = None
from linreg_ext import *
import linreg_ext
try:
    linreg_ext.LinearRegressor
except ImportError as error:
    assert "pip install scikit-learn" in str(error), error
else:
    raise AssertionError
assert not hasattr(linreg_ext, "LinearRegression")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert linreg_ext.LinearRegressor is LinearRegressor


def test_no_warning_but_for_convergence():
    x, y = diabetes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in MODELS:
            clone(model).fit(x, y).partial_fit(x, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_are_not_finite_change_nothing(bad, weighted):
    """Even one without weight. The exact solver finds them by their moments."""
    x = np.random.default_rng(0).normal(size=(20, 3))
    y, wrong = x.sum(1), x.copy()
    wrong[7, 2] = bad
    weight = (np.arange(20) != 7).astype(float) if weighted else None
    model = LinearRegressor().partial_fit(x, y)
    for rows in (wrong, torch.from_numpy(wrong)):
        with pytest.raises(ValueError, match="Input X contains"):
            model.partial_fit(rows, y, weight)
    model.partial_fit(x, 2 * y)
    np.testing.assert_allclose(model.coef_, 1.5, rtol=1e-12)
