"""No fit is called converged where there is no maximum: estimates at infinity, no bound at all."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(40, generator=GENERATOR).double()
DESIGN = torch.stack([torch.ones(40), X], -1)
SEPARATED = (X > 0.3).double()
NOISY = ((X + torch.randn(40, generator=GENERATOR)) > 0.0).double()
GROUP = torch.arange(40) % 3
RATES = torch.tensor([0.0, 3.0, 1.0])[GROUP]
COUNTS = torch.poisson(RATES, generator=GENERATOR).double()
EVEN = torch.tensor([2.0, 1, 2, 3, 2, 1, 2, 2, 3, 2]).double()  # varies less than Poisson's counts
POISSON = -13.8794584107  # of these counts, with their mean as rate: scipy.stats.poisson

SCHOOLS = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]).double()
ERRORS = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]).double()


def logistic(x: Tensor, y: Tensor) -> None:
    slopes = pyro.param("slopes", torch.zeros(x.shape[-1]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)


def probit(x: Tensor, y: Tensor) -> None:
    slopes = pyro.param("slopes", torch.zeros(x.shape[-1]))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(dist.Normal(0.0, 1.0).cdf(x @ slopes)), obs=y)


def softmax(x: Tensor, y: Tensor) -> None:
    slopes = pyro.param("slopes", torch.zeros(x.shape[-1], 3))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Categorical(logits=x @ slopes), obs=y)


def log_rates(group: Tensor, y: Tensor) -> None:
    rates = pyro.param("log_rates", torch.zeros(3))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rates[group].exp()), obs=y)


def two_lines(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    slopes = pyro.param("slopes", torch.zeros(2, x.shape[-1]))
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Bernoulli(logits=(x * slopes[z]).sum(-1)), obs=y)


def overdispersed(y: Tensor) -> None:
    size = pyro.param("size", torch.tensor(1.0), constraint=constraints.positive)
    mean = pyro.param("mean", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.GammaPoisson(size, size / mean), obs=y)


RUNAWAYS: dict[str, tuple[Any, tuple[Tensor, ...], str]] = {
    "logistic": (logistic, (DESIGN, SEPARATED), r"'slopes' \(entries \[0\], \[1\]\)"),
    "tiny units": (logistic, (DESIGN * torch.tensor([1.0, 1e-8]), SEPARATED), "'slopes'"),
    "probit": (probit, (DESIGN, SEPARATED), "'slopes'"),
    "softmax": (softmax, (DESIGN, (X > 0.0).long() + (X > 1.0).long()), "'slopes'"),
    "log rates": (log_rates, (GROUP, COUNTS), r"'log_rates' \(entry \[0\]\)"),
    "two lines": (two_lines, (DESIGN, SEPARATED), "'slopes'"),
    "dispersion": (overdispersed, (EVEN,), "'size'"),
}


@pytest.mark.parametrize("name", RUNAWAYS)
def test_estimates_at_infinity_are_named(name: str) -> None:
    model, data, match = RUNAWAYS[name]
    with pytest.warns(RuntimeWarning, match=f"site {match}.* at infinity"):
        fit = EM(model, "mle", seed=0).fit(*data)
    assert not fit.converged
    assert "infinity" in fit.stop_reason
    assert bool((fit.history.diff() >= 0.0).all())


def test_the_limit_is_reached_all_the_same() -> None:
    with pytest.warns(RuntimeWarning, match="infinity"):
        fit = EM(overdispersed, "mle", seed=0).fit(EVEN)
    assert fit.log_likelihood == pytest.approx(POISSON, abs=1e-6)
    with pytest.warns(RuntimeWarning, match="infinity"):
        fit = EM(logistic, "mle", seed=0).fit(DESIGN, SEPARATED)
    assert fit.log_likelihood == pytest.approx(0.0, abs=1e-6)


FINITE: dict[str, tuple[Any, tuple[Tensor, ...]]] = {
    "noisy": (logistic, (DESIGN, NOISY)),
    "collinear": (logistic, (torch.cat([DESIGN, 2.0 * DESIGN[:, 1:]], 1), NOISY)),
    "no effect": (logistic, (DESIGN, (torch.arange(40) % 2).double())),
    "softmax": (softmax, (DESIGN, GROUP)),
    "overdispersed": (overdispersed, (COUNTS,)),
}


@pytest.mark.parametrize("name", FINITE)
def test_finite_estimates_are_not_called_infinite(name: str) -> None:
    model, data = FINITE[name]
    fit = EM(model, "mle", seed=0).fit(*data)  # a warning would be an error
    assert fit.converged


def test_a_column_twice_leaves_the_optimum_what_it_was() -> None:
    model, (x, y) = FINITE["collinear"]
    fit = EM(model, "mle", seed=0).fit(x, y)
    alone = EM(model, "mle", seed=0).fit(DESIGN, y)
    assert fit.log_likelihood == pytest.approx(alone.log_likelihood, rel=1e-12)
    torch.testing.assert_close(x @ fit.params["slopes"], DESIGN @ alone.params["slopes"])

    def shrunk(x: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x @ slopes), obs=y)

    _, once, twice = EM(shrunk, seed=0).fit(x, y).params["slopes"].tolist()
    assert twice == pytest.approx(2.0 * once, rel=1e-6)  # the prior shares the slope out


# -- densities without bound -----------------------------------------------------------------------


def schools(y: Tensor, prior: Any) -> None:
    centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", prior)
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(centre, tau))
        pyro.sample("y", dist.Normal(theta, ERRORS), obs=y)


def grouped(y: Tensor, prior: Any) -> None:
    scale = pyro.sample("scale", dist.HalfNormal(10.0))
    tau = pyro.sample("tau", prior)
    with pyro.plate("groups", 4):
        effects = pyro.sample("effects", dist.Normal(0.0, tau))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(effects[torch.arange(len(y)) // 2], scale), obs=y)


def hardly_apart(y: Tensor) -> None:
    loc, scale = (
        pyro.param("loc", torch.tensor(0.0)),
        pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive),
    )
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.StudentT(3.0, loc, scale), obs=y)


@pytest.mark.parametrize(
    "prior", [dist.HalfCauchy(5.0), dist.HalfNormal(5.0), dist.Gamma(2.0, 0.1)]
)
def test_effects_with_an_estimated_scale_have_no_mode(prior: Any) -> None:
    em = EM(schools, integrate={"theta": None}, seed=0)
    with pytest.warns(
        RuntimeWarning, match="'tau' narrows the prior of site 'theta'.*random effects"
    ):
        fit = em.fit(SCHOOLS, prior)
    assert not fit.converged
    assert "without bound" in fit.stop_reason
    with pytest.warns(RuntimeWarning, match="'tau' narrows the prior of site 'effects'"):
        fit = EM(grouped, integrate={"effects": None}, seed=0).fit(
            torch.tensor([1.0, -1.0, 2.0, -2.0] * 2), prior
        )
    assert all(bool(value.isfinite().all()) for value in fit.params.values())


def test_a_prior_that_keeps_the_scale_from_zero_is_the_remedy() -> None:
    one, three = torch.tensor(1.0).double(), torch.tensor(3.0).double()
    for prior in (dist.LogNormal(one, 0.5 * one), dist.InverseGamma(three, 10.0 * one)):
        fit = EM(schools, integrate={"theta": None}, seed=0).fit(SCHOOLS, prior)
        assert fit.converged
        statistics = LogEvidence.of(fit.plan).statistics(fit.params)
        gradient = score(statistics, Coordinates(fit.plan.structure.parameters))
        assert float(gradient.abs().max()) < 1e-4


def test_a_scale_that_goes_to_zero_is_named() -> None:
    y = torch.tensor([1.0, 1, 1, 1, 1, 2]).double()
    with pytest.warns(RuntimeWarning, match="without bound as site 'scale' goes to 0"):
        fit = EM(hardly_apart, "mle", seed=0).fit(y)
    assert not fit.converged
    assert bool(fit.history.isfinite().all())


@pytest.mark.thorough
def test_two_scales_that_meet_are_no_nan() -> None:
    def horseshoe(x: Tensor, y: Tensor) -> None:
        whole = pyro.sample("whole", dist.HalfCauchy(1.0))
        with pyro.plate("columns", x.shape[-1]):
            own = pyro.sample("own", dist.HalfCauchy(1.0))
            slopes = pyro.sample("slopes", dist.Normal(0.0, whole * own))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = EM(horseshoe, seed=0).fit(torch.stack([X, X**2, X.sin()], -1), X + SEPARATED)
    assert not fit.converged
    assert "without bound" in fit.stop_reason
    assert all(bool(value.isfinite().all()) for value in fit.params.values())
