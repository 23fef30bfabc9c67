"""The log potential of every factor of a plan at given parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.factors.tied import TieKey
from ember.inference.plan.plan import Params, Plan

__all__ = ["all_tensors", "natural_parameters", "residual_ties", "tensors"]


def natural_parameters(plan: Plan, params: Params) -> dict[TieKey, Tensor]:
    """``eta`` of the cells of all tied factors."""
    return {key: tied.natural_parameters(params) for key, tied in plan.tied.items()}


def tensors(
    plan: Plan, natural: Mapping[TieKey, Tensor], other: Mapping[str, Tensor]
) -> list[Tensor]:
    """The log probability of every factor, in the plan's order.

    Args:
        plan: The plan.
        natural: Natural parameters of tied factors.
        other: The log probabilities of all other factors.
    """
    out = []
    for factor in plan.factors:
        if factor.name in other:
            out.append(other[factor.name])
        else:
            key, compiled = plan.compiled[factor.name]
            out.append(compiled.log_prob(natural[key]))
    return out


def all_tensors(plan: Plan, params: Params) -> list[Tensor]:
    """The log probability of every factor at ``params``."""
    natural = natural_parameters(plan, params)
    near = plan.residuals.log_probs(residual_ties(plan, params), plan.tied, params)
    return tensors(plan, natural, {**plan.opaque.factor_log_probs(params), **near})


def residual_ties(plan: Plan, params: Params) -> frozenset[TieKey]:
    """Tied factors to be had by their residuals at ``params``."""
    with torch.no_grad():
        return plan.residuals.needed(plan.tied, params)
