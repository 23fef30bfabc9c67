"""Densities with an edge: the best place along it is found, and holds nothing else up."""

import pyro
import pyro.distributions as dist
import pytest
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
