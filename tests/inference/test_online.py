"""Steps before a pass has ended: near the optimum after few passes, and at it with less noise."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ember.inference import EM, chunks
from ember.models import gaussian_mixture, hidden_markov_gaussian, poisson_mixture


def points(rows: int = 4000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return noise + 2.5 * (torch.arange(rows) % 2).unsqueeze(-1)


# Away from the optimum, so that a sample does not start there already.
START: dict[str, Any] = {
    "weights": torch.tensor([0.8, 0.2]),
    "locs": torch.tensor([[1.0, 0.0], [1.5, 2.0]]),
    "precisions": torch.eye(2).expand(2, 2, 2).clone(),
}


@pytest.mark.parametrize("method", ["stepwise", "variance-reduced"])
def test_a_pass_comes_near_the_optimum(method: str) -> None:
    x = points()
    whole = EM(gaussian_mixture, seed=0).fit(x, components=2)
    em = EM(gaussian_mixture, init=START, seed=0)
    fit = em.fit_online(chunks(x, rows=100), components=2, method=method, passes=2)
    start, first, _ = (float(value) for value in fit.history)
    assert whole.log_posterior - first < 0.02 * (whole.log_posterior - start)
    assert bool((fit.history.diff() >= 0).all())
    assert fit.log_posterior <= whole.log_posterior + 1e-6
    assert "finished" in fit.stop_reason


def test_less_variance_comes_to_the_optimum_itself() -> None:
    """The noise of stepwise EM stays; that of the other shrinks with each pass."""
    x = points()
    em = EM(gaussian_mixture, init=START, seed=0)
    best = EM(gaussian_mixture, seed=0, tol=1e-12).fit(x, components=2).log_posterior
    pieces = chunks(x, rows=100)
    gaps = {
        method: [
            best - float(v)
            for v in em.fit_online(pieces, components=2, method=method, passes=6).history
        ]
        for method in ("stepwise", "variance-reduced")
    }
    assert gaps["variance-reduced"][-1] < 1e-6
    assert gaps["variance-reduced"][-1] < 1e-2 * gaps["stepwise"][-1]


def test_one_piece_with_full_steps_is_em() -> None:
    """With all rows in one piece a step with reduced variance is a part of an EM step."""
    x = points(500)
    em = EM(gaussian_mixture, init=START, seed=0)
    online = em.fit_online([x], components=2, method="variance-reduced")
    params = em.m_step(em.e_step(START, x, components=2))
    ascended = em.e_step(params, x, components=2).objective
    assert float(online.history[-1]) >= ascended - 1e-9 * abs(ascended)


def test_chains_and_counts() -> None:
    sequences = points(2000).reshape(100, 20, 2)
    fit = EM(hidden_markov_gaussian, seed=0).fit_online(chunks(sequences, rows=10), states=2)
    whole = EM(hidden_markov_gaussian, seed=0).fit(sequences, states=2)
    assert fit.log_posterior > whole.log_posterior - 5.0
    counts = points(2000)[:, 0].abs().round()
    fit = EM(poisson_mixture, seed=0).fit_online(chunks(counts, rows=50), components=2)
    assert fit.n_observations == 2000


def test_refusals() -> None:
    em = EM(gaussian_mixture)
    for option, said in (
        (
            {"method": "fast"},
            "method='fast' is unknown; choose one of 'stepwise', 'variance-reduced'",
        ),
        ({"decay": 0.5}, "decay must be above 0.5"),
        ({"passes": 0}, "passes=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=said):
            em.fit_online([points(50)], components=2, **option)
