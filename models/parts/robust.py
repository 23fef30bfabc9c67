"""What models with heavy tails share: weights of rows, and scales that outliers do not move."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ember.models.parts.of_data import of_data
from ember.models.parts.priors import Hyperparameters, default_variance, weighted_mean

__all__ = [
    "FREEDOM_KEYS",
    "check_freedom",
    "freedom_site",
    "left_scale",
    "middle",
    "spread",
    "weight_site",
]

FREEDOM_KEYS = ("df_shape", "df_rate")
SIGMA = 1.4826  # standard deviations of a Normal in its median absolute deviation
STEPS = 10  # towards the line of least absolute deviations


def check_freedom(df: object) -> float | None:
    """Return the degrees of freedom, or None where they are to be estimated."""
    if df is None:
        return None
    if isinstance(df, bool) or not isinstance(df, int | float):
        raise TypeError(
            f"`df` must be a number, or None for one to be estimated, not {type(df).__name__}."
        )
    if not 0.0 < df < float("inf"):
        raise ValueError(
            f"`df={df}` must be positive and finite; without heavy tails use the Gaussian model."
        )
    return float(df)


def freedom_site(df: float | None, shape: tuple[int, ...], hyper: Hyperparameters) -> Tensor:
    """Degrees of freedom: as given, or a site `df` with a Gamma prior, which likes 1 to 50."""
    if df is not None:
        return hyper.like.new_full(shape, df)
    prior = dist.Gamma(hyper.above("df_shape", shape, 2.0), hyper.above("df_rate", shape, 0.1))
    found: Tensor = pyro.sample("df", prior)
    return found


def weight_site(df: Tensor) -> Tensor:
    """Declare the latent weight `u` of each row, which multiplies its precision."""
    mark: Any = {"integrate": "conjugate"}
    weight: Tensor = pyro.sample("u", dist.Gamma(df / 2, df / 2), infer=mark)
    return weight


@of_data
def middle(rows: Tensor, frequency: Tensor) -> Tensor:
    """The median (D,) of each column (N, D), row n counted frequency[n] times, NaN left out."""
    columns = []
    for column in rows.unbind(-1):
        shown = ~column.isnan()
        values, order = column[shown].sort()
        share = frequency[shown][order].cumsum(0)
        half = 0.5 * share[-1]
        columns.append((values[share >= half][0] + values[_after(share, half)]) / 2)
    return torch.stack(columns)


def _after(share: Tensor, half: Tensor) -> int:
    """The place of the first value with more than half of the weight up to it."""
    return int((share > half).nonzero()[0])


@of_data
def spread(rows: Tensor, frequency: Tensor) -> Tensor:
    """The variance (D,) of each column by its median absolute deviation.

    A column of which half or more has one value has the variance of the moments.
    """
    deviations = (rows - middle(rows, frequency)).abs()
    variance = (SIGMA * middle(deviations, frequency)).square()
    if bool((variance > 0).all()):
        return variance
    return torch.where(variance > 0, variance, default_variance(rows, frequency, 1))


@of_data
def left_scale(y: Tensor, design: Tensor, frequency: Tensor) -> Tensor:
    """The variance that the line of least absolute deviations leaves, by the median of the rest.

    The line is found by weighted least squares, over and over, with one over the size of each
    residual as its weight.
    """
    basis = torch.linalg.qr(design).Q
    weights, rest = frequency.clone(), y
    for _ in range(STEPS):
        weighed = weights.unsqueeze(-1) * basis
        line = torch.linalg.lstsq(weighed.mT @ basis, weighed.mT @ y.unsqueeze(-1), driver="gelsd")
        rest = y - (basis @ line.solution).squeeze(-1)
        size = weighted_mean(rest.abs(), frequency)
        weights = frequency / rest.abs().clamp_min(1e-6 * size + torch.finfo(y.dtype).tiny)
    variance = (SIGMA * middle(rest.abs().unsqueeze(-1), frequency)[0]).square()
    overall = weighted_mean((y - weighted_mean(y, frequency)).square(), frequency)
    least = torch.where(overall > 0, 1e-8 * overall, 1.0)
    return torch.maximum(variance, least)
