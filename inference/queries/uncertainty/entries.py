r"""Every entry of every parameter as a function of the free coordinates: the delta method.

.. math:: \operatorname{Cov} \hat\theta \approx J \operatorname{Cov}(\hat u) J^\top, \qquad
          J = \partial \theta / \partial u,

so that the rows of a simplex, say, have errors that agree with its sum of one. What the model
computes with ``pyro.deterministic`` comes after the parameters.

Reference: Oehlert (1992), *A note on the delta method*, The American Statistician 46, 27-29.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.parameter import Parameter, by_site, entry_labels
from ember.inference.parameters.supports import base_support, is_matrix, is_simplex, limits
from ember.inference.plan.plan import Params, Plan
from ember.inference.queries.deterministic import deterministic_values
from ember.inference.queries.uncertainty.differences import steps_around
from ember.inference.queries.uncertainty.observed_information import (
    ObservedInformation,
)

__all__ = ["Entries", "derivatives", "entries_of"]


@dataclass(frozen=True)
class Entries:
    """All entries of the parameters, then of what is computed from them, ``E`` in all.

    Attributes:
        shapes: Of each site.
        values: The estimates ``(E,)``.
        jacobian: Their derivatives by the free coordinates, ``(E, A)``.
        lower: The least value that an entry may have, ``(E,)``.
        upper: The largest.
        at_boundary: Which lie at a boundary, or on their way to one, ``(E,)``.
    """

    shapes: dict[str, torch.Size]
    values: Tensor
    jacobian: Tensor
    lower: Tensor
    upper: Tensor
    at_boundary: Tensor

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """One number for each entry, in the shapes of the sites."""
        return by_site(flat, self.shapes)

    @functools.cached_property
    def labels(self) -> list[str]:
        """The name of each entry."""
        return entry_labels(self.shapes)


def entries_of(plan: Plan, params: Params, information: ObservedInformation) -> Entries:
    """The entries at the estimates, with their derivatives."""
    coordinates, point, places = information.coordinates, information.point, information.places
    computed = {n: _numbers(v) for n, v in deterministic_values(plan.structure, params).items()}
    blocks, lower, upper, at_boundary = [], [], [], []
    for parameter, own in coordinates:
        block = point.new_zeros(parameter.shape.numel(), len(point))
        block[:, own] = _derivatives(coordinates, parameter, point[own])
        blocks.append(block[:, places])
        low, high = _bounds(parameter)
        lower.append(low)
        upper.append(high)
        at_boundary.append(_held(parameter, information.at_boundary[own]))
    rest = sum(value.numel() for value in computed.values())

    def again(moved: Params) -> Tensor:
        found = deterministic_values(plan.structure, moved)
        return torch.cat([_numbers(found[name]).reshape(-1) for name in computed])

    blocks.append(derivatives(again, information) if rest else blocks[0][:0])
    values = {**{p.name: params[p.name] for p, _ in coordinates}, **computed}
    return Entries(
        {name: value.shape for name, value in values.items()},
        torch.cat([point.new_zeros(0), *(v.reshape(-1) for v in values.values())]),
        torch.cat(blocks),
        torch.cat([*lower, point.new_full((rest,), -math.inf)]),
        torch.cat([*upper, point.new_full((rest,), math.inf)]),
        torch.cat([*at_boundary, torch.zeros(rest, dtype=torch.bool)]),
    )


def _derivatives(coordinates: Coordinates, parameter: Parameter, own: Tensor) -> Tensor:
    """Of the entries of one parameter by its own coordinates; zero where these are infinite."""
    shape = coordinates.shape_of(parameter.name)

    def entries(free: Tensor) -> Tensor:
        value = parameter.to_constrained(free.reshape(shape)).expand(parameter.shape)
        return value.reshape(-1)

    with torch.enable_grad():
        found: Tensor = torch.autograd.functional.jacobian(entries, own)
    return found.nan_to_num()


def derivatives(function: Callable[[Params], Tensor], information: ObservedInformation) -> Tensor:
    """Of ``F`` numbers that follow from the parameters, ``(F, A)``, by differences."""
    point, places, steps = information.point, information.places, information.steps

    def numbers(vector: Tensor) -> Tensor:
        return function(information.coordinates.unflatten(vector))

    if not len(places):
        return numbers(point).unsqueeze(-1)[:, :0]
    around = steps_around(lambda vectors: map(numbers, vectors), point, places, steps)
    return torch.stack([(up - down) / width for up, down, width in around], -1)


def _numbers(value: Tensor) -> Tensor:
    return value.detach().to(torch.float64)


def _bounds(parameter: Parameter) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each entry."""
    base, shape = base_support(parameter.support), parameter.shape
    lower, upper = torch.full(shape, -math.inf).double(), torch.full(shape, math.inf).double()
    if is_simplex(base):
        lower, upper = torch.zeros_like(lower), torch.ones_like(upper)
    elif is_matrix(base):
        lower.diagonal(dim1=-2, dim2=-1).zero_()
    elif "Corr" in type(base).__name__:
        lower, upper = -torch.ones_like(lower), torch.ones_like(upper)
    elif "PositiveOrdered" in type(base).__name__:
        lower = torch.zeros_like(lower)
    else:
        low, high = limits(base)
        lower = lower if low is None else low.double().expand(shape)
        upper = upper if high is None else high.double().expand(shape)
    return lower.reshape(-1), upper.reshape(-1)


def _held(parameter: Parameter, held: Tensor) -> Tensor:
    """Which entries lie at a boundary, if some coordinates do."""
    if len(held) == parameter.shape.numel() and not is_matrix(parameter.support):
        return held
    return held.any().expand(parameter.shape.numel())
