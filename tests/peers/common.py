"""What the comparisons with other packages share: fits at given parameters, and a known series."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ember.inference import EM
from ember.inference.fit import Fit

__all__ = ["EARTHQUAKES", "at", "best_of", "equal", "gain_of_a_step", "log_likelihood", "tensors"]

Model = Callable[..., None]

# Major earthquakes (magnitude 7 or more) in the world, each year from 1900 to 2006. Zucchini,
# MacDonald & Langrock (2016), Hidden Markov Models for Time Series, 2nd edition, table 1.1.
DATA = Path(__file__).parents[1] / "reference" / "data"
EARTHQUAKES = pd.read_csv(DATA / "earthquakes.csv")["count"].to_numpy(copy=True)


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
