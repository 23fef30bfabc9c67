"""Lays out latents with conjugate priors, each with the sites that read it."""

from collections.abc import Mapping

from torch import Tensor

from ember.inference.factors.conjugate.component import ConjugateComponent, Member
from ember.inference.factors.conjugate.member import compile_asked
from ember.inference.factors.conjugate.potentials import conjugate_statistics
from ember.inference.factors.factor import Scale
from ember.inference.factors.gaussian.component import factor_of
from ember.inference.factors.gaussian.linked import pooled_events
from ember.inference.factors.tied import SiteCells
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.plan.components import (
    common_scale,
    discrete_states,
    outer_rows,
    relative_scale,
    row_numbers,
    rows_of_entries,
)
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.site import Site
from ember.inference.reading.structure import Structure

__all__ = ["conjugate_components"]


Scales = Mapping[str, Scale | None]


def conjugate_components(
    structure: Structure,
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    asked: Mapping[str, Tensor],
    scales: Scales,
    sizes: Mapping[str, int],
    latent_symbols: Mapping[str, str],
) -> tuple[ConjugateComponent, ...]:
    """The components of a plan: one for each latent.

    Args:
        structure: The model.
        sites: All sites.
        cells: The cells of sites in exponential-family form.
        asked: Potentials, at some parameters, of the members without such a form.
        scales: The weights of sites.
        sizes: The size of every dim.
        latent_symbols: The dims of discrete latents, by latent.

    Raises:
        NotIntegrable: If nothing reads a latent, a discrete latent has several values within a row
            of a component, or weights cannot be told apart.
    """
    return tuple(
        _component(name, sites, cells, asked, scales, sizes, latent_symbols)
        for name in structure.conjugate
    )


def _component(
    latent: str,
    sites: Mapping[str, Site],
    cells: Mapping[str, SiteCells],
    asked: Mapping[str, Tensor],
    scales: Scales,
    sizes: Mapping[str, int],
    latent_symbols: Mapping[str, str],
) -> ConjugateComponent:
    own = sites[latent]
    assert own.conjugate is not None
    children = [s for s in sites.values() if _reads(s, latent) and s.name != latent]
    if not children:
        raise NotIntegrable(
            f"the latent '{latent}' is to be integrated as conjugate, but no site with data reads "
            f"it; leave it out, or estimate it as a parameter with integrate={{'{latent}': None}}."
        )
    members = [own, *children]
    latents = {latent: own.value.numel()}
    rows = outer_rows(members, latents, sites, sizes)
    kept = {symbol for symbol, _ in rows}
    states = discrete_states(members, sites, sizes, latent_symbols, kept, latent)
    scale = common_scale(latents, scales, kept)

    def compiled(site: Site) -> Member:
        relative = relative_scale(site.name, scales[site.name], scale, latents)
        numbers = row_numbers(site, rows)
        if site.form is None:
            return compile_asked(site, asked[site.name], relative, dict(states), numbers)
        statistics = conjugate_statistics(site, cells[site.name])
        assert site.conjugate is not None
        entries = prepend_dims(site.conjugate.entries, len(site.layout.outer) + site.layout.inner)
        return pooled_events(
            site, cells[site.name], statistics, [entries], latent, relative, dict(states), numbers
        )

    event = own.draw_shape.numel()
    factor = factor_of(f"'{latent}'", states, rows, scale)
    return ConjugateComponent(
        factor, latent, own.conjugate.family, own.value.numel() // event, event, compiled(own),
        tuple(compiled(site) for site in children), tuple(states), tuple(rows),
        rows_of_entries(own, rows)[::event],
    )  # fmt: skip


def _reads(site: Site, latent: str) -> bool:
    return site.conjugate is not None and site.conjugate.latent == latent
