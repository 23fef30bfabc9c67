"""Parameters on the bounds of their supports: a maximum, or a place that inwards lies below?"""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.inference.optimality.off_bounds import off_bounds
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import bounds, ends, inwards


def counts(seed: int, low: float, high: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rates = torch.tensor([low, high])[(torch.rand(90, generator=generator) < 0.6).long()]
    return torch.poisson(rates.double(), generator=generator)


def uniform_rates(y: Tensor) -> None:
    share = pyro.sample("share", dist.Uniform(0.0, 0.3))
    low = pyro.sample("low", dist.Uniform(0.0, 2.0))
    high = pyro.sample("high", dist.Uniform(3.0, 6.0))
    with pyro.plate("rows", len(y)):
        z: Any = pyro.sample("z", dist.Bernoulli(1 - share))
        pyro.sample("y", dist.Poisson(torch.where(z == 1, high, low)), obs=y)


@pytest.mark.parametrize("seed", range(6))
def test_an_optimum_on_bounds_is_found_from_beyond_others(seed: int) -> None:
    """The shares and rates that the data ask for lie beyond two of the intervals."""
    y = counts(seed, 1.0, 7.0)
    fit = EM(uniform_rates, seed=0).fit(y)
    assert fit.converged
    share, low = torch.meshgrid(
        torch.linspace(1e-3, 0.3, 300, dtype=torch.float64),
        torch.linspace(1e-3, 2.0, 400, dtype=torch.float64),
        indexing="ij",
    )
    for high in (4.0, 5.0, 5.5, 6.0):
        at_low, at_high = dist.Poisson(low.unsqueeze(-1)), dist.Poisson(torch.tensor(high))
        each = torch.logaddexp(
            share.log().unsqueeze(-1) + at_low.log_prob(y),
            torch.log1p(-share).unsqueeze(-1) + at_high.log_prob(y),
        )
        assert fit.log_likelihood > float(each.sum(-1).max()) - 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_a_symmetric_place_at_zero_is_left(seed: int) -> None:
    """At a location of zero the states are alike: the slope vanishes, and yet it is a saddle."""

    def model(y: Tensor) -> None:
        coupling = pyro.sample("coupling", dist.Normal(0.0, 1.0))
        location = pyro.sample("location", dist.HalfNormal(3.0))
        signs = [2 * pyro.sample(f"z_{i}", dist.Bernoulli(0.5)) - 1 for i in range(6)]
        for i in range(5):
            weight = torch.log(torch.cosh(coupling))
            pyro.factor(f"pair_{i}", coupling * signs[i] * signs[i + 1] - weight)
        for i in range(6):
            pyro.sample(f"y_{i}", dist.Normal(location * signs[i], 1.0), obs=y[i])

    y = torch.tensor([2.0, 1.5, -1.0, -2.0, -0.5, 1.0], dtype=torch.float64)
    fit = EM(model, seed=seed).fit(y)
    assert fit.converged
    assert float(fit.params["location"]) == pytest.approx(1.1901, abs=1e-3)


@pytest.mark.parametrize("each", [True, False])
def test_bounds_of_entries_are_bounds(each: bool) -> None:
    """A maximum at the end of an interval is finite, whether entries share the interval or not."""
    limits = (torch.tensor([0.0, 3.0]), torch.tensor([4.0, 6.0])) if each else (0.0, 6.0)

    def model(y: Tensor) -> None:
        weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
        inside = constraints.interval(*limits)
        rates = pyro.param("rates", torch.tensor([3.5, 4.0]), constraint=inside)
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("y", dist.Poisson(rates[z]), obs=y)

    fit = EM(model, "mle", seed=0).fit(counts(1, 1.0, 8.0))
    assert fit.converged
    assert float(fit.params["rates"].max()) == pytest.approx(6.0)
    assert ends(constraints.interval(*limits))[1] == "natural"


@pytest.mark.parametrize("width", [10.0, 100.0, 1000.0])
def test_a_wide_interval_pushes_no_start(width: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(450, generator=generator, dtype=torch.float64) * 0.5
    x += torch.tensor([-3.0, 0.0, 3.0]).repeat(150)

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
            scales = pyro.sample("scales", dist.Uniform(0.0, width))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)

    fit = EM(model, seed=0).fit(x)
    torch.testing.assert_close(
        fit.params["locs"].sort().values.float(), torch.tensor([-3.0, 0.0, 3.0]), atol=0.2, rtol=0
    )


def test_units_that_lead_off_a_bound() -> None:
    def parameter(support: Any, start: list[float]) -> Parameter:
        value = torch.tensor(start)
        return Parameter("p", support, value.shape, (), False, value)

    both = parameter(
        constraints.interval(torch.tensor([0.0, 1.0]), torch.tensor([4.0, 6.0])), [2, 2]
    )
    assert inwards(both, torch.tensor([2.0, 3.0])) is None
    assert inwards(both, torch.tensor([0.0, 6.0])).tolist() == [4.0, -5.0]  # type: ignore[union-attr]
    above = parameter(constraints.positive, [3.0, 1.0])
    assert inwards(above, torch.tensor([1e-9, 2.0])).tolist() == [3.0, 0.0]  # type: ignore[union-attr]
    assert inwards(parameter(constraints.real, [0.0]), torch.zeros(1)) is None
    assert all(each is not None and math.isnan(each) for each in bounds(both.support) or ())
    assert bounds(constraints.interval(torch.zeros(2), torch.ones(2))) == (0.0, 1.0)


def test_a_maximum_at_zero_stays_there() -> None:
    """Where the slope leads outwards nothing is tried, and no pass is spent."""

    def model(y: Tensor) -> None:
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.nonnegative)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    em = EM(model, "mle")
    y = torch.zeros(10, dtype=torch.float64)
    plan = em.plan(y)
    statistics = em.e_step({"rate": torch.tensor(0.0, dtype=torch.float64)}, plan)
    tried: list[object] = []
    found = off_bounds(tried.append, plan.structure.parameters, statistics, 1e-6)  # type: ignore[arg-type]
    assert found is None
    assert not tried
