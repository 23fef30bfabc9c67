"""Variational Bayes EM: the bound, against evidences in closed form and numerical integrals."""

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from ember.inference import EM, VBEM
from ember.inference.families import conjugacy
from ember.inference.families.kinds import RATE
from ember.inference.families.links import Power
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.variational_bayes.variational_bayes import VariationalBayes
from ember.inference.variational_fit import VariationalFit
from tests.inference.catalogue import CASES, INTEGRATED, NUMERICAL, Case, case_id, model_of

_models = importlib.import_module("ember.models")
CLUSTERS = [case for case in CASES if case[0] == "gaussian_mixture"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# -- without latents the bound is the evidence ----------------------------------------------------


def counts(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def coin(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def dice(x: Tensor) -> None:
    probs = pyro.sample("probs", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5])))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Categorical(probs), obs=x)


def variance(x: Tensor) -> None:
    v = pyro.sample("v", dist.InverseGamma(3.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(1.0, v.sqrt()), obs=x)


def location(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(1.0, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m, 0.7), obs=x)


def log_beta(*a: float) -> float:
    return float(sum(map(math.lgamma, a)) - math.lgamma(sum(a)))


X = normals(9)


def student_evidence(x: Tensor, a: float, b: float) -> float:
    """Normal data about zero, of which the precision is Gamma(a, b)."""
    n, s = len(x), float((x * x).sum())
    return (
        math.lgamma(a + n / 2) - math.lgamma(a) + a * math.log(b)
        - (a + n / 2) * math.log(b + s / 2) - n / 2 * math.log(2 * math.pi)
    )  # fmt: skip


def poisson_evidence(x: Tensor, a: float, b: float) -> float:
    n, s = len(x), float(x.sum())
    return float(
        a * math.log(b) - math.lgamma(a) + math.lgamma(a + s) - (a + s) * math.log(b + n)
        - torch.lgamma(x + 1.0).sum()
    )  # fmt: skip


NUMBERS = torch.tensor([3.0, 0.0, 5.0, 2.0], dtype=torch.float64)
EVENTS = torch.tensor([1.0, 0.0, 1.0, 1.0])
FACES = torch.tensor([0, 2, 2, 1, 0])


@pytest.mark.parametrize(
    ("model", "x", "evidence"),
    [
        (counts, NUMBERS, poisson_evidence(NUMBERS, 2.0, 0.5)),
        (coin, EVENTS, log_beta(5.0, 4.0) - log_beta(2.0, 3.0)),
        (dice, FACES, log_beta(3.0, 3.0, 2.5) - log_beta(1.0, 2.0, 0.5)),
        (variance, X, student_evidence(X - 1.0, 3.0, 2.0)),
        (
            location,
            X,
            scipy.stats.multivariate_normal.logpdf(
                X.numpy(), np.ones(9), 0.49 * np.eye(9) + 4.0 * np.ones((9, 9))
            ),
        ),
    ],
    ids=["Gamma", "Beta", "Dirichlet", "InverseGamma", "Normal"],
)
def test_without_latents_the_bound_is_the_evidence(
    model: Callable[..., Any], x: Tensor, evidence: float
) -> None:
    fit = VBEM(model).fit(x)
    assert fit.converged
    assert fit.lower_bound == pytest.approx(evidence, rel=1e-10)


def test_one_component_has_the_evidence_of_a_normal_wishart() -> None:
    x, d = normals(30, 3) + 5.0, 3
    prior = {"kappa": 0.3, "df": 6.0, "scale": 2.0 * torch.eye(3, dtype=torch.float64)}
    fit = VBEM(_models.gaussian_mixture).fit(x, components=1, prior=prior)
    n, centred = len(x), x - x.mean(0)  # the prior mean is that of the columns
    scale = torch.as_tensor(prior["scale"])
    above, below = torch.tensor([3.0 + n / 2, 3.0], dtype=torch.float64)
    evidence = (
        -n * d / 2 * math.log(math.pi) + torch.mvlgamma(above, d) - torch.mvlgamma(below, d)
        + 3.0 * torch.logdet(scale)
        - (6.0 + n) / 2 * torch.logdet(scale + centred.T @ centred)
        + d / 2 * math.log(0.3 / (0.3 + n))
    )  # fmt: skip
    assert fit.lower_bound == pytest.approx(float(evidence), rel=1e-12)


def test_units_and_origin_change_no_posterior() -> None:
    x = normals(60, 2) + 4.0 * torch.randint(0, 2, (60, 1), generator=generator())
    one = VBEM(_models.gaussian_mixture, seed=0).fit(x, components=2)
    other = VBEM(_models.gaussian_mixture, seed=0).fit(1e3 * x + 1e6, components=2)
    jacobian = 60 * 2 * math.log(1e3)
    assert other.lower_bound + jacobian == pytest.approx(one.lower_bound, rel=1e-8)
    torch.testing.assert_close(other.params["weights"], one.params["weights"], rtol=1e-6, atol=0.0)


def normal_gamma(x: Tensor) -> None:
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    m = pyro.sample("m", dist.Normal(0.5, (0.3 * r).rsqrt()))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m, r.rsqrt()), obs=x)


def student_t_log_density(x: Tensor, location: float, count: float) -> float:
    """The marginal of the data with a normal-gamma prior."""
    n = len(x)
    shape = 0.5 * (torch.eye(n).double() + torch.ones(n, n).double() / count)
    t = scipy.stats.multivariate_t(np.full(n, location), shape.numpy(), df=4)
    return float(t.logpdf(x.numpy()))


def test_a_single_location_shares_the_posterior_of_its_scale() -> None:
    fit = VBEM(normal_gamma).fit(X)
    assert fit.lower_bound == pytest.approx(student_t_log_density(X, 0.5, 0.3), rel=1e-12)
    draws = fit.posterior_samples(5, seed=0)
    assert draws["m"].shape == (5,)


def centred_at_a_point(x: Tensor) -> None:
    centre = pyro.sample("centre", dist.LogNormal(0.0, 1.0))
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pyro.plate("groups", 1):
        m = pyro.sample("m", dist.Normal(centre, r.rsqrt()))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m[torch.zeros(len(x)).long()], r.rsqrt()), obs=x)


def test_a_shared_posterior_follows_the_points_of_its_prior() -> None:
    fit = VBEM(centred_at_a_point, integrate={"m": None}, tol=1e-12).fit(X)
    assert fit.converged
    assert set(fit.posteriors) == {"m", "r"}

    def negative(centre: float) -> float:
        prior = scipy.stats.lognorm.logpdf(centre, 1.0)
        return -float(prior) - student_t_log_density(X, centre, 1.0)

    best = scipy.optimize.minimize_scalar(negative, bounds=(0.01, 5.0), method="bounded")
    assert float(fit.params["centre"]) == pytest.approx(best.x, rel=1e-4)
    assert fit.lower_bound == pytest.approx(-best.fun, rel=1e-9)


# -- independent posteriors -----------------------------------------------------------------------


def semi_conjugate(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.5, 2.0))
    r = pyro.sample("r", dist.Gamma(1.5, 2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(m, r.rsqrt()), obs=x)


def semi_conjugate_bound(q: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> float:
    """The bound by Gauss quadrature over both posteriors, from densities of scipy."""
    mean, sd, a, b = q[0], math.exp(q[1]), math.exp(q[2]), math.exp(q[3])
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    m, w = mean + sd * nodes, weights / weights.sum()
    u = (np.arange(4000) + 0.5) / 4000
    r = scipy.stats.gamma.ppf(u, a, scale=1 / b)
    density = np.sum(scipy.stats.norm.logpdf(x[:, None, None], m[:, None], r**-0.5), 0)
    density += scipy.stats.norm.logpdf(m, 0.5, 2.0)[:, None]
    density += scipy.stats.gamma.logpdf(r, 1.5, scale=0.5)
    entropy = scipy.stats.norm.entropy(mean, sd) + scipy.stats.gamma.entropy(a, scale=1 / b)
    return float((w[:, None] * density).sum() / len(r) + entropy)


def test_independent_posteriors_are_the_best_of_their_kind() -> None:
    x = normals(12, seed=3) + 1.0
    fit = VBEM(semi_conjugate).fit(x)
    found = fit.posteriors
    start = np.array([
        float(found["m"].mean), math.log(float(found["m"].stddev)),
        math.log(float(found["r"].concentration)), math.log(float(found["r"].rate)),
    ])  # fmt: skip
    at = semi_conjugate_bound(start, x.numpy())

    def negative(q: np.ndarray[Any, Any]) -> float:
        return -semi_conjugate_bound(q, x.numpy())

    best = scipy.optimize.minimize(negative, start)
    assert fit.lower_bound == pytest.approx(at, abs=2e-4)  # of the quadrature over r
    np.testing.assert_allclose(best.x, start, atol=2e-3)


# -- with latents ---------------------------------------------------------------------------------


def coins(heads: Tensor, weights: Tensor | None = None) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("coins", 2):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
    scale = torch.ones(len(heads)) if weights is None else weights
    with pyro.plate("rows", len(heads)), pyro.poutine.scale(scale=scale):
        which = pyro.sample("which", dist.Categorical(shares))
        pyro.sample("heads", dist.Binomial(10, p[which]), obs=heads)


HEADS = torch.tensor([5.0, 9.0, 8.0, 4.0, 7.0])


def test_the_bound_lies_below_the_evidence() -> None:
    evidence = torch.tensor(-math.inf)
    for code in range(2 ** len(HEADS)):
        which = torch.tensor([code >> i & 1 for i in range(len(HEADS))])
        n = torch.bincount(which, minlength=2).double()
        total = torch.lgamma(n + 1.0).sum() - torch.lgamma(n.sum() + 2.0)
        for k in range(2):
            h = HEADS[which == k].sum().item()
            total = total + log_beta(2.0 + h, 2.0 + 10 * float(n[k]) - h) - log_beta(2.0, 2.0)
        evidence = torch.logaddexp(evidence, total)
    evidence = evidence + sum(math.log(math.comb(10, int(h))) for h in HEADS)
    fit = VBEM(coins, seed=0).fit(HEADS)
    gap = float(evidence) - fit.lower_bound
    assert 0.0 < gap < 2.0


def test_a_weight_is_as_many_rows() -> None:
    weights = torch.tensor([2.0, 1.0, 3.0, 1.0, 1.0])
    weighted = VBEM(coins, seed=0, tol=1e-12).fit(HEADS, weights=weights)
    repeated = VBEM(coins, seed=0, tol=1e-12).fit(HEADS.repeat_interleave(weights.long()))
    assert weighted.lower_bound == pytest.approx(repeated.lower_bound, rel=1e-10)


@pytest.mark.parametrize("case", CASES + NUMERICAL + INTEGRATED, ids=case_id)
def test_every_model(case: Case) -> None:
    """The bound never falls, and its gradient vanishes; or the refusal says why."""
    name, data, options = case
    if name in ("emission_tomography", "item_response"):
        with pytest.raises(ValueError, match="use EM"):
            VBEM(model_of(case), seed=0).fit(data, **options)
        return
    fit = VBEM(model_of(case), seed=0).fit(data, **options)
    steps = fit.history.diff()
    assert bool((steps >= -1e-9 * (1.0 + abs(fit.lower_bound))).all())
    assert fit.converged
    with sheltered(0, (data,)):
        bayes = VariationalBayes.of(fit.plan)
        statistics = bayes.evidence.statistics({**fit.params, **fit.sizes})
        slopes = score(statistics, Coordinates(bayes.plan.structure.parameters))
    assert statistics.objective == pytest.approx(fit.lower_bound, rel=1e-9)
    assert float(slopes.abs().max()) < 1e-4 * (1.0 + abs(fit.lower_bound))
    assert set(fit.posteriors) | set(bayes.points) == set(fit.params)
    assert set(fit.points) == set(fit.params) - set(fit.posteriors)


def test_the_order_of_the_start_changes_no_result() -> None:
    x = normals(80, 2) + 5.0 * (torch.arange(80) % 4 == 0).unsqueeze(-1)
    first = EM(_models.gaussian_mixture, seed=0).fit(x, components=2).params
    swapped = {name: value.flip(0) for name, value in first.items()}
    one, other = (
        VBEM(_models.gaussian_mixture, init=start).fit(x, components=2)
        for start in (first, swapped)
    )
    assert one.lower_bound == pytest.approx(other.lower_bound, rel=1e-10)
    for name in one.sizes:
        torch.testing.assert_close(one.sizes[name], other.sizes[name].flip(0))


def test_states_come_in_the_order_of_their_shares() -> None:
    x = normals(80, 2) + 5.0 * (torch.arange(80) % 4 != 0).unsqueeze(-1)
    fits = [VBEM(_models.gaussian_mixture, seed=s).fit(x, components=2) for s in range(4)]
    for fit in fits:
        assert float(fit.params["weights"][0]) == pytest.approx(0.75, abs=0.05)
        counts = fit.sizes["locs|count"]
        assert float(counts[0] - counts[1]) == pytest.approx(40.0, abs=1.0)
        assert fit.predict()[:4].tolist() == [1, 0, 0, 0]


def test_a_renumbered_fit_takes_its_posteriors_along() -> None:
    x = normals(80, 2) + 5.0 * (torch.arange(80) % 4 != 0).unsqueeze(-1)
    fit = VBEM(_models.gaussian_mixture, seed=0).fit(x, components=2)
    moved = fit.relabel([1, 0])
    assert isinstance(moved, VariationalFit)
    for name, posterior in fit.posteriors.items():
        torch.testing.assert_close(moved.params[name], fit.params[name].flip(0))
        variance = moved.posteriors[name].variance
        torch.testing.assert_close(variance, posterior.variance.flip(0))
    probs = fit.posterior("assignment").probs
    torch.testing.assert_close(moved.posterior("assignment").probs, probs.flip(-1))


# -- what follows from a fit ----------------------------------------------------------------------


def test_draws_have_the_moments_of_the_posteriors() -> None:
    x = normals(40, 2) + 6.0 * (torch.arange(40) % 2).unsqueeze(-1)
    fit = VBEM(_models.gaussian_mixture, seed=0).fit(x, components=2)
    draws = fit.posterior_samples(20_000, seed=1)
    for name, posterior in fit.posteriors.items():
        mean, sd = posterior.mean, posterior.variance.sqrt()
        torch.testing.assert_close(mean, fit.params[name])
        assert bool(((draws[name].mean(0) - mean).abs() < 0.05 * sd).all())
        torch.testing.assert_close(draws[name].std(0), sd, rtol=0.05, atol=0.0)


def test_reports_show_the_bound_and_how_sure_it_is() -> None:
    fit = VBEM(coins, seed=0).fit(HEADS)
    assert f"lower bound     {fit.lower_bound:.6f}" in str(fit)
    table, posterior = fit.summary(), fit.posteriors["p"]
    assert table["std. error"]["p[0]"] == pytest.approx(float(posterior.variance[0].sqrt()))
    beta = scipy.stats.beta(posterior.concentration1[0], posterior.concentration0[0])
    assert table["lower"]["p[0]"] == pytest.approx(beta.ppf(0.025), abs=0.1 * beta.std())
    assert fit.vcov().loc["p[0]", "p[1]"] == pytest.approx(0.0, abs=0.1 * beta.var())
    with pytest.raises(ValueError, match="robust=True is for estimates that are points"):
        fit.standard_errors(robust=True)


def test_powers_of_gamma_variables_have_errors_by_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prior of an inverse scale, registered as CONTRIBUTING.md says."""

    def half_normal(prior: Any) -> list[Tensor]:
        return [torch.zeros_like(prior.scale), 0.5 * prior.scale**-2.0]

    link = Power(2.0)
    monkeypatch.setitem(conjugacy._RULES, (RATE, link.name, dist.HalfNormal), half_normal)

    def errors(x: Tensor) -> None:
        inverse_scale = pyro.sample("inverse_scale", dist.HalfNormal(3.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0 / inverse_scale), obs=x)

    fit = VBEM(errors, seed=0).fit(X)
    w = np.linspace(1e-3, 4.0, 4001)
    log = 9.0 * np.log(w) - 0.5 * float(X.square().sum()) * w**2 - w**2 / 18.0
    density = np.exp(log - log.max())
    mean = (w * density).sum() / density.sum()
    sd = math.sqrt(((w - mean) ** 2 * density).sum() / density.sum())
    assert fit.summary()["std. error"]["inverse_scale"] == pytest.approx(sd, rel=0.1)


def test_posteriors_of_latents_know_of_the_uncertainty() -> None:
    fit = VBEM(coins, seed=0).fit(HEADS)
    a = fit.posteriors["p"].concentration1
    b = fit.posteriors["p"].concentration0
    c = fit.posteriors["shares"].concentration
    log_p = torch.digamma(a) - torch.digamma(a + b)
    log_q = torch.digamma(b) - torch.digamma(a + b)
    logits = torch.digamma(c) + HEADS[:, None] * log_p + (10 - HEADS)[:, None] * log_q
    torch.testing.assert_close(fit.posterior("which").probs, logits.softmax(-1))
    new = fit.posterior("which", HEADS[:2]).probs
    torch.testing.assert_close(new, logits[:2].softmax(-1))


def test_the_steps_by_hand_lead_to_the_fit() -> None:
    method = VBEM(coins, seed=0)
    state = method.initialise(HEADS)
    bounds = []
    for _ in range(300):
        statistics = method.e_step(state, HEADS)
        bounds.append(statistics.objective)
        state = method.m_step(statistics)
    assert bounds == sorted(bounds) or min(np.diff(bounds)) > -1e-12
    assert bounds[-1] == pytest.approx(method.fit(HEADS).lower_bound, rel=1e-8)


def test_what_has_no_posterior_stays_a_point_and_says_so() -> None:
    x = normals(40, 2)
    y = x @ torch.tensor([1.0, -1.0], dtype=torch.float64) + 0.1 * normals(40, seed=1)
    method = VBEM(_models.regression_mixture, seed=0)
    table = method.explain(y, X=x, components=1).set_index("site")
    assert table.loc["coefficients", "M-step"] == "point, numerical"
    assert table.loc["coefficients", "why"] == "coefficients of a linear predictor stay a point"
    fit = method.fit(y, X=x, components=1)
    assert "coefficients" not in fit.posteriors
    draws = fit.posterior_samples(3, seed=0)["coefficients"]
    torch.testing.assert_close(draws, fit.params["coefficients"].expand(3, 1, 3))
    # Nothing is said of how sure a point is, which is not the same as certainty.
    assert bool(fit.standard_errors()["coefficients"].isnan().all())
    row = fit.summary().loc["coefficients[0, 0]", ["std. error", "lower", "upper"]]
    assert bool(row.isna().all())
    assert bool(fit.vcov().loc["coefficients[0, 0]"].isna().all())
    assert bool(fit.standard_errors()["precisions"].isfinite().all())


CONJUGATE: Any = {"integrate": "conjugate"}


def mixed_rates(x: Tensor) -> None:
    b = pyro.sample("b", dist.Gamma(2.0, 1.0))
    scale = pyro.sample("scale", dist.Gamma(3.0, 1.0))
    with pyro.plate("rows", len(x)):
        u = pyro.sample("u", dist.Gamma(2.0, b), infer=CONJUGATE)
        pyro.sample("x", dist.Poisson(u), obs=x)
        pyro.sample("wait", dist.Exponential(scale), obs=torch.ones(len(x)))


def test_the_prior_of_a_latent_with_a_conjugate_prior_stays_a_point() -> None:
    """The bound is the negative binomial's log likelihood, and the evidence of the rest."""
    x = torch.tensor([3.0, 1.0, 2.0, 2.0, 1.0]).double()
    fit = VBEM(mixed_rates, tol=1e-12).fit(x)
    assert set(fit.posteriors) == {"scale"}
    b = float(fit.params["b"])
    known = float(np.sum(scipy.stats.nbinom.logpmf(x.numpy(), 2.0, b / (1 + b))))
    known += float(scipy.stats.gamma.logpdf(b, 2.0))
    waits = math.lgamma(8.0) - math.lgamma(3.0) - 8.0 * math.log(6.0)
    assert fit.lower_bound == pytest.approx(known + waits, rel=1e-10)


def no_prior(x: Tensor) -> None:
    rate = pyro.param("rate", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def test_a_model_without_conjugate_priors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter has a conjugate posterior"):
        VBEM(no_prior).fit(NUMBERS)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="init='nowhere' is unknown"):
        VBEM(coins, init="nowhere")
    with pytest.raises(TypeError, match=r"VBEM\(gaussian_mixture\)"):
        VBEM("coins")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"state lacks 'shares'"):
        VBEM(coins).e_step({"p": torch.tensor([0.5, 0.5])}, HEADS)
