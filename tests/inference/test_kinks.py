"""Densities with an edge: the best place along it is found, and holds nothing else up."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.optimize
import torch
from torch import Tensor

from ember.inference import EM


def test_a_laplace_prior_is_a_soft_threshold() -> None:
    means = torch.tensor([0.02, -0.05, 1.4, -2.0], dtype=torch.float64)
    noise = torch.randn(25, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = means + noise - noise.mean(0)

    def model(x: Tensor) -> None:
        locs = pyro.sample("locs", dist.Laplace(0.0, 0.4).expand([4]).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(locs, 1.0).to_event(1), obs=x)

    fit = EM(model, seed=0).fit(x)  # the mean, drawn to zero by 1 / (0.4 N)
    right = means.sign() * (means.abs() - 1.0 / (0.4 * 25)).clamp_min(0.0)
    assert fit.converged, fit.stop_reason
    assert torch.allclose(fit.params["locs"], right, atol=1e-6)


def test_laplace_data_have_their_median_and_mean_deviation() -> None:
    x = torch.tensor([-3.0, -1.0, 0.2, 0.9, 1.1, 4.0, 9.0], dtype=torch.float64)

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(2.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Laplace(loc, scale), obs=x)

    fit = EM(model, "mle", seed=0).fit(x)
    right = (x - 0.9).abs().mean()
    assert float(fit.params["loc"]) == pytest.approx(0.9, abs=1e-6)
    assert float(fit.params["scale"]) == pytest.approx(float(right), rel=1e-6)


def test_laplace_errors_give_the_least_absolute_deviations() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(31, generator=generator, dtype=torch.float64)
    b = 5.0 + a + 0.1 * torch.randn(31, generator=generator, dtype=torch.float64)
    x = torch.stack([torch.ones_like(a), a, b], -1)
    y = x @ torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    y = y + torch.randn(31, generator=generator, dtype=torch.float64) ** 3

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.param("beta", torch.zeros(3))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Laplace(x @ beta, scale), obs=y)

    fit = EM(model, "mle", seed=0).fit(x, y)
    eye = np.eye(31)  # y = x beta + over - under
    right = scipy.optimize.linprog(
        np.r_[np.zeros(3), np.ones(62)],
        A_eq=np.c_[x.numpy(), eye, -eye],
        b_eq=y.numpy(),
        bounds=[(None, None)] * 3 + [(0, None)] * 62,
    )
    assert right.fun is not None
    assert right.x is not None
    deviation = right.fun / 31
    assert fit.converged, fit.stop_reason
    assert fit.log_likelihood == pytest.approx(-31 * (1.0 + math.log(2.0 * deviation)), rel=1e-7)
    assert np.allclose(fit.params["beta"].numpy(), right.x[:3], atol=1e-4)


def test_a_laplace_prior_on_correlated_columns_is_the_lasso() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    x = x + 3.0 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    y = x[:, 0] - 0.5 * x[:, 1] + torch.randn(40, generator=generator, dtype=torch.float64)

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Laplace(0.0, 0.05).expand([6]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)

    fit = EM(model, seed=0).fit(x, y)
    right = torch.zeros(6, dtype=torch.float64)
    for _ in range(5000):  # coordinate descent: one soft threshold after the other
        for j in range(6):
            pull = x[:, j] @ (y - x @ right + x[:, j] * right[j])
            right[j] = pull.sign() * (pull.abs() - 20.0).clamp_min(0.0) / x[:, j].square().sum()
    assert int((right == 0.0).sum()) >= 2
    assert fit.converged, fit.stop_reason
    assert torch.allclose(fit.params["beta"], right, atol=1e-5)


def test_a_corner_is_left_along_the_one_way_that_rises() -> None:
    """All coefficients start at 0, an edge of the prior for each; for one it is no maximum."""
    x = torch.tensor([[1.0, 2000.0, 1998.0], [1.0, 2001.0, 2003.0], [1.0, 1999.0, 1995.0]])
    x = torch.cat([x, x + torch.tensor([0.0, 1.0, -2.0])]).double()
    y = x @ torch.tensor([0.0, 0.0, 6.0], dtype=torch.float64)

    def model(x: Tensor, y: Tensor) -> None:
        beta = pyro.sample("beta", dist.Laplace(0.0, 4.0).expand([3]).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.StudentT(3.0, x @ beta, 1.0), obs=y)

    fit = EM(model, seed=0).fit(x, y)
    near = torch.tensor([0.0, 0.0, 6.0], dtype=torch.float64)
    floor = dist.StudentT(3.0, x @ near, 1.0).log_prob(y).sum()
    floor = float(floor + dist.Laplace(0.0, 4.0).log_prob(near).sum())
    assert fit.converged, fit.stop_reason
    assert fit.log_posterior >= floor
