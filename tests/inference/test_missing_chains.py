"""Hidden Markov chains with missing entries and steps, against a sum over every path."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from ember.inference import EM
from ember.models import hidden_markov_gaussian
from tests.inference.gaps import conditional, row_log_prob

NAN = torch.nan
STEPS = 5
TRAILING = torch.tensor(
    [[0.2, -0.3], [NAN, 2.5], [NAN, NAN], [2.8, NAN], [NAN, NAN]], dtype=torch.float64
)
SECOND = torch.tensor(
    [[NAN, NAN], [3.1, 2.0], [NAN, 3.3], [0.1, 0.4], [-0.5, NAN]], dtype=torch.float64
)


def chains(x: Tensor, correlated: bool) -> None:
    """Two states with bivariate normal emissions; sequences (S, T, 2)."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.tensor([2.0, 1.0])))
    with pyro.plate("states", 2):
        transition = pyro.sample("transition", dist.Dirichlet(torch.tensor([2.0, 2.0])))
        locs = pyro.sample("locs", dist.Normal(1.0, 3.0).expand([2]).to_event(1))
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]] if correlated else [[1.0, 0.0], [0.0, 1.0]])
    emission: Any = dist.MultivariateNormal(locs, covariance_matrix=covariance)
    if not correlated:
        emission = dist.Normal(locs, 1.0).to_event(1)
    with pyro.plate("sequences", len(x)):
        fn = dist.DiscreteHMM(initial.log(), transition.log(), emission, duration=x.shape[1])
        pyro.sample("x", fn, obs=x)


class Truth:
    """Every path of one sequence, its weight, and the emissions."""

    def __init__(self, params: dict[str, Tensor], x: Tensor, correlated: bool) -> None:
        self.locs = params["locs"].numpy()
        self.covariance = np.array([[1.0, 0.6], [0.6, 0.8]]) if correlated else np.eye(2)
        self.x = x.numpy()
        initial, move = params["initial"].log().numpy(), params["transition"].log().numpy()
        start = logsumexp(initial[:, None] + move, axis=0)  # Pyro moves once before it emits
        self.paths = np.array(list(itertools.product(range(2), repeat=len(x))))
        scores = []
        for path in self.paths:
            score = start[path[0]] + sum(move[a, b] for a, b in itertools.pairwise(path))
            score += sum(
                row_log_prob(row, self.locs[z], self.covariance)
                for row, z in zip(self.x, path, strict=True)
            )
            scores.append(score)
        self.log_likelihood = float(logsumexp(scores))
        self.weights = np.exp(np.array(scores) - self.log_likelihood)

    def filled(self, path: Any) -> Any:
        """The conditional mean of the sequence given a path."""
        rows = zip(self.x, path, strict=True)
        return np.array([conditional(row, self.locs[z], self.covariance)[0] for row, z in rows])

    def mean(self) -> Any:
        return sum(w * self.filled(path) for w, path in zip(self.weights, self.paths, strict=True))


@pytest.fixture(scope="module", params=[True, False], ids=["normal rows", "normal entries"])
def case(request: Any) -> tuple[Any, Tensor, list[Truth]]:
    x = torch.stack([TRAILING, SECOND])
    fit = EM(chains, seed=0).fit(x, request.param)
    assert fit.converged
    assert bool((fit.history.diff() >= -1e-9).all())
    return fit, x, [Truth(fit.params, row, request.param) for row in x]


def test_likelihood_and_posterior_are_those_of_all_paths(case: Any) -> None:
    fit, _, truths = case
    total = sum(truth.log_likelihood for truth in truths)
    assert fit.log_likelihood == pytest.approx(total, rel=1e-10)
    states = fit.posterior("state").probs
    for i, truth in enumerate(truths):
        marginal = truth.weights @ truth.paths
        np.testing.assert_allclose(states[i, :, 1], marginal, rtol=1e-8)
        best = truth.paths[truth.weights.argmax()]
        np.testing.assert_array_equal(fit.predict()[i], best)


def test_imputed_means_are_averages_over_paths(case: Any) -> None:
    fit, x, truths = case
    filled = fit.impute()
    assert filled.shape == x.shape
    for i, truth in enumerate(truths):
        np.testing.assert_allclose(filled[i], truth.mean(), rtol=1e-8)


def test_draws_follow_whole_paths(case: Any) -> None:
    # Between two ends in different states the chain moves once: its steps are bound together.
    fit, _, _ = case
    correlated = fit.plan.structure.arguments.args[1]
    sticky = {
        "initial": torch.tensor([0.5, 0.5], dtype=torch.float64),
        "transition": torch.tensor([[0.8, 0.2], [0.2, 0.8]], dtype=torch.float64),
        "locs": torch.tensor([[0.0, 0.0], [4.0, 4.0]], dtype=torch.float64),
    }
    fit = dataclasses.replace(fit, params=sticky)
    x = torch.tensor([[0.0, 0.1], [NAN, NAN], [NAN, NAN], [NAN, NAN], [4.1, NAN]]).double()
    draws = fit.impute(x.unsqueeze(0), draws=3000, seed=0)[:, 0]
    assert draws.shape == (3000, *x.shape)
    assert torch.equal(draws[:, ~x.isnan()], x[~x.isnan()].expand(3000, -1))
    truth = Truth(sticky, x, correlated)
    means = np.array([truth.filled(path)[1:4, 0] for path in truth.paths])
    centre = truth.weights @ means
    spread = (truth.weights[:, None] * (means - centre)).T @ (means - centre)
    assert spread[0, 1] > 1.0
    found = np.cov(draws[:, 1:4, 0].T.numpy(), bias=True)
    np.testing.assert_allclose(found - np.eye(3), spread, atol=5.0 * 4.0 / 3000**0.5)
    deviation = np.sqrt(np.diag(found) / 3000)
    assert np.all(np.abs(draws[:, 1:4, 0].mean(0).numpy() - centre) < 5.0 * deviation)


def test_padding_is_not_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
    options: dict[str, Any] = {"states": 2, "lengths": torch.tensor([6, 3, 4])}
    table = EM(hidden_markov_gaussian).explain(x, **options)
    assert "missing" not in str(table)
    fit = EM(hidden_markov_gaussian, seed=0).fit(x, **options)
    filled = fit.impute()
    assert torch.equal(filled[1, :3], x[1, :3])


def test_pieces_and_statistics(case: Any) -> None:
    fit, x, _ = case
    correlated = fit.plan.structure.arguments.args[1]
    em = EM(chains, "mle")
    whole = em.e_step(fit.params, x, correlated)
    pieces = em.e_step(fit.params, x[:1], correlated) + em.e_step(fit.params, x[1:], correlated)
    assert pieces.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
    after, again = em.m_step(whole), em.m_step(pieces)
    for name, value in after.items():
        torch.testing.assert_close(again[name], value, rtol=1e-9, atol=1e-12)
