"""Latents on nodes under variational inference, where a guide covers them as it does parameters.

A fit is of the same parameters all the same: what is said of them has the latents integrated out.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from ember.inference.initialisation.given_params import check_params
from ember.inference.initialisation.starting_params import Init, starting_params
from ember.inference.parameters.supports import is_real
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.queries.on_nodes import NodePosterior, values_of_nodes
from ember.inference.queries.prediction import posterior
from ember.inference.queries.units import UnitPosterior, unit_posterior
from ember.inference.variational.guides import Guide, sampled_sites

__all__ = ["latents_to_guide", "starting_values", "with_guided_latents"]


def latents_to_guide(guide: Guide, plan: Plan, asked: Collection[str]) -> list[str]:
    """The latents on nodes that a guide is to cover.

    Args:
        guide: The choice of the user, who says with a guide of their own what it covers.
        plan: The plan in which they are on nodes.
        asked: Latents to be integrated out instead.
    """
    names = [n for n in (*plan.structure.nodes, *plan.structure.units) if n not in asked]
    sampled = sampled_sites(guide, plan) if names else None
    return names if sampled is None else [name for name in names if name in sampled]


def with_guided_latents(plan: Plan, names: Collection[str]) -> Plan:
    """The plan with some latents on nodes among the parameters; itself if there are none."""
    if not names:
        return plan
    structure = plan.structure
    integrate = {**structure.wishes, **dict.fromkeys(names)}
    return build_plan(
        structure.model, structure.arguments, "map", integrate, misread=plan.opaque.misread
    )


def starting_values(
    marginal: Plan, plan: Plan, init: Init
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Where to start: parameters as in EM, guided latents at their posterior means there.

    Args:
        marginal: The plan in which those are latent.
        plan: The plan in which they are parameters; the same if there are none.
        init: The choice of the user, who may give values of either.

    Returns:
        The start, and the posterior standard deviations of guided latents on the whole line.
    """
    if plan is marginal:
        return starting_params(plan, init), {}
    if callable(init):
        init = init(*plan.structure.arguments.args, **plan.structure.arguments.kwargs)
    given: Mapping[str, Tensor] = {}
    if isinstance(init, Mapping):
        given = check_params(plan, init, partial=True)
        latents = marginal.on_nodes | marginal.of_units
        init = {name: value for name, value in init.items() if name not in latents}
    start = starting_params(marginal, init)
    latents = marginal.on_nodes | marginal.of_units
    guided = [name for name in plan.structure.parameters if name in latents]
    spread = {}
    with torch.no_grad():
        for name in guided:
            found = _posterior(marginal, start, name)
            parameter = plan.structure.parameters[name]  # dims that no plate uses have size 1
            start[name] = given.get(name, found.mean.reshape(parameter.shape))
            if is_real(parameter.support):
                spread[name] = found.stddev.reshape(parameter.shape)
    return {name: given.get(name, start[name]) for name in plan.structure.parameters}, spread


def _posterior(
    plan: Plan, params: Mapping[str, Tensor], name: str
) -> NodePosterior | UnitPosterior:
    """The posterior of a latent on nodes, of either kind."""
    found = unit_posterior(plan, params, name)
    if found is not None:
        return found
    return NodePosterior(values_of_nodes(plan, params, name), posterior(plan, params, name))
