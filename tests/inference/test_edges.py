"""Densities with edges: optima at kinks, and how sure they are."""

import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM, Laplace


def laplace_line(y: Tensor, X: Tensor) -> None:
    slopes = pyro.param("slopes", torch.zeros(X.shape[1], dtype=torch.float64))
    start = torch.tensor(1.0, dtype=torch.float64)
    scale = pyro.param("scale", start, constraint=constraints.positive)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Laplace(X @ slopes, scale), obs=y)


def data(seed: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    design = np.c_[np.ones(rows), rng.normal(size=(rows, columns))]
    return design @ rng.normal(size=columns + 1) + rng.laplace(size=rows), design


@pytest.mark.parametrize("seed", range(4))
def test_least_absolute_deviations(seed: int) -> None:
    """The optimum is a vertex, which a linear programme finds as well."""
    y, design = data(seed, 40 + 7 * seed, 1 + seed % 3)
    n, p = design.shape
    cost = np.r_[np.zeros(p), np.ones(2 * n)]
    equal = np.c_[design, np.eye(n), -np.eye(n)]
    limits = [(None, None)] * p + [(0, None)] * (2 * n)
    least: Any = scipy.optimize.linprog(cost, A_eq=equal, b_eq=y, bounds=limits).fun
    fit = EM(laplace_line, "mle", seed=0).fit(torch.as_tensor(y), torch.as_tensor(design))
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(-n * math.log(2 * least / n) - n, abs=1e-4)


def location(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Laplace(mean, 1.0), obs=x)


@pytest.mark.parametrize("rows", [61, 60])
def test_errors_of_a_median(rows: int) -> None:
    """Of an even number of rows all is level around it."""
    x = torch.as_tensor(np.random.default_rng(5).laplace(1.0, 1.0, rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        error = float(EM(location, seed=0).fit(x).standard_errors()["mean"])
    assert error == pytest.approx(1.0 / math.sqrt(rows), rel=0.05)
    at = torch.linspace(-3, 5, 80_001, dtype=torch.float64)
    joint = dist.Laplace(at[:, None], 1.0).log_prob(x).sum(1) + dist.Normal(0.0, 5.0).log_prob(at)
    weights = (joint - joint.max()).exp()
    evidence = float(joint.max() + torch.trapezoid(weights, at).log())
    mean = (weights * at).sum() / weights.sum()
    deviation = float(((weights * (at - mean).square()).sum() / weights.sum()).sqrt())
    fit = Laplace(location, seed=0).fit(x)
    assert fit.log_evidence == pytest.approx(evidence, abs=0.5)
    assert float(fit.summary(errors=True)["std. error"].iloc[0]) == pytest.approx(
        deviation, rel=0.4
    )


def test_errors_of_one_series() -> None:
    """Its steps are not independent: differences over a standard deviation stand in for scores."""
    generator = torch.Generator().manual_seed(0)
    states = (torch.arange(60) // 10) % 2
    noise = dist.Laplace(torch.zeros(60, dtype=torch.float64), 1.0).icdf(
        torch.rand(60, generator=generator, dtype=torch.float64)
    )
    x = 6.0 * states + noise

    def model(x: Tensor) -> None:
        with pyro.plate("states", 2):
            moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2) * 2))
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        z: Any = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"x_{t}", dist.Laplace(locs[z], 1.0), obs=x[t])

    fit = EM(model, seed=0).fit(x)
    errors, steps = fit.standard_errors()["locs"], fit.posterior("z").probs.sum(0)
    torch.testing.assert_close(errors, steps.rsqrt(), rtol=0.5, atol=0.0)


def test_errors_of_groups_warn_of_nothing() -> None:
    """At a kink the slope is any number between two, and no sign that a fit has not converged."""
    x = torch.as_tensor(np.random.default_rng(1).laplace(size=(3, 5)))

    def model(x: Tensor) -> None:
        with pyro.plate("groups", 3, dim=-2):
            mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
            with pyro.plate("rows", 5, dim=-1):
                pyro.sample("x", dist.Laplace(mean, 1.0), obs=x)

    fit = EM(model, seed=0).fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bool((fit.standard_errors()["mean"] > 0.0).all())
