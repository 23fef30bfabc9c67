"""Lays out latents of units and the sites that read them as components of a plan."""

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.component import factor_of
from ember.inference.factors.tied import SiteCells
from ember.inference.factors.units.component import UnitComponent, UnitPrior
from ember.inference.factors.units.playback import Playback, unit_rows
from ember.inference.numerics.adaptive import MOST_ADAPTIVE_DIMS, Adaptive
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.plan.components import common_scale, relative_scale, row_numbers
from ember.inference.reading.site import Site
from ember.inference.reading.structure import Structure
from ember.inference.reading.units.linking import UnitGroup, unit_groups

__all__ = ["unit_components"]


Params = Mapping[str, Tensor]


def unit_components(
    structure: Structure,
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    scales: Mapping[str, Scale | None],
    sizes: Mapping[str, int],
    probes: Sequence[Params],
    misread: Collection[str],
) -> tuple[UnitComponent, ...]:
    """The components of a plan: latents that meet in a site belong to one.

    Args:
        structure: The model.
        sites: All sites.
        cells: The cells of sites in exponential-family form.
        scales: The weights of sites.
        sizes: The size of every dim.
        probes: Random parameters, at which what the model computes is recorded and checked.
        misread: Sites that are asked of the model at each step.

    Raises:
        ValueError: If a group of latents has too many dims, or its rules differ, nothing reads a
            latent, or weights cannot be told apart.
    """
    if not structure.units:
        return ()
    groups = unit_groups(sites, structure)
    return tuple(
        _component(g, structure, sites, cells, scales, sizes, probes, misread) for g in groups
    )


def _component(
    group: UnitGroup,
    structure: Structure,
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    scales: Mapping[str, Scale | None],
    sizes: Mapping[str, int],
    probes: Sequence[Params],
    misread: Collection[str],
) -> UnitComponent:
    latents = {name: structure.units[name] for name in group.latents}
    rule, monte_carlo = _rule(group, structure)
    first = sites[group.latents[0]]
    plates = [(s, sizes[s]) for s in first.layout.outer if s in first.plates]
    members = [sites[n] for n in (*group.latents, *group.children)]
    rows = plates if all(_stands_in(site, plates) for site in members) else []
    scale = common_scale(dict.fromkeys(latents, 0), scales, {symbol for symbol, _ in rows})
    factor = factor_of(" and ".join(f"'{n}'" for n in latents), (), rows, scale)
    within = {
        n: unit_rows(
            sites[n],
            sizes,
            group.count,
            relative_scale(n, scales[n], scale, dict.fromkeys(latents, 0)),
        )
        for n in group.asked
    }
    playback = Playback(structure, {n: sites[n] for n in group.asked}, within, group.latents)
    if not misread:
        playback = playback.recorded(probes)
    priors = {n: UnitPrior.of(sites[n], cells[n]) for n in latents if n not in group.asked}
    return UnitComponent(
        factor, latents, priors, playback, rule, tuple(size for _, size in rows if size > 1),
        monte_carlo=monte_carlo,
    )  # fmt: skip


def _rule(group: UnitGroup, structure: Structure) -> tuple[Adaptive, MonteCarlo | None]:
    """The rule that the latents of a group ask for, for all their dims together."""
    dims = sum(structure.units[name].dims for name in group.latents)
    listed = " and ".join(map(repr, group.latents))
    if dims > MOST_ADAPTIVE_DIMS:
        raise ValueError(
            f"the latents {listed} meet in a site and have {dims} entries together, and nodes "
            f"serve for {MOST_ADAPTIVE_DIMS} at most; use fewer, or estimate one as a parameter "
            f"(integrate={{'{group.latents[-1]}': None}})."
        )
    rules = {structure.units[name].rule for name in group.latents} - {Adaptive()}
    if len(rules) > 1:
        raise ValueError(
            f"the latents {listed} meet in a site, so they are integrated together, but ask for "
            "different rules; give both the same."
        )
    rule = next(iter(rules), Adaptive())
    if isinstance(rule, MonteCarlo):
        return Adaptive().for_dims(dims), rule
    return rule.for_dims(dims), None


def _stands_in(site: Site, plates: Sequence[tuple[str, int]]) -> bool:
    """Whether a site stands in the plates of the units, and each event reads its own."""
    if any(symbol not in site.plates for symbol, _ in plates):
        return False
    assert site.unit is not None
    own = row_numbers(site, plates)
    rank = len(site.layout.outer)
    own = own.reshape(own.shape[:rank])
    return bool((site.unit.units == own).all())
