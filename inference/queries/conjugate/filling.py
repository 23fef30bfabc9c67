"""Missing entries below a latent with a conjugate prior: distributions to fill them from."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution, remade
from ember.inference.numerics.shapes import append_dims, prepend_dims
from ember.inference.plan.plan import Plan
from ember.inference.queries.conjugate.moments import EntryPosteriors
from ember.inference.reading.site import Site
from ember.inference.reading.unwrapping import given_arguments

__all__ = ["averaged", "entry_posteriors", "over_batch", "with_latent"]


def entry_posteriors(plan: Plan, params: Mapping[str, Tensor], site: Site) -> EntryPosteriors:
    """The posterior of the latent that a site reads."""
    assert site.conjugate is not None
    latent = site.conjugate.latent
    component = next(c for c in plan.conjugate if c.latent == latent)
    return EntryPosteriors.of(plan, params, component)


def averaged(site: Site, fn: Distribution, posterior: EntryPosteriors) -> Distribution:
    """The distribution of a site whose mean is that of its events, the latent averaged over.

    Args:
        site: The site.
        fn: Its distribution where the latent changes nothing.
        posterior: What is known of the latent.
    """
    slot = site.conjugate
    assert slot is not None
    if not slot.family.power:
        return with_latent(site, fn, _over_batch(site, posterior, posterior.distribution.mean))
    a, b = posterior.hyper.unbind(-1)
    if isinstance(fn, dist.Poisson):
        each = a / b
    elif isinstance(fn, dist.Gamma | dist.Exponential):
        each = (a - 1.0).clamp_min(0.0) / b  # the mean of one over it is infinite up to a = 1
    elif isinstance(fn, dist.LogNormal):
        each = torch.zeros_like(a)
    else:  # a location has the mean that it has, if there is one
        each = torch.where(a > 0.5, 1.0, torch.zeros_like(a))
    return with_latent(site, fn, _over_batch(site, posterior, each), natural=True)


def with_latent(site: Site, fn: Distribution, value: Tensor, natural: bool = False) -> Distribution:
    """The distribution of a site where its latent has a value.

    Args:
        site: The site.
        fn: Its distribution where the latent changes nothing.
        value: The value, over the site's batch.
        natural: Whether the value is that of the rate itself, not of the latent.
    """
    slot = site.conjugate
    assert slot is not None
    given = given_arguments(fn)
    event_dim, before = given[slot.argument]
    arguments: dict[str, Any] = {name: argument for name, (_, argument) in given.items()}
    if slot.exponent:
        exponent = slot.exponent / (slot.family.power if natural else 1.0)
        arguments[slot.argument] = before * append_dims(value**exponent, event_dim)
    elif not slot.family.is_vector:
        arguments[slot.argument] = torch.where(slot.swapped, 1.0 - value, value)
    else:
        arguments[slot.argument] = value
    if isinstance(fn, dist.Multinomial):
        arguments["total_count"] = fn.total_count
    return remade(fn, arguments)


def over_batch(site: Site, values: Tensor, width: int) -> Tensor:
    """Values of the entries ``(..., n, *event)`` as what each event of a site reads."""
    slot = site.conjugate
    assert slot is not None
    entries = torch.div(slot.entries, width, rounding_mode="floor")
    return values[entries]


def _over_batch(site: Site, posterior: EntryPosteriors, values: Tensor) -> Tensor:
    """Values ``(S, n, *event)`` over the batch of a site, dims of discrete latents included.

    Discrete latents that the site does not read itself are averaged over.
    """
    slot = site.conjugate
    assert slot is not None
    component, outer = posterior.component, site.layout.outer
    rank = len(outer) + site.layout.inner
    event = values.dim() - 2
    sizes = [size for _, size in component.states]
    values = values.reshape(*sizes, *values.shape[1:])
    weights = append_dims(posterior.weights.reshape(*sizes, -1), event)
    gone = [i for i, (symbol, _) in enumerate(component.states) if symbol not in outer]
    if gone:
        values = (weights * values).sum(gone) / weights.sum(gone)
    kept = [symbol for symbol, _ in component.states if symbol in outer]
    entries = torch.div(prepend_dims(slot.entries, rank), component.width, rounding_mode="floor")
    out = values.movedim(len(kept), 0)[entries]  # (*batch, *states, *event)
    for symbol in kept:
        out = out.transpose(outer.index(symbol), rank).squeeze(rank)
    return out
