"""Ways off the bounds of parameters: at an interval's end, or at zero, free reals feel no slope.

A logarithm or a logit of what lies next to its bound changes nothing, so that neither a search nor
the curvature sees that the objective rises inwards. The slope by the parameter itself does, by
Fisher's identity; where it vanishes too, as at a symmetric place, only looking helps.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ember.inference.maximisation.objective import expected_log_joint
from ember.inference.optimality.nearby import EStep, evaluated
from ember.inference.parameters.parameter import Parameter
from ember.inference.parameters.supports import edges
from ember.inference.plan.statistics import Statistics

__all__ = ["off_bounds"]


NEAR = 1e-6  # to a bound, relative to the interval's width, or to where the parameter starts
STEPS = (1e-3, 1e-2, 0.1, 0.3)  # inwards, relative to the same
ALONE = 8  # entries of a site that are tried one by one


@dataclasses.dataclass(frozen=True)
class _Entries:
    """Entries of a parameter that lie next to a bound.

    Attributes:
        name: The parameter.
        inwards: For each of its entries a unit of length that leads off the bound; 0 elsewhere.
        rise: What the slope promises for it.
    """

    name: str
    inwards: Tensor
    rise: Tensor


def off_bounds(
    e_step: EStep, parameters: Mapping[str, Parameter], statistics: Statistics, tolerated: float
) -> Statistics | None:
    """A place above one at which parameters lie on their bounds, farther inwards; or None.

    Args:
        e_step: One pass over the data.
        parameters: The parameters that may be moved.
        statistics: Of the place where the loop has come to rest.
        tolerated: A gain that does not count.
    """
    best = statistics
    for entries in _at_bounds(parameters, statistics, tolerated):
        for way in _ways(entries, tolerated):
            for step in STEPS:
                value = statistics.params[entries.name] + step * way
                moved = evaluated(e_step, {**statistics.params, entries.name: value})
                if moved is not None and moved.objective > best.objective + tolerated:
                    best = moved
            if best is not statistics:
                return best
    return None


def _at_bounds(
    parameters: Mapping[str, Parameter], statistics: Statistics, tolerated: float
) -> Iterator[_Entries]:
    """The parameters with entries next to a bound, off which the objective may rise."""
    near = {
        name: inwards
        for name, parameter in parameters.items()
        if (inwards := _inwards(parameter, statistics.params[name])) is not None
    }
    slopes = _slopes(statistics, near)
    for name, inwards in near.items():
        rise = slopes[name] * inwards
        open_ = (inwards != 0.0) & (rise > -tolerated)
        if bool(open_.any()):
            yield _Entries(name, torch.where(open_, inwards, 0.0), torch.where(open_, rise, 0.0))


def _inwards(parameter: Parameter, value: Tensor) -> Tensor | None:
    """The units that lead off the bounds, where some entry lies next to one."""
    lower, upper = (None if e is None else e.to(value) for e in edges(parameter.support))
    if lower is None and upper is None:
        return None
    unit = _unit(lower, upper, parameter.start.to(value))
    inwards = torch.zeros_like(value)
    if lower is not None:
        inwards = torch.where(value - lower <= NEAR * unit, unit, inwards)
    if upper is not None:
        inwards = torch.where(upper - value <= NEAR * unit, -unit, inwards)
    return inwards if bool((inwards != 0.0).any()) else None


def _unit(lower: Tensor | None, upper: Tensor | None, start: Tensor) -> Tensor:
    if lower is not None and upper is not None:
        return upper - lower
    bound = lower if lower is not None else upper
    assert bound is not None
    return (start - bound).abs()


def _slopes(statistics: Statistics, near: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the objective by some parameters themselves, by Fisher's identity."""
    none = {name: torch.full_like(inwards, -torch.inf) for name, inwards in near.items()}
    if not near:
        return none
    with torch.enable_grad():
        free = {name: statistics.params[name].detach().requires_grad_() for name in near}
        try:
            value = expected_log_joint(statistics, {**statistics.params, **free})
            found = torch.autograd.grad(value, [*free.values()], allow_unused=True)
        except (RuntimeError, ValueError, ArithmeticError):
            return none
    return {
        name: torch.zeros_like(free[name]) if slope is None else slope.nan_to_num(nan=-torch.inf)
        for name, slope in zip(near, found, strict=True)
    }


def _ways(entries: _Entries, tolerated: float) -> Iterator[Tensor]:
    """All entries of a site together, then one by one those that promise most."""
    yield entries.inwards
    places = (entries.inwards.reshape(-1) != 0.0).nonzero()[:, 0]
    if len(places) == 1:
        return
    rise = entries.rise.reshape(-1)
    if len(places) > ALONE:
        places = places[rise[places] > tolerated]
    for i in places[rise[places].argsort(descending=True)][:ALONE].tolist():
        alone = torch.zeros_like(entries.inwards).reshape(-1)
        alone[i] = entries.inwards.reshape(-1)[i]
        yield alone.reshape(entries.inwards.shape)
