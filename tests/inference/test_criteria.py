"""Free parameters, BIC, AIC and ICL of a fit, against counts by hand and their definitions."""

import itertools
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


def test_icl_charges_for_paths_of_a_chain() -> None:
    """All paths are enumerated: neighbouring states leave less open than each by itself."""
    y = torch.tensor([2.0, 3, 5, 4, 8, 3, 6, 7, 2, 5])
    fit = EM(hidden_markov_poisson, seed=0).fit(y, states=2)
    initial, transition, rates = (fit.params[n].log() for n in ("initial", "transition", "rates"))
    joint = []
    for path in itertools.product(range(2), repeat=len(y)):
        value = initial[path[0]] + sum(transition[a, b] for a, b in itertools.pairwise(path))
        joint.append(value + dist.Poisson(rates.exp()[[*path]]).log_prob(y).sum())
    log_probs = torch.stack(joint).log_softmax(0)
    assert fit.icl - fit.bic == pytest.approx(-2 * float((log_probs.exp() * log_probs).sum()))


def test_icl_of_latents_that_depend_on_each_other() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Beta(2.0, 2.0))
        with pyro.plate("locations", 4):
            locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Bernoulli(w)).long()
            v = pyro.sample("v", dist.Bernoulli(0.2 + 0.5 * z)).long()
            pyro.sample("x", dist.Normal(locs[2 * z + v], 1.0), obs=x)

    x = 3.0 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fit = EM(model, seed=0).fit(x)
    w, locs = fit.params["w"], fit.params["locs"]
    weights = torch.stack([(1 - w) * 0.8, (1 - w) * 0.2, w * 0.3, w * 0.7]).log()
    joint = weights + dist.Normal(locs, 1.0).log_prob(x.unsqueeze(-1))
    log_probs = joint.log_softmax(-1)
    assert fit.icl - fit.bic == pytest.approx(-2 * float((log_probs.exp() * log_probs).sum()))


def test_items_in_a_plate_are_those_of_an_event() -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(60, 3, generator=generator) < 0.5).double()

    def event(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(2 * torch.ones(2)))
        with pyro.plate("classes", 2):
            p = pyro.sample("p", dist.Beta(2.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Bernoulli(p[z]).to_event(1), obs=x)

    def plate(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(2 * torch.ones(2)))
        with pyro.plate("items", 3, dim=-1), pyro.plate("classes", 2, dim=-2):
            p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(x), dim=-2):
            z = pyro.sample("z", dist.Categorical(w))
            with pyro.plate("answers", 3, dim=-1):
                pyro.sample("x", dist.Bernoulli(p[z, torch.arange(3)]), obs=x)

    one, other = (EM(model, seed=0).fit(x) for model in (event, plate))
    assert one.n_observations == other.n_observations == len(one.log_prob()) == 60
    assert one.bic == pytest.approx(other.bic, rel=1e-6)


def test_without_latents_or_with_one_in_each_cell_every_cell_is_an_observation() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def table(x: Tensor) -> None:
        with pyro.plate("columns", x.shape[1], dim=-1):
            mean = pyro.param("mean", torch.zeros(x.shape[1]))
            with pyro.plate("rows", len(x), dim=-2):
                pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def cells(x: Tensor) -> None:
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.5)).long()
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    for model in (table, cells):
        for data in (x, x.mT):
            assert EM(model, "mle", seed=0).fit(data).n_observations == 150
