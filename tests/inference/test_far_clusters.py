"""Clusters far apart relative to their width: the likelihood is that of each cluster by itself.

The oracle is two-pass numpy in extended precision: where clusters do not overlap, the maximum is
that of every cluster's own mean and covariance, and ``N log(1 / 2)`` for the weights.
"""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.models import gaussian_mixture, hidden_markov_gaussian, latent_profile

SEPARATIONS = [1e3, 1e6, 1e8]
HALF = 40  # rows of a cluster


def own(rows: np.ndarray[Any, Any]) -> float:
    """The maximum of the normal log likelihood of one cluster."""
    wide = np.asarray(rows, dtype=np.longdouble).reshape(len(rows), -1)
    centred = (wide - wide.mean(0)).astype(float)
    covariance = centred.T @ centred / len(rows)
    dim = wide.shape[1]
    determinant = np.linalg.slogdet(covariance)[1]
    return float(-0.5 * len(rows) * (determinant + dim + dim * np.log(2 * np.pi)))


def line(separation: float) -> tuple[Tensor, float]:
    generator = np.random.default_rng(1)
    left = generator.normal(size=HALF)
    right = separation + 0.5 * generator.normal(size=HALF)
    maximum = own(left) + own(right) - 2 * HALF * np.log(2)
    return torch.tensor(np.r_[left, right]), float(maximum)


def plane(separation: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    generator = np.random.default_rng(2)
    left = generator.normal(size=(HALF, 2))
    right = generator.normal(size=(HALF, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]])
    return left, right + np.array([separation, -separation])


def by_scale(x: Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([0.0, 1.0]))
    scales = pyro.param("scales", torch.ones(2), constraint=constraints.positive)
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], scales[z]), obs=x)


def by_precision(x: Tensor) -> None:
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.ImproperUniform(constraints.real, (), ()))
        precisions = pyro.sample("precisions", dist.ImproperUniform(constraints.positive, (), ()))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], precisions[z].rsqrt()), obs=x)


def known_scale(x: Tensor) -> None:
    locs = pyro.param("locs", torch.tensor([0.0, 1.0]))
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)


def by_matrix(x: Tensor, argument: str) -> None:
    lower = argument == "scale_tril"
    support: Any = constraints.lower_cholesky if lower else constraints.positive_definite
    locs = pyro.param("locs", torch.zeros(2, 2))
    matrices = pyro.param("matrices", torch.eye(2).repeat(2, 1, 1), constraint=support)
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        own: dict[str, Any] = {argument: matrices[z]}
        pyro.sample("x", dist.MultivariateNormal(locs[z], **own), obs=x)


@pytest.mark.parametrize("separation", SEPARATIONS)
@pytest.mark.parametrize("model", [by_scale, by_precision, "full", "profile"])
def test_single_numbers(model: Any, separation: float) -> None:
    x, maximum = line(separation)
    if model == "full":
        fit = EM(gaussian_mixture, "mle", seed=0).fit(x.unsqueeze(1), components=2)
    elif model == "profile":
        fit = EM(latent_profile, "mle", seed=0).fit({"continuous": x.unsqueeze(1)}, components=2)
    else:
        fit = EM(model, "mle", seed=0).fit(x)
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(maximum, rel=1e-10)


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_known_scale(separation: float) -> None:
    x, _ = line(separation)
    halves = x.reshape(2, HALF).numpy()
    squares = sum(((half - half.mean()) ** 2).sum() for half in halves)
    maximum = -0.5 * squares - HALF * np.log(2 * np.pi) - 2 * HALF * np.log(2)
    fit = EM(known_scale, "mle", seed=0).fit(x)
    assert fit.log_likelihood == pytest.approx(maximum, rel=1e-10)


@pytest.mark.parametrize("separation", SEPARATIONS)
@pytest.mark.parametrize("covariance", ["full", "diag", "tied", "spherical"])
def test_rows(covariance: str, separation: float) -> None:
    left, right = plane(separation)
    each = {
        "full": own(left) + own(right),
        "diag": sum(own(half[:, j]) for half in (left, right) for j in (0, 1)),
        "tied": own(np.r_[left - left.mean(0), right - right.mean(0)]),
        "spherical": sum(own((half - half.mean(0)).ravel()) for half in (left, right)),
    }
    x = torch.tensor(np.r_[left, right])
    fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components=2, covariance=covariance)
    maximum = each[covariance] - 2 * HALF * np.log(2)
    assert fit.log_likelihood == pytest.approx(maximum, rel=1e-9)


@pytest.mark.parametrize("argument", ["precision_matrix", "covariance_matrix", "scale_tril"])
def test_matrices_of_a_model_of_ones_own(argument: str) -> None:
    left, right = plane(1e6)
    maximum = own(left) + own(right) - 2 * HALF * np.log(2)
    fit = EM(by_matrix, "mle", seed=0).fit(torch.tensor(np.r_[left, right]), argument)
    assert fit.log_likelihood == pytest.approx(maximum, rel=1e-10)


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_chain(separation: float) -> None:
    left, right = plane(separation)
    moves = (HALF - 1) * np.log((HALF - 1) / HALF) + np.log(1 / HALF)
    fit = EM(hidden_markov_gaussian, "mle", seed=0).fit(torch.tensor(np.r_[left, right]), states=2)
    assert fit.log_likelihood == pytest.approx(own(left) + own(right) + moves, rel=1e-10)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_rows_with_gaps(covariance: str) -> None:
    left, right = plane(1e6)
    for half in (left, right):
        half[::4, 0] = np.nan
        half[1::4, 1] = np.nan
    alone = [
        EM(gaussian_mixture, "mle", seed=0).fit(torch.tensor(half), 1, covariance=covariance)
        for half in (left, right - np.nanmean(right, 0))
    ]
    maximum = sum(fit.log_likelihood for fit in alone) - 2 * HALF * np.log(2)
    x = torch.tensor(np.r_[left, right])
    fit = EM(gaussian_mixture, "mle", seed=0).fit(x, components=2, covariance=covariance)
    assert fit.log_likelihood == pytest.approx(maximum, rel=1e-9)


def test_several_starts_and_hard_assignment_reach_the_same() -> None:
    x, maximum = line(1e6)
    several = EM(by_precision, "mle", seed=0, restarts=6).fit(x)
    hard = EM(by_precision, "mle", seed=0, assignment="hard", accelerate=None).fit(x)
    assert several.log_likelihood == pytest.approx(maximum, rel=1e-10)
    assert hard.log_likelihood == pytest.approx(maximum, rel=1e-10)


def test_default_prior_of_far_clusters_has_the_textbook_mode() -> None:
    x, _ = line(1e6)
    fit = EM(gaussian_mixture, seed=0).fit(x.unsqueeze(1), components=2)
    mean, variance = x.mean(), x.var() / 4  # Fraley and Raftery: over K^(2 / D)
    for half in x.reshape(2, HALF):
        loc = (half.sum() + 0.01 * mean) / (HALF + 0.01)
        scatter = (half - loc).square().sum() + 0.01 * (loc - mean).square() + variance
        precision = (HALF + 3 + 1 - 2) / scatter
        found = int((fit.params["locs"][:, 0] - loc).abs().argmin())
        torch.testing.assert_close(fit.params["locs"][found, 0], loc, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(
            fit.params["precisions"][found, 0, 0], precision, rtol=1e-9, atol=0.0
        )


def test_rows_of_different_pieces_add_up() -> None:
    x, _ = line(1e6)
    em = EM(by_precision, "mle", seed=0)
    params = em.fit(x).params
    whole, pieces = em.e_step(params, x), [em.e_step(params, half) for half in x.reshape(2, HALF)]
    added = em.m_step(sum(pieces[1:], pieces[0]))
    assert sum(p.log_likelihood for p in pieces) == pytest.approx(whole.log_likelihood, rel=1e-12)
    for name, value in em.m_step(whole).items():
        torch.testing.assert_close(added[name], value, rtol=1e-9, atol=1e-9)
