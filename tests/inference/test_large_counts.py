"""Counts of any size: their probabilities against 50 digits of mpmath."""

from typing import Any

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.inference.numerics.gamma_ratios import exact_log_prob
from ember.models import emission_tomography, hidden_markov_poisson, poisson_mixture

SIZES = [1e3, 1e6, 1e9, 1e15, 1e17]


def drawn(size: float, seed: int = 0, rows: int = 20) -> Tensor:
    noise = np.random.default_rng(seed).normal(size=rows)
    return torch.tensor(np.round(size + np.sqrt(size) * noise))


def poisson(counts: Tensor) -> float:
    """The maximum of the log likelihood of one rate."""
    with mpmath.workdps(50):
        x = [mpmath.mpf(value) for value in counts.tolist()]
        rate = mpmath.fsum(x) / len(x)
        each = (v * mpmath.log(rate) - rate - mpmath.loggamma(v + 1) for v in x)
        return float(mpmath.fsum(each))


def one_rate(x: Tensor) -> None:
    rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


@pytest.mark.parametrize("size", SIZES)
def test_one_rate(size: float) -> None:
    x = drawn(size)
    fit = EM(one_rate, "mle").fit(x)
    assert fit.log_likelihood == pytest.approx(poisson(x), rel=1e-10)
    assert float(fit.params["rate"]) == pytest.approx(float(x.mean()), rel=1e-12)


@pytest.mark.parametrize("size", SIZES[1:])
def test_mixture_and_chain(size: float) -> None:
    low, high = drawn(size), drawn(3.0 * size, seed=1)
    apart, x = poisson(low) + poisson(high), torch.cat([low, high])
    mixture = EM(poisson_mixture, "mle", seed=0).fit(x, components=2)
    assert mixture.log_likelihood == pytest.approx(apart - 40 * np.log(2), rel=1e-10)
    chain = EM(hidden_markov_poisson, "mle", seed=0).fit(x, states=2)
    moves = 19 * np.log(19 / 20) + np.log(1 / 20)
    assert chain.log_likelihood == pytest.approx(apart + moves, rel=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_binomial(size: float) -> None:
    x, total = drawn(size), int(2 * size)

    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.1), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Binomial(total, p), obs=x)

    with mpmath.workdps(50):
        own = [mpmath.mpf(v) for v in x.tolist()]
        p = mpmath.fsum(own) / len(own) / total
        choose = [
            mpmath.loggamma(total + 1) - mpmath.loggamma(v + 1) - mpmath.loggamma(total - v + 1)
            for v in own
        ]
        chance = [v * mpmath.log(p) + (total - v) * mpmath.log(1 - p) for v in own]
        truth = float(mpmath.fsum(choose) + mpmath.fsum(chance))
    assert EM(model, "mle").fit(x).log_likelihood == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize("shape", [0.3, 5.0, 1e3, 1e12])
@pytest.mark.parametrize("size", [1e6, 1e12, 1e17])
def test_overdispersed(size: float, shape: float) -> None:
    x, r = drawn(size, rows=5), torch.tensor(shape, dtype=torch.float64)
    fn = dist.GammaPoisson(r, r / size)
    with mpmath.workdps(60):
        a, b = mpmath.mpf(shape), mpmath.mpf(float(fn.rate))
        truth = [
            mpmath.loggamma(a + v) - mpmath.loggamma(v + 1) - mpmath.loggamma(a)
            + a * mpmath.log(b / (1 + b)) - v * mpmath.log(1 + b)
            for v in map(mpmath.mpf, x.tolist())
        ]  # fmt: skip
        expected = torch.tensor([float(value) for value in truth], dtype=torch.float64)
    torch.testing.assert_close(exact_log_prob(fn, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [1e6, 1e12, 1e15])
@pytest.mark.parametrize("shapes", [(0.5, 2.0), (3.0, 40.0)])
def test_beta_binomial_and_dirichlet_multinomial(shapes: tuple[float, float], size: float) -> None:
    a, total = torch.tensor(shapes, dtype=torch.float64), 2.0 * size
    x = torch.tensor([0.0, 3.0, size, total - 1.0], dtype=torch.float64)
    beta = dist.BetaBinomial(a[0], a[1], torch.tensor(total, dtype=torch.float64))
    dirichlet = dist.DirichletMultinomial(a, total, validate_args=False)
    with mpmath.workdps(60):
        lg, n, (p, q) = mpmath.loggamma, mpmath.mpf(total), map(mpmath.mpf, shapes)
        truth = [
            lg(n + 1) - lg(v + 1) - lg(n - v + 1) + lg(v + p) + lg(n - v + q) - lg(n + p + q)
            + lg(p + q) - lg(p) - lg(q)
            for v in map(mpmath.mpf, x.tolist())
        ]  # fmt: skip
        expected = torch.tensor([float(value) for value in truth], dtype=torch.float64)
    torch.testing.assert_close(exact_log_prob(beta, x), expected, rtol=1e-10, atol=1e-10)
    both = exact_log_prob(dirichlet, torch.stack([x, total - x], -1))
    torch.testing.assert_close(both, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1e3, 1e12])
def test_multinomial(scale: float) -> None:
    x = scale * torch.tensor([[2.0, 3.0, 5.0], [3.0, 3.0, 4.0], [1.0, 4.0, 5.0]]).double()

    def model(x: Tensor) -> None:
        probs = pyro.param("probs", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("rows", len(x)):
            total = int(x[0].sum())
            pyro.sample("x", dist.Multinomial(total, probs, validate_args=False), obs=x)

    with mpmath.workdps(50):
        shares = [mpmath.mpf(c) / mpmath.mpf(float(x.sum())) for c in x.sum(0).tolist()]
        truth: Any = mpmath.mpf(0)
        for row in x.tolist():
            truth += mpmath.loggamma(mpmath.mpf(sum(row)) + 1)
            for count, share in zip(row, shares, strict=True):
                truth += mpmath.mpf(count) * mpmath.log(share) - mpmath.loggamma(count + 1)
    assert EM(model, "mle").fit(x).log_likelihood == pytest.approx(float(truth), rel=1e-10)


def test_superposed_rates() -> None:
    x = drawn(1e12, rows=3)
    fit = EM(emission_tomography, "mle").fit(x, system=torch.eye(3, dtype=torch.float64))
    assert fit.log_likelihood == pytest.approx(
        sum(poisson(x[i : i + 1]) for i in range(3)), rel=1e-9
    )


def test_smallest_chances_keep_their_digits() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.1), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Geometric(p), obs=x)

    x = torch.tensor([1e15, 3e15, 2e15], dtype=torch.float64)
    with mpmath.workdps(50):
        p = 3 / (mpmath.mpf(6e15) + 3)
        truth = float(3 * mpmath.log(p) + mpmath.mpf(6e15) * mpmath.log(1 - p))
    assert EM(model, "mle").fit(x).log_likelihood == pytest.approx(truth, rel=1e-10)
