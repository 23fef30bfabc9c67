"""Continuous latents on nodes, against integrals by other means.

The oracle is a sum over 2001 points from -10 to 10, written here; ``scipy.integrate.quad`` and
Gauss-Hermite quadrature check it.
"""

import math
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from ember.inference import EM, Quadrature
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.arguments import prepare
from ember.inference.inputs.shelter import sheltered
from ember.inference.plan.building import build_plan
from ember.models import item_response

Array = np.ndarray[Any, Any]
Model = Callable[..., None]
positive = dist.constraints.positive
ON_NODES: Any = {"integrate": "quadrature"}
POINTS = np.linspace(-10.0, 10.0, 2001)
WEIGHTS = scipy.stats.norm.pdf(POINTS) * 0.01


def two_parameters(y: Tensor) -> None:
    """Bernoulli answers with a slope and an intercept for each item, as a user would write it."""
    a = pyro.param("a", torch.ones(y.shape[1]), constraint=positive)
    d = pyro.param("d", torch.zeros(y.shape[1]))
    with pyro.plate("persons", len(y)):
        u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
        pyro.sample("y", dist.Bernoulli(logits=u.unsqueeze(-1) * a + d).to_event(1), obs=y)


def overdispersed(y: Tensor) -> None:
    """Counts whose log rates are normal: mean and deviation are those of the latent's own prior."""
    mean = pyro.param("mean", torch.tensor(0.0))
    deviation = pyro.param("deviation", torch.tensor(1.0), constraint=positive)
    with pyro.plate("rows", len(y)):
        u = pyro.sample("u", dist.Normal(mean, deviation), infer=ON_NODES)
        pyro.sample("y", dist.Poisson(u.exp()), obs=y)


def bernoulli_evidence(y: Array, a: Array, d: Array) -> Array:
    """The log evidence of each row."""
    logits = POINTS[:, None] * a + d
    log_p, log_q = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
    joint = np.nan_to_num(y) @ log_p.T + np.nan_to_num(1.0 - y) @ log_q.T
    return np.asarray(scipy.special.logsumexp(joint + np.log(WEIGHTS), axis=1))


@pytest.fixture
def answers() -> Tensor:
    u = torch.randn(300, dtype=torch.float64)
    a = torch.tensor([0.6, 1.0, 1.4, 0.8], dtype=torch.float64)
    d = torch.tensor([-1.0, 0.0, 0.5, 1.5], dtype=torch.float64)
    return torch.bernoulli(torch.sigmoid(u[:, None] * a + d))


@pytest.fixture
def counts() -> Tensor:
    return torch.poisson((0.5 + 0.7 * torch.randn(200, dtype=torch.float64)).exp())


def spoilt(y: Tensor) -> Tensor:
    """The same with some answers missing."""
    y = y.clone()
    y[torch.rand(y.shape) < 0.15] = torch.nan
    return y


# -- the E-step ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [False, True])
def test_log_evidence_of_each_row(answers: Tensor, gaps: bool) -> None:
    y = spoilt(answers) if gaps else answers
    fit = EM(two_parameters, "mle", seed=0).fit(y)
    a, d = fit.params["a"].numpy(), fit.params["d"].numpy()
    truth = bernoulli_evidence(y.numpy(), a, d)
    assert np.abs(fit.log_prob().numpy() - truth).max() < 1e-10
    assert fit.log_likelihood == pytest.approx(truth.sum(), abs=1e-9)
    assert fit.log_prob(y[:7]).numpy() == pytest.approx(truth[:7], abs=1e-10)


def test_posterior_moments_are_those_of_the_integrals(answers: Tensor) -> None:
    fit = EM(two_parameters, "mle", seed=0).fit(answers)
    a, d = fit.params["a"].numpy(), fit.params["d"].numpy()
    found = fit.posterior("u")
    for n in (0, 5, 99):
        y = answers[n].numpy()

        def density(u: float, power: int, y: Array = y) -> float:
            like = np.prod(np.where(y == 1, 1, -1) * (scipy.special.expit(u * a + d) - (y == 0)))
            return float(u**power * like * scipy.stats.norm.pdf(u))

        z, m, s = (
            scipy.integrate.quad(density, -12, 12, args=(p,), epsabs=1e-13)[0] for p in (0, 1, 2)
        )
        assert float(found.mean[n]) == pytest.approx(m / z, abs=1e-8)
        assert float(found.variance[n]) == pytest.approx(s / z - (m / z) ** 2, abs=1e-8)
    assert found.covariance.shape == (300, 1, 1)
    assert found.probs.shape == (300, 61)
    assert torch.allclose(found.probs.sum(-1), torch.ones(300).double())
    assert torch.equal(fit.predict(), found.mean)
    assert torch.allclose(fit.predict(answers[:4]), found.mean[:4])


def test_reference_path_agrees(answers: Tensor) -> None:
    """Asked of the model at every step, without maps and cells, the objective is the same."""
    with sheltered(0):
        arguments = prepare((spoilt(answers),), {})
        plans = [build_plan(two_parameters, arguments, probing=p) for p in (True, False)]
        params = {"a": torch.tensor([0.5, 1.0, 2.0, 0.7]), "d": torch.linspace(-1, 1, 4)}
        one, two = (LogEvidence.of(plan).statistics(params) for plan in plans)
    assert one.log_likelihood == pytest.approx(two.log_likelihood, rel=1e-13)
    assert not one.opaque
    assert two.opaque


def test_gradient_of_the_evidence_with_the_latents_own_prior(counts: Tensor) -> None:
    """Nodes are constants in a gradient: it is that of the integral all the same."""
    em = EM(overdispersed, "mle", seed=0)
    plan = em.plan(counts)
    at = torch.tensor([0.3, 0.8])
    with sheltered(0):
        leaf = at.clone().double().requires_grad_()
        value = LogEvidence.of(plan)({"mean": leaf[0], "deviation": leaf[1]})
        (gradient,) = torch.autograd.grad(value, leaf)

    def truth(x: Array) -> float:
        rates = np.exp(x[0] + x[1] * POINTS)
        joint = scipy.stats.poisson.logpmf(counts.numpy()[:, None], rates) + np.log(WEIGHTS)
        return float(scipy.special.logsumexp(joint, axis=1).sum())

    assert float(value.detach()) == pytest.approx(truth(at.numpy()), abs=1e-7)
    slope = scipy.optimize.approx_fprime(at.numpy().astype(float), truth, 1e-6)
    assert gradient.numpy() == pytest.approx(slope, abs=2e-3)


# -- the fit ------------------------------------------------------------------------------------


def test_optimum_is_that_of_direct_maximisation(answers: Tensor) -> None:
    y = answers.numpy()
    fit = EM(two_parameters, "mle", seed=0).fit(answers)
    assert fit.converged, fit.stop_reason
    assert bool((fit.history.diff() >= -1e-9).all())

    def objective(x: Array) -> float:
        return float(-bernoulli_evidence(y, np.exp(x[:4]), x[4:]).sum())

    direct = scipy.optimize.minimize(objective, np.zeros(8), method="BFGS")
    assert fit.log_likelihood >= -direct.fun - 1e-7
    assert fit.params["a"].numpy() == pytest.approx(np.exp(direct.x[:4]), abs=2e-4)
    assert fit.params["d"].numpy() == pytest.approx(direct.x[4:], abs=2e-4)


def test_mean_and_deviation_of_the_prior(counts: Tensor) -> None:
    fit = EM(overdispersed, "mle", seed=0).fit(counts)
    assert fit.converged, fit.stop_reason
    table = EM(overdispersed, "mle").explain(counts).set_index("site")
    assert list(table.loc[["mean", "deviation"], "M-step"]) == ["closed form", "closed form"]
    assert table.loc["u", "E-step"] == "integrated on 61 nodes"

    def objective(x: Array) -> float:
        rates = np.exp(x[0] + np.exp(x[1]) * POINTS)
        joint = scipy.stats.poisson.logpmf(counts.numpy()[:, None], rates) + np.log(WEIGHTS)
        return float(-scipy.special.logsumexp(joint, axis=1).sum())

    direct = scipy.optimize.minimize(objective, np.zeros(2), method="BFGS")
    assert fit.log_likelihood == pytest.approx(-direct.fun, abs=1e-6)
    assert float(fit.params["mean"]) == pytest.approx(direct.x[0], abs=1e-4)
    assert float(fit.params["deviation"]) == pytest.approx(math.exp(direct.x[1]), abs=1e-4)


def test_gradient_is_zero_at_the_optimum(answers: Tensor) -> None:
    fit = EM(two_parameters, "mle", seed=0, tol=1e-12).fit(answers)
    y, a, d = answers.numpy(), fit.params["a"].numpy(), fit.params["d"].numpy()

    def total(x: Array) -> float:
        return float(bernoulli_evidence(y, x[:4], x[4:]).sum())

    at, step = np.concatenate([a, d]), 1e-5
    for i in range(8):
        move = np.eye(8)[i] * step
        assert abs(total(at + move) - total(at - move)) / (2 * step) < 1e-3


def test_order_of_items_and_rows_makes_no_odds(answers: Tensor) -> None:
    fit = EM(two_parameters, "mle", seed=0).fit(answers)
    items, rows = torch.tensor([2, 0, 3, 1]), torch.randperm(len(answers))
    other = EM(two_parameters, "mle", seed=0).fit(answers[rows][:, items])
    assert other.log_likelihood == pytest.approx(fit.log_likelihood, abs=1e-7)
    assert torch.allclose(other.params["a"], fit.params["a"][items], atol=1e-4)


def test_weights_are_repeated_rows(answers: Tensor) -> None:
    patterns, times = torch.unique(answers, dim=0, return_counts=True)
    whole = EM(item_response, seed=0).fit(answers)
    weighed = EM(item_response, seed=0).fit(patterns, frequency=times.double())
    assert weighed.log_posterior == pytest.approx(whole.log_posterior, abs=1e-7)
    assert torch.allclose(weighed.params["intercepts"], whole.params["intercepts"], atol=1e-4)


def test_statistics_add_up(answers: Tensor) -> None:
    em = EM(two_parameters, "mle", seed=0)
    params = em.initialise(answers)
    whole = em.e_step(params, answers)
    parts = em.e_step(params, answers[:100]) + em.e_step(params, answers[100:])
    assert parts.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-9)
    one, two = em.m_step(whole), em.m_step(parts)
    assert all(torch.allclose(one[name], two[name], atol=1e-9) for name in one)


def test_statistics_on_other_nodes_do_not_add(answers: Tensor) -> None:
    """Where the prior of some rows reaches further than that of others, so do their nodes."""
    x = torch.linspace(-1.0, 1.0, len(answers)).double()

    def explained(y: Tensor, x: Tensor) -> None:
        b = pyro.param("b", torch.tensor(1.0))
        d = pyro.param("d", torch.zeros(y.shape[1]))
        with pyro.plate("persons", len(y)):
            u = pyro.sample("u", dist.Normal(b * x, 1.0), infer=ON_NODES)
            pyro.sample("y", dist.Bernoulli(logits=u.unsqueeze(-1) + d).to_event(1), obs=y)

    em = EM(explained, "mle", seed=0)
    params = em.initialise(answers, x)
    params["b"] = torch.tensor(0.7)
    first, second = (em.e_step(params, answers[half], x[half])
                     for half in (slice(None, 150), slice(150, None)))  # fmt: skip
    whole = em.e_step(params, answers, x)
    assert first.log_likelihood + second.log_likelihood == pytest.approx(
        whole.log_likelihood, abs=1e-9
    )
    with pytest.raises(ValueError, match="add only where the nodes are the same"):
        first + second


def test_goes_through_pickle(answers: Tensor) -> None:
    em = EM(two_parameters, "mle", seed=0)
    statistics = em.e_step(em.initialise(answers), answers)
    again = pickle.loads(pickle.dumps(statistics))
    one, two = em.m_step(statistics), em.m_step(again)
    assert all(torch.equal(one[name], two[name]) for name in one)
    fit = em.fit(answers)
    there = pickle.loads(pickle.dumps(fit))
    assert torch.equal(there.posterior("u").mean, fit.posterior("u").mean)


@pytest.mark.parametrize("init", ["random", "points", "hierarchical", "prior", "given"])
def test_every_start_leads_to_the_optimum(answers: Tensor, init: str) -> None:
    usual = EM(item_response, seed=0).fit(answers)
    start: Any = {"discriminations": torch.full((4,), 2.0)} if init == "given" else init
    fit = EM(item_response, seed=0, init=start).fit(answers)
    assert fit.log_posterior == pytest.approx(usual.log_posterior, abs=1e-6)


def test_restarts_and_annealing(answers: Tensor) -> None:
    usual = EM(item_response, seed=0).fit(answers)
    fit = EM(item_response, seed=0, restarts=3, anneal=(0.3, 0.6)).fit(answers)
    assert len(fit.starts) == 3
    assert fit.log_posterior == pytest.approx(usual.log_posterior, abs=1e-6)


def test_a_model_that_branches_where_no_probe_was(answers: Tensor) -> None:
    """Where a fit ends the arguments are compared once more with what was recorded."""

    def capped(y: Tensor) -> None:
        d = pyro.param("d", torch.zeros(y.shape[1]))
        a = pyro.param("a", torch.tensor(1.0), constraint=positive)
        with pyro.plate("persons", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
            logits = a * u.unsqueeze(-1) + torch.where(d > 5.0, 5.0, d)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    plan = EM(capped, "mle").plan(answers)
    params = {"a": torch.tensor(1.0).double(), "d": torch.tensor([0.0, 1.0, 7.0, 2.0]).double()}
    assert plan.misread_sites(params) == []  # torch.where is on the tape as well

    def branching(y: Tensor) -> None:
        d = pyro.param("d", torch.zeros(y.shape[1]))
        with pyro.plate("persons", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
            logits = u.unsqueeze(-1) + (2.0 * d if float(d.detach().max()) > 5.0 else d)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    plan = EM(branching, "mle").plan(answers)
    here = {"d": params["d"]}
    assert not plan.is_computed("y") or plan.misread_sites(here) == ["y"]


# -- how many nodes -----------------------------------------------------------------------------


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Tensor:
    """Items enough for posteriors much narrower than the prior."""
    u = torch.randn(60, dtype=torch.float64)
    a = 1.0 + torch.rand(60, dtype=torch.float64)
    return torch.bernoulli(torch.sigmoid(u[:, None] * a + torch.linspace(-2, 2, 60)))


def test_more_nodes_where_the_posterior_is_narrow(many: Tensor) -> None:
    fit = EM(item_response, seed=0).fit(many)
    assert fit.plan.structure.nodes["ability"].rule.nodes in (121, 241)
    assert fit.node_gaps["ability"] <= 1e-3
    assert "nodes           121 for 'ability'" in str(fit) or "241 for" in str(fit)
    held = EM(item_response, seed=0, integrate={"ability": Quadrature(481)}).fit(many)
    assert fit.log_posterior == pytest.approx(held.log_posterior, abs=1e-6)
    assert bool((fit.history.diff() >= -1e-9).all())


def test_too_few_nodes_are_reported(many: Tensor) -> None:
    em = EM(item_response, seed=0, integrate={"ability": Quadrature(15, most=15)})
    with pytest.warns(RuntimeWarning, match=r"15 nodes of site 'ability' are too few.*Quadrature"):
        fit = em.fit(many)
    assert fit.node_gaps["ability"] > 1e-3


def test_gap_bounds_the_error(many: Tensor) -> None:
    params = EM(item_response, seed=0).fit(many).params
    best = EM(item_response, integrate={"ability": Quadrature(961)}).e_step(params, many)
    for nodes in (61, 81, 101):
        em = EM(item_response, integrate={"ability": Quadrature(nodes, most=nodes)}, init=params,
                max_iter=1)  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gap = em.fit(many).node_gaps["ability"]
        error = abs(em.e_step(params, many).log_likelihood - best.log_likelihood)
        if gap < 0.1:
            assert error <= len(many) * max(gap**2 / 400, 1e-11)


# -- other models -------------------------------------------------------------------------------


@pytest.mark.parametrize("persons", [-1, -2])
@pytest.mark.parametrize("trials", [1, 3])
def test_a_plate_of_items_needs_no_event(persons: int, trials: int) -> None:
    """Items in a plate are summed over as those of an event are, wherever its dim is."""
    times = torch.tensor([1.0, trials, 1.0, 2.0]).double()
    p = torch.sigmoid(torch.randn(300, 1).double() + torch.linspace(-1, 1, 4))
    y = spoilt(torch.distributions.Binomial(times, p).sample())

    def plated(y: Tensor) -> None:
        a = pyro.param("a", torch.ones(y.shape[1]), constraint=positive)
        d = pyro.param("d", torch.zeros(y.shape[1]))
        if persons == -1:
            a, d, y = a.unsqueeze(-1), d.unsqueeze(-1), y.T
        total = times if persons == -2 else times.unsqueeze(-1)
        items = pyro.plate("items", 4, dim=-3 - persons)
        with pyro.plate("persons", y.shape[persons], dim=persons):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
            with items:
                pyro.sample("y", dist.Binomial(total, logits=u * a + d), obs=y)

    fit = EM(plated, "mle", seed=0).fit(y)
    assert LogEvidence.of(fit.plan).on_nodes is not None
    a, d = fit.params["a"].numpy(), fit.params["d"].numpy()
    joint = np.zeros((len(y), len(POINTS)))
    for j, total in enumerate((1, trials, 1, 2)):
        shown = ~y[:, j].isnan().numpy()
        p = scipy.special.expit(POINTS * a[j] + d[j])
        joint[shown] += scipy.stats.binom.logpmf(y[shown, j].numpy()[:, None], total, p)
    truth = scipy.special.logsumexp(joint + np.log(WEIGHTS), axis=1)
    assert np.abs(fit.log_prob().numpy() - truth).max() < 1e-8
    assert fit.impute().shape == ((4, 300) if persons == -1 else (300, 4))
    assert fit.sample(5, seed=0)["y"].shape == (5, 4)


def test_features_of_rows(answers: Tensor) -> None:
    """Arguments that differ from row to row leave no cells: every entry is evaluated."""
    x = torch.randn(300, 1, dtype=torch.float64)

    def with_covariate(y: Tensor, x: Tensor) -> None:
        b = pyro.param("b", torch.tensor(0.0))
        d = pyro.param("d", torch.zeros(y.shape[1]))
        with pyro.plate("persons", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
            logits = (u + b * x[:, 0]).unsqueeze(-1) + d
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    def evidence(b: float, d: Array) -> float:
        logits = (POINTS[:, None] + b * x.numpy()[:, 0])[..., None] + d
        p = scipy.special.log_expit(np.where(answers.numpy() == 1, logits, -logits)).sum(-1)
        return float(scipy.special.logsumexp(p + np.log(WEIGHTS)[:, None], axis=0).sum())

    fit = EM(with_covariate, "mle", seed=0).fit(answers, x)
    assert fit.converged, fit.stop_reason
    b, d = float(fit.params["b"]), fit.params["d"].numpy()
    assert fit.log_likelihood == pytest.approx(evidence(b, d), abs=1e-8)
    assert evidence(b + 1e-3, d) < fit.log_likelihood > evidence(b - 1e-3, d)


def test_masked_rows_drop_out(answers: Tensor) -> None:
    """Rows under a mask have the prior as their posterior, and no part in the fit."""
    there: Any = torch.arange(300) < 200

    def masked(y: Tensor) -> None:
        d = pyro.param("d", torch.zeros(y.shape[1]))
        with pyro.plate("persons", len(y)), pyro.poutine.mask(mask=there):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
            pyro.sample("y", dist.Bernoulli(logits=u.unsqueeze(-1) + d).to_event(1), obs=y)

    fit = EM(masked, "mle", seed=0).fit(answers)
    part = EM(item_response, "mle", seed=0).fit(answers[:200], model="rasch")
    assert fit.log_likelihood == pytest.approx(part.log_likelihood, abs=1e-8)
    assert torch.allclose(fit.params["d"], part.params["intercepts"], atol=1e-5)
    assert torch.allclose(fit.posterior("u").variance[200:], torch.ones(100).double())


def test_a_class_beside_an_ability() -> None:
    """Discrete and continuous latents together: a mixture of two Rasch models."""
    z = torch.arange(400) % 2
    d = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0], [-2.0, -1.0, 0.0, 1.0, 2.0]]).double()
    y = torch.bernoulli(torch.sigmoid(0.5 * torch.randn(400, 1).double() + d[z]))

    def mixed(y: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
        with pyro.plate("classes", 2):
            d = pyro.sample("d", dist.Normal(0.0, 3.0).expand([5]).to_event(1))
        with pyro.plate("persons", len(y)):
            z = pyro.sample("z", dist.Categorical(weights))
            u = pyro.sample("u", dist.Normal(0.0, 0.5), infer=ON_NODES)
            pyro.sample("y", dist.Bernoulli(logits=u.unsqueeze(-1) + d[z]).to_event(1), obs=y)

    fit = EM(mixed, seed=0).fit(y)
    assert fit.converged, fit.stop_reason
    w, heights = fit.params["weights"].numpy(), fit.params["d"].numpy()
    logits = 0.5 * POINTS[:, None, None] + heights
    p = scipy.special.log_expit(np.where(y.numpy()[:, None, None] == 1, logits, -logits)).sum(-1)
    truth = scipy.special.logsumexp(p + np.log(WEIGHTS)[:, None] + np.log(w), axis=(1, 2)).sum()
    assert fit.log_likelihood == pytest.approx(truth, abs=1e-8)
    found = fit.predict()
    agree = float((found["z"] == z).double().mean())
    assert max(agree, 1.0 - agree) > 0.9
    assert found["u"].shape == (400,)


def test_a_skewed_prior(counts: Tensor) -> None:
    """LogNormal latents have nodes on the logarithm: the same integral as of a normal one."""

    def rates(y: Tensor) -> None:
        mean = pyro.param("mean", torch.tensor(0.0))
        deviation = pyro.param("deviation", torch.tensor(1.0), constraint=positive)
        with pyro.plate("rows", len(y)):
            r = pyro.sample("r", dist.LogNormal(mean, deviation), infer=ON_NODES)
            pyro.sample("y", dist.Poisson(r), obs=y)

    one, two = (EM(model, "mle", seed=0).fit(counts) for model in (overdispersed, rates))
    assert two.log_likelihood == pytest.approx(one.log_likelihood, abs=1e-6)
    assert float(two.params["mean"]) == pytest.approx(float(one.params["mean"]), abs=1e-3)


def test_a_prior_with_correlation() -> None:
    """Two dimensions with a full covariance, against a product of Gauss-Hermite rules."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.5]]).double()
    y = torch.poisson(torch.rand(50, 2).double() * 3.0)

    def pairs(y: Tensor) -> None:
        b = pyro.param("b", torch.zeros(2))
        with pyro.plate("rows", len(y)):
            u = pyro.sample(
                "u", dist.MultivariateNormal(torch.zeros(2), covariance), infer=ON_NODES
            )
            pyro.sample("y", dist.Poisson((0.5 * u + b).exp()).to_event(1), obs=y)

    fit = EM(pairs, "mle", seed=0).fit(y)
    root = np.linalg.cholesky(covariance.numpy())
    line, weights = np.polynomial.hermite_e.hermegauss(61)
    points = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2) @ root.T
    log_weights = np.log(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    rates = np.exp(0.5 * points + fit.params["b"].numpy())
    joint = scipy.stats.poisson.logpmf(y.numpy()[:, None], rates).sum(-1) + log_weights
    truth = scipy.special.logsumexp(joint, axis=1)
    assert np.abs(fit.log_prob().numpy() - truth).max() < 1e-6
    weights = np.exp(joint - truth[:, None])
    mean = weights @ points
    found = fit.posterior("u")
    assert found.mean.numpy() == pytest.approx(mean, abs=1e-5)
    second = np.einsum("nq,qi,qj->nij", weights, points, points)
    wanted = second - mean[:, :, None] * mean[:, None]
    assert found.covariance.numpy() == pytest.approx(wanted, abs=1e-4)


def test_normal_data_agree_with_the_marginal() -> None:
    """One factor behind normal columns: the marginal is a multivariate normal."""
    u = torch.randn(150, dtype=torch.float64)
    x = u[:, None] * torch.tensor([1.0, 0.7, -0.5]) + 0.6 * torch.randn(150, 3).double()

    def factor(x: Tensor) -> None:
        loadings = pyro.param("loadings", torch.ones(3))
        scale = pyro.param("scale", torch.ones(3), constraint=positive)
        with pyro.plate("rows", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer=ON_NODES)
            pyro.sample("x", dist.Normal(u.unsqueeze(-1) * loadings, scale).to_event(1), obs=x)

    fit = EM(factor, "mle", seed=0).fit(x)
    w, s = fit.params["loadings"].numpy(), fit.params["scale"].numpy()
    marginal = scipy.stats.multivariate_normal(np.zeros(3), np.outer(w, w) + np.diag(s**2))
    assert fit.log_prob().numpy() == pytest.approx(marginal.logpdf(x.numpy()), abs=1e-8)


# -- answers ------------------------------------------------------------------------------------


def test_draws_have_continuous_latents(answers: Tensor) -> None:
    fit = EM(two_parameters, "mle", seed=0).fit(answers)
    drawn = fit.sample(4000, seed=1)
    assert drawn["y"].shape == (4000, 4)
    assert len(drawn["u"].unique()) == 4000
    assert float(drawn["u"].mean()) == pytest.approx(0.0, abs=0.06)
    assert float(drawn["u"].std()) == pytest.approx(1.0, abs=0.06)
    assert drawn["y"].mean(0).tolist() == pytest.approx(answers.mean(0).tolist(), abs=0.08)


def test_missing_answers_are_imputed(answers: Tensor) -> None:
    y = spoilt(answers)
    fit = EM(two_parameters, "mle", seed=0).fit(y)
    filled, gone = fit.impute(), y.isnan()
    assert torch.equal(filled[~gone], y[~gone])
    a, d = fit.params["a"].numpy(), fit.params["d"].numpy()
    n = int(gone.any(1).nonzero()[0, 0])
    row = y[n].numpy()
    p = scipy.special.expit(POINTS[:, None] * a + d)
    each = np.where(np.isnan(row), 1.0, np.where(row == 1, p, 1.0 - p))
    like = each.prod(1) * WEIGHTS
    chance = (like / like.sum()) @ p
    assert filled[n].numpy()[np.isnan(row)] == pytest.approx(chance[np.isnan(row)], abs=1e-8)
    draws = fit.impute(draws=5, seed=0)
    assert draws.shape == (5, *y.shape)
    assert set(draws[:, gone].unique().tolist()) <= {0.0, 1.0}


def test_one_more_item_with_known_answer_makes_no_state(answers: Tensor) -> None:
    fit = EM(two_parameters, "mle", seed=0).fit(answers)
    with pytest.raises(ValueError, match="no latent site whose states could be renumbered"):
        fit.relabel()
    assert fit.icl == pytest.approx(fit.bic)  # no discrete latent to be uncertain of


# -- what is refused ----------------------------------------------------------------------------


def refused(prior: Any, event: int = 0, how: Any = "quadrature") -> Model:
    def model(y: Tensor) -> None:
        b = pyro.param("b", torch.tensor(0.0))
        with pyro.plate("rows", len(y)):
            fn = prior.to_event(event) if event else prior
            wish: Any = {"integrate": how}
            u = pyro.sample("u", fn, infer=wish)
            u = u.sum(-1) if event else u
            pyro.sample("y", dist.Normal(u + b, 1.0), obs=y)

    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (refused(dist.Normal(torch.zeros(11), 1.0), 1), "site 'u'.*has 11 entries.*10 at most"),
        (refused(dist.StudentT(3.0), 0, Quadrature()), "site 'u'.*prior is StudentT.*Adaptive"),
        (refused(dist.Gamma(2.0, 1.0), 0, Quadrature()), "site 'u'.*prior is Gamma.*Adaptive"),
        (refused(dist.Laplace(0.0, 1.0)), "site 'u'.*Laplace prior has an edge"),
        (refused(dist.Normal(0.0, 1.0), 0, "laplace"), "site 'u'.*'laplace'.*ask for 'quadrature'"),
    ],
)
def test_sites_that_cannot_be_integrated(model: Model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EM(model, "mle").fit(torch.randn(10))


def test_a_latent_on_nodes_in_a_loop_is_refused() -> None:
    def walk(y: Tensor) -> None:
        u = torch.tensor(0.0)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
        for t in pyro.markov(range(len(y))):
            u = pyro.sample(f"u_{t}", dist.Normal(u, scale), infer=ON_NODES)
            pyro.sample(f"y_{t}", dist.Normal(u, 1.0), obs=y[t])

    with pytest.raises(ValueError, match=r"site 'u_0'.*inside pyro\.markov"):
        EM(walk, "mle").fit(torch.randn(6))


def test_nodes_that_depend_on_nodes_are_refused() -> None:
    def walk(y: Tensor) -> None:
        level = pyro.sample("level_0", dist.Normal(0.0, 1.0), infer=ON_NODES)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
        for t in range(len(y)):
            level = pyro.sample(f"level_{t + 1}", dist.Normal(level, scale), infer=ON_NODES)
            pyro.sample(f"y_{t}", dist.Poisson(level.exp()), obs=y[t])

    with pytest.raises(ValueError, match=r"site 'level_1'.*but so does 'level_0'"):
        EM(walk, "mle").fit(torch.tensor([1.0, 1, 2]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4,), ValueError, "too few nodes"),
        ((61.0,), TypeError, "whole number"),
        ((61, 31), ValueError, "most=31.*less than the 61"),
    ],
)
def test_rules_that_are_refused(
    arguments: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Quadrature(*arguments)


def test_hard_assignment_is_refused(answers: Tensor) -> None:
    with pytest.raises(ValueError, match=r"assignment='hard'.* 'u' is continuous"):
        EM(two_parameters, "mle", assignment="hard").fit(answers)


def test_split_and_merge_is_refused(answers: Tensor) -> None:
    with pytest.raises(ValueError, match="split-merge"):
        EM(two_parameters, "mle", escape="split-merge").fit(answers)


def test_a_wish_for_a_parameter_wins(answers: Tensor) -> None:
    table = EM(item_response, integrate={"ability": None}).explain(answers).set_index("site")
    assert table.loc["ability", "role"] == "parameter"


def test_a_wish_marks_an_unmarked_site(answers: Tensor) -> None:
    def unmarked(y: Tensor) -> None:
        d = pyro.param("d", torch.zeros(y.shape[1]))
        with pyro.plate("persons", len(y)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Bernoulli(logits=u.unsqueeze(-1) + d).to_event(1), obs=y)

    with pytest.raises(ValueError, match=re.escape("site 'u' has one value for each row")):
        EM(unmarked, "mle").fit(answers)
    fits = [EM(unmarked, "mle", integrate={"u": how}).fit(answers)
            for how in ("quadrature", Quadrature(61))]  # fmt: skip
    assert fits[0].log_likelihood == fits[1].log_likelihood
    assert fits[0].log_prob(answers[:3]).shape == (3,)
    rasch = EM(item_response, "mle").fit(answers, model="rasch")
    assert rasch.log_likelihood == pytest.approx(fits[0].log_likelihood, abs=1e-7)


def test_a_smooth_axis_does_not_hide_a_coarse_one() -> None:
    """Of a product of two integrals the error of one shows however exact the other is."""
    generator = torch.Generator().manual_seed(5)
    u, noise = (torch.randn(40, n, generator=generator, dtype=torch.float64) for n in (2, 5))
    logits = torch.stack([15 * u[:, 0]] * 3 + [u[:, 1]] * 2, -1)
    y = (logits > noise).double()

    def model(y: Tensor) -> None:
        c = pyro.param("c", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("persons", len(y)):
            prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            u = pyro.sample("u", prior)
            logits = torch.stack([15 * u[..., 0]] * 3 + [u[..., 1] - c] * 2, -1)
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    with pytest.warns(RuntimeWarning, match="nodes of site 'u' are too few"):
        fit = EM(model, "mle", integrate={"u": Quadrature(31, 31)}).fit(y)
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    prior = dist.Normal(0.0, 1.0).log_prob(grid) + math.log(float(grid[1] - grid[0]))
    c = fit.params["c"]
    exact = sum(
        torch.logsumexp(
            prior + dist.Bernoulli(logits=at).log_prob(y[:, own].unsqueeze(-1)).sum(1), -1
        )
        for at, own in ((15 * grid, [0, 1, 2]), (grid - c, [3, 4]))
    )
    error = float((fit.log_prob() - exact).abs().max())
    assert error > 0.01
    assert fit.node_gaps["u"] > error
