"""Estimates at a boundary of their support or on the way to infinity: they have no curvature.

A variance that vanishes, a probability of zero, an infinite dispersion, coefficients of groups that
are separated: the objective has no maximum inside, its gradient does not vanish there, and a
second derivative says nothing of how sure the estimate is.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.optimality.infinity import runaway
from ember.inference.optimality.nearby import EStep, evaluated, rounding
from ember.inference.optimality.vanishing import vanished_entries
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import INFINITY, ends
from ember.inference.plan.plan import Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["are_logarithms", "at_boundary", "on_their_way"]


ON_ITS_WAY = 0.02  # Newton step of a logarithm that may be on its way to a boundary
WEAK = 0.1  # information on a logarithm, below which it may be there
EXTREME = 12.0  # a logarithm whose derivatives may be rounding
FAR = 10.0  # units of a logarithm towards a boundary, beyond which nothing is lost if it is one
ROUNDING = 1e-10  # of the objective, relative, that counts as nothing lost


def are_logarithms(coordinates: Coordinates) -> Tensor:
    """Which coordinates have no units, and lead to bounds, ``(P,)``."""
    marked = [own if ends(p.support)[0] != INFINITY else own[:0] for p, own in coordinates]
    found = torch.zeros(len(coordinates), dtype=torch.bool)
    return found.index_fill_(0, torch.cat(marked), True) if marked else found


def at_boundary(
    plan: Plan, e_step: EStep, coordinates: Coordinates, current: Statistics, is_infinite: bool
) -> Tensor:
    """Which coordinates lie at a boundary by what the fit has said of them already, ``(P,)``.

    Args:
        plan: The plan.
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        current: The statistics of the estimates.
        is_infinite: Whether the fit ended because estimates run to infinity.
    """
    point = coordinates.flatten(current.params)
    held = coordinates.at_rest(point)
    gone: Mapping[str, Tensor] = vanished_entries(plan, current)
    for parameter, own in coordinates:
        if parameter.name in gone:
            held[own] |= gone[parameter.name]
    found = runaway(plan, e_step, coordinates, current) if is_infinite else None
    if found is not None:
        held[found.far] = True
    return held


def on_their_way(
    e_step: EStep,
    coordinates: Coordinates,
    current: Statistics,
    places: Tensor,
    gradient: Tensor,
    information: Tensor,
) -> Tensor:
    """Which of some coordinates are next to a boundary, ``(A,)``.

    Next to a bound the objective is linear in the parameter, or of low order. Then Newton's step
    along its logarithm is about one unit long, however near, and nothing is lost far beyond.

    Args:
        e_step: One pass over the data.
        coordinates: The free reals of the parameters.
        current: The statistics of the estimates.
        places: The coordinates that are asked for, ``(A,)``.
        gradient: Of the objective by them.
        information: Minus the second derivative by each.
    """
    newton, point = (gradient / information).abs(), coordinates.flatten(current.params)
    suspects = ~(newton < ON_ITS_WAY) | (information < WEAK)
    # Far out, as of a billion degrees of freedom, both are differences of scores that are rounding.
    suspects |= point[places].abs() > EXTREME
    suspects &= are_logarithms(coordinates)[places]
    if not bool(suspects.any()):
        return suspects
    reached = current.objective
    tolerated = max(ROUNDING * (1.0 + abs(reached)), 10.0 * rounding(e_step, current))
    for k in suspects.nonzero()[:, 0].tolist():
        heights = []
        for way in (-FAR, FAR):
            moved = point.clone()
            moved[places[k]] += way
            beyond = evaluated(e_step, coordinates.unflatten(moved))
            heights.append(-math.inf if beyond is None else beyond.objective)
        suspects[k] = max(heights) >= reached - tolerated
    return suspects
