"""Latents of units, ``u[group]``, on adaptive nodes: against sums over fine grids in numpy."""

import pickle
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from pyro import poutine
from torch import Tensor

from ember.inference import EM, SVI, Adaptive, Quadrature, compare
from ember.models import generalised_linear_mixed_model, item_response
from tests.inference.unit_models import (
    LINE,
    ON_NODES,
    STEP,
    Model,
    data,
    density,
    intercepts,
    moments,
    positive,
    slopes,
    slopes_evidence,
)

FAMILIES = ["bernoulli", "binomial", "poisson", "gamma", "negative binomial", "normal"]
PARAMS = {
    "b": torch.tensor([0.2, 0.7], dtype=torch.float64),
    "sd": torch.tensor(0.9, dtype=torch.float64),
}


ADAPTIVE: Any = {"integrate": Adaptive()}


def adaptive(nodes: int) -> Any:
    return {"integrate": Adaptive(nodes)}


def precise(nodes: int) -> dict[str, Any]:
    return {"integrate": {"u": Adaptive(nodes, most=nodes)}}


# -- the E-step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_log_evidence_and_moments(family: str) -> None:
    args = data(family)
    b, sd = PARAMS["b"].numpy(), float(PARAMS["sd"])
    evidence, mean, deviation = moments(family, args, b, sd)
    em = EM(intercepts(family), "mle")
    assert em.e_step(PARAMS, *args).log_likelihood == pytest.approx(evidence.sum(), abs=2e-6)
    finer = EM(intercepts(family), "mle", **precise(31)).e_step(PARAMS, *args)
    assert finer.log_likelihood == pytest.approx(evidence.sum(), abs=1e-9)
    fit = EM(intercepts(family), "mle", init=PARAMS, max_iter=1, tol=0).fit(*args)
    b, sd = fit.params["b"].numpy(), float(fit.params["sd"])
    _, mean, deviation = moments(family, args, b, sd)
    found = fit.posterior("u")
    assert found.mean.numpy() == pytest.approx(mean, abs=1e-6)
    assert found.stddev.numpy() == pytest.approx(deviation, abs=1e-6)
    assert torch.equal(fit.predict(), found.mean)
    assert found.nodes.shape == found.probs.shape == (30, 15)
    assert found.covariance.shape == (30, 1, 1)


def test_two_dims() -> None:
    args = data("bernoulli", groups=12, rows=10)
    precision = torch.tensor([[1.5, -0.4], [-0.4, 2.0]]).double()
    params = {"b": PARAMS["b"], "precision": precision}
    truth = slopes_evidence(args, PARAMS["b"].numpy(), precision.numpy())
    found = EM(slopes, "mle").e_step(params, *args).log_likelihood
    assert found == pytest.approx(truth, abs=2e-5)
    finer = EM(slopes, "mle", **precise(31)).e_step(params, *args).log_likelihood
    assert finer == pytest.approx(truth, abs=1e-8)


def test_two_sites_of_one_plate_are_integrated_together() -> None:
    def apart(y: Tensor, x: Tensor, group: Tensor) -> None:
        b = pyro.param("b", torch.zeros(2))
        sds = pyro.param("sds", torch.ones(2), constraint=positive)
        with pyro.plate("groups", int(group.max()) + 1):
            u = pyro.sample("u", dist.Normal(0.0, sds[0]), infer=ON_NODES)
            v = pyro.sample("v", dist.Normal(0.0, sds[1]), infer=ON_NODES)
        with pyro.plate("rows", len(y)):
            line = b[0] + b[1] * x + u[group] + v[group] * x
            pyro.sample("y", dist.Bernoulli(logits=line), obs=y)

    args, sds = data("bernoulli", groups=12, rows=10), torch.tensor([0.8, 0.5]).double()
    one = EM(apart, "mle").e_step({"b": PARAMS["b"], "sds": sds}, *args)
    precision = torch.diag(sds**-2.0)
    two = EM(slopes, "mle").e_step({"b": PARAMS["b"], "precision": precision}, *args)
    assert one.log_likelihood == pytest.approx(two.log_likelihood, abs=1e-9)
    start = {"b": PARAMS["b"], "sds": sds}
    with pytest.warns(RuntimeWarning, match="max_iter"):
        fit = EM(apart, "mle", init=start, max_iter=1, accelerate=None).fit(*args)
    table = EM(apart, "mle").explain(*args).set_index("site")
    assert table.loc["v", "E-step"] == "integrated on 11 x 11 nodes for each unit, with 'u'"
    assert {*fit.predict()} == {"u", "v"}
    assert fit.posterior("v").mean.shape == (12,)


def test_four_dims_by_sobol_points() -> None:
    """Of a linear model, whose evidence is that of a multivariate normal."""
    generator = torch.Generator().manual_seed(5)
    groups, rows = 20, 6
    group = torch.arange(groups).repeat_interleave(rows)
    design = torch.randn(groups * rows, 4, generator=generator, dtype=torch.float64)
    u = 0.8 * torch.randn(groups, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(groups * rows, generator=generator, dtype=torch.float64)
    y = (design * u[group]).sum(-1) + 0.5 * noise

    def model(y: Tensor) -> None:
        sd = pyro.param("sd", torch.tensor(1.0), constraint=positive)
        with pyro.plate("groups", groups):
            u = pyro.sample("u", dist.Normal(torch.zeros(4), sd).to_event(1), infer=ON_NODES)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal((design * u[group]).sum(-1), 0.5), obs=y)

    def truth(sd: float) -> float:
        total = 0.0
        for g in range(groups):
            z = design[group == g].numpy()
            covariance = sd**2 * z @ z.T + 0.25 * np.eye(rows)
            normal: Any = scipy.stats.multivariate_normal(np.zeros(rows), covariance)
            total += float(normal.logpdf(y[group == g].numpy()))
        return total

    params = {"sd": torch.tensor(0.7, dtype=torch.float64)}
    em = EM(model, "mle", seed=0)
    assert em.e_step(params, y).log_likelihood == pytest.approx(truth(0.7), abs=0.3)
    finer = EM(model, "mle", **precise(8192)).e_step(params, y)
    assert finer.log_likelihood == pytest.approx(truth(0.7), abs=0.02)
    fit = em.fit(y)
    assert fit.converged, fit.stop_reason
    direct: Any = scipy.optimize.minimize_scalar(lambda sd: -truth(sd), (0.3, 1.5))
    assert float(fit.params["sd"]) == pytest.approx(direct.x, abs=5e-3)
    assert fit.node_gaps["u"] <= 0.05
    assert "256 Sobol" in str(em.explain(y))


def test_a_model_that_cannot_be_recorded_is_run_for_each_node() -> None:
    recorded = intercepts("bernoulli")

    def branching(y: Tensor, x: Tensor, group: Tensor) -> None:
        with poutine.block(hide=["shown"]):
            pyro.param("shown", torch.tensor(0.0))
        b = pyro.param("b", torch.zeros(2))
        sd = pyro.param("sd", torch.tensor(1.0), constraint=positive)
        with pyro.plate("groups", int(group.max()) + 1):
            u = pyro.sample("u", dist.Normal(0.0, sd), infer=ON_NODES)
        with pyro.plate("rows", len(y)):
            line = b[0] + b[1] * x + u[group]
            line = line if float(line.detach().abs().max()) < 1e9 else -line
            pyro.sample("y", dist.Bernoulli(logits=line), obs=y)

    args = data("bernoulli", groups=8, rows=4)
    em = EM(branching, "mle", seed=0)
    assert em.plan(*args).units[0].playback.tape is None
    one, two = em.e_step(PARAMS, *args), EM(recorded, "mle").e_step(PARAMS, *args)
    assert one.log_likelihood == pytest.approx(two.log_likelihood, abs=1e-10)
    fits = [EM(model, "mle", seed=0).fit(*args) for model in (branching, recorded)]
    assert fits[0].log_likelihood == pytest.approx(fits[1].log_likelihood, abs=1e-7)


@pytest.mark.parametrize("prior", ["gamma", "lognormal", "student"])
def test_other_priors(prior: str) -> None:
    """Positive latents, and priors without sufficient statistics."""

    def model(y: Tensor, group: Tensor) -> None:
        b = pyro.param("b", torch.tensor(0.5))
        priors: Any = {
            "gamma": lambda: dist.Gamma(3.0, 2.0),
            "lognormal": lambda: dist.LogNormal(0.0, 0.6),
            "student": lambda: dist.StudentT(5.0, 0.0, 0.7),
        }
        fn = priors[prior]()
        with pyro.plate("groups", int(group.max()) + 1):
            u = pyro.sample("u", fn, infer=ON_NODES)
        with pyro.plate("rows", len(y)):
            rate = (b + u[group]).exp() if prior == "student" else b.exp() * u[group]
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y, _, group = data("poisson", groups=15, rows=6)
    found = EM(model, "mle", **precise(41)).e_step(
        {"b": torch.tensor(0.3, dtype=torch.float64)}, y, group
    )
    line = np.linspace(-12.0, 12.0, 4001)
    u, slope = (line, 1.0) if prior == "student" else (np.exp(line), np.exp(line))
    log_prior = {
        "gamma": scipy.stats.gamma(3.0, scale=0.5).logpdf,
        "lognormal": scipy.stats.lognorm(0.6).logpdf,
        "student": scipy.stats.t(5.0, 0.0, 0.7).logpdf,
    }[prior](u)
    rate = np.exp(0.3 + u) if prior == "student" else np.exp(0.3) * u
    joint = np.zeros((15, len(u)))
    np.add.at(joint, group.numpy(), scipy.stats.poisson.logpmf(y.numpy()[:, None], rate))
    weights = log_prior + np.log(slope * (line[1] - line[0]))
    truth = scipy.special.logsumexp(joint + weights, axis=1)
    # A density with heavy tails is no normal one times a polynomial.
    near = 1e-5 if prior == "student" else 1e-8
    assert found.log_likelihood == pytest.approx(truth.sum(), abs=near)


def test_latents_in_the_plate_of_the_rows_agree_with_a_grid() -> None:
    torch.manual_seed(0)
    u = torch.randn(80, dtype=torch.float64)
    answers = torch.bernoulli(torch.sigmoid(u[:, None] + torch.linspace(-1, 1, 6)))
    grid = EM(item_response, seed=0).fit(answers)
    asked = {"ability": Adaptive(31, most=31)}
    fit = EM(item_response, seed=0, integrate=asked).fit(answers)
    assert fit.log_posterior == pytest.approx(grid.log_posterior, abs=1e-6)
    assert torch.allclose(fit.posterior("ability").mean, grid.posterior("ability").mean, atol=1e-4)
    assert fit.log_prob().shape == (80,)
    assert torch.allclose(fit.log_prob(), grid.log_prob(), atol=1e-4)


def test_units_without_rows_and_missing_responses() -> None:
    y, x, group = data("bernoulli", groups=10, rows=6)
    kept = y.clone()
    kept[:20] = torch.nan

    def model(y: Tensor, x: Tensor, group: Tensor) -> None:
        b = pyro.param("b", torch.zeros(2))
        sd = pyro.param("sd", torch.tensor(1.0), constraint=positive)
        shown: Any = ~y.isnan()
        with pyro.plate("groups", 12):
            u = pyro.sample("u", dist.Normal(0.0, sd), infer=ON_NODES)
        with pyro.plate("rows", len(y)), poutine.mask(mask=shown):
            line = b[0] + b[1] * x + u[group]
            pyro.sample("y", dist.Bernoulli(logits=line), obs=torch.where(shown, y, 0.0))

    fit = EM(model, "mle", seed=0).fit(kept, x, group)
    found, b, sd = fit.posterior("u"), fit.params["b"].numpy(), float(fit.params["sd"])
    evidence, mean, _ = moments("bernoulli", (y[20:], x[20:], group[20:]), b, sd)
    assert fit.log_likelihood == pytest.approx(evidence.sum(), abs=1e-6)
    assert found.mean[:10].numpy() == pytest.approx(mean, abs=1e-6)
    assert found.mean[10:].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert found.stddev[10:].tolist() == pytest.approx([sd, sd], rel=1e-9)


# -- the fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bernoulli", "poisson", "negative binomial"])
def test_optimum_is_that_of_direct_maximisation(family: str) -> None:
    args = data(family)
    fit = EM(intercepts(family), "mle", seed=0).fit(*args)
    assert fit.converged, fit.stop_reason
    assert bool((fit.history.diff() >= -1e-9 * abs(fit.log_likelihood)).all())

    def objective(at: Any) -> float:
        return float(-moments(family, args, at[:2], np.exp(at[2]))[0].sum())

    direct = scipy.optimize.minimize(objective, np.zeros(3), method="BFGS", tol=1e-8)
    assert fit.log_likelihood == pytest.approx(-direct.fun, abs=2e-6)
    assert fit.params["b"].numpy() == pytest.approx(direct.x[:2], abs=1e-4)
    assert float(fit.params["sd"]) == pytest.approx(float(np.exp(direct.x[2])), abs=1e-4)
    assert fit.node_gaps["u"] <= 1e-6


@pytest.mark.parametrize("accelerate", [None, "squarem", "lbfgs", "anderson"])
def test_every_scheme_leads_there(accelerate: str | None) -> None:
    args = data("bernoulli")
    usual = EM(intercepts("bernoulli"), "mle", seed=0).fit(*args)
    fit = EM(intercepts("bernoulli"), "mle", seed=0, accelerate=accelerate).fit(*args)
    assert fit.log_likelihood == pytest.approx(usual.log_likelihood, abs=1e-6)
    assert bool((fit.history.diff() >= -1e-9 * abs(fit.log_likelihood)).all())


def test_score_is_the_slope_of_the_evidence() -> None:
    """Nodes are constants in a gradient: it is that of the integral all the same."""
    args = data("poisson")
    em = EM(intercepts("poisson"), "mle", **precise(25))
    statistics = em.e_step(PARAMS, *args)
    leaves = {name: value.clone().requires_grad_() for name, value in PARAMS.items()}
    from ember.inference.maximisation.objective import expected_log_joint

    expected_log_joint(statistics, leaves).backward()
    for name, i in (("b", 0), ("b", 1), ("sd", 0)):
        ends = []
        for sign in (1.0, -1.0):
            moved = {n: v.clone() for n, v in PARAMS.items()}
            moved[name].view(-1)[i] += sign * 1e-5
            b, sd = moved["b"].numpy(), float(moved["sd"])
            ends.append(moments("poisson", args, b, sd)[0].sum())
        gradient = leaves[name].grad
        assert gradient is not None
        assert float(gradient.view(-1)[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-4)


def test_order_of_rows_and_groups_makes_no_odds() -> None:
    y, x, group = data("bernoulli")
    fit = EM(intercepts("bernoulli"), "mle", seed=0).fit(y, x, group)
    rows, names = torch.randperm(len(y)), torch.randperm(30)
    other = EM(intercepts("bernoulli"), "mle", seed=0).fit(y[rows], x[rows], names[group[rows]])
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-8)
    assert torch.allclose(other.posterior("u").mean[names], fit.posterior("u").mean, atol=1e-5)


def test_weights_are_repeated_rows() -> None:
    y, x, group = data("bernoulli", groups=12, rows=5)
    times = torch.arange(60) % 3

    def weighed(y: Tensor, x: Tensor, group: Tensor, times: Tensor) -> None:
        b = pyro.param("b", torch.zeros(2))
        sd = pyro.param("sd", torch.tensor(1.0), constraint=positive)
        with pyro.plate("groups", 12):
            u = pyro.sample("u", dist.Normal(0.0, sd), infer=ON_NODES)
        with pyro.plate("rows", len(y)), poutine.scale(scale=times.clamp_min(1e-300)):
            pyro.sample("y", dist.Bernoulli(logits=b[0] + b[1] * x + u[group]), obs=y)

    each = torch.arange(60).repeat_interleave(times)
    whole = EM(intercepts("bernoulli"), "mle", seed=0).fit(y[each], x[each], group[each])
    fit = EM(weighed, "mle", seed=0).fit(y, x, group, times.double())
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-7)
    assert torch.allclose(fit.params["b"], whole.params["b"], atol=1e-5)


def test_weights_of_units() -> None:
    """A unit that counts twice is two units."""
    torch.manual_seed(1)
    y = torch.poisson(torch.randn(10, 1).exp().expand(10, 6)).double()
    times = torch.tensor([2.0, 1, 1, 3, 1, 1, 1, 2, 1, 1]).double()

    def model(y: Tensor, times: Tensor) -> None:
        b = pyro.param("b", torch.tensor(0.0))
        sd = pyro.param("sd", torch.tensor(1.0), constraint=positive)
        with pyro.plate("units", len(y)), poutine.scale(scale=times):
            u = pyro.sample("u", dist.Normal(0.0, sd), infer=ADAPTIVE)
            rate = (b + u).exp().unsqueeze(-1).expand(y.shape)
            pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)

    each = torch.arange(10).repeat_interleave(times.long())
    fit = EM(model, "mle", seed=0).fit(y, times)
    whole = EM(model, "mle", seed=0).fit(y[each], torch.ones(len(each)).double())
    assert fit.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-7)
    assert torch.allclose(fit.params["sd"], whole.params["sd"], atol=1e-5)


def test_statistics_add_and_go_through_pickle() -> None:
    y, x, group = data("bernoulli", groups=12)
    em, params = EM(slopes, "mle", seed=0), {"b": PARAMS["b"], "precision": torch.eye(2).double()}
    first = group < 5
    whole = em.e_step(params, y, x, group)
    parts = em.e_step(params, y[first], x[first], group[first]) + em.e_step(
        params, y[~first], x[~first], group[~first] - 5
    )
    assert parts.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-8)
    one, two, three = (em.m_step(s) for s in (whole, parts, pickle.loads(pickle.dumps(whole))))
    assert all(torch.allclose(one[n], two[n], atol=1e-6) for n in one)
    assert all(torch.equal(one[n], three[n]) for n in one)
    y, x, group = data("bernoulli")
    fit = EM(generalised_linear_mixed_model, seed=0).fit(y, x, groups=group)
    there = pickle.loads(pickle.dumps(fit))
    found, again = (each.posterior("group_effects").mean for each in (fit, there))
    assert torch.allclose(again, found, atol=1e-9)


# -- how many nodes -----------------------------------------------------------------------------


def test_more_nodes_where_the_integral_has_not_settled() -> None:
    args = data("bernoulli")
    em = EM(intercepts("bernoulli"), "mle", seed=0, integrate={"u": Adaptive(5)})
    fit = em.fit(*args)
    assert fit.node_gaps["u"] <= 1e-6
    assert fit.plan.units[0].rule.nodes in (7, 10, 15)
    assert f"{fit.plan.units[0].rule.nodes} for 'u' (more change" in str(fit)
    assert bool((fit.history.diff() >= -1e-9 * abs(fit.log_likelihood)).all())


def test_too_few_nodes_are_reported() -> None:
    args = data("bernoulli")
    with pytest.warns(RuntimeWarning, match=r"5 nodes of 'u' are too few.*Adaptive\(7, most=7\)"):
        EM(intercepts("bernoulli"), "mle", **precise(5)).fit(*args)


# -- what follows from a fit --------------------------------------------------------------------


def test_draws_of_latents_and_of_data() -> None:
    args = data("poisson", groups=10, rows=4)
    fit = EM(intercepts("poisson"), "mle", seed=0).fit(*args)
    draws = fit.latent_samples(4000, seed=0)["u"]
    found = fit.posterior("u")
    assert draws.shape == (4000, 10)
    assert bool(((draws.mean(0) - found.mean).abs() < 5.0 * found.stddev / 4000**0.5).all())
    assert draws.std(0).numpy() == pytest.approx(found.stddev.numpy(), rel=0.1)
    assert torch.equal(draws, fit.latent_samples(4000, seed=0)["u"])
    again = fit.sample(3, seed=1)
    assert again["u"].shape == (3, 10)
    assert again["y"].shape == (3, 40)


def test_new_data() -> None:
    y, x, group = data("bernoulli")
    fit = EM(intercepts("bernoulli"), "mle", seed=0).fit(y, x, group)
    few = group < 5
    found = fit.posterior("u", y[few], x[few], group[few])
    assert torch.allclose(found.mean, fit.posterior("u").mean[:5], atol=1e-7)
    whole = fit.log_prob()
    one, two = (fit.log_prob(y[k], x[k], group[k] - o) for k, o in ((few, 0), (~few, 5)))
    assert float(one + two) == pytest.approx(float(whole), abs=1e-7)


def test_explanation() -> None:
    args = data("bernoulli")
    table = EM(intercepts("bernoulli"), "mle").explain(*args).set_index("site")
    assert table.loc["u", "role"] == "latent"
    assert table.loc["u", "E-step"] == "integrated on 15 nodes for each unit"
    assert table.loc["u", "M-step"] == "closed form"
    assert table.loc["sd", "M-step"] == "closed form"
    assert table.loc["y", "why"] == "evaluated at the nodes of 'u'"


def test_beside_variational_inference() -> None:
    def model(y: Tensor, x: Tensor, group: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        sd = pyro.sample("sd", dist.HalfNormal(2.0))
        with pyro.plate("groups", int(group.max()) + 1):
            u = pyro.sample("u", dist.Normal(0.0, sd), infer=ON_NODES)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=b[0] + b[1] * x + u[group]), obs=y)

    args = data("bernoulli")
    integrated = SVI(model, guide="delta", steps=400, seed=0, integrate={"u": "quadrature"})
    sampled = SVI(model, guide="normal", steps=400, seed=0)
    found = compare([EM(model, seed=0), integrated, sampled], *args)
    exact, same, other = found.fits.values()
    assert same.log_posterior == pytest.approx(exact.log_posterior, abs=1e-4)
    assert torch.allclose(same.params["b"], exact.params["b"], atol=1e-2)
    assert other.log_likelihood == pytest.approx(exact.log_likelihood, abs=1.0)
    assert other.posterior_samples(5)["u"].shape == (5, 30)


# -- refusals -----------------------------------------------------------------------------------


def crossed(y: Tensor, x: Tensor, group: Tensor) -> None:
    b = pyro.param("b", torch.tensor(0.0))
    with pyro.plate("groups", 30):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
    with pyro.plate("others", 4):
        v = pyro.sample("v", dist.Normal(0.0, 1.0), infer=ON_NODES)
    with pyro.plate("rows", len(y)):
        line = b + u[group] + v[torch.arange(len(y)) % 4]
        pyro.sample("y", dist.Bernoulli(logits=line), obs=y)


def neighbours(y: Tensor, x: Tensor, group: Tensor) -> None:
    b = pyro.param("b", torch.tensor(0.0))
    with pyro.plate("groups", 30):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
    with pyro.plate("rows", len(y)):
        line = b + u[group] + u[(group + 1) % 30]
        pyro.sample("y", dist.Bernoulli(logits=line), obs=y)


def with_states(y: Tensor, x: Tensor, group: Tensor) -> None:
    b = pyro.param("b", torch.tensor([0.0, 1.0]))
    with pyro.plate("groups", 30):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
    with pyro.plate("rows", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Bernoulli(logits=b[z.long()] + u[group]), obs=y)


def in_a_prior(y: Tensor, x: Tensor, group: Tensor) -> None:
    with pyro.plate("groups", 30):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ADAPTIVE)
        b = pyro.sample("b", dist.Normal(u, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=b[group]), obs=y)


def unread(y: Tensor, x: Tensor, group: Tensor) -> None:
    b = pyro.param("b", torch.tensor(0.0))
    with pyro.plate("groups", 30):
        pyro.sample("u", dist.Normal(0.0, 1.0), infer=ADAPTIVE)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=b.expand(len(y))), obs=y)


def on_a_simplex(y: Tensor, x: Tensor, group: Tensor) -> None:
    b = pyro.param("b", torch.tensor(0.0))
    with pyro.plate("groups", 30):
        u = pyro.sample("u", dist.Dirichlet(torch.ones(2)), infer=ON_NODES)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=b + u[group, 0]), obs=y)


def two_rules(y: Tensor, x: Tensor, group: Tensor) -> None:
    b = pyro.param("b", torch.tensor(0.0))
    with pyro.plate("groups", 30):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=adaptive(9))
        v = pyro.sample("v", dist.Normal(0.0, 1.0), infer=adaptive(7))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=b + (u + x.mean() * v)[group]), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (crossed, r"site 'y' joins the latents 'u' and 'v'.*different plates.*integrate=\{'v'"),
        (neighbours, r"an event of site 'y' reads several units of 'u'.*integrate=\{'u': None\}"),
        (with_states, "site 'y' reads the latent 'u'.*depends on a latent that is summed over"),
        (in_a_prior, "site 'b' reads the latent 'u'.*the prior of a parameter"),
        (unread, "the latent 'u' is to be integrated, but no site with data reads it"),
        (on_a_simplex, "site 'u'.*its support is.*positive ones and those in an interval"),
        (two_rules, "latents 'u' and 'v' meet in a site.*ask for different rules"),
    ],
)
def test_what_cannot_be_integrated_is_refused(model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EM(model, "mle").fit(*data("bernoulli"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"nodes": 3}, ValueError, r"Adaptive\(3\) has too few nodes"),
        ({"nodes": 9.5}, TypeError, r"Adaptive\(nodes=9.5\) must be a whole number"),
        ({"nodes": 9, "most": 7}, ValueError, r"Adaptive\(most=7\) is less than the 9 nodes"),
    ],
)
def test_rules_that_mean_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Adaptive(**arguments)


def test_quadrature_of_an_indexed_latent_is_adaptive() -> None:
    args = data("bernoulli")
    em = EM(intercepts("bernoulli"), "mle", integrate={"u": Quadrature(21)})
    assert em.plan(*args).units[0].rule.nodes == 21


@pytest.mark.thorough
def test_effects_that_nothing_marks_are_told_of_the_method() -> None:
    y, _, group = data("poisson", groups=12, rows=3)

    def unmarked(y: Tensor, group: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
        sd = pyro.sample("sd", dist.HalfNormal(1.0))
        with pyro.plate("groups", 12):
            u = pyro.sample("u", dist.Normal(0.0, sd))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Poisson((b + u[group]).exp()), obs=y)

    with pytest.warns(RuntimeWarning, match=r"Integrate them on nodes.*\{'u': 'quadrature'\}"):
        EM(unmarked, seed=0).fit(y, group)
    with pytest.raises(ValueError, match=r"Integrate it on nodes.*\{'u': 'quadrature'\}"):
        EM(unmarked, integrate={"u": "gaussian"}).fit(y, group)
    fit = EM(unmarked, seed=0, integrate={"u": "quadrature"}).fit(y, group)
    assert fit.converged, fit.stop_reason


def test_options_of_discrete_latents_are_refused() -> None:
    args = data("bernoulli")
    with pytest.raises(ValueError, match=r"assignment='hard'.*'u' is continuous"):
        EM(intercepts("bernoulli"), "mle", assignment="hard", accelerate=None).fit(*args)
    with pytest.raises(ValueError, match=r"anneal=.*'u' is continuous"):
        EM(intercepts("bernoulli"), "mle", anneal=(0.5,)).fit(*args)


def test_the_oracle_itself() -> None:
    """The density in scipy's words is that of Pyro, and the grid is fine enough."""
    y, x, _ = data("poisson", groups=3, rows=2)
    assert density("poisson", y.numpy(), x.numpy()) == pytest.approx(
        dist.Poisson(x.exp()).log_prob(y).numpy()
    )
    assert float((scipy.stats.norm.pdf(LINE) * STEP).sum()) == pytest.approx(1.0, abs=1e-12)
