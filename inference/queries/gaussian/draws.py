"""Joint draws of Gaussian latents from their posterior, given draws of the discrete ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.factors.factor import align
from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.moments import ComponentPosterior
from ember.inference.queries.latent_draws import Latents, States

__all__ = ["component_draws", "joint_states", "state_draws"]


def state_draws(plan: Plan, params: Mapping[str, Tensor], draws: int) -> States:
    """Joint draws of the discrete latents; none if there are none."""
    return Latents.of(plan, params).draw(draws) if plan.latent_symbols else {}


def component_draws(
    plan: Plan, params: Mapping[str, Tensor], states: States, draws: int
) -> dict[str, Tensor]:
    """Draws of the entries of every component, ``(draws, n)``: one for each draw of the states.

    They are by the name of the component's factor.
    """
    out = {}
    for component in plan.components:
        chosen = joint_states(component, states, draws)
        posterior = ComponentPosterior.of(plan, params, component)
        out[component.factor.name] = posterior.draw(chosen)
    return out


def joint_states(component: GaussianComponent, states: States, draws: int) -> Tensor:
    """The number of the joint value of a component's discrete latents, ``(draws, R)``."""
    rows = tuple(symbol for symbol, _ in component.rows)
    sizes = [size for _, size in component.rows]
    joint = torch.zeros((draws, *sizes), dtype=torch.long)
    for symbol, size in component.states:
        dims, state = states[symbol]
        joint = joint * size + align(state, ("draws", *dims), ("draws", *rows))
    return joint.reshape(draws, -1)
