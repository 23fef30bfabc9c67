"""Latents with conjugate priors, integrated in closed form."""

import math
import pickle
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM, SVI
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.m_step import MStep
from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan.plan import Plan
from ember.inference.plan.potentials import natural_parameters, values_of
from ember.inference.reading.matching.arguments import probe_values
from tests.inference.conjugate_models import CASES, COUNTS, MARK, Case, X, mixture, regression

Params = dict[str, Tensor]
GAUSSIAN: Any = {"integrate": "gaussian"}
every_case = pytest.mark.parametrize("name", CASES)


def plan_of(case: Case, objective: str = "mle", **options: Any) -> Plan:
    return EM(case.model, objective, **options).plan(*case.args, **case.kwargs)


def marginal(case: Case, params: Params) -> Tensor:
    with sheltered(None):
        return case.marginal(params, *case.args, **case.kwargs)


# -- the E-step ---------------------------------------------------------------------------------


@every_case
def test_the_evidence_is_the_marginal_density(name: str) -> None:
    case = CASES[name]
    plan = plan_of(case)
    assert plan.structure.conjugate.keys() == {case.latent}
    for seed in range(3):
        with sheltered(seed):
            params = probe_values(plan.structure, seed)
            rows = LogEvidence.of(plan).rows(params)
        torch.testing.assert_close(rows, marginal(case, params), rtol=1e-12, atol=1e-12)


@every_case
def test_the_statistics_are_the_gradient(name: str) -> None:
    """By Fisher's identity the gradient of the evidence is that of the expected log joint."""
    case = CASES[name]
    plan = plan_of(case)
    with sheltered(0):
        params = probe_values(plan.structure, 1)
        coordinates = Coordinates(plan.structure.parameters)
        statistics = LogEvidence.of(plan).statistics(params)
        point = coordinates.flatten(params).detach().requires_grad_()
        expected = expected_log_joint(statistics, coordinates.unflatten(point))
        (ours,) = torch.autograd.grad(expected, point)
        value = case.marginal(coordinates.unflatten(point), *case.args, **case.kwargs).sum()
        (theirs,) = torch.autograd.grad(value, point)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_statistics_by_quadrature() -> None:
    """E[u], E[log u] and the evidence of one row, by integrating over u numerically."""
    case = CASES["regression"]
    plan = plan_of(case)
    with sheltered(0):
        params = probe_values(plan.structure, 0)
        (component,) = plan.conjugate
        natural = natural_parameters(plan, values_of(plan, params))
        hyper = component.posterior(natural, plan.opaque.factor_log_probs(params))[0]
        rows = LogEvidence.of(plan).rows(params)
        a, b = hyper.unbind(-1)
        mean, log_mean = a / b, a.digamma() - b.log()
    nu, s = float(params["nu"]), float(params["s2"].sqrt())
    y, line = case.args[0][3], float(case.args[1][3] @ params["b"])
    gamma, normal = scipy.stats.gamma, scipy.stats.norm

    def integral(of: Any) -> float:
        def integrand(t: float) -> float:  # over log u
            u = math.exp(t)
            density = gamma.pdf(u, nu / 2, scale=2 / nu) * normal.pdf(float(y), line, s / u**0.5)
            return float(density * of(u) * u)

        return float(scipy.integrate.quad(integrand, -60, 8, epsabs=0, epsrel=1e-11, limit=500)[0])

    evidence = integral(lambda u: 1.0)
    assert math.log(evidence) == pytest.approx(float(rows[3]), rel=1e-9)
    assert integral(lambda u: u) / evidence == pytest.approx(float(mean[3]), rel=1e-8)
    assert integral(math.log) / evidence == pytest.approx(float(log_mean[3]), rel=1e-8)


def test_extremes_lose_no_digits() -> None:
    """Outliers of a million standard deviations, and next to no heavy tails."""
    y = torch.tensor([0.1, -0.3, 0.4, 0.2, 1e6, -1e8, -0.2, 0.3, 0.05], dtype=torch.float64)
    plan = EM(regression, "mle").plan(y, X[: len(y)])
    line = torch.zeros(3, dtype=torch.float64)
    for nu in (0.5, 4.0, 1e5, 1e10):
        params = {"b": line, "s2": torch.tensor(1.0), "nu": torch.tensor(nu)}
        params = {name: value.double() for name, value in params.items()}
        with sheltered(None):
            rows = LogEvidence.of(plan).rows(params)
        z2 = y.numpy() ** 2
        half = nu / 2
        rising = 0.5 * math.log(half) - 1 / (8 * half) if nu > 1e4 else (
            math.lgamma(half + 0.5) - math.lgamma(half)
        )  # fmt: skip
        exact = rising - 0.5 * math.log(math.pi * nu) - (nu + 1) / 2 * np.log1p(z2 / nu)
        np.testing.assert_allclose(rows.numpy(), exact, rtol=1e-11)


# -- fits ---------------------------------------------------------------------------------------


@every_case
def test_fits_reach_the_maximum_of_the_marginal(name: str) -> None:
    case = CASES[name]
    em = EM(case.model, "mle", seed=0)
    fit = em.fit(*case.args, **case.kwargs)
    assert fit.converged
    assert (fit.history.diff() >= 0).all()
    numerical = em.explain(*case.args, **case.kwargs).query("`M-step` == 'numerical'")
    parameters = numerical[numerical.role == "parameter"].site
    assert {*parameters} == {*case.numerical}
    torch.testing.assert_close(fit.log_prob(), marginal(case, fit.params), rtol=1e-11, atol=1e-11)

    coordinates = Coordinates(fit.plan.structure.parameters)

    def loss(point: Any) -> tuple[float, Any]:
        with sheltered(None):
            at = torch.from_numpy(point).requires_grad_()
            value = -case.marginal(coordinates.unflatten(at), *case.args, **case.kwargs).sum()
            (slope,) = torch.autograd.grad(value, at)
        return float(value.detach()), slope.numpy()

    with sheltered(None):
        start = coordinates.flatten(fit.params).detach().numpy()
    best = scipy.optimize.minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    assert -best.fun - fit.log_likelihood < 1e-6


def test_free_degrees_of_freedom_take_few_iterations() -> None:
    torch.manual_seed(0)
    design = torch.cat([torch.ones(2000, 1), torch.randn(2000, 2)], 1).double()
    y = design @ torch.tensor([1.0, 2.0, -1.0]).double() + 0.7 * dist.StudentT(4.0).sample((2000,))
    fit = EM(regression, "mle").fit(y, design)
    assert fit.converged
    assert fit.iterations <= 30


def test_map_is_the_maximum_with_the_prior() -> None:
    case = CASES["regression"]
    fit = EM(regression, seed=0).fit(*case.args)

    def log_joint(params: Params) -> Tensor:
        prior = dist.Normal(0.0, 10.0).log_prob(params["b"]).sum()
        prior = prior + dist.InverseGamma(2.0, 1.0).log_prob(params["s2"])
        prior = prior + dist.Gamma(2.0, 0.1).log_prob(params["nu"])
        return torch.as_tensor(prior + case.marginal(params, *case.args).sum())

    params = {name: value.clone().requires_grad_() for name, value in fit.params.items()}
    with sheltered(None):
        value = log_joint(params)
    assert float(value.detach()) == pytest.approx(fit.log_posterior, rel=1e-12)
    for slope in torch.autograd.grad(value, list(params.values())):
        assert float(slope.abs().max()) < 1e-3


def test_normal_data_have_many_degrees_of_freedom() -> None:
    """The likelihood rises all the way: the fit ends near the normal distribution's."""
    y = X @ torch.ones(3).double() + torch.linspace(-1, 1, len(X)).double().roll(7)
    with pytest.warns(RuntimeWarning, match="'nu' is at infinity"):
        fit = EM(regression, "mle").fit(y, X)
    rest = y - X @ torch.linalg.lstsq(X, y[:, None]).solution[:, 0]
    normal = dist.Normal(0.0, rest.square().mean().sqrt()).log_prob(rest).sum()
    assert fit.log_likelihood == pytest.approx(float(normal), abs=1e-3)
    assert (fit.history.diff() >= 0).all()


def test_weights_are_repeated_rows() -> None:
    case = CASES["mixture"]
    (x,) = case.args
    weights = 1.0 + (torch.arange(len(x)) % 3).double()

    def weighted(x: Tensor, weights: Tensor) -> None:
        with poutine.block(hide=[]), _scaled(weights):
            mixture(x)

    once = EM(mixture, "mle", seed=0).fit(x.repeat_interleave(weights.long(), 0))
    fit = EM(weighted, "mle", seed=0).fit(x, weights)
    assert fit.log_likelihood == pytest.approx(once.log_likelihood, rel=1e-9)
    torch.testing.assert_close(fit.params["m"], once.params["m"], rtol=1e-4, atol=1e-4)


class _scaled(poutine.messenger.Messenger):
    """Weights of the rows, whatever the model's own statements."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def _pyro_sample(self, msg: Any) -> None:
        if any(frame.name == "rows" for frame in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.weights


def test_data_may_be_masked_and_missing() -> None:
    case = CASES["regression"]
    y, design = case.args
    gappy = y.clone()
    gappy[::7] = torch.nan
    shown = ~gappy.isnan()
    fit = EM(regression, "mle").fit(gappy, design)
    less = EM(regression, "mle").fit(y[shown], design[shown])
    assert fit.log_likelihood == pytest.approx(less.log_likelihood, rel=1e-10)
    assert (fit.log_prob()[~shown].abs() < 1e-14).all()
    filled = fit.impute()
    torch.testing.assert_close(filled[~shown], (design @ fit.params["b"])[~shown])
    draws = fit.impute(draws=400, seed=0)
    assert torch.equal(draws[:, shown], y[shown].expand(400, -1))
    assert 0.5 < float((draws[:, 0] - filled[0]).abs().median() / fit.params["s2"].sqrt()) < 1.1


def test_restarts_are_batched() -> None:
    (x,) = CASES["mixture"].args
    one = EM(mixture, seed=0).fit(x)
    many = EM(mixture, seed=0, restarts=6).fit(x)
    assert many.log_posterior >= one.log_posterior - 1e-6


@every_case
def test_plans_and_statistics_pickle(name: str) -> None:
    case = CASES[name]
    em = EM(case.model, "mle", seed=0)
    plan = em.plan(*case.args, **case.kwargs)
    params = em.initialise(plan)
    statistics = em.e_step(params, plan)
    again = em.e_step(params, pickle.loads(pickle.dumps(plan)))
    assert again.objective == statistics.objective
    best = em.m_step(statistics)
    for other in (em.m_step(again), em.m_step(pickle.loads(pickle.dumps(statistics)))):
        assert all(torch.equal(value, other[site]) for site, value in best.items())


def test_statistics_add() -> None:
    y, design = CASES["regression"].args
    em = EM(regression, "mle")
    params = em.initialise(y, design)
    whole = em.e_step(params, y, design)
    half = em.e_step(params, y[:30], design[:30]) + em.e_step(params, y[30:], design[30:])
    assert half.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    for site, value in em.m_step(whole).items():
        torch.testing.assert_close(em.m_step(half)[site], value, rtol=1e-6, atol=1e-8)


@every_case
def test_steps_are_taken_where_the_data_are(name: str) -> None:
    """Under other defaults than those of the plan, a tensor made without naming them would tell."""
    plan = plan_of(CASES[name], "map")
    with sheltered(0):
        params = dict(probe_values(plan.structure, 0))
        evidence, m_step = LogEvidence(plan), MStep(plan)
        here = evidence.statistics(params)
        best = m_step(here)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("meta"):
            there = evidence.statistics(params)
            again = m_step(there)
    finally:
        torch.set_default_dtype(before)
    assert there.log_likelihood == here.log_likelihood
    assert all(torch.equal(value, best[site]) for site, value in again.items())


# -- answers ------------------------------------------------------------------------------------


def test_weights_of_rows() -> None:
    y, design = CASES["regression"].args
    fit = EM(regression, "mle").fit(y, design)
    nu, s2 = fit.params["nu"], fit.params["s2"]
    residual = y - design @ fit.params["b"]
    posterior = fit.posterior("u")
    a, b = (nu + 1) / 2, (nu + residual**2 / s2) / 2
    torch.testing.assert_close(posterior.mean, a / b)
    torch.testing.assert_close(posterior.variance, a / b**2)
    torch.testing.assert_close(posterior.stddev, a.sqrt() / b)
    assert isinstance(posterior.distribution, dist.Gamma)
    assert torch.equal(fit.predict(), posterior.mean)
    new = fit.posterior("u", y[:5], design[:5])
    torch.testing.assert_close(new.mean, posterior.mean[:5])
    drawn = fit.sample(1000, seed=0)
    assert drawn["u"].shape == drawn["y"].shape == (1000,)


def test_posteriors_beside_discrete_latents() -> None:
    (x,) = CASES["mixture"].args
    fit = EM(mixture, "mle", seed=0).fit(x)
    p = fit.params
    gap = x[:, None] - p["m"]
    square = torch.einsum("nki,kij,nkj->nk", gap, p["P"], gap)
    hyper = (p["nu"] + 2) / 2, (p["nu"] + square) / 2
    probs = fit.posterior("z").probs
    posterior = fit.posterior("u")
    mean = (probs * hyper[0] / hyper[1]).sum(1)
    torch.testing.assert_close(posterior.mean, mean)
    second = (probs * hyper[0] * (hyper[0] + 1) / hyper[1] ** 2).sum(1)
    torch.testing.assert_close(posterior.variance, second - mean**2)
    torch.testing.assert_close(posterior.distribution.mean, mean)
    predicted = fit.predict()
    assert torch.equal(predicted["z"], probs.argmax(1))
    assert torch.equal(predicted["u"], posterior.mean)
    drawn = fit.latent_samples(5, seed=0)
    assert drawn["u"].shape == (5, *posterior.mean.shape)


@pytest.mark.parametrize("name", ["beta-binomial", "Dirichlet-multinomial", "location"])
def test_posteriors_of_other_families(name: str) -> None:
    case = CASES[name]
    fit = EM(case.model, "mle", seed=0).fit(*case.args)
    posterior = fit.posterior(case.latent)
    assert posterior.mean.shape == fit.plan.sites[case.latent].value.shape
    torch.testing.assert_close(posterior.distribution.mean, posterior.mean)
    torch.testing.assert_close(posterior.distribution.variance, posterior.variance)
    if name == "beta-binomial":
        total = fit.params["a"] + fit.params["b"] + 10
        torch.testing.assert_close(posterior.mean, (fit.params["a"] + case.args[0]) / total)


def test_counts_are_imputed() -> None:
    case = CASES["negative binomial"]
    x = COUNTS.clone()
    x[4] = torch.nan
    fit = EM(case.model, "mle").fit(x)
    assert float(fit.impute()[4]) == pytest.approx(float(fit.params["rate"]), rel=1e-9)
    draws = fit.impute(draws=4000, seed=0)[:, 4]
    variance = fit.params["rate"] + fit.params["rate"] ** 2 / fit.params["a"]
    assert float(draws.var() / variance) == pytest.approx(1.0, abs=0.25)


def test_explanations() -> None:
    y, design = CASES["regression"].args
    table = EM(regression, "mle").explain(y, design).set_index("site")
    assert table.loc["u", "role"] == "latent"
    assert table.loc["u", "E-step"] == "integrated exactly (conjugate: Gamma)"
    assert "marked" in str(table.loc["u", "why"])
    assert "completed by moments of 'u'" in str(table.loc["y", "why"])
    assert table.loc["b", "M-step"] == "closed form"
    counts = CASES["negative binomial"]
    table = EM(counts.model).explain(*counts.args).set_index("site")
    assert "integrate={'u': None} makes it a parameter" in str(table.loc["u", "why"])


def test_svi_has_the_same_optimum() -> None:
    case = CASES["location"]
    fit = EM(case.model).fit(*case.args)
    other = SVI(case.model, steps=500, seed=0).fit(*case.args)
    assert other.log_posterior == pytest.approx(fit.log_posterior, abs=1e-4)
    torch.testing.assert_close(
        other.posterior("v").mean, fit.posterior("v").mean, rtol=1e-2, atol=1e-2
    )


# -- which sites, and refusals ------------------------------------------------------------------


def test_wishes_override_marks() -> None:
    y, design = CASES["regression"].args
    plan = EM(regression, integrate={"u": None}).plan(y, design, df=4.0)
    assert "u" in plan.structure.parameters
    counts = CASES["negative binomial"]
    plan = EM(counts.model, integrate={"u": "conjugate"}).plan(*counts.args)
    assert not plan.structure.found
    assert plan.structure.conjugate.keys() == {"u"}


def _refused(model: Any, *args: Any) -> str:
    with pytest.raises(ValueError, match="integrate") as error:
        EM(model).plan(*args)
    return str(error.value)


def _with_u(child: Any, prior: Any = None) -> Any:
    def model(y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            u = pyro.sample("u", prior or dist.Gamma(2.0, 2.0), infer=MARK)
            pyro.sample("y", child(m, u), obs=y)

    return model


@pytest.mark.parametrize(
    ("child", "words"),
    [
        (lambda m, u: dist.Normal(m, u.pow(-0.4)), ["'scale' is not made of"]),
        (lambda m, u: dist.Normal(m, 1.0 + u), ["'scale' is not made of"]),
        (lambda m, u: dist.Normal(m + u, 1.0), ["'loc'", "not conjugate"]),
        (lambda m, u: dist.Normal(m + u, u.rsqrt()), ["'loc' and 'scale'"]),
        (lambda m, u: dist.Laplace(m, 1 / u), ["of a Laplace"]),
        (lambda m, u: dist.Normal(m, (u * u.flip(0)).rsqrt()), ["'scale' is not made of"]),
    ],
)
def test_refuses_other_arguments(child: Any, words: list[str]) -> None:
    message = _refused(_with_u(child), CASES["location"].args[0])
    assert "site 'y'" in message
    assert "latent 'u'" in message
    assert "integrate={'u': None}" in message
    assert all(word in message for word in words)


def test_refuses_other_priors_and_unknown_ways() -> None:
    y = CASES["location"].args[0]
    normal = _with_u(lambda m, u: dist.Normal(m, u.rsqrt()), dist.LogNormal(0.0, 1.0))
    assert "neither Gamma nor InverseGamma" in _refused(normal, y)
    with pytest.raises(ValueError, match=r"'gaussian', which.* or 'conjugate'"):
        EM(normal, integrate={"u": "by hand"}).plan(y)


def test_refuses_latents_on_latents() -> None:
    def chained(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            v = pyro.sample("v", dist.Gamma(2.0, 2.0), infer=MARK)
            u = pyro.sample("u", dist.Gamma(2.0, v), infer=MARK)
            pyro.sample("y", dist.Normal(0.0, u.rsqrt()), obs=y)

    assert "prior of the latent 'u' reads the latent 'v'" in _refused(
        chained, CASES["location"].args[0]
    )

    def both(y: Tensor) -> None:
        s = pyro.sample("s", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(y)):
            u = pyro.sample("u", dist.Gamma(2.0, 2.0), infer=MARK)
            f = pyro.sample("f", dist.Normal(0.0, s), infer=GAUSSIAN)
            pyro.sample("y", dist.Normal(f, u.rsqrt()), obs=y)

    message = _refused(both, CASES["location"].args[0])
    assert "'u'" in message
    assert "'f'" in message


def test_refuses_a_discrete_latent_inside() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
        r = pyro.sample("r", dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1))
        with pyro.plate("groups", len(x), dim=-2):
            u = pyro.sample("u", dist.Gamma(2.0, 2.0), infer=MARK)
            with pyro.plate("rows", x.shape[1], dim=-1):
                z = pyro.sample("z", dist.Categorical(w))
                pyro.sample("x", dist.Poisson(r[z] * u), obs=x)

    message = _refused(model, COUNTS.reshape(20, 3))
    assert "discrete latent 'z' and continuous latent 'u'" in message


def test_groups_of_rows_share_a_latent() -> None:
    """A rate of each group, read by an index."""
    group = torch.arange(len(COUNTS)) % 12

    def model(x: Tensor, group: Tensor) -> None:
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        b = pyro.sample("b", dist.Gamma(2.0, 1.0))
        with pyro.plate("groups", 12):
            u = pyro.sample("u", dist.Gamma(a, b), infer=MARK)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Poisson(u[group]), obs=x)

    fit = EM(model, "mle").fit(COUNTS, group)
    a, b = fit.params["a"], fit.params["b"]
    sums = torch.zeros(12).double().index_add(0, group, COUNTS)
    each = torch.lgamma(a + sums) - torch.lgamma(a) + a * b.log() - (a + sums) * (b + 5.0).log()
    expected = each.sum() - torch.lgamma(COUNTS + 1.0).sum()
    assert fit.log_likelihood == pytest.approx(float(expected), rel=1e-12)
    torch.testing.assert_close(fit.posterior("u").mean, (a + sums) / (b + 5.0))
