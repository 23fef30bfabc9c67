"""Ember's estimators in scikit-learn's hands: its checks, pipelines, searches; and namesakes."""

import contextlib
import pickle
import unittest
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("hmmlearn")

import hmmlearn.hmm
import sklearn.decomposition
import sklearn.mixture
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from ember.inference import VBEM, estimators
from ember.models import gaussian_mixture, regression_mixture
from tests.further import with_further

RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(40, 2)), RNG.normal([5.0, 4.0], 0.7, size=(60, 2))])
EVERY = [
    estimators.GaussianMixture(),
    estimators.BayesianGaussianMixture(),
    estimators.BernoulliMixture(),
    estimators.PoissonMixture(),
    estimators.LatentClass(),
    estimators.FactorAnalysis(max_iter=20),  # a factor of pure noise takes many
    estimators.ModelEstimator(gaussian_mixture, options={"components": 1}, random_state=0),
]
# The checks that fit; others look at the constructor. Those of dtypes fit a dozen times.
SLOW = ("check_estimators_dtypes", "check_fit2d_1sample", "check_estimators_nan_inf")


@pytest.mark.parametrize(
    "estimator", with_further(EVERY, EVERY[5:6]), ids=lambda e: type(e).__name__
)
def test_scikit_learn_s_own_checks(estimator: Any) -> None:
    """No exception is asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for checked, check in estimator_checks_generator(estimator):
            if check.func.__name__ not in SLOW:
                with contextlib.suppress(unittest.SkipTest):  # of what is not installed
                    check(checked)


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gaussian_mixture_is_its_namesake_at_the_optimum(covariance: str) -> None:
    theirs = sklearn.mixture.GaussianMixture(
        2, covariance_type=covariance, tol=1e-12, max_iter=5000, reg_covar=0.0, random_state=0
    ).fit(X)
    ours = estimators.GaussianMixture(
        2, covariance_type=covariance, objective="mle", random_state=0, tol=1e-12
    ).fit(X)
    order = np.argsort(-theirs.weights_)
    for name in ("weights_", "means_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name)[order], rtol=1e-5)
    np.testing.assert_allclose(ours.score_samples(X), theirs.score_samples(X), rtol=1e-6)
    assert ours.bic(X) == pytest.approx(theirs.bic(X), rel=1e-7)
    assert ours.lower_bound_ == pytest.approx(ours.score(X), rel=1e-9)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_bayesian_gaussian_mixture_is_its_namesake(covariance: str) -> None:
    known: dict[str, Any] = {
        "n_components": 2, "covariance_type": covariance, "weight_concentration_prior": 0.5,
        "weight_concentration_prior_type": "dirichlet_distribution", "random_state": 0,
    }  # fmt: skip
    theirs = sklearn.mixture.BayesianGaussianMixture(
        **known, tol=1e-12, max_iter=5000, reg_covar=0.0
    ).fit(X)
    ours = estimators.BayesianGaussianMixture(**known, tol=1e-12).fit(X)
    order = np.argsort(-theirs.weights_)
    for name in ("weight_concentration_", "mean_precision_", "degrees_of_freedom_", "means_"):
        np.testing.assert_allclose(
            getattr(ours, name), getattr(theirs, name)[order], rtol=1e-4, atol=1e-5
        )
    if covariance == "full":  # the namesake expects log determinants of "diag" as if of a matrix
        np.testing.assert_allclose(
            ours.predict_proba(X), theirs.predict_proba(X)[:, order], atol=1e-4
        )


def test_factor_analysis_is_its_namesake() -> None:
    x = RNG.normal(size=(300, 2)) @ RNG.normal(size=(2, 6)) + RNG.normal(size=(300, 6))
    theirs = sklearn.decomposition.FactorAnalysis(
        2, tol=1e-12, max_iter=20_000, svd_method="lapack"
    ).fit(x)
    ours = estimators.FactorAnalysis(2, tol=1e-12).fit(x)
    np.testing.assert_allclose(ours.get_covariance(), theirs.get_covariance(), rtol=1e-3, atol=1e-4)
    assert ours.score(x) == pytest.approx(theirs.score(x), rel=1e-7)
    signs = np.sign((ours.components_ * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.transform(x) * signs, theirs.transform(x), atol=2e-2)


def test_gaussian_chain_is_its_namesake_at_the_optimum() -> None:
    states = np.repeat([0, 1, 0, 1], 25)
    x = RNG.normal(size=(100, 1)) + 4.0 * states[:, None]
    ours = estimators.GaussianHMM(2, objective="mle", random_state=0).fit(x, lengths=[60, 40])
    theirs = hmmlearn.hmm.GaussianHMM(
        2, n_iter=2000, tol=1e-12, covars_prior=0.0, covars_weight=0.0, min_covar=0.0,
        init_params="", random_state=0,
    )  # fmt: skip
    theirs.startprob_, theirs.transmat_ = ours.startprob_, ours.transmat_
    theirs.means_, theirs.covars_ = ours.means_, ours._covars_
    before = theirs.score(x, [60, 40])
    assert ours.score(x, [60, 40]) == pytest.approx(before, rel=1e-12)
    theirs.fit(x, [60, 40])
    assert theirs.score(x, [60, 40]) == pytest.approx(before, rel=1e-7)  # nothing left to gain
    assert (ours.predict(x, [60, 40]) == states).mean() > 0.95 or (
        ours.predict(x, [60, 40]) == 1 - states
    ).mean() > 0.95


def test_parts_of_a_chain_may_be_held() -> None:
    x = np.repeat([0, 1, 0, 2, 1], 12)[:, None]
    chain = estimators.CategoricalHMM(2, params="te", init_params="te", random_state=0)
    chain.startprob_ = np.array([0.3, 0.7])
    chain.fit(x)
    np.testing.assert_allclose(chain.startprob_, [0.3, 0.7])
    with pytest.raises(ValueError, match="'s' is not among params, so startprob_ must be set"):
        estimators.CategoricalHMM(2, params="te", init_params="te").fit(x)


def test_pipelines_searches_frames_and_pickles() -> None:
    frame = pd.DataFrame(X, columns=["a", "b"])
    mixture = estimators.GaussianMixture(random_state=0)
    pipeline = make_pipeline(StandardScaler().set_output(transform="pandas"), mixture)
    search = GridSearchCV(pipeline, {"gaussianmixture__n_components": [1, 2]}, cv=3).fit(frame)
    assert search.best_params_ == {"gaussianmixture__n_components": 2}
    best = search.best_estimator_
    assert list(best[-1].feature_names_in_) == ["a", "b"]
    again = pickle.loads(pickle.dumps(best))
    np.testing.assert_array_equal(again.predict(frame), best.predict(frame))
    assert len(pickle.dumps(best[-1])) < 10_000  # no rows
    fresh = clone(best[-1])
    assert not hasattr(fresh, "means_")
    assert fresh.get_params() == best[-1].get_params()


def test_weights_are_rows_and_gaps_drop_out() -> None:
    weights = RNG.integers(0, 3, len(X))
    weighted = estimators.GaussianMixture(2, random_state=0, tol=1e-12).fit(
        X, sample_weight=weights
    )
    repeated = estimators.GaussianMixture(2, random_state=0, tol=1e-12).fit(
        np.repeat(X, weights, axis=0)
    )
    np.testing.assert_allclose(weighted.means_, repeated.means_, rtol=1e-6)
    gaps = X.copy()
    gaps[::7, 1] = np.nan
    mixture = estimators.GaussianMixture(2, random_state=0).fit(gaps)
    k = mixture.predict(X[:1])[0]
    assert mixture.predict([[X[0, 0], np.nan]])[0] == k
    logs = (
        np.log(mixture.weights_)
        - 0.5 * (X[0, 0] - mixture.means_[:, 0]) ** 2 / (mixture.covariances_[:, 0, 0])
        - 0.5 * np.log(2 * np.pi * mixture.covariances_[:, 0, 0])
    )
    assert mixture.score_samples([[X[0, 0], np.nan]])[0] == pytest.approx(np.logaddexp(*logs))


def test_any_model_behind_the_interface() -> None:
    estimator = estimators.ModelEstimator(
        gaussian_mixture, options={"components": 2}, random_state=0
    ).fit(X)
    direct = estimators.GaussianMixture(2, random_state=0).fit(X)
    np.testing.assert_allclose(estimator.predict_proba(X), direct.predict_proba(X), atol=1e-6)
    assert estimator.score(X) == pytest.approx(direct.score(X), rel=1e-7)


def test_a_fit_that_has_not_converged_warns_as_scikit_learn_does() -> None:
    with pytest.warns(ConvergenceWarning, match="did not converge.*max_iter was reached"):
        estimators.GaussianMixture(2, max_iter=1, random_state=0).fit(X)
    with pytest.raises(ValueError, match="Expected n_samples >= n_components"):
        estimators.GaussianMixture(200).fit(X)
    with pytest.raises(ValueError, match="a Dirichlet process is not offered"):
        estimators.BayesianGaussianMixture(weight_concentration_prior_type="dirichlet_process").fit(
            X
        )


@pytest.mark.parametrize(
    "estimator", [*EVERY, estimators.GaussianHMM(2)], ids=lambda e: type(e).__name__
)
def test_frames_of_data_are_not_written_to(estimator: Any) -> None:
    """Those of pandas cannot be, which is a warning of torch if it is tried."""
    frame = pd.DataFrame(np.abs(np.round(X)))
    own = clone(estimator).fit(frame)
    assert own.score(frame) == pytest.approx(clone(estimator).fit(frame.copy()).score(frame))


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_variational_predictions_with_gaps_are_those_of_the_plan(covariance: str) -> None:
    gaps = X.copy()
    gaps[::5, 0], gaps[3] = np.nan, np.nan
    mixture = estimators.BayesianGaussianMixture(
        n_components=2, covariance_type=covariance, random_state=0
    ).fit(gaps)
    fit = VBEM(gaussian_mixture, seed=0).fit(
        torch.from_numpy(gaps), components=2, covariance=covariance, prior=mixture._prior()
    )
    found = fit.posterior("assignment").probs
    np.testing.assert_allclose(mixture.predict_proba(gaps), found, atol=1e-10)


def test_what_estimators_cannot_do_they_say() -> None:
    with pytest.raises(ValueError, match="X has nothing but NaN in column"):
        estimators.BayesianGaussianMixture().fit(np.c_[X, np.full(len(X), np.nan)])
    for mixture in (estimators.GaussianMixture(2), estimators.BayesianGaussianMixture()):
        mixture.set_params(warm_start=True, random_state=0).fit(X)
        with pytest.raises(ValueError, match="warm_start=True goes on from"):
            mixture.set_params(n_components=3).fit(X)
    with pytest.raises(ValueError, match="X must have one column"):
        estimators.CategoricalHMM(2).fit(np.ones((9, 2), dtype=int))
    regression = estimators.ModelEstimator(
        regression_mixture, options={"components": 1}, random_state=0
    ).fit(X[:, :1], X[:, 1])
    with pytest.raises(ValueError, match="requires y to be passed"):
        regression.score(X[:, :1])


def test_as_many_factors_as_columns() -> None:
    factors = estimators.FactorAnalysis()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a variance of zero takes digits away
        factors.set_params(n_components=None).fit(X)
    assert factors.components_.shape == (2, 2)
