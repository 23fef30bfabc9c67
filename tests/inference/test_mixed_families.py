"""Components of different families in one mixture: a peak on a background, as a user writes it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

from ember.inference import EM


@pytest.fixture
def x() -> Tensor:
    """A peak at 3 over a flat background between 0 and 10, and a third kind beyond 20."""
    generator = torch.Generator().manual_seed(0)
    peak = 3.0 + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
    return torch.cat([peak, 10.0 * torch.rand(30, generator=generator, dtype=torch.float64)])


def parameters() -> tuple[Tensor, Tensor, Tensor]:
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    centre = pyro.sample("centre", dist.Normal(5.0, 10.0))
    precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    return share, centre, precision


def by_masks(x: Tensor) -> None:
    """Two statements about the same data, each where its component holds: all in closed form."""
    share, centre, precision = parameters()
    with pyro.plate("rows", len(x)):
        is_peak: Any = pyro.sample("is_peak", dist.Bernoulli(share)).bool()
        with poutine.mask(mask=is_peak):
            pyro.sample("peak", dist.Normal(centre, precision.rsqrt()), obs=x)
        with poutine.mask(mask=~is_peak):
            pyro.sample("background", dist.Uniform(0.0, 10.0), obs=x)


def by_masked_mixture(x: Tensor) -> None:
    """Pyro's distribution for the purpose: draws come out as one site."""
    share, centre, precision = parameters()
    with pyro.plate("rows", len(x)):
        is_peak = pyro.sample("is_peak", dist.Bernoulli(share)).bool()
        peak = dist.Normal(centre, precision.rsqrt())
        pyro.sample("x", dist.MaskedMixture(is_peak, dist.Uniform(0.0, 10.0), peak), obs=x)


def by_factor(x: Tensor) -> None:
    """Log densities put together by hand."""
    share, centre, precision = parameters()
    with pyro.plate("rows", len(x)):
        is_peak = pyro.sample("is_peak", dist.Bernoulli(share))
        peak = dist.Normal(centre, precision.rsqrt()).log_prob(x)
        flat = dist.Uniform(0.0, 10.0).log_prob(x)
        pyro.factor("x", torch.where(is_peak > 0, peak, flat))


def log_posterior(flat: np.ndarray, x: np.ndarray) -> float:
    share, centre, precision = 1 / (1 + np.exp(-flat[0])), flat[1], np.exp(flat[2])
    mixed = share * stats.norm(centre, precision**-0.5).pdf(x) + (1 - share) * 0.1
    prior = stats.beta(2, 2).logpdf(share) + stats.norm(5, 10).logpdf(centre)
    return float(np.log(mixed).sum() + prior + stats.gamma(2).logpdf(precision))


WAYS = [by_masks, by_masked_mixture, by_factor]


@pytest.mark.parametrize("model", WAYS)
def test_every_way_to_write_it_reaches_the_optimum_that_scipy_finds(
    model: Callable[[Tensor], None], x: Tensor
) -> None:
    fit = EM(model, seed=0, tol=1e-11).fit(x)
    params = fit.params
    flat = np.array([float(params["share"].logit()), params["centre"], params["precision"].log()])
    assert fit.log_posterior == pytest.approx(log_posterior(flat, x.numpy()), rel=1e-10)

    def negative(at: np.ndarray) -> float:
        return -log_posterior(at, x.numpy())

    found = scipy.optimize.minimize(negative, flat, method="BFGS", options={"gtol": 1e-7})
    assert fit.log_posterior >= -found.fun - 1e-8
    np.testing.assert_allclose(found.x, flat, atol=1e-4)
    peak = stats.norm(params["centre"], params["precision"] ** -0.5).pdf(x.numpy())
    share = float(params["share"])
    expected = share * peak / (share * peak + (1 - share) * 0.1)
    np.testing.assert_allclose(fit.posterior("is_peak").probs[:, 1], expected, rtol=1e-8)


def test_masks_keep_the_closed_forms(x: Tensor) -> None:
    table = EM(by_masks).explain(x).set_index("site")
    assert set(table[table["role"] == "parameter"]["M-step"]) == {"closed form"}


def test_a_masked_mixture_draws_one_site(x: Tensor) -> None:
    draws = EM(by_masked_mixture, seed=0).fit(x).sample(500, seed=0)
    assert set(draws) == {"is_peak", "x"}
    outside = draws["x"][draws["is_peak"] == 0]
    assert bool(((outside >= 0) & (outside <= 10)).all())


def test_three_families_by_the_states_of_a_categorical(x: Tensor) -> None:
    far = torch.cat([x, torch.tensor([25.0, 31.0, 22.0, 47.0]).double()])

    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
        centre = pyro.sample("centre", dist.Normal(5.0, 10.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(3.0, 1.0))
        with pyro.plate("rows", len(x)):
            z: Any = pyro.sample("z", dist.Categorical(weights))
            with poutine.mask(mask=z == 0):
                pyro.sample("peak", dist.Normal(centre, 0.5), obs=x)
            with poutine.mask(mask=z == 1):
                pyro.sample("decay", dist.Exponential(rate), obs=x.abs())
            with poutine.mask(mask=z == 2):
                pyro.sample("outliers", dist.StudentT(3.0, 0.0, scale), obs=x)

    fit = EM(model, seed=0, tol=1e-11).fit(far)
    p = {name: value.numpy() for name, value in fit.params.items()}
    densities = [
        stats.norm(p["centre"], 0.5).pdf(far),
        stats.expon(scale=1 / p["rate"]).pdf(far.abs()),
        stats.t(3, scale=p["scale"]).pdf(far),
    ]
    expected = np.log(p["weights"] @ np.stack(densities)).sum()
    assert fit.log_likelihood == pytest.approx(expected, rel=1e-10)
    assert bool((fit.history.diff() >= 0).all())
    table = EM(model).explain(far).set_index("site")
    assert set(table["M-step"][["weights", "centre", "rate"]]) == {"closed form"}
    assert table["M-step"]["scale"] == "numerical"
