"""Lays out Gaussian latents and the sites that read them as components of a plan."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ember.inference.factors.factor import Factor, Scale, same_scale, scale_ratio
from ember.inference.factors.gaussian.component import GaussianComponent, Natural, factor_of
from ember.inference.factors.gaussian.linked import LinkedFactor, compile_linked, merged
from ember.inference.factors.gaussian.linked_component import linked_component
from ember.inference.factors.gaussian.member import Member
from ember.inference.factors.gaussian.pencil import as_pencil
from ember.inference.factors.gaussian.row_wise import compile_row_wise
from ember.inference.factors.gaussian.row_wise_component import RowWiseComponent
from ember.inference.factors.gaussian.scaled import compile_scaled, is_scaled
from ember.inference.factors.gaussian.uniform import compile_uniform
from ember.inference.factors.tied import SiteCells
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.site import Site

__all__ = [
    "common_scale",
    "discrete_states",
    "gaussian_components",
    "outer_rows",
    "relative_scale",
    "row_numbers",
    "rows_of_entries",
]


Scales = Mapping[str, Scale | None]


def gaussian_components(
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    scales: Scales,
    sizes: Mapping[str, int],
    latent_symbols: Mapping[str, str],
    natural: Sequence[Natural],
    chains: Collection[str],
) -> tuple[GaussianComponent, ...]:
    """The components of a plan: latents that meet in a site belong to one.

    Args:
        sites: All sites; those with slots take part.
        cells: The cells of sites in exponential-family form.
        scales: Their weights.
        sizes: The size of every dim.
        latent_symbols: The dims of discrete latents, by latent.
        natural: The natural parameters of all cells at a few random parameters.
        chains: The sites of Gaussian chains that a distribution hides: their steps are alike.

    Raises:
        NotIntegrable: If a discrete latent has several values within a row of a component, or
            weights cannot be told apart.
    """
    linked = {name: site for name, site in sites.items() if site.slots}
    read = {name: {slot.latent for slot in site.slots} for name, site in linked.items()}
    out = []
    for group in _connected(read.values()):
        latents = {n: linked[n].value.numel() for n in linked if n in group}
        members = [site for name, site in linked.items() if read[name] & group]
        out.append(
            _component(
                latents, members, sites, cells, scales, sizes, latent_symbols, natural, chains
            )
        )
    return tuple(out)


def _component(
    latents: Mapping[str, int],
    members: Sequence[Site],
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    scales: Scales,
    sizes: Mapping[str, int],
    latent_symbols: Mapping[str, str],
    natural: Sequence[Natural],
    chains: Collection[str],
) -> GaussianComponent:
    rows = outer_rows(members, latents, sites, sizes)
    kept = {symbol for symbol, _ in rows}
    states = discrete_states(members, sites, sizes, latent_symbols, kept, next(iter(latents)))
    scale = common_scale(latents, scales, kept)
    within = {s.name: relative_scale(s.name, scales[s.name], scale, latents) for s in members}
    name = " and ".join(f"'{latent}'" for latent in latents)
    of_entry = torch.cat([rows_of_entries(sites[name], rows) for name in latents])
    over_time = any(site.name in chains for site in members)
    if rows and not over_time and not any(weight is not None for weight in within.values()):
        factor = factor_of(name, states, rows, scale)
        found = _row_wise(factor, latents, members, sites, cells, states, rows, of_entry)
        if found is not None:
            return found
    first = _first(latents)
    parts = [
        (site, cells[site.name], within[site.name], dict(states), first, row_numbers(site, rows))
        for site in members
    ]
    every, pooled = list[Member](), list[LinkedFactor]()
    for part in parts:
        alike = compile_uniform(*part) if part[0].name in chains else None
        if alike is not None:
            every += alike
        elif is_scaled(part[0]):
            every.append(compile_scaled(*part))
        else:
            pooled.append(compile_linked(*part))
    every += merged(pooled)
    whole = linked_component(name, latents, every, states, rows, of_entry, scale)
    return as_pencil(whole, natural) or whole


def _first(counts: Mapping[str, int]) -> dict[str, int]:
    """Where the entries of each latent begin."""
    first, total = dict[str, int](), 0
    for name, count in counts.items():
        first[name], total = total, total + count
    return first


def _row_wise(
    factor: Factor,
    latents: Mapping[str, int],
    members: Sequence[Site],
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    states: Sequence[tuple[str, int]],
    rows: Sequence[tuple[str, int]],
    of_entry: Tensor,
) -> RowWiseComponent | None:
    """The component by rows and columns, if its rows are alike."""
    if any(is_scaled(site) for site in members):
        return None
    count = math.prod(size for _, size in rows)
    sizes = {name: entries // count for name, entries in latents.items()}
    of_row = torch.arange(count)
    for name, entries in latents.items():
        begin = _first(latents)[name]
        own = of_entry[begin : begin + entries]
        if not torch.equal(own, of_row.repeat_interleave(sizes[name])):
            return None
    places = _first(sizes)
    found = [
        compile_row_wise(site, cells[site.name], dict(states), dict(rows), places, sizes)
        for site in members
    ]
    factors = tuple(each for each in found if each is not None)
    if len(factors) < len(found):
        return None
    entries_of = torch.cat(
        [
            _first(latents)[name] + torch.arange(size * count).reshape(count, size)
            for name, size in sizes.items()
        ],
        1,
    )
    symbols = {site.name: tuple(s for s, _ in states if s in site.layout.outer) for site in members}
    return RowWiseComponent(
        factor, dict(latents), tuple(states), tuple(rows), symbols, factors, entries_of
    )


def discrete_states(
    members: Sequence[Site],
    sites: Mapping[str, Site],
    sizes: Mapping[str, int],
    latent_symbols: Mapping[str, str],
    kept: set[str],
    latent: str,
) -> list[tuple[str, int]]:
    """The dims of the discrete latents that the sites of a component read, with their sizes.

    Args:
        members: The sites of the component.
        sites: All sites.
        sizes: The size of every dim.
        latent_symbols: The dims of discrete latents, by latent.
        kept: The plates that the component keeps outside.
        latent: A continuous latent of the component.

    Raises:
        NotIntegrable: If one of them has several values within a row of these plates.
    """
    owner = {symbol: name for name, symbol in latent_symbols.items()}
    used = {s for site in members for s in site.layout.outer if s in owner}
    for symbol in sorted(used):
        if sites[owner[symbol]].plates - kept:
            raise NotIntegrable(
                f"discrete latent '{owner[symbol]}' and continuous latent '{latent}' meet in a "
                "site, but the discrete one has several values for one value of the other: every "
                "combination would have to be integrated by itself. Give the two the same plates, "
                "or estimate the continuous one as a parameter with "
                f"integrate={{'{latent}': None}}."
            )
    return sorted((symbol, sizes[symbol]) for symbol in used)


def _connected(sets: Iterable[set[str]]) -> list[set[str]]:
    """Latents that meet in a site, with each other or by way of others."""
    groups: list[set[str]] = []
    for names in sets:
        touching = [group for group in groups if group & names]
        groups = [group for group in groups if not group & names]
        groups.append(names.union(*touching))
    return groups


# -- plates that stay outside -------------------------------------------------------------------


def outer_rows(
    members: Sequence[Site],
    latents: Mapping[str, int],
    sites: Mapping[str, Site],
    sizes: Mapping[str, int],
) -> list[tuple[str, int]]:
    """The plates of which every member reads its own row only, outermost first."""
    common = frozenset.intersection(*(site.plates for site in members))
    kept = [s for s in members[0].layout.outer if s in common]
    found, first = [], _first(latents)
    for symbol in kept:
        every = torch.cat(
            [_coordinate(sites[n], torch.arange(size), symbol) for n, size in latents.items()]
        )
        if all(
            _reads_own(site, every[first[slot.latent] + slot.entries], symbol)
            for site in members
            for slot in site.reads
        ):
            found.append((symbol, sizes[symbol]))
    return found


def _reads_own(site: Site, coordinate: Tensor, symbol: str) -> bool:
    own = _along(site, symbol)
    return bool((prepend_dims(coordinate, own.dim()) == own).all())


def _along(site: Site, symbol: str) -> Tensor:
    """The number of each event along a plate, at full rank."""
    rank = len(site.layout.outer) + site.layout.inner
    place = site.layout.outer.index(symbol)
    batch = site.value.shape[: site.value.dim() - site.event_dim + site.layout.inner]
    size = batch[place - rank + len(batch)] if place - rank + len(batch) >= 0 else 1
    shape = [1] * rank
    shape[place] = size
    return torch.arange(size).reshape(shape)


def _coordinate(latent: Site, entries: Tensor, symbol: str) -> Tensor:
    """Where entries of a latent lie along a plate; all at 0 if it has no value of its own there."""
    shape = latent.value.shape
    batch = len(shape) - (latent.event_dim - latent.layout.inner)
    rank = len(latent.layout.outer) + latent.layout.inner
    place = latent.layout.outer.index(symbol) - rank + batch
    if place < 0:
        return torch.zeros_like(entries)
    return entries // shape[place + 1 :].numel() % shape[place]


def row_numbers(site: Site, rows: Sequence[tuple[str, int]]) -> Tensor:
    """The row of every event of a site, at full rank."""
    rank = len(site.layout.outer) + site.layout.inner
    total = torch.zeros((1,) * rank, dtype=torch.long)
    for symbol, size in rows:
        total = total * size + _along(site, symbol)
    return total


def rows_of_entries(latent: Site, rows: Sequence[tuple[str, int]]) -> Tensor:
    """The row of every entry of a latent, flat."""
    entries = torch.arange(latent.value.numel())
    total = torch.zeros_like(entries)
    for symbol, size in rows:
        total = total * size + _coordinate(latent, entries, symbol)
    return total


# -- weights ------------------------------------------------------------------------------------


def common_scale(latents: Mapping[str, int], scales: Scales, kept: set[str]) -> Scale | None:
    """The weight that all latents of a component have."""
    names = list(latents)
    scale = scales[names[0]]
    for name in names[1:]:
        if not same_scale(scale, scales[name]):
            raise NotIntegrable(
                f"Gaussian latents '{names[0]}' and '{name}' depend on each other but have "
                "different poutine.scale weights; give them the same scale."
            )
    if scale is not None and not {*scale.dims} <= kept:
        raise NotIntegrable(
            f"latent '{names[0]}' has poutine.scale weights that vary over its plate, "
            "whose rows the sites that read it do not share; weigh the observed site alone."
        )
    return scale


def relative_scale(
    name: str, scale: Scale | None, common: Scale | None, latents: Mapping[str, int]
) -> Scale | None:
    """The weight of a site's events within the component's."""
    if common is None or same_scale(scale, common):
        return scale if common is None else None
    if name in latents:
        return None
    dims = tuple(sorted({*common.dims, *(scale.dims if scale else ())}))
    if scale is None:
        raise NotIntegrable(
            f"latent '{next(iter(latents))}' has a poutine.scale weight but site "
            f"'{name}' below it has none; put both inside the same poutine.scale, or scale the "
            "observed site alone."
        )
    return Scale(dims, scale_ratio(scale, common, dims))
