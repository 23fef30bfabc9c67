"""Models of rows with missing entries."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models import (
    bernoulli_mixture,
    categorical_mixture,
    gaussian_mixture,
    poisson_mixture,
)
from tests.inference.gaps import clusters, with_gaps

STRUCTURES = ("full", "tied", "diag", "spherical")


def covariances_of(params: dict[str, Tensor], components: int, dim: int) -> Tensor:
    """Every component's covariance (K, D, D), whatever the structure."""
    precisions = params["precisions"]
    if precisions.dim() == 1:
        return torch.eye(dim) / precisions[:, None, None]
    if precisions.shape == (components, dim):
        return torch.diag_embed(1.0 / precisions)
    return torch.as_tensor(torch.linalg.inv(precisions)).expand(components, dim, dim)


def as_numpy(params: dict[str, Tensor], dim: int) -> tuple[Any, Any, Any]:
    components = len(params["weights"])
    full = covariances_of(params, components, dim)
    return params["weights"].numpy(), params["locs"].numpy(), full.numpy()


# -- the E-step ------------------------------------------------------------------------------------


def plain(argument: str) -> Callable[..., None]:
    """A mixture as a user would write it, with any parametrisation of the normal."""

    def model(x: Tensor) -> None:
        dim = x.shape[1]
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 9.0).expand([dim]).to_event(1))
            support = dist.Wishart(torch.tensor(dim + 2.0), torch.eye(dim))
            matrices = pyro.sample("matrices", support)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            matrix = matrices
            if argument == "scale_tril":
                matrix = torch.linalg.cholesky(matrices)
            given: dict[str, Any] = {argument: matrix[z]}
            fn = dist.MultivariateNormal(locs[z], **given)
            pyro.sample("x", fn, obs=x)

    return model


MODELS: dict[str, tuple[Any, Tensor, dict[str, Any]]] = {
    **{
        covariance: (gaussian_mixture, with_gaps(clusters(40)), {"covariance": covariance})
        for covariance in STRUCTURES
    },
    "poisson": (poisson_mixture, with_gaps(clusters(40).abs().round()), {}),
    "bernoulli": (bernoulli_mixture, with_gaps((clusters(40).abs() > 2.0).double()), {}),
    "categorical": (
        categorical_mixture, with_gaps(clusters(40).clamp(0.0, 2.0).round()), {"levels": 3},
    ),
}  # fmt: skip
