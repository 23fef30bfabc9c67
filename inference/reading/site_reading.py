"""Reads the sites of a traced model into factors: value, layout, mask and family."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ember.inference.families.exponential_form import ExponentialForm
from ember.inference.families.recognition import recognise
from ember.inference.numerics.observed_density import observed_log_prob
from ember.inference.numerics.shapes import broadcast_shapes, compact
from ember.inference.reading.argument_maps import argument_maps
from ember.inference.reading.computed import computed_form, is_below_nodes
from ember.inference.reading.known_results import same_value
from ember.inference.reading.masks import (
    full_mask,
    masked_log_prob,
    missing_entries,
    whole_events,
)
from ember.inference.reading.probes import Probes
from ember.inference.reading.site import DistributionTemplate, NamedDims, Site, fill_masked
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode, plates_of, symbols_of
from ember.inference.reading.unwrapping import Unwrapped, unwrap

__all__ = ["read_site", "with_rows_of"]


def read_site(
    name: str, structure: Structure, probes: Probes, start: Trace, idle: Tensor | None = None
) -> Site:
    """One latent, observed or parameter site: its value, layout, mask and family.

    Args:
        name: The site.
        structure: The roles of all sites.
        probes: The runs to compare.
        start: The trace at the default parameters, for shapes.
        idle: Entries of a latent that make no difference.
    """
    shown = _shown(name, start.nodes[name], structure, idle)
    form, density, reason = _family(
        name, structure, probes, shown.inner, shown.mask, shown.masked_log_prob
    )
    nodes = structure.nodes.get(name)
    return Site(
        name, shown.value, shown.layout, shown.plates, shown.inner, shown.mask,
        shown.masked_log_prob, shown.event_dim, form, density, reason, shown.missing,
        log_weights=None if nodes is None else nodes.log_weights,
    )  # fmt: skip


def with_rows_of(site: Site, structure: Structure, trace: Trace) -> Site:
    """A site with the value, the mask and the gaps that it has in another run, of other rows.

    Its maps stay as they are: whoever calls this knows that no row has one of its own.

    Args:
        site: The site, in exponential-family form.
        structure: The roles of all sites, for the other rows.
        trace: The other run.
    """
    assert site.density is not None
    node = trace.nodes[site.name]
    shown = _shown(site.name, node, structure, None)
    density = dataclasses.replace(
        site.density,
        base=unwrap(node["fn"]).base,
        mask=shown.mask,
        masked_log_prob=shown.masked_log_prob,
    )
    return dataclasses.replace(
        site,
        value=shown.value,
        mask=shown.mask,
        masked_log_prob=shown.masked_log_prob,
        missing=shown.missing,
        density=density,
    )


class _Shown(NamedTuple):
    """What one run shows of a site; see ``Site``."""

    value: Tensor
    layout: NamedDims
    plates: frozenset[str]
    inner: tuple[int, ...]
    mask: Tensor | None
    masked_log_prob: float
    event_dim: int
    missing: Tensor | None


def _shown(name: str, site: TraceNode, structure: Structure, idle: Tensor | None) -> _Shown:
    fn, value = site["fn"], site["value"]
    value = value.double() if value.is_floating_point() else value
    unwrapped = unwrap(fn)
    batch = broadcast_shapes(
        fn.batch_shape,
        value.shape[: value.dim() - fn.event_dim],
        () if site["mask"] is None else torch.as_tensor(site["mask"]).shape,
    )
    symbols = symbols_of(site)
    outer = tuple(symbols.get(i - len(batch), "") for i in range(len(batch)))
    plates = frozenset(symbols[plate.dim] for plate in plates_of(site))
    inner = tuple(fn.event_shape[: unwrapped.reinterpreted]) if unwrapped.reinterpreted else ()
    mask, missing = _masks(name, site, value, structure, idle)
    constant = masked_log_prob(site, unwrapped.mask, mask)
    return _Shown(
        value, NamedDims(outer, len(inner)), plates, inner, mask, constant, fn.event_dim, missing
    )


def _masks(
    name: str, site: TraceNode, value: Tensor, structure: Structure, idle: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Which entries of a site count, and which entries of data are to be integrated out."""
    unwrapped = unwrap(site["fn"])
    if name in structure.latent and not any(c.latent == name for c in structure.composites):
        # poutine.mask takes no prior off an enumerated latent; see reading/idle_latents.py.
        return (unwrapped.mask if idle is None else ~idle), None
    inner = site["fn"].event_shape[: unwrapped.reinterpreted]
    mask = full_mask(unwrapped.mask, site["mask"], len(inner))
    if name not in structure.observed:
        return mask, None
    of_chain = any(c.site == name and c.steps is not None for c in structure.composites)
    missing = missing_entries(site, value, unwrapped, of_chain)
    if missing is not None:
        gone = whole_events(missing, len(unwrapped.base.event_shape))
        mask = ~gone if mask is None else mask & ~gone
    return (None if mask is None else compact(mask)), missing  # one mask for all states of a row


def _family(
    name: str,
    structure: Structure,
    probes: Probes,
    inner: tuple[int, ...],
    mask: Tensor | None,
    constant: float,
) -> tuple[ExponentialForm | None, DistributionTemplate | None, str]:
    """The site's form and density as far as the probes reveal them, and why no further."""
    if probes.refusal:
        return None, None, probes.refusal
    sites = [trace.nodes[name] for trace in probes.traces]
    unwrapped = [unwrap(site["fn"]) for site in sites]
    base = unwrapped[0].base
    if len({type(u.base) for u in unwrapped}) > 1:
        return None, None, "its family changes with the parameters"
    if name not in structure.parameters and not all(
        same_value(site["value"], sites[0]["value"]) for site in sites[1:]
    ):
        return None, None, "its value depends on parameters"
    if is_below_nodes(name, structure, probes.traces[0].nodes):
        found = computed_form(name, structure, probes.traces[0].nodes, probes.params)
        return (None, None, found) if isinstance(found, str) else (found, None, "")
    maps = argument_maps(name, [u.base for u in unwrapped], structure, probes)
    if isinstance(maps, str):
        return None, None, maps
    rebuildable = bool(maps) or not base.arg_constraints
    if not rebuildable or (not maps and not _is_fixed(unwrapped, sites, mask)):
        return None, None, f"{type(base).__name__} cannot be rebuilt from its arguments"
    density = DistributionTemplate(base, maps, inner, mask, constant)
    form = recognise(base, maps)
    relied_on = isinstance(form, str) or name in structure.parameters
    if relied_on and not _rebuilds(density, probes.params[-1], sites[-1], unwrapped[-1]):
        return None, None, f"{type(base).__name__} cannot be rebuilt from its arguments"
    if isinstance(form, str):
        return None, density, form
    return form, density, ""


def _rebuilds(
    density: DistributionTemplate, params: Mapping[str, Tensor], site: TraceNode, fn: Unwrapped
) -> bool:
    """Whether the rebuilt distribution gives the site's value the density that the model gives."""
    try:
        value = fill_masked(site["value"], density.mask, len(fn.base.event_shape))
        again = observed_log_prob(density.distribution(params), value)
    except (TypeError, ValueError, RuntimeError):
        return False
    truth = observed_log_prob(fn.base, value)
    return bool(torch.isclose(again, truth, equal_nan=True).all())


def _is_fixed(
    unwrapped: Sequence[Unwrapped], sites: Sequence[TraceNode], mask: Tensor | None
) -> bool:
    """Whether a distribution of unknown make gives one density to one value in all runs."""
    value = fill_masked(sites[0]["value"], mask, len(unwrapped[0].base.event_shape))
    densities = [observed_log_prob(u.base, value) for u in unwrapped]
    return all(torch.equal(density, densities[0]) for density in densities[1:])
