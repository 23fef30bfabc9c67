"""Ratios of gamma functions: against Pyro's formulas, against 50 digits, and at their limits."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import mpmath
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor
from torch.distributions.constraints import unit_interval

from ember.inference import EM
from ember.inference.numerics.gamma_ratios import log_rising
from ember.inference.numerics.observed_density import observed_log_prob
from ember.models import poisson_mixture

COUNTS = torch.arange(8.0, dtype=torch.float64)
Make = Callable[[Tensor], Any]
Make2 = Callable[[Tensor, Tensor], Any]
MEAN, HALF = torch.full((), 3.0, dtype=torch.float64), torch.full((), 0.5, dtype=torch.float64)
THIRDS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
DRAWS = torch.tensor([[3.0, 1, 4], [0, 2, 6], [8, 0, 0]], dtype=torch.float64)
CASES: dict[str, tuple[Make, Tensor, Any]] = {
    "negative binomial": (
        lambda r: dist.NegativeBinomial(r, logits=(MEAN / r).log()),
        COUNTS,
        dist.Poisson(MEAN),
    ),
    "negative binomial by probabilities": (
        lambda r: dist.NegativeBinomial(r, probs=MEAN / (MEAN + r)),
        COUNTS,
        dist.Poisson(MEAN),
    ),
    "gamma-Poisson": (lambda r: dist.GammaPoisson(r, r / MEAN), COUNTS, dist.Poisson(MEAN)),
    "beta-binomial": (
        lambda r: dist.BetaBinomial(0.3 * r, 0.7 * r, 7),
        COUNTS,
        dist.Binomial(7, 0.3 * torch.ones((), dtype=torch.float64)),
    ),
    "Dirichlet-multinomial": (
        lambda r: dist.DirichletMultinomial(r * THIRDS, 8),
        DRAWS,
        dist.Multinomial(8, THIRDS),
    ),
    "zero-inflated": (
        lambda r: dist.ZeroInflatedNegativeBinomial(r, logits=(MEAN / r).log(), gate=0.3 * HALF),
        COUNTS,
        dist.ZeroInflatedPoisson(MEAN, gate=0.3 * HALF),
    ),
    "zero-inflated by logits": (
        lambda r: dist.ZeroInflatedDistribution(dist.GammaPoisson(r, r / MEAN), gate_logits=HALF),
        COUNTS,
        dist.ZeroInflatedDistribution(dist.Poisson(MEAN), gate_logits=HALF),
    ),
    "Student": (lambda r: dist.StudentT(r, HALF, MEAN), COUNTS - 4.0, dist.Normal(HALF, MEAN)),
}


@pytest.mark.parametrize("size", [1e-2, 1.0, 30.0, 9e3, 1.1e4])
@pytest.mark.parametrize("name", CASES)
def test_the_density_is_pyros_own(name: str, size: float) -> None:
    make, value, _ = CASES[name]
    fn = make(torch.tensor(size, dtype=torch.float64))
    torch.testing.assert_close(
        observed_log_prob(fn, value), fn.log_prob(value), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("size", [1e9, 1e12, 1e15])
@pytest.mark.parametrize("name", CASES)
def test_it_approaches_its_limit(name: str, size: float) -> None:
    make, value, limit = CASES[name]
    fn = make(torch.tensor(size, dtype=torch.float64))
    torch.testing.assert_close(
        observed_log_prob(fn, value), limit.log_prob(value), rtol=100.0 / size + 1e-13, atol=1e-13
    )


@pytest.mark.parametrize("r", [0.3, 1e4, 1.0000001e4, 12345.678, 1e7, 1e13])
def test_the_ratio_has_all_its_digits(r: float) -> None:
    x = [0.0, 0.5, 1.0, 17.0, 4321.0]
    with mpmath.workdps(50):
        exact = [float(mpmath.loggamma(mpmath.mpf(r) + e) - mpmath.loggamma(r)) for e in x]
    found = log_rising(torch.tensor(r, dtype=torch.float64), torch.tensor(x, dtype=torch.float64))
    expected = torch.tensor(exact, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=3e-11)


def counts(x: Tensor, emission: Make2) -> None:
    """Two kinds of counts, by their means and sizes."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        means = pyro.sample("means", dist.Gamma(2.0, 0.2))
        sizes = pyro.sample("sizes", dist.Gamma(1.0, 0.001))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", emission(means[z], sizes[z]), obs=x)


def exact(x: Tensor, params: dict[str, Tensor]) -> float:
    """The log likelihood of that model in 50 digits."""
    mp = mpmath.mp.clone()
    mp.dps = 50
    weights, means, sizes = (
        [mp.mpf(float(v)) for v in params[name]] for name in ("weights", "means", "sizes")
    )

    def density(k: int, m: Any, r: Any) -> Any:
        chosen = mp.loggamma(r + k) - mp.loggamma(r) - mp.loggamma(k + 1)
        return mp.exp(chosen - r * mp.log1p(m / r) + k * mp.log(m / (m + r)))

    total = mp.mpf(0)
    for value, times in Counter(int(v) for v in x).items():
        parts = zip(weights, means, sizes, strict=True)
        total += times * mp.log(mp.fsum(w * density(value, m, r) for w, m, r in parts))
    return float(total)


@pytest.mark.parametrize(
    "emission",
    [
        lambda mean, size: dist.GammaPoisson(size, size / mean),
        lambda mean, size: dist.NegativeBinomial(size, logits=(mean / size).log()),
    ],
    ids=["gamma_poisson", "negative_binomial"],
)
def test_counts_without_overdispersion_end_next_to_poisson_ones(emission: Make2) -> None:
    generator = torch.Generator().manual_seed(0)
    rates = torch.tensor([2.0, 12.0], dtype=torch.float64).repeat_interleave(100)
    x = torch.poisson(rates, generator)
    poisson = EM(poisson_mixture, "mle", seed=0).fit(x, components=2)
    with pytest.warns(RuntimeWarning, match="site 'sizes'.* at infinity"):
        fit = EM(functools.partial(counts, emission=emission), "mle", seed=0).fit(x)
    assert not fit.converged
    assert fit.log_likelihood >= poisson.log_likelihood - 1e-4
    assert fit.log_likelihood == pytest.approx(exact(x, fit.params), rel=1e-11)


def test_probabilities_are_read_though_a_check_computed_logits() -> None:
    x = torch.tensor([2.0, 0.0, torch.nan, 4.0, 1.0, 0.0, 5.0, 3.0], dtype=torch.float64)
    seen: Any = torch.tensor([False, True, True, True, True, True, True, True])
    p, weights = torch.tensor([[0.3], [0.6]]).double(), torch.tensor([[0.4], [0.6]]).double()

    def model(x: Tensor) -> None:
        own = pyro.param("p", p[:, 0], constraint=unit_interval)
        with pyro.plate("rows", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Categorical(weights[:, 0]))
            pyro.sample("x", dist.NegativeBinomial(2.0, probs=own[z]), obs=x)

    counts = x[seen & ~x.isnan()].numpy()
    right = torch.from_numpy(stats.nbinom.pmf(counts, 2.0, 1.0 - p.numpy()))
    found = EM(model).e_step({"p": p[:, 0]}, x)
    assert found.log_likelihood == pytest.approx(float((weights * right).sum(0).log().sum()))
