# SPDX-License-Identifier: BSD-3-Clause
"""Faults in the estimator for scikit-learn."""

from .mutant import Mutant

ESTIMATOR = "tests/test_estimator.py::"


def _mutant(name: str, old: str, new: str, *tests: str, within: str = "") -> Mutant:
    names = tuple(ESTIMATOR + test for test in tests)
    return Mutant(f"estimator: {name}", "linreg_ext/estimator.py", old, new, names, within, build="python")


ESTIMATORS = (
    _mutant("fit keeps earlier moments", "        self._moments = None\n        return self._fit(X, y, sample_weight, start)",
            "        self._moments = getattr(self, '_moments', None)\n        return self._fit(X, y, sample_weight, start)",
            "test_the_exact_answer_does_not_depend_on_the_split"),
    _mutant("moments are enough for any condition", "if not part and not solution.condition < _ILL_CONDITIONED:", "if False:",
            "test_dependent_columns_are_refined"),
    _mutant("exact weights are ignored", "device=x.device).update(x, y, v)\n        if", "device=x.device).update(x, y)\n        if",
            "test_a_weight_of_k_is_k_rows"),
    _mutant("nan in rows without weight", "finite=not exact or sample_weight is not None", "finite=not exact",
            "test_rows_that_are_not_finite_change_nothing"),
    _mutant("wrong rows are merged", "assert_all_finite(_on_host(x)", "dict(x=_on_host(x)",
            "test_rows_that_are_not_finite_change_nothing"),
    _mutant("the pace ignores weights", "(self.rows.share @ t.double()).item()", "t.double().mean().item()",
            "test_a_weight_of_k_is_k_rows"),
    _mutant("steps do not shrink with the residuals", "return 2 * residuals / slopes if slopes > 0 else 0.0", "return 1.0",
            "test_a_stream_approaches_the_fit", "test_huber"),
    _mutant("small batches ignore weights", "points = (rows + torch.rand((), generator=self.random, device=\"cpu\")).to(self.share) / n",
            "return rows", "test_a_weight_of_k_is_k_rows"),
    _mutant("the threshold is in standardised units", "threshold / unit if model.loss in", "threshold if model.loss in",
            "test_huber"),
    _mutant("the loss is in standardised units", "self._mean(self.rows.z, self.t, self.rows.v) * self.unit",
            "self._mean(self.rows.z, self.t, self.rows.v)", "test_quantiles"),
    _mutant("the penalty is half of it", "shrink = 1 + 2 * lr", "shrink = 1 + lr", "test_factors_between_penalties"),
    _mutant("momentum weakens the penalty", "shrink = 1 + 2 * lr / (1 - rows.momentum) * self.penalty",
            "shrink = 1 + 2 * lr * self.penalty", "test_least_squares_and_ridge"),
    _mutant("coordinates are not turned for the penalty", "basis, inverse = basis @ turn.T, turn @ inverse", "pass",
            "test_least_squares_and_ridge", "test_factors_between_penalties"),
    _mutant("the last parameters are kept, not the best", "        self.u.copy_(kept[0])\n", "",
            "test_without_convergence_it_warns_with_the_number"),
    _mutant("a constant column is noise to be fitted", "constant = variance <= noise", "constant = variance < 0",
            "test_constant_columns_and_targets"),
    _mutant("without an intercept, columns are centred", "covariance = covariance + (mean.square()", "_ = covariance + (mean.square()",
            "test_least_squares_and_ridge"),
    _mutant("the noise of a stream does not average out", "self.in_proportion if adaptive else 1", "1",
            "test_the_noise_of_a_stream_averages_out"),
    _mutant("tensors are answered by arrays", "return tensor.to(kind.device)", "return tensor.cpu().numpy()",
            "test_tensors_are_answered_by_tensors"),
    _mutant("without convergence nothing is said", "if moving and not part:", "if False:",
            "test_without_convergence_it_warns_with_the_number"),
    _mutant("rows set aside are trained on", "self.z, self.t, self.v = rows\n", "pass\n",
            "test_early_stopping_watches_rows_set_aside"),
    _mutant("a warm start is cold", "if start is not None:\n            weight, bias", "if False:\n            weight, bias",
            "test_a_warm_start_goes_on", "test_the_noise_of_a_stream_averages_out"),
)  # fmt: skip
