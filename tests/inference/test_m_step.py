"""The M-step beyond single families: shared parameters, priors, and what has no closed form."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from tests.inference import brute_force
from tests.inference.examples import EXAMPLES, Example
from tests.inference.family_cases import (
    COUNTS,
    POSITIVES,
    REALS,
    N,
    assert_stationary,
    assert_update,
    closed_form,
)
from tests.inference.numerical_models import MIXED, NUMERICAL, vector, weights_of

# -- one parameter, several sites: statistics come from all of them ------------------------------


def scale_of_two_families(x: Tensor, y: Tensor) -> None:
    weights = weights_of()
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0], dtype=torch.float64))
    variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], variance.sqrt()), obs=x)
        pyro.sample("y", dist.LogNormal(0.3, variance.sqrt()), obs=y)


def precision_and_rate(x: Tensor, y: Tensor) -> None:
    weights = weights_of()
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0], dtype=torch.float64))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], rate.rsqrt()), obs=x)
        pyro.sample("y", dist.Poisson(rate), obs=y)


def precision_of_prior_and_data(x: Tensor, y: Tensor) -> None:
    # The Normal prior of the locations is a third site that reads the precision.
    weights = weights_of()
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    locs = vector("locs", dist.Normal(0.5, (0.4 * precision).rsqrt()), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precision.rsqrt()), obs=x)
        pyro.sample("y", dist.Normal(0.0, (2.0 * precision).rsqrt()), obs=y)


def weights_of_two_sites(x: Tensor, y: Tensor) -> None:
    weights = weights_of()
    rates = vector("rates", dist.Gamma(2.0, 1.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)
        pyro.sample("y", dist.Categorical(weights), obs=y)


def success_of_two_families(x: Tensor, y: Tensor) -> None:
    weights = weights_of()
    p = vector("p", dist.Beta(2.0, 2.0), 2)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Geometric(p[z]), obs=x)
        pyro.sample("y", dist.Binomial(4, p[1 - z]), obs=y)


SHARED: dict[str, tuple[Callable[..., None], tuple[Tensor, ...]]] = {
    "scale, two families": (scale_of_two_families, (REALS, POSITIVES)),
    "precision and rate": (precision_and_rate, (REALS, COUNTS)),
    "precision in prior and data": (precision_of_prior_and_data, (REALS, REALS.flip(0))),
    "weights of two sites": (weights_of_two_sites, (COUNTS, (REALS > 0).long())),
    "success of two families": (success_of_two_families, (COUNTS, COUNTS.clamp_max(4.0))),
}


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_parameter_collects_from_all_its_sites(name: str) -> None:
    model, data = SHARED[name]
    assert set(closed_form(EM(model), *data).values()) == {"closed form"}
    assert_update(model, "map", (), *data)


def test_a_table_indexed_by_two_latents() -> None:
    example = EXAMPLES["factorial"]
    assert closed_form(EM(example.model), *example.args)["locs"] == "closed form"


def test_rows_of_a_transition_table_also_used_as_the_start() -> None:
    def model(x: Tensor) -> None:
        table = vector("table", dist.Dirichlet(torch.tensor([2.0, 1.5])), 2)
        z: Any = torch.tensor(0)
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(table[z]))
            pyro.sample(f"x_{t}", dist.Normal(2.0 * z - 1.0, 1.0), obs=x[t])

    x = REALS[:5]
    params = Example("tied", model, (x,)).params(1)
    em = EM(model)
    found = em.m_step(em.e_step(params, x))
    weights = brute_force.enumerate_latents(model, params, x).weights
    supports = brute_force.supports(model, params, x)

    def q(at: dict[str, Tensor]) -> Tensor:
        return brute_force.expected_log_joint(model, weights, at, x)

    gradient = brute_force.free_gradient(q, found, supports)
    assert float(gradient.abs().max()) < 1e-9


# The closed form of every structure of the E-step tests is a stationary point of its own Q.
CLOSED_AND_JOINT = [
    "mixture", "mixture_full", "several_latents", "chain_of_two", "tree", "chain_of_order_two",
    "autoregressive_chain", "chains", "vector_chain", "labelled", "labelled_by_masks", "switch",
    "coin_flips", "global_and_local", "local_parameters",
]  # fmt: skip


@pytest.mark.parametrize("name", CLOSED_AND_JOINT)
def test_structures_end_the_m_step_at_the_top_of_q(name: str) -> None:
    example = EXAMPLES[name]
    assert set(closed_form(EM(example.model), *example.args).values()) == {"closed form"}
    params = example.params(5)
    em = EM(example.model)
    # Flat Dirichlet and Beta priors may put the mode on the boundary, where no gradient is zero.
    found = em.m_step(em.e_step(params, *example.args))
    weights = brute_force.enumerate_latents(example.model, params, *example.args).weights

    def q(at: dict[str, Tensor]) -> Tensor:
        return brute_force.expected_log_joint(example.model, weights, at, *example.args)

    best = q(found)
    assert float(best) >= float(q(params))
    supports = brute_force.supports(example.model, params, *example.args)
    free = brute_force.Free(supports, found)
    flat = free.flatten(found)
    interior = torch.isfinite(flat) & (flat.abs() < 30.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(4):
        step = 1e-3 * torch.randn(flat.shape, generator=generator, dtype=torch.float64)
        moved = free.unflatten(torch.where(interior, flat + step, flat))
        assert float(q(moved)) <= float(best) + 1e-9 * abs(float(best))


def regressions(x: Tensor, y: Tensor) -> None:
    weights = weights_of()
    slopes = vector("slopes", dist.Normal(0.0, 5.0), 2, 2)
    variances = vector("variances", dist.InverseGamma(2.0, 1.0), 2)
    design = torch.stack([torch.ones_like(x), x], -1)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        loc = (design * slopes[z]).sum(-1)
        pyro.sample("y", dist.Normal(loc, variances[z].sqrt()), obs=y)


def pulled(x: Tensor) -> None:
    weights = weights_of()
    locs = vector("locs", dist.Normal(0.0, 3.0), 2)
    pyro.factor("pull", -((locs[0] + locs[1]) ** 2))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


@pytest.mark.parametrize("name", NUMERICAL)
def test_without_a_closed_form_the_fit_is_monotone_and_stationary(name: str) -> None:
    model, data, expected = NUMERICAL[name]
    how = closed_form(EM(model), *data)
    assert {site for site, update in how.items() if update == "numerical"} >= expected
    assert how.get("weights", "closed form") == "closed form"
    fit = EM(model, seed=1, tol=1e-12).fit(*data)
    assert fit.converged
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    assert_stationary(model, fit.params, *data)


@pytest.mark.parametrize("name", ["regressions", "pulled"])
def test_interacting_parameters_reach_a_stationary_point(name: str) -> None:
    choices: dict[str, tuple[Callable[..., None], tuple[Tensor, ...]]] = {
        "regressions": (regressions, (REALS, MIXED)),
        "pulled": (pulled, (MIXED,)),
    }
    model, data = choices[name]
    fit = EM(model, seed=1, tol=1e-12).fit(*data)
    assert fit.converged

    if name == "regressions":
        assert_stationary(model, fit.params, *data)
        return

    def without_factor(x: Tensor) -> None:
        with poutine.block(hide=["pull"]):
            pulled(x)

    def log_posterior(at: dict[str, Tensor]) -> Tensor:
        evidence = brute_force.rows(without_factor, at, *data).log_evidence
        pull = -((at["locs"][0] + at["locs"][1]) ** 2)
        return evidence + pull + brute_force.log_prior(without_factor, at, *data)

    supports = brute_force.supports(model, fit.params, *data)
    gradient = brute_force.free_gradient(log_posterior, fit.params, supports)
    assert float(gradient.abs().max()) < 1e-4
    assert fit.log_posterior == pytest.approx(float(log_posterior(fit.params)), rel=1e-10)


def test_reasons_are_given_for_every_numerical_update() -> None:
    for model, data, expected in NUMERICAL.values():
        plan: Any = EM(model).explain(*data).set_index("site")
        for site in expected:
            assert len(plan.loc[site, "why"]) > 10


def test_hierarchical_priors_converge_to_a_stationary_point() -> None:
    def model(x: Tensor) -> None:
        weights = weights_of()
        spread = pyro.sample("spread", dist.Gamma(4.0, 2.0))
        centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
        locs = vector("locs", dist.Normal(centre, spread.rsqrt()), 2)
        precision = pyro.sample("precision", dist.Gamma(3.0, 2.0))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], precision.rsqrt()), obs=x)

    fit = EM(model, seed=1, tol=1e-12).fit(MIXED)
    assert fit.converged
    assert_stationary(model, fit.params, MIXED)


def test_maximum_likelihood_ignores_priors_and_map_does_not() -> None:
    def model(x: Tensor, prior: float) -> None:
        rate = pyro.sample("rate", dist.Gamma(prior, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    mle = EM(model, "mle").fit(COUNTS, 50.0)
    assert float(mle.params["rate"]) == pytest.approx(float(COUNTS.mean()), rel=1e-12)
    assert mle.log_posterior == mle.log_likelihood
    fit = EM(model).fit(COUNTS, 50.0)
    mode = (float(COUNTS.sum()) + 49.0) / (N + 1.0)
    assert float(fit.params["rate"]) == pytest.approx(mode, rel=1e-12)
    prior = dist.Gamma(50.0, 1.0).log_prob(fit.params["rate"])
    assert fit.log_posterior - fit.log_likelihood == pytest.approx(float(prior), rel=1e-5)


def test_a_flat_prior_and_a_param_give_the_same_estimate() -> None:
    def flat(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        p = vector("p", dist.Uniform(0.0, 1.0), 2)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Binomial(9, p[z]), obs=x)

    def free(x: Tensor) -> None:
        half = torch.full((2,), 0.5, dtype=torch.float64)
        weights = pyro.param("weights", half, constraint=constraints.simplex)
        p = pyro.param("p", half, constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Binomial(9, p[z]), obs=x)

    data = COUNTS.clamp_max(9.0)
    assert closed_form(EM(flat), data) == {"weights": "closed form", "p": "closed form"}
    start = {"weights": torch.tensor([0.4, 0.6]), "p": torch.tensor([0.2, 0.5])}
    left = EM(flat, init=start).fit(data)
    right = EM(free, init=start).fit(data)
    for name in start:
        torch.testing.assert_close(left.params[name], right.params[name], rtol=1e-10, atol=0)


def test_a_parameter_that_only_a_flat_prior_knows_is_left_alone() -> None:
    def model(x: torch.Tensor) -> None:
        pyro.sample("unused", dist.Uniform(0.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    fit = EM(model).fit(torch.tensor([1.0, 4.0, 2.0]))
    assert 0.0 < float(fit.params["unused"]) < 1.0
    assert float(fit.params["rate"]) == pytest.approx(8.0 / 4.0)


def test_a_probability_of_one_has_a_density_under_a_uniform_prior() -> None:
    # The density of Pyro's Uniform is zero at its upper bound.
    def model(x: torch.Tensor) -> None:
        p = pyro.sample("p", dist.Uniform(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    fit = EM(model).fit(torch.ones(3))
    assert fit.converged
    assert float(fit.params["p"]) == pytest.approx(1.0, abs=1e-15)
    assert fit.log_posterior == pytest.approx(0.0, abs=1e-12)
