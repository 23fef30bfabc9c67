"""Numbers with units: what a fit finds does not depend on those of the data or of a prior."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.models import gaussian_mixture, hidden_markov_gaussian, latent_profile

FACTORS = [1e-8, 1e-4, 1e4, 1e8]


def data() -> Tensor:
    generator = np.random.default_rng(5)
    left = generator.normal(size=(40, 2))
    return torch.tensor(np.r_[left, [4.0, 3.0] + 0.5 * generator.normal(size=(60, 2))])


def profile(x: Tensor, components: int) -> None:
    latent_profile({"continuous": x}, components)


def by_scale(x: Tensor, family: Any) -> None:
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.ImproperUniform(constraints.real, (), ()))
        scales = pyro.sample("scales", dist.ImproperUniform(constraints.positive, (), ()))
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        loc = locs[z].unsqueeze(-1) + torch.zeros(2)
        pyro.sample("x", family(loc, scales[z].unsqueeze(-1)).to_event(1), obs=x)


def student(loc: Tensor, scale: Tensor) -> Any:
    return dist.StudentT(torch.tensor(4.0), loc, scale)


CASES: list[tuple[Any, str, dict[str, Any]]] = [
    *((gaussian_mixture, o, {"components": 2}) for o in ("map", "mle")),
    *((gaussian_mixture, "map", {"components": 2, "covariance": c}) for c in ("diag", "tied")),
    (hidden_markov_gaussian, "map", {"states": 2}),
    (profile, "map", {"components": 2}),
    (by_scale, "mle", {"family": dist.Normal}),
    (by_scale, "mle", {"family": student}),
]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_data_in_other_units_have_the_same_fit(case: Any, factor: float) -> None:
    model, objective, options = case
    x = data()
    one = EM(model, objective, seed=0).fit(x, **options)
    other = EM(model, objective, seed=0).fit(factor * x, **options)
    assert other.converged
    moved = other.log_likelihood + x.numel() * np.log(factor)
    assert moved == pytest.approx(one.log_likelihood, rel=1e-9)


@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_closed_forms_in_units_of_a_million_millionth(covariance: str) -> None:
    x = data()
    options: dict[str, Any] = {"components": 2, "covariance": covariance}
    one = EM(gaussian_mixture, seed=0).fit(x, **options)
    other = EM(gaussian_mixture, seed=0).fit(1e12 * x, **options)
    moved = other.log_likelihood + x.numel() * np.log(1e12)
    assert moved == pytest.approx(one.log_likelihood, rel=1e-9)


@pytest.mark.parametrize("kappa", [1e-10, 1e-12, 1e-20])
@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_a_prior_of_next_to_no_rows_is_a_closed_form(covariance: str, kappa: float) -> None:
    # The locations' prior density has a factor kappa^(D / 2) for each component, and is flat else.
    em, x = EM(gaussian_mixture, seed=0), data()
    options: dict[str, Any] = {"components": 2, "covariance": covariance}
    table = em.explain(x, **options, prior={"kappa": kappa})
    assert set(table["M-step"]) == {"closed form"}
    weak = em.fit(x, **options, prior={"kappa": 1e-6})
    weaker = em.fit(x, **options, prior={"kappa": kappa})
    assert weaker.converged
    expected = weak.log_posterior + 2 * np.log(kappa / 1e-6)
    assert weaker.log_posterior == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_function_that_only_looks_linear_is_not_read_as_a_line(size: float) -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(size * torch.sin(loc), size), obs=x)

    x = size * torch.tensor([0.1, 0.5, 0.9, 0.2], dtype=torch.float64)
    fit = EM(model, "mle").fit(x)
    assert float(fit.params["loc"].sin()) == pytest.approx(float(x.mean()) / size, rel=1e-6)


def test_a_location_far_from_zero_is_read_as_one() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(1e9 + loc, 1.0), obs=x)

    x = 1e9 + torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    fit = EM(model, "mle").fit(x)
    assert float(fit.params["loc"]) == pytest.approx(3.0, rel=1e-6)
    assert fit.log_likelihood == pytest.approx(-7.0 - 1.5 * np.log(2 * np.pi), rel=1e-9)
