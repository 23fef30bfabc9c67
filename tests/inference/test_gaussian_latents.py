"""Gaussian latents are integrated exactly: EM against the dense oracle on models of every shape."""

import functools
import itertools
import warnings

import pytest
import torch
from torch import Tensor

from ember.inference import EM
from tests.further import further
from tests.inference import brute_force
from tests.inference.dense_gaussian import Dense, free_objective
from tests.inference.gaussian_fits import TOLERANCE, close, em_of, fit_at, fitted, series
from tests.inference.gaussian_models import CASES, Case

each_case = pytest.mark.parametrize("name", CASES)
each_seed = pytest.mark.parametrize("seed", [1, *further(2)])
# The oracle's own search takes a minute there; the gradient at EM's optimum is tested instead.
MIXTURES = ("factor mixture", "intercept mixture")


# -- the E-step ------------------------------------------------------------------------------------


@each_seed
@each_case
def test_log_likelihood_at_random_parameters(name: str, seed: int) -> None:
    case = CASES[name]
    params = case.params(seed)
    truth = float(case.dense(params).log_evidence)
    stats = em_of(case).e_step(params, *case.args, **case.kwargs)
    assert stats.log_likelihood == pytest.approx(truth, rel=TOLERANCE)
    if case.objective == "map":
        prior = brute_force.log_prior(case.model, params, *case.args, **case.kwargs)
        assert stats.objective == pytest.approx(truth + float(prior), rel=TOLERANCE)


@each_seed
@each_case
def test_log_likelihood_without_marks(name: str, seed: int) -> None:
    """The rule finds the latents that the marks name, wherever it must."""
    case = CASES[name]
    params = case.params(seed)
    wishes = {} if name not in NOT_BY_RULE else dict.fromkeys(case.latents, "gaussian")
    em = EM(case.unmarked().model, case.objective, integrate=wishes)
    stats = em.e_step(params, *case.args, **case.kwargs)
    truth = float(case.dense(params, check=False).log_evidence)
    assert stats.log_likelihood == pytest.approx(truth, rel=TOLERANCE)


NOT_BY_RULE = ("shared scale",)  # the scale of its prior enters the data: a parameter by the rule


@each_seed
@each_case
def test_posterior_moments(name: str, seed: int) -> None:
    case = CASES[name]
    params = case.params(seed)
    truth, fit = case.dense(params), fit_at(case, params)
    for stem, latents in series(case).items():
        posterior = fit.posterior(stem)
        along = len(latents) > 1
        for moment, expected in moments(truth, latents, along).items():
            close(getattr(posterior, moment), expected)


def moments(truth: Dense, latents: list[str], along: bool) -> dict[str, Tensor]:
    """What the posterior of one latent, or of the steps of a chain, should say."""
    found = {
        "mean": [truth.mean(each) for each in latents],
        "variance": [truth.variance(each) for each in latents],
    }
    if truth.shapes[latents[0]][1]:  # vectors have covariances too
        found["covariance"] = [truth.covariance(each) for each in latents]
    dim = len(truth.shapes[latents[0]][0])  # steps come after plates
    return {moment: torch.stack(each, dim) if along else each[0] for moment, each in found.items()}


@each_seed
@pytest.mark.parametrize("name", ["local level", "local level with gaps", "autoregression"])
def test_covariances_of_neighbouring_steps(name: str, seed: int) -> None:
    case = CASES[name]
    params = case.params(seed)
    truth, fit = case.dense(params), fit_at(case, params)
    ((stem, latents),) = series(case).items()
    expected = [
        truth.cross_covariance(one, other).reshape(()) for one, other in itertools.pairwise(latents)
    ]
    close(torch.as_tensor(fit.posterior_pairs(stem)).reshape(-1), torch.stack(expected))


@pytest.mark.parametrize("name", MIXTURES)
def test_posterior_of_discrete_latents(name: str) -> None:
    case = CASES[name]
    params = case.params(1)
    truth, fit = case.dense(params), fit_at(case, params)
    (latent,) = truth.discrete
    expected = truth.marginal(latent)
    found = fit.posterior(latent).probs.reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@functools.cache
def oracles_best(name: str) -> tuple[dict[str, Tensor], float]:
    """The oracle's maximum from the start that the model gives."""
    return CASES[name].maximum(CASES[name].start())


# -- the M-step and the fit ------------------------------------------------------------------------


@each_case
def test_a_step_raises_the_oracles_objective(name: str) -> None:
    case = CASES[name]
    params = case.params(2)
    em = em_of(case)
    free, value = free_objective(
        case.model, case.latents, params, *case.args, objective=case.objective, **case.kwargs
    )
    before = float(value(free.flatten(params)))
    after = em.m_step(em.e_step(params, *case.args, **case.kwargs))
    assert after.keys() == params.keys()
    assert float(value(free.flatten(after))) > before


@pytest.mark.parametrize("name", [each for each in CASES if each not in MIXTURES])
def test_a_maximum_stays_where_it_is(name: str) -> None:
    """The oracle's own maximum is a fixed point of the plain EM step."""
    case = CASES[name]
    best, _ = oracles_best(name)
    em = em_of(case)
    after = em.m_step(em.e_step(best, *case.args, **case.kwargs))
    for site, value in after.items():
        scale = float(best[site].abs().max())
        torch.testing.assert_close(value, best[site], rtol=1e-4, atol=1e-4 * scale)


@each_case
def test_the_optimum_is_the_oracles(name: str) -> None:
    case = CASES[name]
    fit = fitted(case, init=case.start())
    reached = fit.log_posterior if case.objective == "map" else fit.log_likelihood
    if name in MIXTURES:
        best = float(slope_at(case, fit.params)[1])
    else:
        params, best = oracles_best(name)
        if case.identified:
            for site, value in fit.params.items():
                scale = float(params[site].abs().max())
                torch.testing.assert_close(value, params[site], rtol=1e-3, atol=1e-3 * scale)
    assert reached == pytest.approx(best, abs=1e-6)


@each_case
def test_the_default_start_leads_to_an_optimum(name: str) -> None:
    case = CASES[name]
    fit = fitted(case, seed=0)
    assert fit.converged or not case.identified, fit.stop_reason
    slope, value = slope_at(case, fit.params)
    reached = fit.log_posterior if case.objective == "map" else fit.log_likelihood
    if "zero at the maximum" in fit.warning:  # where digits end, short of the boundary itself
        assert reached == pytest.approx(float(value), rel=1e-8)
        return
    assert float(slope.abs().max()) < 1e-3
    assert reached == pytest.approx(float(value), rel=TOLERANCE)


def slope_at(case: Case, params: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of the oracle's objective in free reals, and its value."""
    free, value = free_objective(
        case.model, case.latents, params, *case.args, objective=case.objective, **case.kwargs
    )
    vector = free.flatten(params).detach().requires_grad_()
    total = value(vector)
    (slope,) = torch.autograd.grad(total, vector)
    return slope, total.detach()


@pytest.mark.parametrize("accelerate", [None, "auto", *further("squarem", "lbfgs")])
@each_case
def test_the_objective_never_falls(name: str, accelerate: str | None) -> None:
    case = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        em = em_of(case, init=case.params(3), accelerate=accelerate, max_iter=60)
        fit = em.fit(*case.args, **case.kwargs)
    history = fit.history
    assert bool((history.diff() >= -TOLERANCE * (1.0 + history[1:].abs())).all())
    assert "fell" not in fit.stop_reason
