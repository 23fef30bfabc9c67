r"""Densities without bound: there is no maximum, however high one climbs.

Where a scale goes to 0 the density may go to infinity. So does that of group effects together with
their scale, :math:`\prod_j N(\theta_j \mid \mu, \tau^2)` at :math:`\theta_j = \mu, \tau \to 0`:
effects whose scale is estimated must be integrated out.
"""

from typing import Any

import torch
from torch import Tensor

from ember.inference.maximisation.objective import score
from ember.inference.optimality.nearby import EStep, evaluated
from ember.inference.parameters.coordinates import Coordinates
from ember.inference.parameters.supports import INFINITY, NATURAL, bounds, ends, is_simplex
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.statistics import Statistics

__all__ = ["collapsed_effects", "without_bound"]


LEAST = 1e-30  # a scale of effects to begin with, whose square is still a number
NARROWER = 1e-3  # a scale of effects at each of two steps, relative to the one before
STRIDE = 5.0  # along a logarithm
AT_BOUNDARY = 1e-9, 1e-12  # probabilities next to it
RISE = 1.0  # of a log density at each of two steps, if it has no bound


def collapsed_effects(plan: Plan, e_step: EStep, statistics: Statistics) -> str:
    """A sentence about group effects that shrink without bound together with their scale, or none.

    The effects are put where their prior is centred, and the prior is made narrower twice.
    """
    params = statistics.params
    for name in plan.priors:
        for scale in _scales_of(plan, name):
            density = plan.priors[name].site.density
            around = density is None or "loc" in density.maps
            if not around and params[scale].numel() >= params[name].numel():
                continue  # the shape of a single value's prior, and no spread of several
            for factor in (NARROWER, 1.0 / NARROWER):
                if _rises(e_step, plan, params, name, scale, factor):
                    return _EFFECTS.format(scale=scale, name=name)
    return ""


def _scales_of(plan: Plan, name: str) -> list[str]:
    """Parameters that say how wide the prior of another is, or how it is otherwise shaped."""
    density, parameters = plan.priors[name].site.density, plan.structure.parameters
    if density is None:
        found = sorted(plan.dependencies(name))
    else:
        maps = density.maps.values()
        found = [s for argument, m in maps if argument != "loc" for s in m.sources]
    known = [s for s in dict.fromkeys(found) if s != name and s in parameters]
    return [s for s in known if ends(parameters[s].support) == (NATURAL, INFINITY)]


_EFFECTS = (
    "the density rises without bound as site '{scale}' narrows the prior of site '{name}' and the "
    "values of '{name}' come together: effects whose scale is estimated are random effects, and "
    "have no joint mode with it. Integrate them on nodes (integrate={{'{name}': 'quadrature'}}), "
    "or fix '{scale}', or give it a prior that keeps it away from there "
    "(LogNormal, InverseGamma), or observe the data under their marginal distribution, '{name}' "
    "integrated out."
)


def _rises(e_step: EStep, plan: Plan, params: Params, name: str, scale: str, factor: float) -> bool:
    """Whether the objective rises at two steps towards a prior of no width, effects at its mean."""
    values = []
    for power in (0, 1, 2):
        moved = {**params, scale: params[scale].clamp(LEAST, 1.0 / LEAST) * factor**power}
        try:
            moved[name] = _prior_mean(plan, name, moved)
        except (NotImplementedError, RuntimeError, ValueError, AttributeError):
            return False
        found = evaluated(e_step, moved)
        if found is None:
            return False
        values.append(found.objective)
    return values[1] - values[0] > RISE and values[2] - values[1] > RISE


def _prior_mean(plan: Plan, name: str, params: Params) -> Tensor:
    density = plan.priors[name].site.density
    if density is None:
        node: Any = plan.structure.trace(params).nodes[name]
        mean = node["fn"].mean
    else:
        mean = density.distribution(params).mean
    centre: Tensor = mean.detach()
    return centre.expand(params[name].shape).clone()


_CONCENTRATION = (
    "site '{name}' has a prior density without bound where a probability is 0 or 1 (a "
    "concentration below 1), and too few observations that hold it back; give the prior "
    "concentrations of at least 1, or use objective='mle' or mode='unconstrained'."
)


def _rises_at_boundary(plan: Plan, name: str, params: Params) -> bool:
    """Whether probabilities have come to a boundary at which their prior has no bound."""
    density, support = plan.priors[name].site.density, plan.structure.parameters[name].support
    value = params[name]
    if density is None or plan.unconstrained:
        return False
    if is_simplex(support):
        near, nearer = (value.clamp_min(p) / value.clamp_min(p).sum(-1, True) for p in AT_BOUNDARY)
    elif bounds(support) == (0.0, 1.0):
        near, nearer = (value.clamp(p, 1.0 - p) for p in AT_BOUNDARY)
    else:
        return False
    if torch.equal(nearer, near):
        return False
    try:
        heights = [density.log_prob({**params, name: v}, v).sum() for v in (near, nearer)]
    except (RuntimeError, ValueError, ArithmeticError):
        return False
    return bool(heights[1] - heights[0] > RISE)


def without_bound(
    plan: Plan, e_step: EStep, coordinates: Coordinates, statistics: Statistics
) -> str:
    """A sentence about the site along which the objective rises without bound, or none."""
    for name in plan.priors:
        if _rises_at_boundary(plan, name, statistics.params):
            return _CONCENTRATION.format(name=name)
    point = coordinates.inside(coordinates.flatten(statistics.params))
    slopes = score(statistics, coordinates, everywhere=True).nan_to_num()
    for name, parameter in plan.structure.parameters.items():
        own = torch.where(coordinates.places([name]), slopes, 0.0)
        if ends(parameter.support) == (INFINITY, INFINITY) or not bool((own != 0.0).any()):
            continue
        step = torch.zeros_like(own)
        i = int(own.abs().argmax())
        step[i] = STRIDE * torch.sign(own[i])
        there = [
            evaluated(e_step, coordinates.unflatten(point + times * step)) for times in (0, 1, 2)
        ]
        values = [found.objective for found in there if found is not None]
        if len(values) == 3 and min(values[1] - values[0], values[2] - values[1]) > RISE:
            where = "0" if float(step[i]) < 0.0 else "infinity"
            return (
                f"the objective rises without bound as site '{name}' goes to {where}; give it a "
                "prior that keeps it away from there, or fix it."
            )
    return ""
