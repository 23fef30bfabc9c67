"""What the comparisons with other packages share: fits at given parameters, and a known series."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.fit import Fit

__all__ = ["EARTHQUAKES", "at", "best_of", "equal", "gain_of_a_step", "log_likelihood", "tensors"]

Model = Callable[..., None]

# Major earthquakes (magnitude 7 or more) in the world, each year from 1900 to 2006. Zucchini,
# MacDonald & Langrock (2016), Hidden Markov Models for Time Series, 2nd edition, table 1.1.
# fmt: off
EARTHQUAKES = np.array([
    13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14,
    8, 11, 14, 23, 18, 17, 19, 20, 22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21,
    23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17, 22, 17, 19, 15, 34, 10, 15,
    22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18, 15,
    18, 14, 10, 15, 8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18,
    15, 16, 13, 15, 16, 11, 11,
])
# fmt: on


def tensors(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """A rival's estimates as float64 tensors of their own."""
    return {name: torch.tensor(np.asarray(v), dtype=torch.float64) for name, v in params.items()}


def log_likelihood(model: Model, params: Mapping[str, Any], *args: Any, **options: Any) -> float:
    """What Ember's E-step makes of given parameters."""
    return EM(model, "mle").e_step(tensors(params), *args, **options).log_likelihood


def at(model: Model, params: Mapping[str, Any], *args: Any, **options: Any) -> Fit:
    """A fit whose estimates are the given parameters: for posteriors, paths and row densities."""
    given = tensors(params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the one step may not even succeed
        fit = EM(model, "mle", init=given, max_iter=1, accelerate=None).fit(*args, **options)
    value = EM(model, "mle").e_step(given, *args, **options).log_likelihood
    return dataclasses.replace(fit, params=given, log_likelihood=value, log_posterior=value)


def best_of(model: Model, starts: int, *args: Any, **options: Any) -> Fit:
    """The best maximum-likelihood fit of so many starts; some of them may degenerate."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*degenerated")
        fit = EM(model, "mle", restarts=starts, seed=0).fit(*args, **options)
    assert fit.converged, fit.stop_reason
    return fit


def gain_of_a_step(model: Model, params: Mapping[str, Any], *args: Any, **options: Any) -> float:
    """How much one plain EM step still gains at given parameters: 0 at a stationary point."""
    em = EM(model, "mle")
    stats = em.e_step(tensors(params), *args, **options)
    gain = em.e_step(em.m_step(stats), *args, **options).log_likelihood - stats.log_likelihood
    assert gain >= -1e-9 * abs(stats.log_likelihood)
    return gain


def equal(ours: Any, theirs: Any, tolerance: float = 1e-8) -> None:
    """Two arrays or numbers agree, relative to their size, or absolutely around 0."""
    np.testing.assert_allclose(
        np.asarray(ours), np.asarray(theirs), rtol=tolerance, atol=tolerance, strict=False
    )
