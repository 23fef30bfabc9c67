"""Starts moved off the boundary of their supports, where unconstrained space has no point."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributions import transform_to

from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import base_support, limits

__all__ = ["moved_inside"]


SHARE = 0.05  # of the middle in a value that lay on the boundary
NEAR = 1e-6  # so close to a bound, by the width of the support, a gradient is hardly felt


def moved_inside(
    parameters: Mapping[str, Parameter], start: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Values with every entry (vector, matrix) on the boundary drawn a little to the middle.

    An M-step may end on the boundary: a share or a probability of exactly zero. A gradient in
    unconstrained coordinates cannot begin there. Supports are convex, so what lies between a value
    and the middle of its support is in the support too.
    """
    return {name: _inside(parameters[name], value) for name, value in start.items()}


def _inside(parameter: Parameter, value: Tensor) -> Tensor:
    outer = _at_the_boundary(parameter, value)
    if not bool(outer.any()):
        return value
    middle: Tensor = parameter.start.to(value.dtype)
    if bool(_at_the_boundary(parameter, middle).any()):
        free = transform_to(parameter.support).inverse_shape(value.shape)
        middle = parameter.to_constrained(torch.zeros(free, dtype=value.dtype))
    drawn = (1.0 - SHARE) * value + SHARE * middle
    return torch.where(outer, drawn, value)


def _at_the_boundary(parameter: Parameter, value: Tensor) -> Tensor:
    """Which entries belong to an event at the boundary; broadcasts to the value."""
    support = base_support(parameter.support)
    lower, upper = limits(support)
    if support is torch.distributions.constraints.simplex:
        return (value <= NEAR).any(-1, keepdim=True)
    if lower is not None and upper is not None:
        margin = NEAR * (upper - lower)
        near: Tensor = (value <= lower + margin) | (value >= upper - margin)
        return near
    if lower is not None:
        return value <= lower
    if upper is not None:
        return value >= upper
    transform = transform_to(support)
    free = transform.inv(value)
    event = transform.domain.event_dim
    beyond = ~torch.isfinite(free)
    for dim in range(1, event + 1):
        beyond = beyond.any(-dim, keepdim=True)
    return beyond
