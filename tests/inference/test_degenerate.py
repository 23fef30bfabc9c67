"""Components that collapse or empty: named, survivable, never NaN; MAP does not collapse at all."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.convergence import StopReason
from ember.models import gaussian_mixture


def spread() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    cloud = torch.randn(30, generator=generator, dtype=torch.float64)
    return torch.cat([cloud, torch.full((8,), 6.0, dtype=torch.float64)])


def plane() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    cloud = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    return torch.cat([cloud, torch.full((8, 2), 6.0, dtype=torch.float64)])


def gaussians(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        precisions = pyro.sample("precisions", dist.Gamma(2.0, 0.5))
        locs = pyro.sample("locs", dist.Normal(0.0, (0.01 * precisions).rsqrt()))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


def full(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("components", 2):
        precisions = pyro.sample("precisions", dist.Wishart(torch.tensor(4.0), torch.eye(2)))
        prior = dist.MultivariateNormal(torch.zeros(2), precision_matrix=0.01 * precisions)
        locs = pyro.sample("locs", prior)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(locs[z], precision_matrix=precisions[z]), obs=x)


def poissons(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    rates = pyro.sample("rates", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def check_survived(fit: Any) -> None:
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())
    assert bool(torch.isfinite(fit.history).all())
    assert bool((fit.history.diff() >= -1e-9 * (1.0 + fit.history[1:].abs())).all())
    assert fit.log_posterior == pytest.approx(float(fit.history[-1]), rel=1e-9)
    rows = fit.log_prob()
    assert bool(torch.isfinite(rows).all())


@pytest.mark.parametrize("accelerate", [None, "auto", "squarem", "anderson"])
@pytest.mark.parametrize("case", ["line", "plane"])
def test_maximum_likelihood_collapses_and_says_where(case: str, accelerate: str | None) -> None:
    model, x = (gaussians, spread()) if case == "line" else (full, plane())
    with pytest.warns(RuntimeWarning, match=r"component \d of site 'precisions'.*collapsed.*map"):
        fit = EM(model, "mle", seed=1, accelerate=accelerate).fit(x)
    check_survived(fit)
    assert not fit.converged
    assert "component" in fit.stop_reason
    assert "precisions" in fit.stop_reason


@pytest.mark.parametrize("case", ["line", "plane"])
def test_map_does_not_collapse(case: str) -> None:
    model, x = (gaussians, spread()) if case == "line" else (full, plane())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = EM(model, seed=1).fit(x)
    assert fit.converged
    check_survived(fit)


@pytest.mark.parametrize("accelerate", [None, "auto"])
def test_a_component_that_starts_far_away_empties(accelerate: str | None) -> None:
    x = spread()
    start = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([1.0, 1e6]),
        "precisions": torch.tensor([0.1, 1.0]),
    }
    with pytest.warns(RuntimeWarning, match=r"component 1 of site '\w+'.*(emptied|no observation)"):
        fit = EM(gaussians, "mle", init=start, accelerate=accelerate).fit(x)
    check_survived(fit)
    assert not fit.converged


def test_an_empty_component_is_its_prior_under_map() -> None:
    x = spread()
    start = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([1.0, 1e6]),
        "precisions": torch.tensor([0.1, 1.0]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = EM(gaussians, init=start).fit(x)
    check_survived(fit)


def test_constant_data_collapse_at_once() -> None:
    x = torch.full((10,), 2.5, dtype=torch.float64)
    # Under maximum likelihood not even a start has a finite density.
    with pytest.raises(ValueError, match=r"'precisions'.*collapsed"):
        EM(gaussians, "mle", seed=0).fit(x)
    fit = EM(gaussians, seed=0).fit(x)
    assert fit.converged
    check_survived(fit)


def test_zero_counts_only() -> None:
    x = torch.zeros(10, dtype=torch.float64)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        fit = EM(poissons, seed=0).fit(x)
    assert fit.converged
    check_survived(fit)


def test_a_zero_rate_is_a_boundary_not_a_failure() -> None:
    # A zero-inflated start: the rate at 0 explains the zeros and stays there.
    x = torch.tensor([0.0] * 10 + [3.0, 4.0, 5.0, 3.0, 2.0], dtype=torch.float64)
    fit = EM(poissons, "mle", seed=0).fit(x)
    check_survived(fit)
    assert float(fit.params["rates"].min()) < 0.2


def test_an_unbounded_prior_is_named() -> None:
    # A Dirichlet below 1 has no mode at an empty cell.
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 0.1)))
        rates = pyro.sample("rates", dist.Gamma(2.0, 0.5).expand([2]).to_event(1))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)

    x = torch.tensor([2.0, 3.0, 2.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="'weights'"):
        fit = EM(model, seed=0).fit(x)
    assert all(bool(torch.isfinite(value).all()) for value in fit.params.values())


def test_the_best_of_several_starts_is_not_the_collapsed_one() -> None:
    x = spread()
    kept = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([-0.5, 1.5]),
        "precisions": torch.tensor([0.3, 0.2]),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = EM(gaussians, "mle", init=kept, restarts=4, seed=1).fit(x)
    assert len(fit.starts) >= 1
    check_survived(fit)


def test_m_step_by_hand_raises_an_error_that_names_the_component() -> None:
    em = EM(gaussians, "mle")
    x = spread()
    params = {
        "weights": torch.tensor([0.5, 0.5]),
        "locs": torch.tensor([0.0, 6.0]),
        "precisions": torch.tensor([1.0, 1e9]),
    }
    with pytest.raises(ArithmeticError, match="component 1 of site 'precisions'"):
        em.m_step(em.e_step(params, x))


@pytest.mark.parametrize("components", [1, 2])
def test_columns_that_determine_each_other_are_named_where_rounding_takes_over(
    components: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    two = torch.randn(100, 2, generator=generator, dtype=torch.float64)
    two[:50] += 3.0
    noise = 1e-4 * torch.randn(100, 1, generator=generator, dtype=torch.float64)
    x = torch.cat([two, two.sum(1, keepdim=True) + noise], 1)
    with pytest.warns(RuntimeWarning, match=r"'precisions' is all but singular .* drop columns"):
        fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components)
    assert fit.stop is StopReason.ROUNDED
    assert not fit.converged
    assert bool((fit.history.diff() >= 0).all())
