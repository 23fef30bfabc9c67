"""One latent with a value for each unit, and the whole line on which it is integrated."""

import functools
from dataclasses import dataclass, field

import pyro.distributions as dist
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, constraints

from ember.inference.numerics.adaptive import MOST_ADAPTIVE_DIMS, Adaptive
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.parameters.supports import shown
from ember.inference.reading.runs import default_value
from ember.inference.reading.unwrapping import unwrap

__all__ = ["UnitLatent", "unit_latent"]


WITH_EDGES = (dist.Laplace, dist.AsymmetricLaplace)


@dataclass(frozen=True, eq=False)
class UnitLatent:
    """A continuous latent that is integrated unit by unit.

    Attributes:
        rule: How.
        origin: A value ``(*plates, *event)`` inside its support.
        batch: The sizes of its plates, which are those of the units.
        support: Its support.
    """

    rule: Adaptive | MonteCarlo
    origin: Tensor
    batch: Size
    support: constraints.Constraint = field(repr=False)

    @property
    def event(self) -> Size:
        """The shape of a unit's value."""
        return self.origin.shape[len(self.batch) :]

    @property
    def dims(self) -> int:
        """How many numbers a unit has."""
        return self.event.numel()

    @functools.cached_property
    def transform(self) -> Transform:
        """From the whole line onto its support."""
        transform: Transform = biject_to(self.support)
        return transform


def unit_latent(name: str, fn: Distribution, rule: Adaptive | MonteCarlo) -> UnitLatent:
    """The latent of a site.

    Raises:
        ValueError: If it has too many dims, or its support is no product of intervals.
    """
    size = fn.event_shape.numel()
    remedy = f"or estimate the site as a parameter (EM(model, integrate={{'{name}': None}}))"
    if size > MOST_ADAPTIVE_DIMS:
        raise ValueError(
            f"site '{name}' asks to be integrated by quadrature, but one value of it has {size} "
            f"entries, and nodes serve for {MOST_ADAPTIVE_DIMS} at most; use fewer dimensions, "
            f"{remedy}."
        )
    base = unwrap(fn).base
    if isinstance(base, WITH_EDGES):
        raise ValueError(
            f"site '{name}' asks to be integrated by quadrature, but its {type(base).__name__} "
            "prior has an edge, where no curvature says how far apart the nodes should stand; "
            f"write the site as a function of a Normal one, {remedy}."
        )
    origin = default_value(fn)
    latent = UnitLatent(rule, origin, fn.batch_shape, fn.support)
    try:
        same = latent.transform.inverse_shape(origin.shape) == origin.shape
    except NotImplementedError:
        same = False
    if not same:
        raise ValueError(
            f"site '{name}' asks to be integrated by quadrature, but its support is "
            f"{shown(fn.support)}, and nodes are placed for real numbers, positive ones and those "
            f"in an interval; write the site as a function of such a one, {remedy}."
        )
    return latent
