"""Data with gaps, and what they are worth by direct computation, row by row, without Ember."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor

Array = NDArray[np.float64]


def clusters(rows: int = 60, seed: int = 0, features: int = 3) -> Tensor:
    """Two groups of correlated rows, (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    signs = 1.0 - 2.0 * (torch.arange(features) % 2)
    centres = torch.tensor([0.0, 4.0], dtype=torch.float64)[:, None] * signs
    mix = torch.eye(features, dtype=torch.float64) + 0.5
    noise = torch.randn(rows, features, generator=generator, dtype=torch.float64)
    return centres[torch.arange(rows) % 2] + noise @ mix


def with_gaps(x: Tensor, share: float = 0.3, seed: int = 0) -> Tensor:
    """The data with a share of their entries deleted completely at random."""
    generator = torch.Generator().manual_seed(seed)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < share, torch.nan)


def row_log_prob(row: Array, loc: Array, covariance: Array) -> float:
    """The marginal log density of a row's observed entries."""
    shown = ~np.isnan(row)
    if not shown.any():
        return 0.0
    block = covariance[np.ix_(shown, shown)]
    return float(multivariate_normal.logpdf(row[shown], loc[shown], block))


def joint(x: Array, weights: Array, locs: Array, covariances: Array) -> Array:
    """The log joint of every row and component of a mixture, (N, K)."""
    return np.array(
        [
            [
                np.log(w) + row_log_prob(row, m, s)
                for w, m, s in zip(weights, locs, covariances, strict=True)
            ]
            for row in x
        ]
    )


def conditional(row: Array, loc: Array, covariance: Array) -> tuple[Array, Array]:
    """Mean (D,) and covariance (D, D) of a whole row given its observed entries."""
    shown = ~np.isnan(row)
    mean, spread = np.where(shown, row, loc), np.zeros_like(covariance)
    hidden = ~shown
    if shown.any():
        inside = covariance[np.ix_(shown, shown)]
        across = covariance[np.ix_(hidden, shown)]
        gain = np.linalg.solve(inside, across.T).T
        mean[hidden] = loc[hidden] + gain @ (row[shown] - loc[shown])
        spread[np.ix_(hidden, hidden)] = covariance[np.ix_(hidden, hidden)] - gain @ across.T
    else:
        spread = covariance.copy()
    return mean, spread


def posterior(x: Array, weights: Array, locs: Array, covariances: Array) -> tuple[Array, float]:
    """Responsibilities (N, K) and the log likelihood."""
    logits = joint(x, weights, locs, covariances)
    rows = logsumexp(logits, axis=1)
    return np.exp(logits - rows[:, None]), float(rows.sum())


def mixture_moments(
    row: Array, responsibilities: Array, locs: Array, covariances: Array
) -> tuple[Array, Array]:
    """Mean and covariance of a whole row given its observed entries, components mixed."""
    parts: Sequence[tuple[Array, Array]] = [
        conditional(row, m, s) for m, s in zip(locs, covariances, strict=True)
    ]
    mean = sum(
        (r * m for r, (m, _) in zip(responsibilities, parts, strict=True)), np.zeros(len(row))
    )
    second = np.zeros((len(row), len(row)))
    for r, (m, s) in zip(responsibilities, parts, strict=True):
        second += r * (s + np.outer(m, m))
    return mean, second - np.outer(mean, mean)
