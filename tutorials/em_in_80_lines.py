"""The whole of EM for a Gaussian mixture, in numpy: the idea of Ember without Ember.

A row x[n] comes from component k with probability weights[k], and then from a normal distribution
with mean means[k] and covariance covariances[k]. Which component it was is not recorded.

K components, N rows, D features; the tests hold this file to the library's result.
"""

from typing import NamedTuple

import numpy as np


class Params(NamedTuple):
    weights: np.ndarray  # (K,), adding up to one
    means: np.ndarray  # (K, D)
    covariances: np.ndarray  # (K, D, D)


def initialise(x, components, seed=0):
    """Step 1. Some rows as means, the covariance of all rows for every component."""
    rows = np.random.default_rng(seed).choice(len(x), components, replace=False)
    everything = np.cov(x.T, bias=True)
    weights = np.full(components, 1 / components)
    return Params(weights, x[rows], np.stack([everything] * components))


def log_joint(params, x):
    """log weights[k] + log N(x[n] | means[k], covariances[k]) for every row and component."""
    centred = x[:, None, :] - params.means  # (N, K, D)
    precisions = np.linalg.inv(params.covariances)
    distances = np.einsum("nki,kij,nkj->nk", centred, precisions, centred)
    log_determinants = np.linalg.slogdet(2 * np.pi * params.covariances)[1]
    return np.log(params.weights) - (log_determinants + distances) / 2


def e_step(params, x):
    """Step 2. How probable each component is for each row (N, K), and the log likelihood."""
    joint = log_joint(params, x)
    log_evidence = np.logaddexp.reduce(joint, axis=1)  # log p(x[n]), components summed out
    return np.exp(joint - log_evidence[:, None]), log_evidence.sum()


def m_step(responsibilities, x):
    """Step 3. Weighted shares, means and covariances."""
    counts = responsibilities.sum(0)
    means = responsibilities.T @ x / counts[:, None]
    centred = x[:, None, :] - means
    scatter = np.einsum("nk,nki,nkj->kij", responsibilities, centred, centred)
    return Params(counts / len(x), means, scatter / counts[:, None, None])


def converged(history, tol=1e-12):
    """Step 4. Whether what is still to gain, gain + gain r + gain r^2 + ..., is next to nothing."""
    if len(history) < 3:
        return False
    before, gain = np.diff(history[-3:])
    rate = gain / before if before > 0 else 0.0
    return bool(gain <= tol or (rate < 1 and gain * rate / (1 - rate) <= tol))


def fit(x, params, max_iter=10_000):
    """All four steps: the parameters at the end, and the log likelihood on the way."""
    history = []
    while not converged(history) and len(history) <= max_iter:
        responsibilities, log_likelihood = e_step(params, x)
        history.append(log_likelihood)
        params = m_step(responsibilities, x)
    return params, history


if __name__ == "__main__":
    generator = np.random.default_rng(1)
    clouds = [generator.normal([0, 0], [1.0, 2.0], (300, 2)), generator.normal(4, 0.8, (100, 2))]
    x = np.concatenate(clouds)
    params, history = fit(x, initialise(x, components=2))
    print(f"{len(history) - 1} iterations, log likelihood {history[-1]:.6f}\n{params}")
    assert np.all(np.diff(history) > -1e-9)  # it never falls
