"""Pyro's own Gaussian chains, opened into their states: the same model as the steps one by one."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ember.inference import EM, Fit
from tests.inference.dense_gaussian import dense, maximum
from tests.inference.gaussian_sites import GAUSSIAN, normal, positive, real

T = 10
LATENTS = tuple(f"s_{t}" for t in range(T + 1))
TURN = torch.tensor([[0.9, -0.3], [0.3, 0.9]], dtype=torch.float64)  # of rows, from the right
LOOK = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)


def path(noise: Tensor) -> Tensor:
    """States that turn, and are pushed at each step."""
    state, states = torch.tensor([2.0, 0.0], dtype=torch.float64), []
    for push in noise:
        state = state @ TURN + push
        states.append(state)
    return torch.stack(states)


Y = path(0.8 * normal(40, T, 2)) @ LOOK + 0.5 * normal(41, T, 3)


def independent(scale: Tensor | float, size: int) -> Any:
    return dist.Normal(torch.zeros(size), scale).to_event(1)


def by_steps(y: Tensor) -> None:
    """The oracle's version: every step a site."""
    c, q, r = real("c", 0.0, 0.0, 0.0), positive("q", 1.0), positive("r", 1.0)
    state = pyro.sample("s_0", independent(2.0, 2), infer=GAUSSIAN)
    for t in pyro.markov(range(T)):
        step = dist.Normal(state @ TURN, q).to_event(1)
        state = pyro.sample(f"s_{t + 1}", step, infer=GAUSSIAN)
        pyro.sample(f"y_{t}", dist.Normal(c + state @ LOOK, r).to_event(1), obs=y[t])


def gaussian_hmm(y: Tensor) -> None:
    c, q, r = real("c", 0.0, 0.0, 0.0), positive("q", 1.0), positive("r", 1.0)
    chain = dist.GaussianHMM(
        independent(2.0, 2),
        TURN,
        independent(q, 2),
        LOOK,
        dist.Normal(c, r).to_event(1),
        duration=T,
    )
    pyro.sample("y", chain, obs=y)


def linear_hmm(y: Tensor) -> None:
    c, q, r = real("c", 0.0, 0.0, 0.0), positive("q", 1.0), positive("r", 1.0)
    chain = dist.LinearHMM(
        independent(2.0, 2),
        TURN,
        independent(q, 2),
        LOOK,
        dist.Normal(c, r).to_event(1),
        duration=T,
    )
    pyro.sample("y", chain, obs=y)


def free_matrices(y: Tensor) -> None:
    """All that can be free: both matrices, with the units of the states fixed by their steps."""
    A = pyro.param("A", 0.5 * torch.eye(2))
    C = pyro.param("C", torch.ones(2, 3) + torch.eye(2, 3))
    r = positive("r", torch.ones(3))
    chain = dist.GaussianHMM(
        independent(1.0, 2), A, independent(1.0, 2), C, independent(r, 3), duration=T
    )
    pyro.sample("y", chain, obs=y)


def free_by_steps(y: Tensor) -> None:
    A = pyro.param("A", 0.5 * torch.eye(2))
    C = pyro.param("C", torch.ones(2, 3) + torch.eye(2, 3))
    r = positive("r", torch.ones(3))
    state = pyro.sample("s_0", independent(1.0, 2), infer=GAUSSIAN)
    for t in pyro.markov(range(T)):
        state = pyro.sample(f"s_{t + 1}", dist.Normal(state @ A, 1.0).to_event(1), infer=GAUSSIAN)
        pyro.sample(f"y_{t}", dist.Normal(state @ C, r).to_event(1), obs=y[t])


PARAMS = {
    "c": torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64),
    "q": torch.tensor(0.7, dtype=torch.float64),
    "r": torch.tensor(0.6, dtype=torch.float64),
}
FREE = {
    "A": torch.tensor([[0.7, -0.2], [0.1, 0.6]], dtype=torch.float64),
    "C": torch.tensor([[1.1, 0.4, 0.3], [-0.2, 0.8, -0.9]], dtype=torch.float64),
    "r": torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64),
}
Opened = tuple[Callable[..., None], Callable[..., None], dict[str, Tensor]]
CHAINS: dict[str, Opened] = {
    "GaussianHMM": (gaussian_hmm, by_steps, PARAMS),
    "LinearHMM": (linear_hmm, by_steps, PARAMS),
    "free matrices": (free_matrices, free_by_steps, FREE),
}
each_chain = pytest.mark.parametrize("name", CHAINS)


def fit_at(model: Callable[..., None], params: dict[str, Tensor]) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a single iteration does not converge
        fit = EM(model, "mle", init=params, max_iter=1, accelerate=None).fit(Y)
    return dataclasses.replace(fit, params=params)


def test_the_steps_are_pyros_chain() -> None:
    """The oracle's version has the density that Pyro gives the chain."""
    for model, steps, params in (CHAINS["GaussianHMM"], CHAINS["free matrices"]):
        found = dense(model, [], params, Y).log_evidence
        expected = dense(steps, LATENTS, params, Y).log_evidence
        assert float(found) == pytest.approx(float(expected), rel=1e-9)


@each_chain
def test_log_likelihood(name: str) -> None:
    model, steps, params = CHAINS[name]
    truth = dense(steps, LATENTS, params, Y).log_evidence
    stats = EM(model, "mle").e_step(params, Y)
    assert stats.log_likelihood == pytest.approx(float(truth), rel=1e-9)


@each_chain
def test_the_chain_is_opened_into_its_states(name: str) -> None:
    model, _, _ = CHAINS[name]
    table = EM(model, "mle").explain(Y).set_index("site")
    assert table.loc["state", "role"] == "latent"
    of_parameters = table[table["role"].str.startswith("parameter")]
    assert set(of_parameters["M-step"]) == {"closed form"}


@each_chain
def test_posterior_of_the_states(name: str) -> None:
    model, steps, params = CHAINS[name]
    truth = dense(steps, LATENTS, params, Y)
    posterior = fit_at(model, params).posterior("state")
    mean = torch.stack([truth.mean(each) for each in LATENTS[1:]])
    covariance = torch.stack([truth.covariance(each) for each in LATENTS[1:]])
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(posterior.covariance, covariance, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["GaussianHMM", "LinearHMM"])
def test_the_optimum_is_that_of_the_steps(name: str) -> None:
    model, steps, _ = CHAINS[name]
    params, best = maximum(steps, LATENTS, PARAMS, Y)
    fit = EM(model, "mle", init=PARAMS, tol=1e-12, max_iter=3000).fit(Y)
    assert fit.log_likelihood == pytest.approx(best, abs=1e-6)
    for site, value in fit.params.items():
        torch.testing.assert_close(value, params[site], rtol=1e-3, atol=1e-3)
