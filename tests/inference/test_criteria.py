"""Free parameters, BIC, AIC and ICL of a fit, against counts by hand and their definitions."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

from ember.inference import EM
from ember.models import (
    categorical_mixture,
    gaussian_mixture,
    hidden_markov_poisson,
    regression_mixture,
)
from tests.inference.catalogue import CASES

X = CASES[0][1]
COUNTS = torch.tensor([1.0, 0, 2, 9, 8, 10, 1, 0])


@pytest.mark.parametrize(
    ("fit", "count"),
    [
        (lambda: EM(gaussian_mixture, max_iter=1).fit(X, components=2), 1 + 4 + 6),
        (lambda: EM(gaussian_mixture, max_iter=1).fit(X, components=1), 0 + 2 + 3),
        (lambda: EM(gaussian_mixture, max_iter=1).fit(X, components=2, covariance="tied"), 8),
        (lambda: EM(hidden_markov_poisson, max_iter=1).fit(COUNTS, states=2), 1 + 2 + 2),
        (
            lambda: EM(hidden_markov_poisson, max_iter=1).fit(COUNTS, states=2, stationary=True),
            2 + 2,
        ),
        (
            lambda: EM(categorical_mixture, max_iter=1).fit(
                (torch.arange(24).reshape(12, 2) % 3).double(), components=2
            ),
            1 + 2 * 2 * 2,
        ),
        (
            lambda: EM(regression_mixture, max_iter=1).fit(
                COUNTS, torch.arange(8.0), components=2, scale="tied"
            ),
            1 + 4 + 1,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*not converged")
def test_parameters_of_the_ready_models(fit: object, count: int) -> None:
    assert fit().n_parameters == count  # type: ignore[operator]


def test_held_and_hyper_parameters_are_not_counted() -> None:
    def model(x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 10.0))  # only the prior reads it
        with pyro.plate("groups", 2):
            loc = pyro.sample("loc", dist.Normal(level, 5.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[z], scale), obs=x)

    x = torch.tensor([0.0, 0.3, 0.1, 5.0, 5.2])
    assert EM(model, seed=0).fit(x).n_parameters == 3
    held = pyro.condition(model, data={"scale": torch.tensor(1.0)})
    assert EM(held, seed=0).fit(x).n_parameters == 2


@pytest.mark.filterwarnings("ignore:.*edge of its support:RuntimeWarning")  # one cluster only
def test_constrained_parameters_count_their_dimension() -> None:
    def model(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([0.0, 4.0]), constraint=constraints.ordered_vector)
        tril = pyro.param("tril", torch.eye(3), constraint=constraints.lower_cholesky)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            loc = locs[z].unsqueeze(-1).expand(*locs[z].shape, 3)
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=tril), obs=x)

    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    assert EM(model, "mle", seed=0, max_iter=3, tol=1.0).fit(x).n_parameters == 2 + 6


def test_the_criteria_follow_from_the_likelihood() -> None:
    fit = EM(gaussian_mixture, seed=0).fit(X, components=2)
    assert fit.n_observations == len(X)
    assert fit.aic == pytest.approx(-2.0 * fit.log_likelihood + 2.0 * 11, rel=1e-14)
    assert fit.bic == pytest.approx(-2.0 * fit.log_likelihood + 11 * math.log(len(X)), rel=1e-14)
    probs = fit.posterior("assignment").probs
    entropy = -float(torch.special.xlogy(probs, probs).sum())
    assert fit.icl == pytest.approx(fit.bic + 2.0 * entropy, rel=1e-12)
    assert f"{fit.bic:.6f}" in str(fit)
    assert "(11 free parameters" in str(fit)
