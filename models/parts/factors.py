"""What factor models share: loadings, locations and the variances that the factors leave."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.checks import (
    check_enough,
    check_floats,
    check_size,
    check_tensor,
    row_frequency,
)
from ember.models.parts.design import WEAK
from ember.models.parts.gaussian_latents import DF, gaussian_latent
from ember.models.parts.priors import Hyperparameters, default_variance, weighted_mean

__all__ = [
    "FACTOR_KEYS",
    "Columns",
    "check_rows",
    "factors_site",
    "loadings_site",
    "locs_site",
    "noise_site",
]

FACTOR_KEYS = ("mean", "deviation", "loading", "df", "scale")


@dataclass(frozen=True)
class Columns:
    """The mean and the variance (D,) of the columns of the data, and the weight of each row."""

    mean: Tensor
    variance: Tensor
    weights: Tensor

    @staticmethod
    def of(x: Tensor, frequency: Tensor | Sequence[float] | None, given: bool) -> "Columns":
        """Those of rows (N, D); a constant column is refused unless its scale is `given`."""
        weights = row_frequency(frequency, x)
        check_enough(float(weights.sum()), 1, "rows")
        mean = weighted_mean(x, weights)
        variance = torch.ones_like(mean) if given else default_variance(x, weights, 1)
        return Columns(mean, variance, weights)

    def alike(self) -> "Columns":
        """The same with one variance for all columns, their mean."""
        return replace(self, variance=self.variance.mean().expand_as(self.variance))


def check_rows(x: object, factors: object, name: str = "factors") -> Tensor:
    """Return the data (N, D) if they can have that many factors."""
    x = check_tensor(x, {2: "(N, D)"}, "a single column has no factors")
    check_floats(x, gaps=True)
    size = check_size(factors, name)
    if size > x.shape[1]:
        raise ValueError(
            f"`{name}={size}` is more than the {x.shape[1]} columns of `x`: pass at most "
            f"{name}={x.shape[1]}."
        )
    return x


def loadings_site(
    columns: Columns, batch: tuple[int, ...], factors: int, hyper: Hyperparameters
) -> Tensor:
    """Declare `loadings` (*batch, D, q): of the size of each column's standard deviation."""
    shape = (*batch, len(columns.mean), factors)
    deviation = hyper.above("loading", shape, lambda: columns.variance.sqrt().unsqueeze(-1))
    loadings: Tensor = pyro.sample(
        "loadings", dist.Normal(torch.zeros_like(deviation), deviation).to_event(2)
    )
    return loadings


def locs_site(columns: Columns, batch: tuple[int, ...], hyper: Hyperparameters) -> Tensor:
    """Declare `locs` (*batch, D): ten standard deviations about the columns' means."""
    shape = (*batch, len(columns.mean))
    mean = hyper.real("mean", shape, lambda: columns.mean)
    deviation = hyper.above("deviation", shape, lambda: WEAK * columns.variance.sqrt())
    locs: Tensor = pyro.sample("locs", dist.Normal(mean, deviation).to_event(1))
    return locs


def noise_site(name: str, scale: Tensor, hyper: Hyperparameters, event_dim: int) -> Tensor:
    """Declare the variances that the factors leave: `InverseGamma(df / 2, scale / 2)`."""
    df = hyper.above("df", scale.shape, DF)
    rate = hyper.above("scale", scale.shape, lambda: scale)
    variances: Tensor = pyro.sample(name, dist.InverseGamma(df / 2, rate / 2).to_event(event_dim))
    return variances


def factors_site(factors: int, like: Tensor) -> Tensor:
    """Declare the latent `factors` (N, q) of the rows of a plate, independent standard normals."""
    zeros = like.new_zeros(factors)
    return gaussian_latent("factors", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
