"""What a component emits: its parameter sites, and the distribution of a row given its component.

Mixtures and hidden Markov chains share these. Each function declares the sites of one family in a
plate over the components and returns the map from a component index `z` to a distribution; without
an index all components stand side by side in the last batch dimension, as chains want them.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.ops.indexing import Vindex
from torch import Tensor

from ember.models.parts.missing import normal_rows
from ember.models.parts.priors import (
    HALF_COUNT,
    Hyperparameters,
    count_mean,
    default_scale,
    default_variance,
    weighted_mean,
)

__all__ = [
    "BERNOULLI_KEYS",
    "COVARIANCES",
    "GAUSSIAN_KEYS",
    "POISSON_KEYS",
    "Emission",
    "TableEmission",
    "bernoulli_emission",
    "beside",
    "categorical_emission",
    "gaussian_emission",
    "poisson_emission",
    "select",
]

Emission = Callable[[Tensor], TorchDistribution]
TableEmission = Callable[[Tensor | None], TorchDistribution]

GAUSSIAN_KEYS = ("kappa", "mean", "df", "scale")
POISSON_KEYS = ("shape", "rate")
BERNOULLI_KEYS = ("concentration1", "concentration0")


class Wishart(dist.Wishart):  # type: ignore[misc]
    """Pyro's Wishart, quiet: torch warns "Singular sample detected" of every sound sample."""

    def rsample(
        self, sample_shape: Sequence[int] = (), max_try_correction: int | None = None
    ) -> Tensor:
        """Draw precision matrices."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Singular sample detected")
            draws: Tensor = super().rsample(torch.Size(sample_shape), max_try_correction)
        return draws


def select(table: Tensor, index: Tensor | None, event_dim: int, batch_dim: int = 1) -> Tensor:
    """The entries `table[index]` of a table (K, *event); both may have outer plates to the left.

    Without an index it is the whole table, with dims for sequences and steps after outer plates;
    its first `batch_dim` dims are then those of components.
    """
    if index is None:
        return beside(table, batch_dim + event_dim)
    if table.dim() == 1 + event_dim:
        return table[index]
    events = (slice(None),) * event_dim
    entries: Tensor = Vindex(table.unsqueeze(-2 - event_dim))[(..., index, *events)]
    return entries


def beside(table: Tensor, rank: int) -> Tensor:
    """A table of `rank` dims, two dims of size 1 added between it and outer plates."""
    lead = table.dim() - rank
    return table.reshape(*table.shape[:lead], 1, 1, *table.shape[lead:]) if lead else table


def gaussian_emission(
    rows: Tensor,
    frequency: Tensor,
    components: int | tuple[int, int],
    covariance: str,
    prior: Hyperparameters,
    plate: pyro.plate,
) -> TableEmission:
    """Declare `precisions` and then `locs` (K, D) given them, for rows (N, D).

    With `components` (K, M) the sites have a dimension for each, of which K alone is a plate.
    """
    sizes = (components,) if isinstance(components, int) else components
    return COVARIANCES[covariance](rows, frequency, sizes, prior, plate)


def _full(
    rows: Tensor,
    frequency: Tensor,
    sizes: tuple[int, ...],
    prior: Hyperparameters,
    plate: pyro.plate,
) -> TableEmission:
    features = rows.shape[-1]
    df = prior.above("df", sizes, features + 2.0, bound=features - 1)
    scale = prior.positive_definite(
        "scale",
        (*sizes, features, features),
        lambda: default_scale(rows, frequency, math.prod(sizes)),
    )
    mean, kappa = _location_prior(rows, frequency, sizes, prior)
    with plate:
        precisions = pyro.sample(
            "precisions", Wishart(df, precision_matrix=scale).to_event(len(sizes) - 1)
        )
        locs = pyro.sample(
            "locs",
            dist.MultivariateNormal(
                mean, precision_matrix=kappa[..., None, None] * precisions
            ).to_event(len(sizes) - 1),
        )
    normal = normal_rows(rows)
    return lambda z: normal(
        select(locs, z, 1, len(sizes)),
        precision_matrix=select(precisions, z, 2, len(sizes)),
    )


def _tied(
    rows: Tensor,
    frequency: Tensor,
    sizes: tuple[int, ...],
    prior: Hyperparameters,
    plate: pyro.plate,
) -> TableEmission:
    features = rows.shape[-1]
    df = prior.above("df", (), features + 2.0, bound=features - 1)
    scale = prior.positive_definite(
        "scale",
        (features, features),
        lambda: default_scale(rows, frequency, math.prod(sizes)),
    )
    mean, kappa = _location_prior(rows, frequency, sizes, prior)
    precisions = pyro.sample("precisions", Wishart(df, precision_matrix=scale))
    inner = (1,) * (len(sizes) - 1)  # outer plates stay to the left of all components
    shared = precisions.reshape(*precisions.shape[:-2], *inner, features, features)
    with plate:
        locs = pyro.sample(
            "locs",
            dist.MultivariateNormal(
                mean, precision_matrix=kappa[..., None, None] * shared
            ).to_event(len(sizes) - 1),
        )
    normal = normal_rows(rows)
    return lambda z: normal(
        select(locs, z, 1, len(sizes)),
        precision_matrix=beside(shared, 2) if z is None else precisions,
    )


def _diag(
    rows: Tensor,
    frequency: Tensor,
    sizes: tuple[int, ...],
    prior: Hyperparameters,
    plate: pyro.plate,
) -> TableEmission:
    shape = (*sizes, rows.shape[-1])
    df = prior.above("df", shape, 3.0)
    scale = prior.above("scale", shape, lambda: default_variance(rows, frequency, math.prod(sizes)))
    mean, kappa = _location_prior(rows, frequency, sizes, prior)
    inner = len(sizes) - 1
    with plate:
        precisions = pyro.sample("precisions", dist.Gamma(df / 2, scale / 2).to_event(1 + inner))
        deviations = (kappa[..., None] * precisions).rsqrt()
        locs = pyro.sample("locs", dist.Normal(mean, deviations).to_event(1 + inner))
    return lambda z: dist.Normal(
        select(locs, z, 1, len(sizes)),
        select(precisions, z, 1, len(sizes)).rsqrt(),
    ).to_event(1)


def _spherical(
    rows: Tensor,
    frequency: Tensor,
    sizes: tuple[int, ...],
    prior: Hyperparameters,
    plate: pyro.plate,
) -> TableEmission:
    df = prior.above("df", sizes, rows.shape[-1] + 2.0)
    scale = prior.above(
        "scale",
        sizes,
        lambda: default_variance(rows, frequency, math.prod(sizes)).mean(),
    )
    mean, kappa = _location_prior(rows, frequency, sizes, prior)
    inner = len(sizes) - 1
    with plate:
        precisions = pyro.sample("precisions", dist.Gamma(df / 2, scale / 2).to_event(inner))
        deviations = (kappa * precisions).rsqrt().unsqueeze(-1)
        locs = pyro.sample("locs", dist.Normal(mean, deviations).to_event(1 + inner))
    return lambda z: dist.Normal(
        select(locs, z, 1, len(sizes)),
        select(precisions, z, 0, len(sizes)).rsqrt().unsqueeze(-1),
    ).to_event(1)


def _location_prior(
    rows: Tensor, frequency: Tensor, sizes: tuple[int, ...], prior: Hyperparameters
) -> tuple[Tensor, Tensor]:
    """The prior mean (K, D) of the locations and how many rows it is worth (K,)."""
    shape = (*sizes, rows.shape[-1])
    mean = prior.real("mean", shape, lambda: weighted_mean(rows, frequency))
    return mean, prior.above("kappa", sizes, 0.01)


COVARIANCES = {"full": _full, "diag": _diag, "spherical": _spherical, "tied": _tied}


def poisson_emission(
    rows: Tensor, frequency: Tensor, components: int, prior: Hyperparameters, plate: pyro.plate
) -> TableEmission:
    """Declare `rates` (K,) for counts (N,), or (K, D) for counts (N, D)."""
    batch = (components, *rows.shape[1:])
    event_dim = rows.dim() - 1
    shape = prior.above("shape", batch, HALF_COUNT)
    rate = prior.above("rate", batch, lambda: shape / count_mean(rows, frequency))
    with plate:
        rates = pyro.sample("rates", dist.Gamma(shape, rate).to_event(event_dim))
    return lambda z: dist.Poisson(select(rates, z, event_dim)).to_event(event_dim)


def bernoulli_emission(
    items: int, components: int, prior: Hyperparameters, plate: pyro.plate
) -> TableEmission:
    """Declare `probs` (K, J) for J yes-or-no items."""
    shape = (components, items)
    ones = prior.above("concentration1", shape, HALF_COUNT)
    zeros = prior.above("concentration0", shape, HALF_COUNT)
    with plate:
        probs = pyro.sample("probs", dist.Beta(ones, zeros).to_event(1))
    return lambda z: dist.Bernoulli(select(probs, z, 1)).to_event(1)


def categorical_emission(
    name: str, shape: tuple[int, ...], prior: Hyperparameters, plate: pyro.plate
) -> TableEmission:
    """Declare the site `name` of level probabilities, of shape (K, L) or (K, J, L)."""
    concentration = prior.above("probs", shape, HALF_COUNT)
    event_dim = len(shape) - 2
    with plate:
        probs = pyro.sample(name, dist.Dirichlet(concentration).to_event(event_dim))
    return lambda z: dist.Categorical(select(probs, z, event_dim + 1)).to_event(event_dim)
