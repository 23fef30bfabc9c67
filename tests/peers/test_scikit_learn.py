"""scikit-learn's Gaussian mixtures and its naive Bayes classifiers as oracles.

The rival adds ``reg_covar=1e-6`` to every variance, so that what it maximises is not quite the
likelihood; here it is 0. Its tolerance bounds the gain of one iteration, averaged over rows, which
by default (1e-3) ends many iterations early; here it is as tight as rounding allows.
"""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.selection import criteria
from ember.models import gaussian_mixture
from tests.peers.common import at, best_of, equal, gain_of_a_step

datasets = pytest.importorskip("sklearn.datasets")
mixture = pytest.importorskip("sklearn.mixture")
naive_bayes = pytest.importorskip("sklearn.naive_bayes")

COVARIANCES = ("full", "tied", "diag", "spherical")
each_covariance = pytest.mark.parametrize("covariance", COVARIANCES)
each_data = pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])


def data(name: str) -> np.ndarray[Any, Any]:
    """Some columns of a data set, in units in which their spreads are alike."""
    columns = {"iris": [0, 1, 2, 3], "wine": [0, 6, 9, 12], "breast_cancer": [0, 1, 4, 8, 9]}[name]
    x = getattr(datasets, f"load_{name}")().data[:, columns]
    return np.asarray(x / x.std(0))


def rival(components: int, covariance: str, **options: Any) -> Any:
    settings = {"reg_covar": 0.0, "tol": 1e-13, "max_iter": 5000, "random_state": 0, **options}
    return mixture.GaussianMixture(components, covariance_type=covariance, **settings)


def estimates(fitted: Any) -> dict[str, Any]:
    return {
        "weights": fitted.weights_ / fitted.weights_.sum(),
        "locs": fitted.means_,
        "precisions": fitted.precisions_,
    }


def loaded(params: dict[str, Tensor], covariance: str) -> Any:
    """The rival at our parameters: it computes from the Cholesky factors of precisions alone."""
    theirs = rival(len(params["weights"]), covariance)
    theirs.weights_, theirs.means_ = params["weights"].numpy(), params["locs"].numpy()
    precisions = params["precisions"]
    if covariance in ("full", "tied"):  # upper triangular: U U' is the precision
        factor = torch.linalg.cholesky(precisions.flip(-1, -2)).flip(-1, -2)
        theirs.precisions_cholesky_ = factor.numpy()
    else:
        theirs.precisions_cholesky_ = precisions.sqrt().numpy()
    return theirs


@each_data
@each_covariance
def test_the_same_numbers_at_the_rival_s_estimates(name: str, covariance: str) -> None:
    x = data(name)
    theirs = rival(3, covariance).fit(x)
    options: dict[str, Any] = {"components": 3, "covariance": covariance}
    ours = at(gaussian_mixture, estimates(theirs), torch.from_numpy(x), **options)
    equal(ours.log_likelihood, theirs.score(x) * len(x), 1e-10)
    equal(ours.log_prob(), theirs.score_samples(x), 1e-9)
    equal(ours.posterior("assignment").probs, theirs.predict_proba(x))
    assert (ours.predict().numpy() == theirs.predict(x)).all()
    measures = criteria(ours)
    equal(measures["bic"], theirs.bic(x), 1e-10)
    equal(measures["aic"], theirs.aic(x), 1e-10)
    # Where the rival has stopped, no step of ours gains anything.
    assert gain_of_a_step(gaussian_mixture, ours.params, torch.from_numpy(x), **options) < 1e-8


@each_data
@each_covariance
def test_the_same_numbers_at_our_estimates(name: str, covariance: str) -> None:
    x = data(name)
    options: dict[str, Any] = {"components": 2, "covariance": covariance}
    ours = EM(gaussian_mixture, seed=0).fit(torch.from_numpy(x), **options)  # MAP: not its optimum
    theirs = loaded(ours.params, covariance)
    equal(ours.log_likelihood, theirs.score(x) * len(x), 1e-10)
    equal(ours.log_prob(), theirs.score_samples(x), 1e-9)
    equal(ours.posterior("assignment").probs, theirs.predict_proba(x))
    new = x[::7] + 0.1
    equal(ours.log_prob(torch.from_numpy(new)), theirs.score_samples(new), 1e-9)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@each_covariance
def test_one_step_is_one_step(covariance: str) -> None:
    x = data("iris")
    options: dict[str, Any] = {"components": 3, "covariance": covariance}
    em = EM(gaussian_mixture, "mle", seed=1)
    start = em.initialise(torch.from_numpy(x), **options)
    after = em.m_step(em.e_step(start, torch.from_numpy(x), **options))
    theirs = rival(
        3,
        covariance,
        max_iter=1,
        weights_init=start["weights"].numpy(),
        means_init=start["locs"].numpy(),
        precisions_init=start["precisions"].numpy(),
    ).fit(x)
    assert float((after["locs"] - start["locs"]).abs().max()) > 1e-3
    for site, value in estimates(theirs).items():
        equal(after[site], value, 1e-9)


@each_data
@each_covariance
def test_as_good_an_optimum_from_as_many_starts(name: str, covariance: str) -> None:
    x = data(name)
    theirs = rival(3, covariance, n_init=5).fit(x)
    ours = best_of(gaussian_mixture, 5, torch.from_numpy(x), components=3, covariance=covariance)
    assert ours.log_likelihood >= theirs.score(x) * len(x) - 1e-6


@each_covariance
def test_the_default_regulariser_costs_likelihood(covariance: str) -> None:
    """``reg_covar=1e-6`` is in the units of the data: in metres it flattens what it did not in mm.

    Ember's objective is the likelihood (or the posterior under a prior in the units of the data),
    so that its fit of data in other units is the same fit.
    """
    x = data("iris")
    small = x / 1000.0
    theirs = rival(2, covariance, reg_covar=1e-6, init_params="k-means++").fit(small)
    options: dict[str, Any] = {"components": 2, "covariance": covariance}
    ours, same = (best_of(gaussian_mixture, 1, torch.from_numpy(v), **options) for v in (small, x))
    assert ours.log_likelihood > theirs.score(small) * len(x) + 10.0
    equal(ours.log_likelihood, same.log_likelihood + x.size * np.log(1000.0), 1e-8)


def supervised(x: Tensor, y: Tensor) -> None:
    """A mixture of two whose components are known: its M-step is naive Bayes."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("classes", 2):
        variances = pyro.param(
            "variances", torch.ones(2, x.shape[1]), constraint=dist.constraints.positive
        )
        locs = pyro.param("locs", torch.zeros(2, x.shape[1]))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=y)
        pyro.sample("x", dist.Normal(locs[z.long()], variances[z.long()].sqrt()).to_event(1), obs=x)


def supervised_bits(x: Tensor, y: Tensor) -> None:
    """The same for yes-or-no items, with the prior that Laplace's smoothing is the mode of."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("classes", 2):
        probs = pyro.sample("probs", dist.Beta(2.0, 2.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=y)
        pyro.sample("x", dist.Bernoulli(probs[z.long()]).to_event(1), obs=x)


def test_known_labels_make_naive_bayes() -> None:
    x, y = data("breast_cancer"), datasets.load_breast_cancer().target
    theirs = naive_bayes.GaussianNB(var_smoothing=0.0).fit(x, y)
    ours = EM(supervised, "mle").fit(torch.from_numpy(x), torch.from_numpy(y))
    equal(ours.params["weights"], theirs.class_prior_, 1e-10)
    equal(ours.params["locs"], theirs.theta_, 1e-10)
    equal(ours.params["variances"], theirs.var_, 1e-10)


def test_laplace_s_smoothing_is_the_mode_under_a_beta_prior() -> None:
    x, y = data("breast_cancer"), datasets.load_breast_cancer().target
    bits = (x > np.median(x, 0)).astype(float)
    theirs = naive_bayes.BernoulliNB(alpha=1.0).fit(bits, y)
    ours = EM(supervised_bits).fit(torch.from_numpy(bits), torch.from_numpy(y))
    equal(ours.params["probs"], np.exp(theirs.feature_log_prob_), 1e-10)
    equal(ours.params["weights"], np.exp(theirs.class_log_prior_), 1e-10)
