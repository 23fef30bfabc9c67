"""Straight lines of subjects about a common one, whose first occasion reads no slope."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

TIMES = torch.stack([torch.ones(5), torch.arange(5.0)]).double()
positive = dist.constraints.positive


def measured(slopes: Tensor | None = None) -> Tensor:
    """Five occasions of forty subjects; their lines spread by one, or as told."""
    generator = torch.Generator().manual_seed(0)
    lines = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    lines = lines if slopes is None else lines * slopes
    return lines @ TIMES + torch.randn(40, 5, generator=generator, dtype=torch.float64)


def growth(Y: Tensor) -> None:
    """A height and a slope of each subject."""
    s = pyro.param("s", torch.tensor(1.0, dtype=torch.float64), constraint=positive)
    t = pyro.param("t", torch.ones(2, dtype=torch.float64), constraint=positive)
    mu = pyro.param("mu", torch.zeros(2, dtype=torch.float64))
    with pyro.plate("rows", len(Y)):
        b = pyro.sample("b", dist.Normal(mu, t).to_event(1))
        pyro.sample("Y", dist.Normal(b @ TIMES, s).to_event(1), obs=Y)


def marginal(params: Mapping[str, Tensor]) -> dist.MultivariateNormal:
    """The distribution of a subject's occasions, height and slope integrated out."""
    t, s, mu = (params[name] for name in ("t", "s", "mu"))
    covariance = TIMES.mT @ torch.diag(t**2) @ TIMES + s**2 * torch.eye(5).double()
    return dist.MultivariateNormal(mu @ TIMES, covariance)
