"""A plan assembled from what was read of a model's sites: factors, tied by what they read."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ember.inference.factors.chain import Chain
from ember.inference.factors.conjugate.component import ConjugateComponent
from ember.inference.factors.exponential import compile_form
from ember.inference.factors.factor import CompiledFactor, Factor, Scale
from ember.inference.factors.gaussian.component import GaussianComponent
from ember.inference.factors.lookup import compile_lookup
from ember.inference.factors.missing import compile_site, starting_eta
from ember.inference.factors.opaque import OpaqueFactors
from ember.inference.factors.residuals.choice import ResidualFactors
from ember.inference.factors.superposed import compile_superposed
from ember.inference.factors.tied import SiteCells
from ember.inference.factors.units.component import UnitComponent
from ember.inference.families.superposition import SuperposedForm
from ember.inference.numerics.shapes import prepend_dims
from ember.inference.plan.components import gaussian_components
from ember.inference.plan.conjugate_components import conjugate_components
from ember.inference.plan.origins import about_origins, origins_of
from ember.inference.plan.plan import Params, Plan
from ember.inference.plan.priors import Prior, PriorSite
from ember.inference.plan.tying import tie_of_site, tie_sites
from ember.inference.plan.unit_components import unit_components
from ember.inference.reading.held import held_density
from ember.inference.reading.loops.loop import Loop
from ember.inference.reading.loops.stacking import lengths_of
from ember.inference.reading.opaque import factor_dims, model_dependencies
from ember.inference.reading.probes import Probes
from ember.inference.reading.site import Site
from ember.inference.reading.site_reading import read_site
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace

__all__ = ["Reading", "assembled", "priors_of"]


@dataclass(frozen=True, eq=False)
class Reading:
    """What was read of a model and its data.

    Attributes:
        structure: The roles of the model's sites.
        trace: The enumerated run that shapes, weights and masks are taken from.
        sites: The latent and observed sites.
        priors: The priors of the parameters that count in the objective.
        probed: The parameters at which the model was run.
        objective: "map" or "mle".
        unconstrained: Whether the mode is that of Pyro's unconstrained coordinates.
        misread: Sites to be asked of the model at each step.
        idle: Latents of which some entries make no difference.
    """

    structure: Structure
    trace: Trace
    sites: dict[str, Site]
    priors: dict[str, PriorSite]
    probed: Sequence[Params]
    objective: str
    unconstrained: bool = False
    misread: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()
    reached: Mapping[str, frozenset[str]] | None = None


def priors_of(
    structure: Structure, probes: Mapping[str, Probes], start: Trace
) -> dict[str, PriorSite]:
    """The prior of each parameter that has one."""
    priors = {}
    for name, parameter in structure.parameters.items():
        if not parameter.has_prior:
            continue
        site = read_site(name, structure, probes[name], start)
        scale = _weight(start.nodes[name])
        priors[name] = PriorSite(site, scale, tie_of_site(site))
    return priors


def assembled(reading: Reading) -> Plan:
    """The plan of what was read."""
    structure, trace, sites, priors = (
        reading.structure, reading.trace, reading.sites, reading.priors
    )  # fmt: skip
    origins = origins_of(sites)
    placed = about_origins(sites, origins)
    scales = {n: _scale(trace.nodes[n], site) for n, site in sites.items()}
    latent_symbols = {n: trace.nodes[n]["infer"]["_enumerate_symbol"] for n in structure.latent}
    tied, cells = tie_sites(placed)
    sizes = _sizes(trace, structure, latent_symbols)
    plain = {name: site for name, site in sites.items() if site.is_plain}
    folds = {name: _leaf_plates(site, sites, structure, scales, sizes)
             for name, site in plain.items()}  # fmt: skip
    compiled = {
        name: (own.key, _compiled(sites[name], own, folds[name]))
        for name, own in cells.items()
        if name in plain
    }
    dims = {
        name: compiled[name][1].dims if name in compiled else factor_dims(site, trace)
        for name, site in plain.items()
    }
    natural = [
        {key: each.natural_parameters(params) for key, each in tied.items()}
        for params in reading.probed
        if structure.gaussian
    ]
    hidden = [n for c in structure.gaussian_chains for n in (c.initial, c.latent, c.site)]
    components = gaussian_components(placed, cells, scales, sizes, latent_symbols, natural, hidden)
    opaque = _opaque(structure, sites, compiled, priors, reading)
    at_start = structure.start
    asked = opaque.factor_log_probs(at_start) if structure.conjugate else {}
    conjugate = conjugate_components(structure, sites, cells, asked, scales, sizes, latent_symbols)
    units = unit_components(structure, sites, cells, scales, sizes, reading.probed, reading.misread)
    factors = (
        *(Factor(n, dims[n], s.plates - folds[n].keys(), scales[n]) for n, s in plain.items()),
        *(component.factor for component in components),
        *(component.factor for component in conjugate),
        *(component.factor for component in units),
    )
    chains = _chains(structure, sites, factors, trace)
    sizes.update({c.previous: sizes[c.state] for c in chains.values()})
    return Plan(
        structure=structure,
        reached=reading.reached,
        objective=reading.objective,
        sites=sites,
        factors=factors,
        compiled=compiled,
        tied=tied,
        prior=Prior(
            priors,
            {name: structure.parameters[name].support for name in priors},
            held_density(trace, structure.held) if reading.objective == "map" else 0.0,
            reading.unconstrained,
            opaque if any(prior.site.density is None for prior in priors.values()) else None,
        ),
        opaque=opaque,
        components=components,
        origins=origins,
        conjugate=conjugate,
        units=units,
        ties={name: own.key for name, own in cells.items()},
        residuals=ResidualFactors(sites, _apart_from_nodes(structure, sites, cells), dims),
        sizes=sizes,
        latent_symbols=latent_symbols,
        scales=scales,
        chains=chains,
        row=_row_plate(sites, structure, (*components, *conjugate, *units)),
        plate_names={symbol: name for name, symbol in trace.plate_to_symbol.items()},
        starting_eta=starting_eta(sites, compiled, cells),
        idle=reading.idle | _masked_components(structure, sites),
        node_cells={name: cells[name] for name in structure.nodes if name in cells},
    )


def _leaf_plates(
    site: Site,
    sites: Mapping[str, Site],
    structure: Structure,
    scales: Mapping[str, Scale | None],
    sizes: Mapping[str, int],
) -> dict[str, int]:
    """Plates below all latents, such as that of the items that each person answers: their sizes.

    What is below a latent on nodes is summed over them, as over the dims of an event: one number
    for each node, row and item would fill the memory.
    """
    if site.form is None or not site.form.is_computed:
        return {}
    above = frozenset().union(*(sites[name].plates for name in structure.latent))
    scale = scales[site.name]
    weighed = frozenset(() if scale is None else scale.dims)
    return {s: sizes[s] for s in site.layout.outer if s in site.plates - above - weighed}


def _compiled(site: Site, cells: SiteCells, folded: Mapping[str, int]) -> CompiledFactor:
    """A site in exponential-family form, laid out for evaluation."""
    if folded:
        return compile_form(site, cells.index, cells.reference, folded)
    if isinstance(site.form, SuperposedForm):
        return compile_superposed(site, cells.index)
    lookup = compile_lookup(site, cells.index)
    return compile_site(site, cells.index, cells.reference) if lookup is None else lookup


def _apart_from_nodes(
    structure: Structure, sites: Mapping[str, Site], cells: Mapping[str, SiteCells]
) -> dict[str, SiteCells]:
    """The cells of sites that are tied to none whose values, or parameters, move with nodes."""
    forms = {name: sites[name].form for name in cells}
    computed = {name for name, form in forms.items() if form is not None and form.is_computed}
    computed |= {*structure.nodes, *structure.units}
    nodes = {own.key for name, own in cells.items() if name in computed}
    return {name: own for name, own in cells.items() if own.key not in nodes}


def _opaque(
    structure: Structure,
    sites: Mapping[str, Site],
    compiled: Collection[str],
    priors: Mapping[str, PriorSite],
    reading: Reading,
) -> OpaqueFactors:
    """The sites without sufficient statistics, and a tape of what the model is asked."""
    opaque = {n: site for n, site in sites.items() if n not in compiled and site.is_plain}
    names = tuple(opaque)
    members = {n: s for n, s in sites.items() if s.conjugate is not None and s.form is None}
    opaque |= members
    opaque |= {name: prior.site for name, prior in priors.items() if prior.tied is None}
    asked = {name: site for name, site in opaque.items() if site.density is None}
    played = {n: site for n, site in sites.items() if site.unit is not None and site.form is None}
    depends = {n: frozenset(d) for n, d in model_dependencies(structure, asked | played).items()}
    for (
        name
    ) in reading.misread:  # a branch leaves no gradient behind: any parameter may decide on it
        depends[name] = frozenset(structure.parameters) - {name}
    found = OpaqueFactors(
        structure, opaque, names, depends, reading.misread, members=tuple(members)
    )
    return dataclasses.replace(found, tape=found.recorded(list(reading.probed)))


def _weight(node: Any) -> Tensor:
    """The weight of a site by ``poutine.scale``; of a single number the shape does not matter."""
    scale = torch.as_tensor(node["scale"], dtype=torch.float64)
    return scale.reshape(()) if scale.numel() == 1 else scale


def _scale(node: Any, site: Site) -> Scale | None:
    scale = _weight(node)
    if bool((scale == 1.0).all()):
        return None
    if not bool((scale >= 0.0).all()):
        raise ValueError(
            f"site '{site.name}' has a negative or NaN poutine.scale weight; weights must be >= 0."
        )
    tensor, dims = site.layout.pack(scale)
    return Scale(dims, tensor)


def _masked_components(structure: Structure, sites: Mapping[str, Site]) -> frozenset[str]:
    """Components of mixtures whose rows are masked: latents of Ember's own, idle there."""
    chains = {c.site for c in structure.composites if c.steps is not None}
    names = [c.latent for c in structure.composites if c.site not in chains]
    return frozenset(name for name in names if sites[name].mask is not None)


def _sizes(trace: Any, structure: Structure, latent_symbols: Mapping[str, str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for name in structure.factor_names:
        node = trace.nodes[name]
        symbols = node["infer"]["_dim_to_symbol"]
        for frame in node["cond_indep_stack"]:
            if frame.vectorized:
                sizes[symbols[frame.dim]] = frame.size
        if name in latent_symbols:
            dim = node["infer"]["_enumerate_dim"]
            sizes[latent_symbols[name]] = node["value"].size(dim - node["fn"].event_dim)
    return sizes


def _chains(
    structure: Structure, sites: Mapping[str, Site], factors: Sequence[Factor], trace: Any
) -> dict[str, Chain]:
    """The hidden Markov chains by their latent site."""
    places = {factor.name: i for i, factor in enumerate(factors)}
    chains = {}
    for c in structure.chains:
        assert c.steps is not None
        if isinstance(c, Loop):
            lengths = lengths_of(trace, c)
        else:
            lengths = _lengths(sites[c.site], c.steps, c.time)
        chains[c.latent] = Chain(
            c.symbol, c.previous, c.time, places[c.initial], places[c.latent], c.steps,
            c.at_once, lengths,
        )  # fmt: skip
    return chains


def _lengths(site: Site, steps: int, time: str) -> tuple[tuple[str, ...], Tensor] | None:
    """How many steps each chain has: what follows its last observation is not part of it."""
    if site.mask is None:
        return None
    rank = len(site.layout.outer) + len(site.inner_shape)
    mask = prepend_dims(site.mask if site.missing is None else site.mask | _gone(site), rank)
    own = [i for i, symbol in enumerate(site.layout.outer) if symbol in site.plates]
    place = site.layout.outer.index(time)
    gone = [i for i in range(rank) if i not in own]
    seen = mask.amax(gone, keepdim=True) if gone else mask
    last = (
        seen
        * torch.arange(1, steps + 1, device=mask.device).reshape(-1, *(1,) * (rank - 1 - place))
    ).amax(place)
    kept = [i for i in own if i != place and seen.size(i) > 1]
    dims = tuple(site.layout.outer[i] for i in kept)
    return dims, last.reshape([seen.size(i) for i in kept])


def _gone(site: Site) -> Tensor:
    """Events of which every entry is missing: a step of a chain, though nothing was seen there."""
    assert site.missing is not None
    event = site.event_dim - len(site.inner_shape)
    return site.missing.flatten(site.missing.dim() - event).all(-1) if event else site.missing


def _row_plate(
    sites: Mapping[str, Site],
    structure: Structure,
    components: Sequence[GaussianComponent | ConjugateComponent | UnitComponent],
) -> str | None:
    """The plate whose rows are the observations: the innermost one common to all data."""
    # A pyro.factor statement is no observation: it has no value.
    observed = [sites[n] for n in structure.observed if sites[n].value.numel()]
    if not observed:
        observed = [sites[n] for n in structure.observed]
    common = frozenset.intersection(*(site.plates for site in observed))
    if structure.latent:
        # Rows must be independent: plates below a latent that spans them do not qualify.
        common &= frozenset.intersection(*(sites[n].plates for n in structure.latent))
    for component in components:
        common &= component.factor.plates
    for symbol in reversed(observed[0].layout.outer):
        if symbol in common:
            return symbol
    return None
