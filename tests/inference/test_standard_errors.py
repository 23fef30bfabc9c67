"""Standard errors against Hessians that know nothing of E-steps, and against closed forms."""

import itertools
import math
import pickle
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
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.fit import Fit
from ember.inference.inputs.shelter import sheltered
from ember.inference.queries.uncertainty.observed_information import observed_information
from ember.inference.queries.uncertainty.passes import InMemory
from ember.inference.tables import old_faithful
from ember.models import (
    gaussian_mixture,
    hidden_markov_poisson,
    linear_mixed_model,
    poisson_mixture,
    regression_mixture,
)
from tests.inference.catalogue import CASES, INTEGRATED, NUMERICAL, Case, case_id, model_of


def hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Minus the second derivatives, by differentiating twice."""
    with torch.enable_grad():
        found: Tensor = torch.autograd.functional.hessian(function, at)
    return -found


@pytest.mark.filterwarnings("ignore")  # of fits that are not carried to their ends
@pytest.mark.parametrize("case", CASES + NUMERICAL + INTEGRATED, ids=case_id)
def test_differences_of_gradients_are_the_hessian_of_the_evidence(case: Case) -> None:
    _, data, options = case
    fit = EM(model_of(case), seed=0, max_iter=12, tol=1e-6).fit(data, **options)
    plan = fit.plan
    with sheltered(data=data):
        found = observed_information(InMemory(plan), fit.params)

        def log_posterior(free: Tensor) -> Tensor:
            params = found.coordinates.unflatten(found.point.index_put((found.places,), free))
            return LogEvidence.of(plan)(params) + plan.prior.log_prob(params)

        expected = hessian(log_posterior, found.point[found.places])
    units = expected.diagonal().abs().rsqrt()
    apart = (found.matrix - expected) * units * units.unsqueeze(-1)
    assert float(apart.abs().max()) < 1e-6
    assert found.noise < 1e-6


# -- without any of Ember's code ----------------------------------------------------------------


def covariance_of(log_likelihood: Callable[[Tensor], Tensor], estimates: list[Tensor]) -> Tensor:
    flat = torch.cat([each.reshape(-1) for each in estimates])
    covariance: Tensor = torch.linalg.inv(hessian(log_likelihood, flat))
    return covariance


def test_a_mixture_in_other_coordinates() -> None:
    """Covariance matrices instead of precisions, and a share instead of a simplex."""
    x = torch.tensor(old_faithful().to_numpy())
    fit = EM(gaussian_mixture, "mle", seed=0, tol=1e-12).fit(x, components=2)
    covs = torch.linalg.inv(fit.params["precisions"])
    lower = torch.tril_indices(2, 2)

    def log_likelihood(v: Tensor) -> Tensor:
        share, locs, free = v[0], v[1:5].reshape(2, 2), v[5:].reshape(2, 3)
        parts = []
        for k, weight in enumerate((share, 1 - share)):
            tril = torch.zeros(2, 2, dtype=v.dtype).index_put((lower[0], lower[1]), free[k])
            cov = tril + tril.mT - torch.diag(tril.diagonal())
            normal = dist.MultivariateNormal(locs[k], cov, validate_args=False)
            parts.append(weight.log() + normal.log_prob(x))
        total: Tensor = torch.logsumexp(torch.stack(parts), 0).sum()
        return total

    at = [fit.params["weights"][:1], fit.params["locs"], covs[:, lower[0], lower[1]]]
    expected = covariance_of(log_likelihood, at).diagonal().sqrt()
    found = fit.standard_errors()
    torch.testing.assert_close(found["locs"].reshape(-1), expected[1:5], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["weights"], expected[:1].expand(2), rtol=1e-6, atol=0)


def test_a_chain_by_the_sum_over_every_path() -> None:
    counts = torch.tensor([1.0, 1, 2, 9, 8, 1, 2, 7, 1], dtype=torch.float64)
    fit = EM(hidden_markov_poisson, seed=0, tol=1e-12).fit(counts, states=2)
    paths = torch.tensor(list(itertools.product((0, 1), repeat=len(counts))))
    prior = fit.plan.prior

    def log_posterior(v: Tensor) -> Tensor:
        rates, stay, first = v[:2], v[2:4], v[4]
        moves = torch.stack([stay, 1 - stay], -1)
        moves = torch.stack([moves[0], moves[1].flip(0)])
        initial = torch.stack([first, 1 - first])
        emission = dist.Poisson(rates, validate_args=False).log_prob(counts.unsqueeze(-1))
        joint = initial.log()[paths[:, 0]] + moves.log()[paths[:, :-1], paths[:, 1:]].sum(-1)
        joint = joint + emission[torch.arange(len(counts)), paths].sum(-1)
        params = {"rates": rates, "transition": moves, "initial": initial}
        total: Tensor = joint.logsumexp(0) + prior.log_prob(params)
        return total

    p = fit.params
    at = [p["rates"], p["transition"].diagonal(), p["initial"][:1]]
    expected = covariance_of(log_posterior, at).diagonal().sqrt()
    found = fit.standard_errors()
    torch.testing.assert_close(found["rates"], expected[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["transition"].diagonal(), expected[2:4], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["initial"], expected[4:].expand(2), rtol=1e-6, atol=0)


def test_random_effects_by_their_marginal_normal() -> None:
    generator = torch.Generator().manual_seed(3)
    group = torch.arange(40) % 8
    effects = 1.5 * torch.randn(8, generator=generator, dtype=torch.float64)
    y = 2.0 + effects[group] + torch.randn(40, generator=generator, dtype=torch.float64)
    fit = EM(linear_mixed_model, "mle", tol=1e-12).fit(y, groups=group)
    same = (group == group.unsqueeze(-1)).double()

    def log_likelihood(v: Tensor) -> Tensor:
        cov = v[1] * torch.eye(40, dtype=v.dtype) + v[2] * same
        normal = dist.MultivariateNormal(v[0].expand(40), cov, validate_args=False)
        total: Tensor = normal.log_prob(y)
        return total

    names = ["coefficients", "variance", "group_variance"]
    expected = covariance_of(log_likelihood, [fit.params[name] for name in names]).diagonal().sqrt()
    found = fit.standard_errors()
    got = torch.cat([found[name].reshape(-1) for name in names])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_a_regression_by_its_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0]).double() + torch.randn(50, generator=generator).double()
    fit = EM(regression_mixture, "mle", seed=0).fit(y, X=x, components=1)
    design = torch.cat([torch.ones(50, 1).double(), x], 1)
    beta = torch.linalg.lstsq(design, y.unsqueeze(-1)).solution[:, 0]
    residual = y - design @ beta
    inverse = torch.linalg.inv(design.mT @ design)
    errors = (residual.square().mean() * inverse.diagonal()).sqrt()
    found = fit.standard_errors()["coefficients"][0]
    torch.testing.assert_close(found, errors, rtol=1e-6, atol=0)
    meat = (design * residual.square().unsqueeze(-1)).mT @ design  # White's HC0
    robust = (inverse @ meat @ inverse).diagonal().sqrt()
    found = fit.standard_errors(robust=True)["coefficients"][0]
    torch.testing.assert_close(found, robust, rtol=1e-5, atol=0)


# -- what the density is ------------------------------------------------------------------------


def coin(heads: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(3.0, 2.0))
    with pyro.plate("tosses", len(heads)):
        pyro.sample("heads", dist.Bernoulli(p), obs=heads)


def test_the_mode_is_that_of_the_density_the_fit_maximised() -> None:
    heads = torch.tensor([1.0, 1, 1, 0, 1, 0, 1])
    a, b = 3.0 + 5, 2.0 + 2
    p = (a - 1) / (a + b - 2)
    expected = ((a - 1) / p**2 + (b - 1) / (1 - p) ** 2) ** -0.5
    assert float(EM(coin).fit(heads).standard_errors()["p"]) == pytest.approx(expected, rel=1e-7)
    p = a / (a + b)  # of the logit's density, whose curvature is (a + b) p (1 - p)
    expected = p * (1 - p) * ((a + b) * p * (1 - p)) ** -0.5
    fit = EM(coin, mode="unconstrained").fit(heads)
    assert float(fit.standard_errors()["p"]) == pytest.approx(expected, rel=1e-7)


def test_units_and_origin_of_the_data_do_not_matter() -> None:
    x = torch.tensor(old_faithful().to_numpy())
    one = EM(gaussian_mixture, "mle", seed=0, tol=1e-12).fit(x, components=2)
    moved = x * torch.tensor([0.1, 100.0]) + torch.tensor([5.0, 1e4])
    two = EM(gaussian_mixture, "mle", seed=0, tol=1e-12).fit(moved, components=2)
    left, right = one.standard_errors(), two.standard_errors()
    torch.testing.assert_close(right["weights"], left["weights"], rtol=1e-6, atol=0)
    scaled = left["locs"] * torch.tensor([0.1, 100.0])
    torch.testing.assert_close(right["locs"], scaled, rtol=1e-6, atol=0)


def test_renumbered_states_take_their_errors_along() -> None:
    x = torch.tensor([0.0, 1, 2, 1, 0, 9, 11, 10, 12, 1, 2], dtype=torch.float64)
    fit = EM(poisson_mixture, seed=0, tol=1e-12).fit(x, components=2)
    other = fit.relabel([1, 0])
    for name, errors in fit.standard_errors().items():
        torch.testing.assert_close(other.standard_errors()[name].flip(0), errors, rtol=1e-8, atol=0)


# -- weights, gaps, held parameters ---------------------------------------------------------------


def weighed(x: Tensor, counts: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    rates = pyro.param("rates", torch.tensor([1.0, 8.0]), constraint=constraints.positive)
    with pyro.plate("rows", len(x)), poutine.scale(scale=counts):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


@pytest.mark.parametrize("robust", [False, True])
def test_a_weight_is_so_many_rows(robust: bool) -> None:
    x, counts = torch.tensor([0.0, 1, 2, 3, 7, 9, 11]), torch.tensor([3.0, 4, 2, 1, 1, 3, 2])
    repeated = x.repeat_interleave(counts.long())
    one = EM(weighed, "mle", tol=1e-13).fit(x, counts)
    two = EM(weighed, "mle", tol=1e-13).fit(repeated, torch.ones(len(repeated)))
    for name, errors in one.standard_errors(robust).items():
        expected = two.standard_errors(robust)[name]
        torch.testing.assert_close(errors, expected, rtol=1e-6, atol=0)
    frequency = EM(poisson_mixture, seed=0, tol=1e-13).fit(x, components=2, frequency=counts)
    assert bool(frequency.standard_errors(robust)["rates"].isfinite().all())


def test_weights_of_sequences() -> None:
    x = torch.tensor([[1.0, 2, 9, 8, 1], [8.0, 9, 9, 1, 2], [1.0, 1, 2, 0, 7]])
    counts = torch.tensor([2, 1, 3])
    options: dict[str, Any] = {"states": 2}
    em = EM(hidden_markov_poisson, "mle", seed=0, tol=1e-13)
    start = em.initialise(x, **options)
    em = EM(hidden_markov_poisson, "mle", init=start, tol=1e-13)
    one = em.fit(x, **options, frequency=counts)
    two = em.fit(x.repeat_interleave(counts, 0), **options)
    for robust in (False, True):
        left, right = one.standard_errors(robust)["rates"], two.standard_errors(robust)["rates"]
        torch.testing.assert_close(left, right, rtol=1e-5, atol=0)


def test_held_parameters_have_no_errors_and_cost_none() -> None:
    x = torch.tensor([0.0, 1, 2, 3, 7, 9, 11])
    free = EM(poisson_mixture, seed=0).fit(x, components=2)
    held: Any = pyro.condition(poisson_mixture, data={"weights": free.params["weights"]})
    fit = EM(held, init={"rates": free.params["rates"]}).fit(x, components=2)
    errors = fit.standard_errors()
    assert set(errors) == {"rates"}
    assert bool((errors["rates"] <= free.standard_errors()["rates"]).all())


# -- the interface -------------------------------------------------------------------------------


@pytest.fixture
def visits() -> Fit:
    x = torch.tensor([0.0, 1, 2, 1, 0, 9, 11, 10, 12, 1, 2], dtype=torch.float64)
    return EM(poisson_mixture, "mle", seed=0).fit(x, components=2)


def test_the_covariance_is_labelled_as_the_summary_is(visits: Fit) -> None:
    covariance, summary = visits.vcov(), visits.summary(errors=True)
    assert list(covariance.index) == list(covariance.columns) == list(summary.index)
    errors = covariance.to_numpy().diagonal() ** 0.5
    assert errors == pytest.approx(summary["std. error"].to_numpy(), rel=1e-12)
    shares = ["weights[0]", "weights[1]"]  # sum to one, so what moves one moves the other
    assert covariance.loc[shares, shares].sum().abs().max() < 1e-12
    assert list(visits.summary().columns) == ["estimate"]


def test_intervals_are_made_where_numbers_are_free(visits: Fit) -> None:
    errors = visits.standard_errors()
    lower, upper = visits.confidence_intervals(0.9)["rates"]
    z, rates = 1.6448536269514722, visits.params["rates"]
    torch.testing.assert_close(upper, rates * (z * errors["rates"] / rates).exp())
    torch.testing.assert_close(lower, rates / (z * errors["rates"] / rates).exp())
    lower, upper = visits.confidence_intervals(0.9)["weights"]
    share = visits.params["weights"]
    half = z * errors["weights"] / (share * (1 - share))
    torch.testing.assert_close(lower, (share.logit() - half).sigmoid())
    torch.testing.assert_close(lower + upper.flip(0), torch.ones(2).double())  # of two shares
    summary = visits.summary(errors=True, level=0.9)
    assert summary.loc["weights[0]", "lower"] == float(lower[0])


def bounded(x: Tensor) -> None:
    low = pyro.param("low", torch.tensor(0.5), constraint=constraints.interval(-1.0, 3.0))
    above = pyro.param("above", torch.tensor(5.0), constraint=constraints.greater_than(4.0))
    below = pyro.param("below", torch.tensor(1.0), constraint=constraints.less_than(2.0))
    with pyro.plate("rows", len(x)):
        locs = torch.stack([low, above, below])
        pyro.sample("x", dist.Normal(locs, 1.0).to_event(1), obs=x)


def test_intervals_stay_within_bounds() -> None:
    x = torch.tensor([[2.9, 4.1, 1.9], [2.7, 4.3, 1.7], [3.0, 4.2, 2.0]])
    fit = EM(bounded, "mle", tol=1e-12).fit(x)
    for error in fit.standard_errors().values():  # whatever the bounds
        assert float(error) == pytest.approx(3**-0.5, rel=1e-6)
    intervals = fit.confidence_intervals(0.999)
    assert -1.0 < float(intervals["low"].lower) < float(intervals["low"].upper) < 3.0
    assert 4.0 < float(intervals["above"].lower) < 4.2 < float(intervals["above"].upper)
    assert float(intervals["below"].lower) < 1.8 < float(intervals["below"].upper) < 2.0


def test_draws_have_the_errors_as_their_spread() -> None:
    fit = EM(gaussian_mixture, seed=0).fit(old_faithful(), components=2)
    draws, errors = fit.laplace_samples(4000, seed=0), fit.standard_errors()
    assert draws["precisions"].shape == (4000, 2, 2, 2)
    assert bool((torch.linalg.eigvalsh(draws["precisions"]) > 0).all())
    torch.testing.assert_close(draws["weights"].sum(-1), torch.ones(4000).double())
    for name in ("weights", "locs"):
        torch.testing.assert_close(draws[name].std(0), errors[name], rtol=0.05, atol=0)
        off = (draws[name].mean(0) - fit.params[name]).abs() / errors[name]
        assert float(off.max()) < 0.1
    again = fit.laplace_samples(4000, seed=0)
    assert all(torch.equal(draws[name], again[name]) for name in draws)


def test_it_is_computed_once(visits: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    before = visits.standard_errors()
    monkeypatch.setattr(LogEvidence, "statistics", None)  # no further E-step
    assert torch.equal(visits.standard_errors()["rates"], before["rates"])
    visits.vcov(), visits.confidence_intervals(), visits.laplace_samples(3)


def test_a_fit_pickles_with_its_errors(visits: Fit) -> None:
    visits.vcov()
    again = pickle.loads(pickle.dumps(visits))
    assert torch.equal(again.standard_errors()["rates"], visits.standard_errors()["rates"])


def test_computed_values_have_errors_too() -> None:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.deterministic("log_scale", scale.log())
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    fit = EM(model, "mle").fit(torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0]))
    errors = fit.standard_errors()
    assert float(errors["log_scale"]) == pytest.approx(10**-0.5, rel=1e-6)
    assert float(errors["scale"]) == pytest.approx(float(fit.params["scale"]) * 10**-0.5, rel=1e-6)
    assert float(fit.summary(errors=True)["upper"]["log_scale"]) > math.log(1.4)


@pytest.mark.parametrize("level", [0.0, 1.0, 95, "0.95", True])
def test_a_level_is_a_probability(visits: Fit, level: Any) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0\.95"):
        visits.confidence_intervals(level)


def test_a_fit_shows_its_certificate(visits: Fit) -> None:
    shown = visits.certificate
    assert shown is not None
    assert shown.curvature is not None
    assert shown.gradient < 1e-3
    assert 0.0 < shown.curvature < 1.0
    assert "least curvature" in str(visits)
