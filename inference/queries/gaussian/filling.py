"""Missing entries of a site that reads Gaussian latents: conditional means, or draws."""

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.plan.plan import Plan
from ember.inference.queries.gaussian.draws import joint_states
from ember.inference.queries.gaussian.locations import Locations
from ember.inference.queries.gaussian.predictive import site_predictive
from ember.inference.queries.latent_draws import States

__all__ = ["drawn", "filled"]


def filled(plan: Plan, params: Mapping[str, Tensor], name: str) -> Tensor:
    """The data of a site, what is missing replaced by its mean given all that is observed."""
    return _completed(plan, name, site_predictive(plan, params, name).average)


def drawn(
    plan: Plan,
    params: Mapping[str, Tensor],
    name: str,
    states: States,
    latents: Mapping[str, Tensor],
    draws: int,
) -> Tensor:
    """Copies of the data of a site, what is missing drawn given draws of all latents.

    Args:
        plan: The plan of model and data.
        params: The estimates.
        name: The observed site.
        states: Draws of the discrete latents.
        latents: Draws ``(draws, n)`` of the entries of each component, by its factor's name.
        draws: How many there are.
    """
    slots = plan.sites[name].slots
    component = next(c for c in plan.components if slots[0].latent in c.latents)
    locations = Locations.of(plan, params, component, name)
    chosen = joint_states(component, states, draws)
    loc = locations.drawn(chosen, latents[component.factor.name])
    fn = locations.fn
    noise = torch.randn(loc.shape, dtype=loc.dtype)
    if isinstance(fn, dist.MultivariateNormal):
        factor = locations.of_states(locations.argument(fn.scale_tril, 2), chosen, 2)
        values = loc + (factor @ noise.unsqueeze(-1)).squeeze(-1)
    else:
        values = loc + locations.of_states(locations.argument(fn.scale, 0), chosen, 0) * noise
    shape = (draws, *locations.batch[locations.spare :], *fn.event_shape)
    return _completed(plan, name, values.reshape(shape))


def _completed(plan: Plan, name: str, values: Tensor) -> Tensor:
    """The data with their gaps filled."""
    site = plan.sites[name]
    shown = site.value.expand(values.shape)
    gaps = torch.zeros((), dtype=torch.bool) if site.missing is None else site.missing
    return torch.where(gaps.expand(values.shape), values, shown.to(values.dtype))
