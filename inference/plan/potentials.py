"""The log potential of every factor of a plan at given parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.factors.tied import TieKey
from ember.inference.plan.placing import placed
from ember.inference.plan.plan import Params, Plan

__all__ = ["Values", "all_tensors", "natural_parameters", "tensors", "values_of"]

Values = dict[TieKey, tuple[Tensor, ...]]


def values_of(plan: Plan, params: Params) -> Values:
    """The value of each parameter of all tied factors, in each of their cells."""
    return {key: tied.parameter_values(params) for key, tied in plan.tied.items()}


def natural_parameters(plan: Plan, values: Values) -> dict[TieKey, Tensor]:
    """``eta`` of the cells of all tied factors."""
    return {key: tied.family.natural_parameters(*values[key]) for key, tied in plan.tied.items()}


def tensors(
    plan: Plan,
    natural: Mapping[TieKey, Tensor],
    other: Mapping[str, Tensor],
    pooled: bool = False,
    pieces: Mapping[str, Mapping[TieKey, Tensor]] | None = None,
) -> list[Tensor]:
    """The log probability of every factor, in the plan's order.

    Args:
        plan: The plan.
        natural: Natural parameters of tied factors.
        other: The log probabilities of all other factors, and the potentials of members of
            components that have no natural parameters.
        pooled: Whether components that can be had without their rows are one number each.
        pieces: Of components the natural parameters once more for each piece of an expansion.
    """
    out = []
    components = {component.factor.name: component for component in plan.components}
    conjugate = {component.factor.name: component for component in plan.conjugate}
    units = {component.factor.name: component for component in plan.units}
    for factor in plan.factors:
        if factor.name in other:
            out.append(other[factor.name])
        elif factor.name in components:
            component = components[factor.name]
            whole = pooled and component.is_pooled
            own = None if pieces is None else pieces.get(factor.name)
            out.append(component.pooled(natural) if whole else component.log_prob(natural, own))
        elif factor.name in conjugate:
            out.append(conjugate[factor.name].log_prob(natural, other))
        elif factor.name in units:
            out.append(units[factor.name].log_prob(natural, other))
        else:
            key, compiled = plan.compiled[factor.name]
            out.append(compiled.log_prob(natural[key]))
    return out


def all_tensors(plan: Plan, params: Params) -> list[Tensor]:
    """The log probability of every factor at ``params``, latents at nodes that suit these."""
    plan = placed(plan, params)
    values = values_of(plan, params)
    with torch.no_grad():
        near = plan.residuals.needed(plan.tied, values)
    exact = plan.residuals.log_probs(near, plan.tied, params)
    other = {**plan.opaque.factor_log_probs(params), **exact}
    return tensors(plan, natural_parameters(plan, values), other)
