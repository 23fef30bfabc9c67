"""Estimates from draws of latents: against those of quadrature, within their own errors."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, MonteCarlo
from ember.models import generalised_linear_mixed_model
from tests.inference.unit_models import data

DRAWN: Any = {"group_effects": MonteCarlo(burn_in=60, averaged=60)}


@pytest.mark.parametrize("family", ["poisson", "bernoulli"])
def test_estimates_are_within_their_monte_carlo_errors(family: str) -> None:
    y, x, group = data(family, groups=40, rows=6)
    options = {"groups": group, "family": {"bernoulli": "logistic"}.get(family, family)}
    exact = EM(generalised_linear_mixed_model, seed=0).fit(y, x, **options)
    fit = EM(generalised_linear_mixed_model, seed=0, integrate=DRAWN).fit(y, x, **options)
    assert fit.converged, fit.stop_reason
    assert fit.monte_carlo is not None
    assert fit.monte_carlo.share <= 0.1
    for name, value in fit.params.items():
        off = (value - exact.params[name]).abs() / fit.monte_carlo.errors[name]
        assert float(off.max()) < 5.0  # with ten batches an error is known to a quarter
    assert exact.log_posterior - 0.05 < fit.log_posterior <= exact.log_posterior + 1e-9
    assert "Monte Carlo     errors are at most" in str(fit)
    assert bool((fit.history.diff() >= 0.0).all())
    found, truth = (each.posterior("group_effects") for each in (fit, exact))
    assert torch.allclose(found.mean, truth.mean, atol=0.05)


def test_a_seed_makes_it_repeatable() -> None:
    y, x, group = data("poisson", groups=10, rows=4)
    options: Any = {"groups": group, "family": "poisson"}
    few = {"group_effects": MonteCarlo(burn_in=30, averaged=20, draws=80, most=2560)}
    fits = [
        EM(generalised_linear_mixed_model, seed=seed, integrate=few).fit(y, x, **options)
        for seed in (3, 3, 4)
    ]
    one, two, other = (fit.params["coefficients"] for fit in fits)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_too_few_draws_are_reported() -> None:
    y, x, group = data("poisson", groups=10, rows=4)
    few = {"group_effects": MonteCarlo(chains=1, burn_in=20, averaged=10, draws=40, most=40)}
    with pytest.warns(RuntimeWarning, match=r"above a tenth.*raise MonteCarlo\(most=...\)"):
        fit = EM(generalised_linear_mixed_model, seed=0, integrate=few).fit(
            y, x, groups=group, family="poisson"
        )
    assert not fit.converged
    assert fit.monte_carlo is not None
    assert fit.monte_carlo.draws == 40


def test_beside_other_latents_it_is_refused() -> None:
    def model(y: Tensor, group: Tensor) -> None:
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
        drawn: Any = {"integrate": "monte-carlo"}
        with pyro.plate("groups", 30):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=drawn)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(u[group].exp()), obs=y)
        with pyro.plate("others", 5):
            z = pyro.sample("z", dist.Categorical(shares))
            pyro.sample("w", dist.Bernoulli(0.2 + 0.6 * z), obs=torch.ones(5))

    y, _, group = data("poisson")
    with pytest.raises(ValueError, match=r"site 'u' asks.*by Monte Carlo.*the latent 'z' too"):
        EM(model, seed=0).fit(y, group)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"chains": 0}, ValueError, r"MonteCarlo\(chains=0\) must be at least 1"),
        ({"draws": 1.5}, TypeError, r"MonteCarlo\(draws=1.5\) must be a whole number"),
        ({"most": 100}, ValueError, r"MonteCarlo\(most=100\) must be at least 200"),
    ],
)
def test_rules_that_mean_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MonteCarlo(**arguments)
