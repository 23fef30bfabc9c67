"""Variational Bayes of scikit-learn and hmmlearn, from the same start with the same priors."""

from typing import Any

import numpy as np
import pytest
import torch

from ember.inference import VBEM
from ember.models import gaussian_mixture, hidden_markov_categorical

mixture = pytest.importorskip("sklearn.mixture")
vhmm = pytest.importorskip("hmmlearn.vhmm")


@pytest.mark.parametrize(("components", "concentration"), [(2, 1.0), (6, 0.01)])
def test_bayesian_gaussian_mixture(
    reference_data: Any, components: int, concentration: float
) -> None:
    """Sparse weights empty the same components."""
    x = np.asarray(reference_data("faithful"))
    x = (x - x.mean(0)) / x.std(0)
    covariance, d = np.cov(x.T), x.shape[1]
    rival = mixture.BayesianGaussianMixture(
        n_components=components, weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=concentration, mean_precision_prior=1.0,
        degrees_of_freedom_prior=d + 1.0, covariance_prior=covariance, reg_covar=0.0,
        tol=1e-13, max_iter=20_000, random_state=0,
    ).fit(x)  # fmt: skip
    prior = {
        "concentration": concentration, "kappa": 1.0, "df": d + 1.0, "mean": x.mean(0),
        "scale": covariance,
    }  # fmt: skip
    start = {
        "weights": rival.weights_ / rival.weights_.sum(),
        "locs": rival.means_,
        "precisions": rival.precisions_,
    }
    method = VBEM(gaussian_mixture, init=start, tol=1e-12)
    fit = method.fit(torch.from_numpy(x), components=components, prior=prior)
    total = concentration + rival.predict_proba(x).sum(0)
    np.testing.assert_allclose(fit.sizes["weights|total"], total.sum(), rtol=1e-9)
    np.testing.assert_allclose(fit.params["locs"], rival.means_, atol=1e-4)
    np.testing.assert_allclose(fit.params["weights"], rival.weights_, atol=1e-4)
    np.testing.assert_allclose(fit.sizes["locs|count"], rival.mean_precision_, rtol=1e-3)
    np.testing.assert_allclose(fit.sizes["precisions|df"], rival.degrees_of_freedom_, rtol=1e-3)
    found = fit.posterior("assignment").probs
    np.testing.assert_allclose(found, rival.predict_proba(x), atol=1e-4)


def test_variational_categorical_chain() -> None:
    codes = np.digitize(np.sin(np.arange(120) / 3.0) + np.cos(np.arange(120) ** 2), [-0.7, 0.4])
    rival = vhmm.VariationalCategoricalHMM(
        2, startprob_prior=1.5, transmat_prior=2.0, emissionprob_prior=1.2, n_iter=5000, tol=1e-12,
        random_state=1,
    ).fit(codes[:, None])  # fmt: skip
    start = {
        "initial": rival.startprob_posterior_ / rival.startprob_posterior_.sum(),
        "transition": _normalised(rival.transmat_posterior_),
        "probs": _normalised(rival.emissionprob_posterior_),
    }
    prior = {"initial": 1.5, "transition": 2.0, "probs": 1.2}
    fit = VBEM(hidden_markov_categorical, init=start, tol=1e-12).fit(
        torch.from_numpy(codes), states=2, levels=3, prior=prior
    )
    for site, theirs in (
        ("transition", rival.transmat_posterior_),
        ("probs", rival.emissionprob_posterior_),
    ):
        ours = fit.posteriors[site].concentration
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert fit.lower_bound == pytest.approx(rival.monitor_.history[-1], rel=1e-7)


def _normalised(counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    normalised: np.ndarray[Any, Any] = counts / counts.sum(-1, keepdims=True)
    return normalised
