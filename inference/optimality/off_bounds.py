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
from ember.inference.parameters.supports import inwards
from ember.inference.plan.statistics import Statistics

__all__ = ["off_bounds"]


STEPS = (1e-3, 1e-2, 0.1, 0.3)  # inwards, in these units
BESIDE = 1e-9  # inwards, where slopes are taken
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
        name: way
        for name, parameter in parameters.items()
        if (way := inwards(parameter, statistics.params[name])) is not None
    }
    slopes = _slopes(statistics, near)
    for name, way in near.items():
        rise = slopes[name] * way
        is_open = (way != 0.0) & (rise > -tolerated)
        if bool(is_open.any()):
            yield _Entries(name, torch.where(is_open, way, 0.0), torch.where(is_open, rise, 0.0))


def _slopes(statistics: Statistics, near: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the objective by some parameters themselves; NaN where it has none."""
    none = {name: torch.full_like(way, torch.nan) for name, way in near.items()}
    if not near:
        return none
    with torch.enable_grad():
        # On a bound itself a logarithm is cut off, and has no slope.
        free = {
            name: (statistics.params[name] + BESIDE * way).detach().requires_grad_()
            for name, way in near.items()
        }
        try:
            value = expected_log_joint(statistics, {**statistics.params, **free})
            found = torch.autograd.grad(value, [*free.values()], allow_unused=True)
        except (RuntimeError, ValueError, ArithmeticError):
            return none
    return {
        name: torch.zeros_like(free[name]) if slope is None else slope
        for name, slope in zip(near, found, strict=True)
    }


def _ways(entries: _Entries, tolerated: float) -> Iterator[Tensor]:
    """All entries of a site together, then one by one those that promise most."""
    yield entries.inwards
    if int((entries.inwards != 0.0).sum()) == 1:
        return
    rise = entries.rise.reshape(-1)
    places = (rise > tolerated).nonzero()[:, 0]
    for i in places[rise[places].argsort(descending=True)][:ALONE].tolist():
        alone = torch.zeros_like(entries.inwards).reshape(-1)
        alone[i] = entries.inwards.reshape(-1)[i]
        yield alone.reshape(entries.inwards.shape)
