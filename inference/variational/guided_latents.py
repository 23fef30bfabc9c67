"""Continuous latents under variational inference: the guide covers them, as it does parameters.

A fit is of the same parameters all the same: what is said of them has the latents integrated out.
"""

from collections.abc import Mapping

from torch import Tensor

from ember.inference.initialisation.given_params import check_params
from ember.inference.initialisation.starting_params import Init, starting_params
from ember.inference.plan.building import build_plan
from ember.inference.plan.plan import Plan
from ember.inference.queries.prediction import predict

__all__ = ["starting_values", "with_guided_latents"]


def with_guided_latents(plan: Plan) -> Plan:
    """The plan with continuous latents among the parameters; itself if it has none."""
    if not plan.on_nodes:
        return plan
    structure = plan.structure
    integrate = {**structure.integrate, **dict.fromkeys(structure.nodes)}
    return build_plan(
        structure.model, structure.arguments, "map", integrate, misread=plan.opaque.misread
    )


def starting_values(marginal: Plan, plan: Plan, init: Init) -> dict[str, Tensor]:
    """Where to start: parameters as in EM, continuous latents at their posterior means there.

    Args:
        marginal: The plan in which those are latent.
        plan: The plan in which they are parameters; the same if there are none.
        init: The choice of the user, who may give values of either.
    """
    if plan is marginal:
        return starting_params(plan, init)
    if callable(init):
        init = init(*plan.structure.arguments.args, **plan.structure.arguments.kwargs)
    given: Mapping[str, Tensor] = {}
    if isinstance(init, Mapping):
        given = check_params(plan, init, partial=True)
        init = {name: value for name, value in init.items() if name not in marginal.on_nodes}
    start = starting_params(marginal, init)
    found = predict(marginal, start)
    latents = found if isinstance(found, dict) else dict.fromkeys(marginal.structure.latent, found)
    return {
        name: given.get(name, start[name] if name in start else latents[name])
        for name in plan.structure.parameters
    }
