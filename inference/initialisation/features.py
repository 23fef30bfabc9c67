"""The data below each latent as rows: what the clusters of a start are made of."""

from collections.abc import Iterator

import pyro.distributions as dist
import torch
from torch import Tensor

from ember.inference.factors.chain import Chain
from ember.inference.factors.factor import align
from ember.inference.factors.lookup import MANY_LEVELS, levels_of
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site

__all__ = ["dims_of", "features", "inside_chain", "windows"]


def dims_of(plan: Plan, name: str) -> tuple[str, ...]:
    """The dims in which a latent has a value each, from left to right, then its own symbol."""
    return (*plan.places(name), plan.latent_symbols[name])


def features(plan: Plan) -> dict[str, Tensor]:
    """For each latent, the data below it as rows (one for each of its plates' entries)."""
    order = {symbol: i for i, symbol in enumerate(plan.latent_symbols.values())}
    names = list(plan.latent_symbols)
    columns: dict[str, list[Tensor]] = {}
    for site, dims in _readers(plan):
        latents = [symbol for symbol in dims if symbol in order]
        if site.value.numel() == 0:  # a pyro.factor statement
            continue
        if site.name not in plan.structure.observed or not latents:
            continue
        if plan.structure.is_channel(site.name):
            continue
        if levels_of(site) > MANY_LEVELS:  # words are all equally far apart
            continue
        # A site below several latents (x_t below the states t-1 and t) is the last one's; besides
        # those that are on nodes, of which each has a part in it.
        places = sorted(order[symbol] for symbol in latents)
        below = [names[place] for place in places]
        discrete = [name for name in below if name not in plan.on_nodes]
        for name in [*discrete[-1:], *(name for name in below if name in plan.on_nodes)]:
            plates = dims_of(plan, name)[:-1]
            if plan.sites[name].plates <= site.plates:
                columns.setdefault(name, []).append(_rows(plan, site.name, plates))
    return {name: torch.cat(parts, 1) for name, parts in columns.items()}


def _readers(plan: Plan) -> Iterator[tuple[Site, tuple[str, ...]]]:
    """All sites with the dims on which they depend, those of components among them."""
    for factor in plan.factors:
        if factor.name in plan.sites:
            yield plan.sites[factor.name], factor.dims
    for component in plan.components:
        for name, symbols in component.sites.items():
            yield plan.sites[name], symbols
    for integrated in plan.conjugate:
        for name, symbols in integrated.sites.items():
            yield plan.sites[name], symbols


def _rows(plan: Plan, name: str, plates: tuple[str, ...]) -> Tensor:
    site = plan.sites[name]
    value, outer = site.value, site.layout.outer
    event = value.shape[value.dim() - site.event_dim :]
    if site.missing is not None:
        value = value.masked_fill(site.missing, 0)
    value = value.expand([plan.sizes[s] if s in site.plates else 1 for s in outer] + list(event))
    shape = value.shape
    if site.density is not None and isinstance(site.density.base, dist.Categorical):
        # All levels that there are: the steps of a loop, each with a value of its own, are pooled.
        value = torch.nn.functional.one_hot(value.long().clamp_min(0), levels_of(site))
    value = value.to(torch.float64)
    if site.missing is not None:
        missing = site.missing.expand(shape)
        missing = missing.unsqueeze(-1) if value.dim() > len(shape) else missing
        value = value.masked_fill(missing, torch.nan)
    first = [outer.index(symbol) for symbol in plates]
    rest = [i for i in range(value.dim()) if i not in first]
    rows = torch.Size([plan.sizes[s] for s in plates]).numel()
    return value.permute(*first, *rest).reshape(rows, -1)


def inside_chain(chain: Chain, plates: tuple[str, ...]) -> Tensor:
    """Which steps belong to a chain, ``(T, *plates)``, dims of size 1 where it makes no odds."""
    order = torch.arange(chain.steps).reshape(-1, *(1,) * len(plates))
    if chain.lengths is None:
        return order < chain.steps
    dims, lengths = chain.lengths
    return order < align(lengths, dims, plates)


def windows(plan: Plan, name: str, rows: Tensor) -> Tensor:
    """Each step of a chain next to the one before and the one after it, which may be missing."""
    places = plan.places(name)
    chain = plan.chains[name]
    time = places.index(chain.time)
    steps = rows.reshape(*(plan.sizes[s] for s in places), -1).movedim(time, 0)
    inside = inside_chain(chain, tuple(place for i, place in enumerate(places) if i != time))
    steps = torch.where(inside.unsqueeze(-1), steps, torch.nan)
    edge = torch.full_like(steps[:1], torch.nan)
    three = torch.cat([steps, torch.cat([edge, steps[:-1]]), torch.cat([steps[1:], edge])], -1)
    return three.movedim(0, time).reshape(len(rows), -1)
