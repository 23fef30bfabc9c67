"""What models with Gaussian latents share: how those are marked, and weak priors of variances."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ember.models.parts.checks import check_enough, row_frequency
from ember.models.parts.design import WEAK, called, usual_height
from ember.models.parts.missing import shown_entries
from ember.models.parts.orthonormal_design import Design, left_variance, orthonormal
from ember.models.parts.priors import Hyperparameters

__all__ = [
    "Line",
    "LinkLine",
    "coefficients_of_line",
    "computed",
    "gaussian_latent",
    "variance_site",
]

DF = 3.0  # an inverse gamma of mode scale / 5 and mean scale


def gaussian_latent(name: str, fn: TorchDistribution, how: str = "gaussian") -> Tensor:
    """Declare a latent that asks to be integrated, exactly unless said; others sample it."""
    asks: Any = {"integrate": how}
    value: Tensor = pyro.sample(name, fn, infer=asks)
    return value


def computed(name: str, value: Tensor) -> None:
    """Declare what parameters determine, as `pyro.deterministic` does, which forgets the dtype."""
    how: Any = {"_deterministic": True}
    pyro.sample(name, dist.Delta(value, event_dim=value.dim()), obs=value, infer=how)


@dataclass(frozen=True)
class Line:
    """The responses (N,) that are observed, their fixed part, and the default scale of the noise.

    Attributes:
        y: the responses, gaps left out.
        design: their covariates (N, F).
        frequency: how often each counts (N,).
        weights: how often each row counts, gaps included.
        shown: which rows are observed; None if all are.
    """

    y: Tensor
    design: Tensor
    frequency: Tensor
    weights: Tensor
    shown: Tensor | None

    @classmethod
    def of(cls, y: Tensor, design: Tensor, frequency: Tensor | Sequence[float] | None) -> Self:
        """Leave out the gaps of `y`, and refuse fewer than two rows."""
        shown = shown_entries(y)
        with called("y"):
            weights = row_frequency(frequency, y)
            kept = slice(None) if shown is None else shown
            check_enough(float(weights[kept].sum()), 1, "rows")
        return cls(y[kept], design[kept], weights[kept], weights, shown)

    def kept(self, rows: Tensor) -> Tensor:
        """The rows of another tensor (N, ...) whose response is observed."""
        return rows if self.shown is None else rows[self.shown]

    @functools.cached_property
    def coordinates(self) -> Design:
        """The orthonormal coordinates of the design."""
        return orthonormal(self.design, self.frequency)

    @functools.cached_property
    def left(self) -> Tensor:
        """The variance that the fixed part leaves, which tells the scale of all variances."""
        return left_variance(self.y, self.design, self.frequency)


@dataclass(frozen=True)
class LinkLine(Line):
    """A line on the scale of a link, where a variance of one is neither small nor large."""

    @functools.cached_property
    def left(self) -> Tensor:
        """The scale of all variances."""
        return self.y.new_ones(())

    def about(self, centre: Tensor) -> Self:
        """The same with covariates measured from a point (F,)."""
        return replace(self, design=self.design - centre)


def coefficients_of_line(
    line: Line, hyper: Hyperparameters, usual: tuple[Tensor, Tensor | float] | None = None
) -> Tensor:
    """Declare `coefficients` (F,): weak about a level line, whatever the units of its columns.

    Args:
        line: the responses and their covariates.
        hyper: hyperparameters, of which `mean` and `deviation` are read.
        usual: a height of the line, and what counts as a unit of it; those of normal responses
            unless given.
    """
    width = line.design.shape[1:]
    fn: TorchDistribution
    if hyper.given.get("deviation") is not None:
        mean = hyper.real("mean", width, 0.0)
        fn = dist.Normal(mean, hyper.above("deviation", width, 1.0)).to_event(1)
    else:
        offset = torch.zeros_like(line.y)
        height, unit = usual or usual_height(
            line.y, offset, line.design, line.frequency, "gaussian"
        )
        found = line.coordinates
        level = torch.zeros(width) if found.level is None else height * found.level
        mean = hyper.real("mean", width, lambda: level.to(line.y))
        fn = dist.MultivariateNormal(mean, scale_tril=(WEAK * unit * found.factor()).to(line.y))
    coefficients: Tensor = pyro.sample("coefficients", fn)
    return coefficients


def variance_site(
    name: str,
    hyper: Hyperparameters,
    keys: tuple[str, str],
    scale: Tensor,
) -> Tensor:
    """Declare a variance, or several as one event: `InverseGamma(df / 2, scale / 2)`.

    Args:
        name: the site.
        hyper: hyperparameters.
        keys: which of them are `df` and `scale`.
        scale: the default `scale`, of the site's shape.
    """
    df = hyper.above(keys[0], scale.shape, DF)
    rate = hyper.above(keys[1], scale.shape, lambda: scale)
    fn = dist.InverseGamma(df / 2, rate / 2).to_event(scale.dim())
    variance: Tensor = pyro.sample(name, fn)
    return variance
