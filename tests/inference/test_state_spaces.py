"""State spaces with all matrices free: every statistic, gaps, several series, and the answers."""

import dataclasses
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, Fit
from ember.inference.expectation.log_evidence import LogEvidence
from ember.inference.inputs.shelter import sheltered
from ember.inference.maximisation.objective import score
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.plan import components
from tests.inference.dense_gaussian import dense
from tests.inference.gaussian_sites import GAUSSIAN, normal, positive, real

T, STATES, DATA = 8, 2, 3
LATENTS = tuple(f"s_{t}" for t in range(T + 1))
ONE = normal(60, T, DATA).cumsum(0)
SEVERAL = normal(61, 3, T, DATA).cumsum(1)
GAPPY = SEVERAL.clone()
GAPPY[0, 3], GAPPY[1, 5:], GAPPY[2, 2, 1], GAPPY[2, 4, ::2] = 4 * (torch.nan,)
ROWS_GONE = ONE.clone()
ROWS_GONE[[0, 4, 5]] = torch.nan


def spread(name: str, size: int) -> Tensor:
    """A covariance matrix to be estimated."""
    support = constraints.positive_definite
    found: Tensor = pyro.param(name, torch.eye(size), constraint=support)
    return found


def matrix(name: str, columns: int) -> Tensor:
    found: Tensor = pyro.param(name, 0.5 * torch.ones(STATES, columns) + torch.eye(2, columns))
    return found


def full(y: Tensor) -> None:
    """Everything is free: an initial state, both matrices, both noises with their means."""
    A, C = matrix("A", STATES), matrix("C", DATA)
    chain = dist.GaussianHMM(
        dist.MultivariateNormal(real("m", 0.0, 0.0), spread("V", STATES)),
        A,
        dist.MultivariateNormal(real("c", 0.0, 0.0), spread("Q", STATES)),
        C,
        dist.MultivariateNormal(real("d", 0.0, 0.0, 0.0), spread("R", DATA)),
        duration=len(y),
    )
    pyro.sample("y", chain, obs=y)


def full_by_steps(y: Tensor) -> None:
    A, C = matrix("A", STATES), matrix("C", DATA)
    m, V, c, Q = real("m", 0.0, 0.0), spread("V", 2), real("c", 0.0, 0.0), spread("Q", 2)
    d, R = real("d", 0.0, 0.0, 0.0), spread("R", 3)
    state = pyro.sample("s_0", dist.MultivariateNormal(m, V), infer=GAUSSIAN)
    for t in pyro.markov(range(T)):
        step = dist.MultivariateNormal(state @ A + c, Q)
        state = pyro.sample(f"s_{t + 1}", step, infer=GAUSSIAN)
        if not y[t].isnan().any():
            pyro.sample(f"y_{t}", dist.MultivariateNormal(state @ C + d, R), obs=y[t])


def series(y: Tensor) -> None:
    """Several series, seen with independent noise, and the entry that two steps share."""
    phi, C, d = real("phi", 0.5), matrix("C", DATA), real("d", 0.0, 0.0, 0.0)
    A = torch.stack([torch.stack([phi, -2.0 * phi]), torch.stack([1.0 + 0 * phi, 0 * phi])])
    standard = dist.Normal(torch.zeros(STATES), 1.0).to_event(1)
    chain = dist.GaussianHMM(
        standard,
        A,
        dist.MultivariateNormal(torch.zeros(STATES), spread("Q", STATES)),
        C,
        dist.Normal(d, positive("r", torch.ones(DATA))).to_event(1),
        duration=y.shape[-2],
    )
    with pyro.plate("series", len(y)):
        pyro.sample("y", chain, obs=y)


def series_by_steps(y: Tensor) -> None:
    phi, C, d = real("phi", 0.5), matrix("C", DATA), real("d", 0.0, 0.0, 0.0)
    A = torch.stack([torch.stack([phi, -2.0 * phi]), torch.stack([1.0 + 0 * phi, 0 * phi])])
    Q, r = spread("Q", STATES), positive("r", torch.ones(DATA))
    with pyro.plate("series", len(y)):
        start = dist.Normal(torch.zeros(len(y), STATES), 1.0).to_event(1)
        state = pyro.sample("s_0", start, infer=GAUSSIAN)
        for t in range(T):
            step = dist.MultivariateNormal(state @ A, Q)
            state = pyro.sample(f"s_{t + 1}", step, infer=GAUSSIAN)
            shown = ~y[:, t].isnan()
            noise = dist.Normal(state @ C + d, r).mask(shown).to_event(1)
            pyro.sample(f"y_{t}", noise, obs=torch.where(shown, y[:, t], 0.0))


def covariance(seed: int, size: int) -> Tensor:
    root = normal(seed, size, size)
    return root @ root.mT / size + 0.5 * torch.eye(size, dtype=torch.float64)


MATRICES = {
    "A": torch.tensor([[0.7, -0.2], [0.1, 0.6]], dtype=torch.float64),
    "C": torch.tensor([[1.0, 0.4, 0.3], [-0.2, 0.8, -0.9]], dtype=torch.float64),
}
D = {"d": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)}
FULL = {
    **MATRICES,
    **D,
    "m": torch.tensor([0.3, -0.2], dtype=torch.float64),
    "c": torch.tensor([0.1, 0.2], dtype=torch.float64),
    "V": covariance(1, 2),
    "Q": covariance(2, 2),
    "R": covariance(3, 3),
}
SERIES = {
    **D,
    "C": MATRICES["C"],
    "phi": torch.tensor(0.4, dtype=torch.float64),
    "Q": FULL["Q"],
    "r": torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64),
}
Case = tuple[Callable[..., None], Callable[..., None], dict[str, Tensor], Tensor]
CASES: dict[str, Case] = {
    "all free": (full, full_by_steps, FULL, ONE),
    "steps without data": (full, full_by_steps, FULL, ROWS_GONE),
    "several series": (series, series_by_steps, SERIES, SEVERAL),
    "series with gaps": (series, series_by_steps, SERIES, GAPPY),
}
each_case = pytest.mark.parametrize("name", CASES)


def fit_at(model: Callable[..., None], params: dict[str, Tensor], y: Tensor) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single iteration does not converge
        fit = EM(model, "mle", init=params, max_iter=1, accelerate=None).fit(y)
    return dataclasses.replace(fit, params=params)


def gradient(model: Callable[..., None], params: dict[str, Tensor], y: Tensor) -> Tensor:
    """That of the log likelihood by Fisher's identity, from the expected statistics."""
    with sheltered(0):
        plan = EM(model, "mle").plan(y)
        statistics = LogEvidence.of(plan).statistics(params)
        coordinates = Coordinates({n: plan.structure.parameters[n] for n in params})
        return score(statistics, coordinates)


@each_case
def test_evidence_and_every_statistic(name: str) -> None:
    model, steps, params, y = CASES[name]
    free = {n: v.clone().requires_grad_() for n, v in params.items()}
    truth = dense(steps, LATENTS, free, y, check=False).log_evidence
    stats = EM(model, "mle").e_step(params, y)
    assert stats.log_likelihood == pytest.approx(float(truth.detach()), rel=1e-10)
    truth.backward()
    with sheltered(0):
        plan = EM(model, "mle").plan(y)
        coordinates = Coordinates({n: plan.structure.parameters[n] for n in params})
        point = coordinates.flatten(params).requires_grad_()
        known = {n: free[n].grad for n in params}
        moved = coordinates.unflatten(point)
        each = [(moved[n] * g).sum() for n, g in known.items() if g is not None]
        total = torch.stack(each).sum()
        (expected,) = torch.autograd.grad(total, point)
    torch.testing.assert_close(gradient(model, params, y), expected, rtol=1e-8, atol=1e-8)


@each_case
def test_rows_that_are_alike_are_pooled_without_loss(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, params, y = CASES[name]
    pooled = gradient(model, params, y)
    monkeypatch.setattr(components, "compile_uniform", lambda *args: None)
    torch.testing.assert_close(pooled, gradient(model, params, y), rtol=1e-9, atol=1e-9)


@each_case
def test_every_update_is_closed_and_ends_at_a_maximum(name: str) -> None:
    model, _, params, y = CASES[name]
    em = EM(model, "mle", init=params, tol=1e-10, max_iter=60, accelerate=None)
    table = em.explain(y).set_index("site")
    of_parameters = table[table["role"].str.startswith("parameter")]
    assert set(of_parameters["M-step"]) == {"closed form"}
    assert bool(torch.isfinite(gradient(model, params, y)).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = em.fit(y)
    assert bool((torch.as_tensor(fit.history).diff() >= -1e-9).all())


@each_case
def test_posterior_and_pairs(name: str) -> None:
    model, steps, params, y = CASES[name]
    truth, fit = dense(steps, LATENTS, params, y), fit_at(model, params, y)
    posterior, time = fit.posterior("state"), y.dim() - 2
    for found, exact in ((posterior.mean, truth.mean), (posterior.covariance, truth.covariance)):
        expected = torch.stack([exact(each) for each in LATENTS[1:]], time)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
    pairs = fit.posterior_pairs("state")
    assert pairs.shape == (*y.shape[:-2], T - 1, STATES, STATES)
    lag = truth.cross_covariance("s_1", "s_2")
    torch.testing.assert_close(pairs.reshape(-1, T - 1, 2, 2)[0, 0], lag[:2, :2])


def test_models_with_vectors_by_steps_are_read() -> None:
    stats = EM(full_by_steps, "mle").e_step(FULL, ONE)
    one, other = EM(full, "mle"), EM(full_by_steps, "mle")
    assert stats.log_likelihood == pytest.approx(one.e_step(FULL, ONE).log_likelihood, rel=1e-12)
    moved = one.m_step(one.e_step(FULL, ONE)), other.m_step(stats)
    for site in FULL:
        torch.testing.assert_close(moved[0][site], moved[1][site], rtol=1e-8, atol=1e-9)


def test_the_density_is_pyros() -> None:
    with poutine.substitute(data=FULL):
        expected = poutine.trace(full).get_trace(ONE).log_prob_sum()
    found = EM(full, "mle").e_step(FULL, ONE).log_likelihood
    assert found == pytest.approx(float(expected), rel=1e-10)


def test_steps_to_come() -> None:
    fit = fit_at(full, FULL, ONE)
    ahead = fit.predictive(torch.full((3, DATA), torch.nan, dtype=torch.float64))
    state = fit.posterior("state").mean[-1] @ FULL["A"] + FULL["c"]
    torch.testing.assert_close(ahead.mean[0], state @ FULL["C"] + FULL["d"])
    assert ahead.mean.shape == (3, DATA)
    assert bool(ahead.covariance_matrix[2].trace() > ahead.covariance_matrix[0].trace())


def test_answers_by_series() -> None:
    fit = fit_at(series, SERIES, GAPPY)
    assert fit.n_observations == 20  # of 24 steps four show nothing
    assert fit.log_prob().shape == (3,)
    assert float(fit.log_prob().sum()) == pytest.approx(
        EM(series, "mle").e_step(SERIES, GAPPY).log_likelihood
    )
    alone = fit.posterior("state", GAPPY[1:2]).mean
    torch.testing.assert_close(alone[0], fit.posterior("state").mean[1])
    filled = fit.impute()
    shown = ~GAPPY.isnan()
    assert torch.equal(filled[shown], GAPPY[shown])
    assert not bool(filled.isnan().any())
    assert fit.impute(draws=2, seed=0).shape == (2, *GAPPY.shape)
    assert fit.predict().shape == (3, T, STATES)
    draws = fit.latent_samples(2000, seed=0)["state"]
    posterior = fit.posterior("state")
    torch.testing.assert_close(draws.mean(0), posterior.mean, rtol=0.0, atol=0.15)
    torch.testing.assert_close(draws.var(0), posterior.variance, rtol=0.2, atol=0.0)


def test_draws_of_data_have_the_chains_moments() -> None:
    fit = fit_at(series, SERIES, SEVERAL)
    drawn = fit.sample(3000, seed=0)
    assert {name: tuple(v.shape[1:]) for name, v in drawn.items()} == {
        "state": (T, STATES),
        "y": (T, DATA),
    }
    A = torch.tensor([[0.4, -0.8], [1.0, 0.0]], dtype=torch.float64)
    expected = A.mT @ A + SERIES["Q"]
    torch.testing.assert_close(drawn["state"][:, 0].mT.cov(), expected, rtol=0.0, atol=0.12)
    rest = drawn["y"] - drawn["state"] @ SERIES["C"]
    torch.testing.assert_close(rest.mean((0, 1)), SERIES["d"], rtol=0.0, atol=0.05)
    torch.testing.assert_close(rest.std((0, 1)), SERIES["r"], rtol=0.05, atol=0.0)


def test_plans_and_fits_pickle() -> None:
    fit = pickle.loads(pickle.dumps(fit_at(series, SERIES, GAPPY)))
    expected = EM(series, "mle").e_step(SERIES, GAPPY).log_likelihood
    assert float(fit.log_prob().sum()) == pytest.approx(expected)


def test_a_chain_stays_hidden_on_request() -> None:
    em = EM(full, "mle", integrate={"state": None})
    assert em.e_step(FULL, ONE).log_likelihood == pytest.approx(
        EM(full, "mle").e_step(FULL, ONE).log_likelihood, rel=1e-10
    )
    assert "state" not in set(em.explain(ONE)["site"])


def test_a_name_by_the_model() -> None:
    def named(y: Tensor) -> None:
        standard = dist.Normal(torch.zeros(2), positive("q", 1.0)).to_event(1)
        chain = dist.GaussianHMM(
            standard, torch.eye(2), standard, torch.eye(2, 3),
            dist.Normal(torch.zeros(3), 1.0).to_event(1), duration=len(y),
        )  # fmt: skip
        how: Any = {"state": "level"}
        pyro.sample("y", chain, obs=y, infer=how)

    assert EM(named, "mle").fit(ONE).posterior("level").mean.shape == (T, 2)


def test_many_steps_are_few_sites() -> None:
    y = normal(70, 5_000, DATA)
    plan = EM(full, "mle").plan(y)
    assert set(plan.sites) == {"state[0]", "state", "y"}
    (component,) = plan.components
    assert component.description == "a chain of 5,001 steps of 2 entries"


def test_vectors_missing_in_part_are_refused() -> None:
    y = ONE.clone()
    y[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"site 'y' is a MultivariateNormal .* missing in part"):
        EM(full, "mle").plan(y)
