"""Continuous latents on nodes: which sites may be, and where their nodes stand.

A latent on nodes is one more enumerated dim: ``OnGrid`` gives the site's distribution the values of
the grid as its support, and Pyro does the rest. The nodes follow the prior, at the parameters of
each E-step; in the M-step they are constants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ember.inference.numerics.adaptive import Adaptive
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.numerics.quadrature import (
    HALF_WIDTH,
    MOST_DIMS,
    Quadrature,
    uniform_grid,
)
from ember.inference.reading.unwrapping import unwrap

__all__ = ["Nodes", "OnGrid", "asks_for_nodes", "can_be_on_nodes", "nodes_of", "rule_of"]


PRIORS = (dist.Normal, dist.LogNormal, dist.MultivariateNormal)


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of one latent: values ``(Q, *event)``, and the log weight ``(Q,)`` of each."""

    rule: Quadrature
    values: Tensor
    log_weights: Tensor

    @property
    def shown(self) -> str:
        """How many there are, in words: 61, or 31 x 31."""
        return " x ".join([str(self.rule.nodes)] * (self.values[0].numel()))


class OnGrid(TorchDistribution):
    """A distribution whose support is taken to be some nodes; all else is left as it is."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # torch reads it from the class
    has_enumerate_support = True

    def __init__(self, fn: Any, values: Tensor) -> None:
        self.fn, self.values = fn, values
        super().__init__(fn.batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.fn.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "OnGrid":
        return OnGrid(self.fn.expand(torch.Size(batch_shape)), self.values)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.as_tensor(self.fn.sample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.as_tensor(self.fn.log_prob(value))

    def enumerate_support(self, expand: bool = False) -> Tensor:
        """The nodes, in a dim left of all others."""
        return self.values.reshape(-1, *(1,) * len(self.batch_shape), *self.event_shape)


def asks_for_nodes(how: object) -> bool:
    """Whether a wish for a site is one for nodes, or for draws."""
    words = ("quadrature", "monte-carlo")
    return how in words or isinstance(how, (Quadrature, Adaptive, MonteCarlo))


def can_be_on_nodes(fn: Distribution) -> bool:
    """Whether a site with this prior can be integrated on nodes."""
    return fn.event_shape.numel() <= MOST_DIMS and isinstance(unwrap(fn).base, PRIORS)


def rule_of(name: str, fn: Distribution, how: object) -> Quadrature:
    """The rule for a site that asks to be integrated on nodes.

    Raises:
        ValueError: If the site has more than two dims, or a prior that no grid is known for.
    """
    base, size = unwrap(fn).base, fn.event_shape.numel()
    if size > MOST_DIMS:
        raise ValueError(
            f"site '{name}' asks to be integrated by quadrature, but one value of it has {size} "
            f"entries, and a grid of nodes serves for {MOST_DIMS} at most; use fewer dimensions, "
            f"or estimate the site as a parameter (EM(model, integrate={{'{name}': None}}))."
        )
    if not isinstance(base, PRIORS):
        raise ValueError(
            f"site '{name}' asks for a grid of nodes, but its prior is {type(base).__name__}, and "
            "grids are placed for Normal, LogNormal and MultivariateNormal priors; ask for nodes "
            f"around each mode, integrate={{'{name}': Adaptive()}}."
        )
    return (how if isinstance(how, Quadrature) else Quadrature()).for_dims(size)


def nodes_of(fn: Distribution, rule: Quadrature) -> Nodes:
    """The grid that covers a prior, 7.5 standard deviations to each side, for all of its rows."""
    unwrapped, size = unwrap(fn), fn.event_shape.numel()
    base, assumed = unwrapped.base, rule.for_dims(size)
    assert assumed.nodes is not None
    is_log = isinstance(base, dist.LogNormal)
    if isinstance(base, dist.LogNormal):
        mean, deviation = base.loc, base.scale
    else:
        mean, deviation = base.mean, base.variance.sqrt()
    mean, deviation = (t.detach().reshape(-1, size) for t in (mean, deviation.expand(mean.shape)))
    lower = (mean - HALF_WIDTH * deviation).amin(0)
    upper = (mean + HALF_WIDTH * deviation).amax(0)
    points, volume = uniform_grid(lower, upper, assumed.nodes)
    weights = points.new_full((len(points),), volume)
    if is_log:
        weights, points = weights + points.sum(-1), points.exp()
    return Nodes(assumed, points.reshape(-1, *fn.event_shape), weights)
