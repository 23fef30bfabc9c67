"""Hidden Markov chains with missing entries by a sum over every path, in scipy, without Ember."""

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor

from ember.models import (
    hidden_markov_bernoulli,
    hidden_markov_categorical,
    hidden_markov_gaussian,
    hidden_markov_poisson,
)
from tests.inference.gaps import conditional, row_log_prob

Array = NDArray[np.float64]
K, D, T, LEVELS = 2, 2, 5, 3
NAN = torch.nan

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        covariance: (hidden_markov_gaussian, {"covariance": covariance})
        for covariance in ("full", "diag", "spherical", "tied")
    },
    "poisson": (hidden_markov_poisson, {}),
    "categorical": (hidden_markov_categorical, {"levels": LEVELS}),
    "bernoulli": (hidden_markov_bernoulli, {}),
}


def complete(case: str, *batch: int, seed: int = 0) -> Tensor:
    """Two sorts of steps in runs, as the case emits them."""
    generator = torch.Generator().manual_seed(seed)
    high = torch.rand(batch, generator=generator).cumsum(-1).floor().long() % 2
    shape = batch if case in ("poisson", "categorical") else (*batch, D)
    high = high if len(shape) == len(batch) else high.unsqueeze(-1).expand(shape)
    if case == "poisson":
        return torch.poisson(1.0 + 7.0 * high.double(), generator=generator)
    if case in ("categorical", "bernoulli"):
        swap = torch.rand(shape, generator=generator) < 0.25
        codes = torch.where(swap, 1 - high, high).double()
        rare = torch.rand(shape, generator=generator) < 0.2
        return codes.masked_fill(rare, 2.0) if case == "categorical" else codes
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    noise[..., 1] += 0.7 * noise[..., 0]
    return 4.0 * high.double() + noise


def gappy(case: str, *batch: int, seed: int = 0) -> Tensor:
    """The same with entries missing, the second step and the last one as a whole."""
    x = complete(case, *batch, seed=seed)
    scalar = x.dim() == len(batch)
    rows = x.unsqueeze(-1) if scalar else x
    rows[..., 1, :] = rows[..., -1, :] = NAN
    if not scalar:
        rows[..., 0, 0] = rows[..., 3, 1] = NAN
    return rows.squeeze(-1) if scalar else rows


def covariance(case: str, precisions: Array, k: int) -> Array:
    """The covariance (D, D) of a state."""
    own = precisions if case == "tied" else precisions[k]
    return np.asarray(np.linalg.inv(own if case in ("full", "tied") else np.eye(D) * own))


def step_log_prob(case: str, params: dict[str, Array], row: Any, k: int) -> float:
    """The log density of the observed entries of one step in one state."""
    shown = ~np.isnan(row)
    if not np.any(shown):
        return 0.0
    if case == "poisson":
        return float(stats.poisson(params["rates"][k]).logpmf(row))
    if case == "categorical":
        return float(np.log(params["probs"][k][int(row)]))
    if case == "bernoulli":
        return float(stats.bernoulli(params["probs"][k][shown]).logpmf(row[shown]).sum())
    return row_log_prob(row, params["locs"][k], covariance(case, params["precisions"], k))


def step_mean(case: str, params: dict[str, Array], row: Any, k: int) -> Any:
    """The mean of one whole step in one state, given its observed entries."""
    if case in ("full", "diag", "spherical", "tied"):
        spread = covariance(case, params["precisions"], k)
        return conditional(row, params["locs"][k], spread)[0]
    mean = params["rates"][k] if case == "poisson" else params["probs"][k]
    return np.where(np.isnan(row), mean, row)


class Paths:
    """Every path of one sequence (T, ...) and its posterior weight."""

    def __init__(self, case: str, params: dict[str, Tensor], x: Tensor) -> None:
        self.case, self.x = case, x.numpy()
        self.params = {name: value.detach().double().numpy() for name, value in params.items()}
        moves = np.log(self.params["transition"])
        if "initial" in self.params:
            initial = np.log(self.params["initial"])
        else:
            initial = np.log(np.linalg.matrix_power(self.params["transition"], 10_000)[0])
        self.paths = np.array(list(itertools.product(range(K), repeat=len(x))))
        steps = [[step_log_prob(case, self.params, row, k) for k in range(K)] for row in self.x]
        scores = [
            initial[path[0]]
            + sum(moves[i, j] for i, j in itertools.pairwise(path))
            + sum(steps[t][z] for t, z in enumerate(path))
            for path in self.paths
        ]
        self.log_likelihood = float(logsumexp(scores))
        self.weights = np.exp(np.array(scores) - self.log_likelihood)

    def marginals(self) -> Array:
        """The posterior of each step's state (T, K)."""
        second = self.weights @ self.paths
        return np.stack([1 - second, second], -1)

    def filled(self) -> Array:
        """The data, with conditional means (of a category, the mode) where entries are missing."""
        marginals = self.marginals()
        if self.case == "categorical":
            modes = (marginals @ self.params["probs"]).argmax(-1)
            return np.where(np.isnan(self.x), modes, self.x)
        means = [
            sum(w * step_mean(self.case, self.params, row, k) for k, w in enumerate(weights))
            for row, weights in zip(self.x, marginals, strict=True)
        ]
        return np.array(means)
