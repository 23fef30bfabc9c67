"""A plan for other rows of the data, without reading its model again.

Reading takes some ten runs of a model, most of which look for what its parameters do. Where no row
has maps of its own, as in a mixture or in many sequences of a hidden Markov model, they are the
same for any rows: of others only the values, masks and weights are new, and one run shows them. So
a model of many rows is read on a few of them, and of data that come in pieces it is read once.

The run is also compared with the maps. Where it says something else (covariates, exposures, a
constant computed from the data), there is no such plan, and the model has to be read.
"""

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from ember.inference.inputs.arguments import Arguments
from ember.inference.inputs.rows import taken
from ember.inference.parameters.argument_map import ArgumentMap
from ember.inference.parameters.map import ParameterMap
from ember.inference.parameters.parameter import Parameter
from ember.inference.plan.assembly import Reading, assembled, priors_of
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.priors import PriorSite
from ember.inference.reading.checks.misreading import agrees
from ember.inference.reading.checks.sites import check_observed
from ember.inference.reading.matching.arguments import PROBES, probe_values
from ember.inference.reading.probes import Probes
from ember.inference.reading.site import Site
from ember.inference.reading.site_reading import with_rows_of
from ember.inference.reading.structure import SiteSignature, Structure, signature_of
from ember.inference.reading.trace import Trace
from ember.inference.reading.unwrapping import unwrap

__all__ = ["can_be_rebound", "rebound", "with_some_rows"]


def can_be_rebound(plan: Plan) -> bool:
    """Whether no row of the data has maps of its own, and no latent spans several rows."""
    return plan.once(_sites_of_any_row) is not None


def rebound(
    plan: Plan, arguments: Arguments, keep_prior: bool = False, validated: bool = True
) -> Plan | None:
    """The plan for a model's other arguments, or None if the model has to be read for them.

    Args:
        plan: A plan of the same model.
        arguments: Arguments that differ in their rows.
        keep_prior: Whether the prior of ``plan`` is taken, whatever the model says of the new rows:
            a default prior that is scaled by the data is that of some data.
        validated: Whether to let Pyro look for data outside the support of their distribution.
    """
    templates = plan.once(_sites_of_any_row)
    if templates is None:
        return None
    try:
        structure = _structure_for(plan.structure, arguments, validated)
        at = probe_values(structure, 0)
        trace = structure.trace(at)
    except (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError):
        return None  # the reading says what is wrong
    if not _same_but_rows(plan, signature_of(trace)) or not _fits(structure, trace):
        return None
    structure = dataclasses.replace(structure, signature=signature_of(trace))
    if not all(_holds(site, at, trace) for site in templates.values()):
        return None
    sites = {name: with_rows_of(site, structure, trace) for name, site in templates.items()}
    priors = plan.priors if keep_prior else _priors_for(plan, structure, at, trace)
    reading = Reading(
        structure, trace, sites, priors, [], plan.objective, plan.unconstrained,
        plan.opaque.misread,
    )  # fmt: skip
    found = assembled(reading)
    if keep_prior:
        found = dataclasses.replace(found, prior=plan.prior)
    return found if found.row == plan.row and found.ties == plan.ties else None


def with_some_rows(plan: Plan, index: Tensor) -> Plan | None:
    """The plan for some of its own rows, with the prior of all; None as for ``rebound``."""
    few = taken(plan.structure.arguments, index)
    return rebound(plan, few, keep_prior=True, validated=False)


def _structure_for(structure: Structure, arguments: Arguments, validated: bool) -> Structure:
    """The roles of the sites for other arguments; where parameters start may be another place."""
    other = structure.with_arguments(arguments)
    if not validated:
        return other
    # Enumerated: a latent that has a value in each row makes arguments as many as rows.
    start = other.trace({}, validated=True)
    for name in structure.observed:
        check_observed(name, start.nodes[name])
    parameters = {n: _started(p, start) for n, p in structure.parameters.items()}
    return dataclasses.replace(other, parameters=parameters)


def _started(parameter: Parameter, start: Trace) -> Parameter:
    node = start.nodes.get(parameter.name)
    if not parameter.has_prior or node is None or node["value"].shape != parameter.shape:
        return parameter
    return dataclasses.replace(parameter, start=node["value"])


def _same_but_rows(plan: Plan, new: tuple[SiteSignature, ...]) -> bool:
    """Whether the sites are those of the plan, their numbers of rows aside."""
    old = plan.structure.signature
    if plan.row is None or len(old) != len(new):
        return False
    row = plan.plate_names[plan.row]
    return all(_without_rows(*pair, row) for pair in zip(old, new, strict=True))


def _fits(structure: Structure, trace: Trace) -> bool:
    """Whether the parameters would have the same shapes if they were drawn for these rows."""
    sampled = (p for p in structure.parameters.values() if p.has_prior)
    return all(trace.nodes[p.name]["fn"].shape() == p.shape for p in sampled)


def _without_rows(old: SiteSignature, new: SiteSignature, row: str) -> bool:
    shapes = len(old.shape) == len(new.shape)
    here = [(name, dim, -1 if name == row else size) for name, dim, size in old.plates]
    there = [(name, dim, -1 if name == row else size) for name, dim, size in new.plates]
    if not shapes or old[:2] != new[:2] or here != there:
        return False
    sizes = [{size for name, _, size in s.plates if name == row} for s in (old, new)]
    return all(
        a == b or (a in sizes[0] and b in sizes[1])
        for a, b in zip(old.shape, new.shape, strict=True)
    )


def _sites_of_any_row(plan: Plan) -> dict[str, Site] | None:
    """The sites with the maps that every row has, if all rows have the same."""
    structure, row = plan.structure, plan.row
    continuous = plan.components or plan.conjugate or plan.units or plan.on_nodes
    special = structure.held or structure.loops or structure.steps or structure.partly.latents
    if row is None or continuous or special or structure.partly.given or plan.opaque.factors:
        return None
    if plan.idle - {composite.latent for composite in structure.composites}:
        return None
    sites = {}
    for name, site in plan.sites.items():
        found = _of_any_row(site, row)
        if found is None:
            return None
        sites[name] = found
    return sites


def _of_any_row(site: Site, row: str) -> Site | None:
    """A site with the maps of its first row, if all rows read the same entries."""
    density, form = site.density, site.form
    if density is None or form is None or not site.is_plain or not density.is_plain:
        return None
    if form.is_computed or form.design is not None:
        return None
    if row not in site.layout.outer:
        return site
    place = len(site.layout.outer) - site.layout.outer.index(row) + site.layout.inner
    indices = [_of_first(index, place) for index in form.indices]
    maps: dict[str, tuple[str, ParameterMap]] = {}
    for name, (by, found) in density.maps.items():
        assert isinstance(found, ArgumentMap)
        events = density.base.arg_constraints[by].event_dim
        index, coefficient = _of_first(found.index, place), _of_first(found.coefficient, place)
        offset = _of_first(found.offset, place + events)
        if index is None or coefficient is None or offset is None:
            return None
        maps[name] = (
            by,
            dataclasses.replace(found, index=index, coefficient=coefficient, offset=offset),
        )
    known = tuple(index for index in indices if index is not None)
    if len(known) < len(indices):
        return None
    return dataclasses.replace(
        site,
        form=dataclasses.replace(form, indices=known),
        density=dataclasses.replace(density, maps=maps),
    )


def _of_first(tensor: Tensor, place: int) -> Tensor | None:
    """A tensor with a dim, counted from the right, shrunk to size 1; None if it varies there."""
    if tensor.dim() < place or tensor.size(-place) == 1:
        return tensor
    first = tensor.narrow(-place, 0, 1)
    return first if bool((tensor == first).all()) else None


def _holds(site: Site, params: Params, trace: Trace) -> bool:
    """Whether a run says of a site what its maps say; a variant for gaps is the same family."""
    assert site.density is not None
    fn = trace.nodes[site.name]["fn"]
    base, before = unwrap(fn).base, site.density.base
    if not isinstance(base, type(before)) and not isinstance(before, type(base)):
        return False
    return agrees(dataclasses.replace(site.density, base=base), params, fn)


def _priors_for(
    plan: Plan, structure: Structure, params: Params, trace: Trace
) -> dict[str, PriorSite]:
    """The priors for other rows, on which a default prior may depend."""
    priors = {name: prior.site for name, prior in plan.priors.items()}
    if all(site.density is not None and _holds(site, params, trace) for site in priors.values()):
        return plan.priors
    every = [probe_values(structure, seed) for seed in range(PROBES)]
    probes = Probes(every, [structure.trace(values) for values in every])
    by_site: Mapping[str, Probes] = dict.fromkeys(structure.plates, probes)
    return priors_of(structure, by_site, trace)
