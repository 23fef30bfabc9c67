"""Random walks that do not move: their variance of zero is reached and named."""

import warnings
from typing import Any

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from ember.inference import EM, Fit
from ember.models import local_level, local_linear_trend
from tests.inference.gaussian_models import CASES


def normal(seed: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, generator=generator, dtype=torch.float64)


def density(
    y: Tensor, params: dict[str, Tensor], slope: bool, first: float, growth: float
) -> float:
    """The log likelihood as one normal: the covariance of sums of steps, and of sums of those."""
    steps = len(y)
    walk = torch.ones(steps, steps).double().tril(-1)
    covariance = first**2 + params["variance"] * torch.eye(steps).double()
    covariance = covariance + params["level_variance"] * walk @ walk.mT
    if slope:
        t = torch.arange(steps).double()
        covariance = covariance + growth**2 * torch.outer(t, t)
        turns = walk @ walk
        covariance = covariance + params["slope_variance"] * turns @ turns.mT
    mean = float(y.mean()) * torch.ones(steps).double()
    return float(multivariate_normal(mean, covariance).logpdf(y))


def fitted(model: Any, y: Tensor, prior: dict[str, float]) -> Fit:
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        return EM(model, "mle").fit(y, prior=prior)


@pytest.mark.parametrize(("steps", "seed"), [(50, 1), (100, 2)])
def test_a_level_that_stays_is_named(steps: int, seed: int) -> None:
    y = 5.0 + normal(seed, steps)
    prior = {"initial_mean": float(y.mean()), "initial_deviation": 10.0}
    fit = fitted(local_level, y, prior)
    truth = density(y, fit.params, False, 10.0, 0.0)
    assert fit.log_likelihood == pytest.approx(truth, abs=1e-6 * steps)
    still = {**fit.params, "level_variance": torch.zeros(())}
    if density(y, still, False, 10.0, 0.0) < truth - 1e-3:
        assert fit.converged
        assert not fit.warning
        return
    assert fit.converged
    assert "the variance 'level_variance' is zero at the maximum" in fit.warning
    assert density(y, still, False, 10.0, 0.0) - truth < 1e-6 * steps


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_slope_that_stays_is_named(seed: int) -> None:
    """A slope all but fixed gives no likelihood that is not there."""
    t = torch.arange(50).double()
    y = 0.2 * t + normal(seed, 50)
    prior = {"initial_mean": float(y.mean()), "initial_deviation": 20.0,
             "initial_slope_mean": 0.0, "initial_slope_deviation": 2.0}  # fmt: skip
    fit = fitted(local_linear_trend, y, prior)
    truth = density(y, fit.params, True, 20.0, 2.0)
    assert fit.log_likelihood == pytest.approx(truth, abs=5e-4)
    assert fit.converged, fit.stop_reason
    assert "'slope_variance'" in fit.warning
    assert "zero at the maximum" in fit.warning


def test_a_start_at_which_digits_are_lost_is_named() -> None:
    """Moves that are far from stable and data all but certain: no value is to be believed there."""
    case = CASES["autoregression"]
    lost = {"phi": -1.9041, "c": 57.5542, "q": 40.2167, "r": 2.5444e-20}
    start = {name: torch.tensor(value).double() for name, value in lost.items()}
    with pytest.warns(RuntimeWarning, match="the objective is known to .* only"):
        fit = EM(case.model, case.objective, init=start).fit(*case.args, **case.kwargs)
    assert not fit.converged


def test_no_step_is_believed_that_rises_beyond_what_its_slope_promises() -> None:
    """Steps towards moves that are far from stable gave a density of exp(1e28)."""
    case = CASES["autoregression"]
    fit = EM(case.model, case.objective, init=case.start(), tol=1e-12).fit(*case.args)
    assert fit.converged
    assert abs(float(fit.params["phi"])) < 1.0
    assert fit.log_likelihood < 0.0
