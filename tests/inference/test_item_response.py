"""Fits of item response models against likelihoods summed over a fine grid, written here."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from ember.inference import EM, SVI, compare
from ember.inference.fit import Fit
from ember.models import item_response

Array = np.ndarray[Any, Any]
POINTS = np.linspace(-14.0, 14.0, 1401)
STEP = 0.02
N, J = 600, 6
A = torch.tensor([0.7, 1.0, 1.4, 0.9, 1.2, 0.8], dtype=torch.float64)
D = torch.tensor([-1.0, -0.5, 0.0, 0.3, 0.8, 1.5], dtype=torch.float64)


@pytest.fixture
def ability() -> Tensor:
    return torch.randn(N, dtype=torch.float64)


def evidence(log_p: Array, answers: Array, log_prior: Array) -> Array:
    """The log evidence of each row, given log probabilities of levels ``(Q, J, L)``."""
    joint = np.zeros((len(answers), len(POINTS))) + log_prior
    for j in range(answers.shape[1]):
        shown = ~np.isnan(answers[:, j])
        joint[shown] += log_p[:, j, answers[shown, j].astype(int)].T
    return np.asarray(scipy.special.logsumexp(joint, axis=1) + np.log(STEP))


def binary(p: Array) -> Array:
    return np.asarray(np.log(np.stack([1.0 - p, p], -1)))


def graded(a: Array, d: Array) -> Array:
    """Log probabilities of levels from falling intercepts ``(J, L - 1)``."""
    above = scipy.special.expit(POINTS[:, None, None] * a[:, None] + d)
    ends = np.ones((*above.shape[:2], 1))
    whole = np.concatenate([ends, above, 0.0 * ends], -1)
    return np.asarray(np.log(np.clip(whole[..., :-1] - whole[..., 1:], 1e-300, None)))


def standard_normal() -> Array:
    return np.asarray(scipy.stats.norm.logpdf(POINTS))


def check_stationary(fit: Fit, objective: Any, names: list[str], slack: float) -> None:
    """No move of a single entry raises the objective by more than rounding and slack."""
    here = objective(fit.params)
    assert here == pytest.approx(fit.log_posterior, abs=1e-6)
    for name in names:
        for index in np.ndindex(*fit.params[name].shape):
            for step in (-2e-3, 2e-3):
                moved = {n: v.clone() for n, v in fit.params.items()}
                moved[name][index] += step
                assert objective(moved) <= here + slack, (name, index)


def test_guessing(ability: Tensor) -> None:
    p = 0.2 + 0.8 * torch.sigmoid(ability[:, None] * A + D)
    answers = torch.bernoulli(p)
    fit = EM(item_response, seed=0).fit(answers, model="3pl")
    assert fit.converged, fit.stop_reason

    def objective(params: dict[str, Tensor]) -> float:
        a, d, c = (params[n].numpy() for n in ("discriminations", "intercepts", "guessing"))
        p = c + (1 - c) * scipy.special.expit(POINTS[:, None] * a + d)
        prior = (
            scipy.stats.gamma.logpdf(a, 2.0).sum()
            + scipy.stats.norm.logpdf(d, 0.0, 5.0).sum()
            + scipy.stats.beta.logpdf(c, 5.0, 17.0).sum()
        )
        return float(evidence(binary(p), answers.numpy(), standard_normal()).sum() + prior)

    check_stationary(fit, objective, ["discriminations", "intercepts", "guessing"], 1e-7)


@pytest.mark.parametrize("gaps", [False, True])
def test_graded_response(ability: Tensor, gaps: bool) -> None:
    heights = D[:, None] - torch.tensor([0.0, 1.0, 2.2])
    above = torch.sigmoid(ability[:, None, None] * A[:, None] + heights)
    answers = (torch.rand(N, J, 1) < above).sum(-1).double()
    if gaps:
        answers[torch.rand(N, J) < 0.1] = torch.nan
    fit = EM(item_response, "mle", seed=0).fit(answers, model="graded")
    assert fit.converged, fit.stop_reason

    def objective(params: dict[str, Tensor]) -> float:
        a, d, steps = (params[n].numpy() for n in ("discriminations", "intercepts", "steps"))
        falling = d[:, None] - np.concatenate([np.zeros((J, 1)), steps.cumsum(1)], 1)
        return float(evidence(graded(a, falling), answers.numpy(), standard_normal()).sum())

    check_stationary(fit, objective, ["discriminations", "intercepts", "steps"], 1e-7)
    assert fit.deterministic["difficulties"].shape == (J, 3)
    assert bool((fit.deterministic["difficulties"].diff() > 0).all())


def test_groups(ability: Tensor) -> None:
    groups = torch.arange(N) % 3
    shifted = (
        torch.tensor([0.0, 0.8, -0.5])[groups] + torch.tensor([1.0, 1.4, 0.7])[groups] * ability
    )
    answers = torch.bernoulli(torch.sigmoid(shifted[:, None] * A + D))
    fit = EM(item_response, "mle", seed=0).fit(answers, groups=groups)
    assert fit.converged, fit.stop_reason

    def objective(params: dict[str, Tensor]) -> float:
        a, d = (params[n].numpy() for n in ("discriminations", "intercepts"))
        mean = np.concatenate([[0.0], params["means"].numpy()])[groups]
        deviation = np.concatenate([[1.0], params["deviations"].numpy()])[groups]
        prior = scipy.stats.norm.logpdf(POINTS, mean[:, None], deviation[:, None])
        p = scipy.special.expit(POINTS[:, None] * a + d)
        return float(evidence(binary(np.clip(p, 1e-300, 1 - 1e-16)), answers.numpy(), prior).sum())

    names = ["discriminations", "intercepts", "means", "deviations"]
    check_stationary(fit, objective, names, 1e-7)
    # New persons of some of the groups: how many there are has to be said.
    both = {"groups": groups, "group_count": 3}
    fit = EM(item_response, "mle", seed=0).fit(answers, **both)
    some = (groups == 2).nonzero()[:5, 0]
    found = fit.predict(answers[some], groups=groups[some])
    assert torch.allclose(found, fit.predict()[some], atol=1e-6)


def test_two_dimensions() -> None:
    ability = torch.randn(N, 2, dtype=torch.float64)
    slopes = torch.stack([A, torch.tensor([0.0, 1.2, -0.8, 0.9, -1.1, 0.5]).double()], -1)
    answers = torch.bernoulli(torch.sigmoid(ability @ slopes.T + D))
    fit = EM(item_response, seed=0).fit(answers, dimensions=2)
    assert fit.converged, fit.stop_reason
    assert float(fit.deterministic["discriminations"][0, 1]) == 0.0
    line, weights = np.polynomial.hermite_e.hermegauss(61)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    log_weights = np.log(np.outer(weights, weights).ravel() / weights.sum() ** 2)
    y = answers.numpy()

    def joint(params: dict[str, Tensor]) -> Array:
        free, d = params["loadings"].numpy(), params["intercepts"].numpy()
        a = np.stack([free[:J], np.concatenate([[0.0], free[J:]])], -1)
        logits = grid @ a.T + d
        log_p, log_q = scipy.special.log_expit(logits), scipy.special.log_expit(-logits)
        return np.asarray(y @ log_p.T + (1 - y) @ log_q.T + log_weights)

    def objective(params: dict[str, Tensor]) -> float:
        prior = scipy.stats.norm.logpdf(params["loadings"].numpy(), 0.0, 3.0).sum()
        prior += scipy.stats.norm.logpdf(params["intercepts"].numpy(), 0.0, 5.0).sum()
        return float(scipy.special.logsumexp(joint(params), axis=1).sum() + prior)

    check_stationary(fit, objective, ["loadings", "intercepts"], 1e-6)
    each = joint(fit.params)
    weights = np.exp(each - scipy.special.logsumexp(each, axis=1, keepdims=True))
    found, mean = fit.posterior("ability"), weights @ grid
    assert found.mean.numpy() == pytest.approx(mean, abs=1e-5)
    second = np.einsum("nq,qi,qj->nij", weights, grid, grid)
    wanted = second - mean[:, :, None] * mean[:, None]
    assert found.covariance.numpy() == pytest.approx(wanted, abs=1e-5)
    assert fit.predict().shape == (N, 2)
    assert fit.sample(10, seed=0)["ability"].shape == (10, 2)


def test_two_dimensions_find_one(ability: Tensor) -> None:
    """Without a second dimension in the data a second one gains little."""
    answers = torch.bernoulli(torch.sigmoid(ability[:, None] * A + D))
    one = EM(item_response, "mle", seed=0).fit(answers)
    two = EM(item_response, "mle", seed=0).fit(answers, dimensions=2)
    assert 0.0 <= two.log_likelihood - one.log_likelihood < 15.0


@pytest.mark.thorough
def test_beside_variational_inference(ability: Tensor) -> None:
    """All three say how likely the answers are with the abilities integrated out."""
    answers = torch.bernoulli(torch.sigmoid(ability[:, None] * A + D))
    methods: list[Any] = [
        EM(item_response, seed=0),
        SVI(item_response, guide="normal", steps=1500, seed=0),
        SVI(item_response, guide="delta", steps=300, seed=0),
    ]
    compared = compare(methods, answers)
    em, normal, delta = compared.fits.values()
    assert [*em.params] == [*normal.params] == [*delta.params]
    # No point is above the maximum; the median of a normal guide is near it, a joint mode is not.
    assert em.log_posterior - 3.0 < normal.log_likelihood + _log_prior(compared, normal)
    assert em.log_posterior > delta.log_posterior
    drawn = normal.posterior_samples(50, seed=0)
    assert drawn["ability"].shape == (50, N)
    means = torch.stack([drawn["ability"].mean(0), em.predict(), normal.predict()])
    assert float(torch.corrcoef(means).min()) > 0.95


def _log_prior(compared: Any, fit: Fit) -> float:
    return fit.log_posterior - fit.log_likelihood


def test_a_guide_of_ones_own_says_whether_it_covers_the_abilities(ability: Tensor) -> None:
    answers = torch.bernoulli(torch.sigmoid(ability[:50, None] * A + D))

    def without(answers: Tensor, **options: Any) -> None:
        loc = pyro.param("loc", torch.zeros(J))
        pyro.sample("intercepts", dist.Normal(loc, 1.0).to_event(1))

    def covering(answers: Tensor, **options: Any) -> None:
        without(answers, **options)
        middle = pyro.param("middle", torch.zeros(50))
        with pyro.plate("people", 50):
            pyro.sample("ability", dist.Normal(middle, 1.0))

    for guide, covered in ((without, ()), (covering, ("ability",))):
        fit = SVI(item_response, guide=guide, steps=2, seed=0).fit(answers, model="rasch")
        assert fit.guide is not None
        assert fit.guide.covered == covered
        assert "ability" not in fit.params


def test_row_of_nothing_has_the_prior_as_posterior(ability: Tensor) -> None:
    answers = torch.bernoulli(torch.sigmoid(ability[:, None] * A + D))
    answers[3] = torch.nan
    fit = EM(item_response, seed=0).fit(answers)
    found = fit.posterior("ability")
    assert float(found.mean[3]) == pytest.approx(0.0, abs=1e-10)
    assert float(found.variance[3]) == pytest.approx(1.0, abs=1e-10)
    assert float(fit.log_prob()[3]) == pytest.approx(0.0, abs=1e-10)
