"""Takes distributions apart: the arguments from which each can be rebuilt."""

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ember.inference.families.discrete import COUNTED
from ember.inference.numerics.distribution import Distribution
from ember.inference.reading.unwrapping import MATRICES, given_arguments

__all__ = ["Alternatives", "arguments_of"]


FEW, SMALL = 1_000, 250_000  # matrices, and their entries, that are inverted to be looked at
Alternatives = Mapping[str, list[tuple[str, int, Tensor]]]


def arguments_of(base: Distribution) -> Alternatives:
    """Each constructor argument: its alternatives as (domain, event dims, value), best first."""
    if isinstance(base, COUNTED):
        return {"probs": [("simplex", 1, base.probs)]}
    if isinstance(base, (dist.Bernoulli, dist.Geometric, dist.Binomial)):
        arguments = {"probs": [("unit", 0, base.probs)]}
        if isinstance(base, dist.Binomial):
            arguments["total_count"] = [("real", 0, base.total_count.to(base.probs.dtype))]
        return arguments
    if isinstance(base, dist.MultivariateNormal):
        given = next(name for name in MATRICES if name in base.__dict__)
        names = (given, *(name for name in MATRICES if name != given))
        shape = getattr(base, given).shape
        few = shape[:-2].numel() <= FEW and shape.numel() <= SMALL
        matrices = [(name, 2, getattr(base, name)) for name in (names if few else names[:1])]
        return {"loc": [("vector", 1, base.loc)], "matrix": matrices}
    return {
        name: [(_domain(base.arg_constraints[name]), event_dim, value)]
        for name, (event_dim, value) in given_arguments(base).items()
        if value.is_floating_point()
    }


def _domain(constraint: constraints.Constraint) -> str:
    if constraint.event_dim == 2:
        return "matrix"
    if constraint.event_dim == 1:
        return "simplex" if constraint is constraints.simplex else "vector"
    if constraint is constraints.unit_interval:
        return "unit"
    lower = getattr(constraint, "lower_bound", None)
    positive = lower is not None and bool((torch.as_tensor(lower) >= 0.0).all())
    return "positive" if positive else "real"
