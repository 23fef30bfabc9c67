"""Multivariate normals with missing entries: published maximum-likelihood estimates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference import EM
from ember.models import gaussian_mixture, multivariate_normal

Cases = dict[str, dict[str, Any]]
Load = Callable[[str], pd.DataFrame]


def normal(x: Tensor) -> None:
    """A plain multivariate normal, as a user would write it."""
    dim = x.shape[1]
    mu = pyro.param("mu", torch.zeros(dim))
    sigma = pyro.param("sigma", torch.eye(dim), constraint=constraints.positive_definite)
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mu, sigma), obs=x)


@pytest.mark.parametrize("shift", [0.0, 1e6], ids=["", "far from the origin"])
@pytest.mark.parametrize("by", ["plain", "model", "mixture of one"])
@pytest.mark.parametrize("name", ["apple", "missvals", "airquality4"])
def test_missing_entries(
    name: str, by: str, shift: float, reference_data: Load, reference_cases: Cases
) -> None:
    case = reference_cases[f"mvn_missing_{name}"]
    table = reference_data(name)[case["columns"]] + shift
    assert table.isna().to_numpy().any()
    if by == "model":
        fit = EM(multivariate_normal, objective="mle").fit(table)
        mu, sigma = fit.params["locs"], torch.linalg.inv(fit.params["precisions"])
    elif by == "mixture of one":
        fit = EM(gaussian_mixture, "mle").fit(table, components=1)
        mu = fit.params["locs"][0]
        sigma = torch.linalg.inv(fit.params["precisions"][0])
    else:
        fit = EM(normal, "mle").fit(table)
        mu, sigma = fit.params["mu"], fit.params["sigma"]
    assert fit.converged, fit.stop_reason
    expected = case["expected"]
    assert fit.log_likelihood == pytest.approx(
        expected["loglik"], abs=case["tolerance"]["loglik_abs"]
    )
    tolerance = case["tolerance"]["parameter_rel"]
    np.testing.assert_allclose(mu - shift, expected["parameters"]["mu"], rtol=tolerance)
    np.testing.assert_allclose(sigma, expected["parameters"]["Sigma"], rtol=tolerance)
