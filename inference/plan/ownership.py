"""Which states have parameters of their own: those of a mixture do, those of a grid do not."""

import torch

from ember.inference.numerics.shapes import prepend_dims
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.plan.plan import Plan
from ember.inference.reading.site import Site

__all__ = ["may_own_parameters", "sets_of_parameters"]


def sets_of_parameters(plan: Plan, latent: str) -> int:
    """How many rows of a table the states of a latent read in one observed site, at most."""
    symbol = plan.latent_symbols[latent]
    return max((_rows_read(plan.sites[n], symbol) for n in plan.structure.observed), default=0)


def may_own_parameters(plan: Plan, latent: str) -> bool:
    """Whether the states of a latent read different parameters, or it is not known what they do."""
    symbol = plan.latent_symbols[latent]
    others = [site for n, site in plan.sites.items() if n != latent]
    return any(not _is_known(site, symbol) or _rows_read(site, symbol) > 1 for site in others)


def _is_known(site: Site, symbol: str) -> bool:
    if symbol not in site.layout.outer:
        return True
    if site.density is None:
        return False
    return all(isinstance(found, ArgumentMap) for _, found in site.density.maps.values())


def _rows_read(site: Site, symbol: str) -> int:
    """How many different rows of parameters a site reads along a dim, in one of its arguments."""
    if symbol not in site.layout.outer or site.density is None:
        return 0
    rank = len(site.layout.outer) + site.layout.inner
    place, most = site.layout.outer.index(symbol), 0
    for _, found in site.density.maps.values():
        if isinstance(found, ArgumentMap) and found.table is not None:
            index = prepend_dims(torch.where(found.coefficient != 0, found.index, -1), rank)
            rows = index.movedim(place, 0).reshape(index.size(place), -1)
            most = max(most, len(torch.unique(rows, dim=0)))
    return most
