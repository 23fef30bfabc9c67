"""Reads a model into a plan: everything that Pyro is needed for happens here, once."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ember.inference.arguments import Arguments
from ember.inference.expectation.chain_step import Chain
from ember.inference.expectation.enumeration import Contraction, Factor, Scale
from ember.inference.expectation.mixture import mixture_kernel
from ember.inference.factors import FormFactor, Site
from ember.inference.grouping import group_of, group_sites
from ember.inference.missing import GapFactor, compile_site, starting_eta
from ember.inference.plan import Params, Plan, PriorSite
from ember.inference.reading.held import held_density
from ember.inference.reading.idle_latents import idle_entries
from ember.inference.reading.lookup import compile_lookup
from ember.inference.reading.loops import Loop
from ember.inference.reading.misreading import MISREAD
from ember.inference.reading.opaque import factor_dims, model_dependencies
from ember.inference.reading.roles import Model
from ember.inference.reading.roll import with_loops
from ember.inference.reading.sites import Probes, probe, read_site
from ember.inference.reading.stacking import lengths_of
from ember.inference.reading.tape import record
from ember.inference.residual_factors import ResidualFactors
from ember.inference.shapes import prepend_dims
from ember.inference.structure import Structure, read_structure
from ember.inference.superposed_factor import SuperposedFactor, compile_superposed
from ember.inference.superposition import SuperposedForm

__all__ = ["build_plan"]


def build_plan(
    model: Model,
    arguments: Arguments,
    objective: str = "map",
    integrate: Mapping[str, Any] | None = None,
    start: Params | None = None,
    probing: bool = True,
    misread: Collection[str] = (),
) -> Plan:
    """Reads a model into a plan.

    Args:
        model: A Pyro function.
        arguments: What it is called with.
        objective: "map" or "mle".
        integrate: Wishes that override the ``infer`` dictionaries of sites.
        start: Parameter values to read the model at; others get a default.
        probing: False gives the reference path: no map is looked for, every factor is asked of
            the model at each step, and every update is numerical. Slow, general, the oracle.
        misread: Sites to be asked of the model at each step, whatever the probes show.

    Raises:
        ValueError: If the model cannot be handled; the message names the site and the remedy.
    """
    structure, trace = with_loops(*read_structure(model, arguments, integrate, start))
    probes = probe(structure) if probing else Probes([], [], "the reference path looks for no maps")
    unread = Probes([], [], MISREAD)
    by_site = {n: unread if n in misread else probes for n in structure.plates}
    idle = idle_entries(structure, probes.traces)
    sites = {
        n: read_site(n, structure, by_site[n], trace, idle.get(n)) for n in structure.factor_names
    }
    scales = {n: _scale(trace.nodes[n], site) for n, site in sites.items()}
    latent_symbols = {n: trace.nodes[n]["infer"]["_enumerate_symbol"] for n in structure.latent}
    groups, cells = group_sites(sites)
    forms: dict[str, tuple[tuple[Any, ...], FormFactor | GapFactor | SuperposedFactor]] = {}
    factors = []
    for name, site in sites.items():
        if name in cells:
            key, index, reference = cells[name]
            if isinstance(site.form, SuperposedForm):
                forms[name] = (key, compile_superposed(site, index))
            elif (lookup := compile_lookup(site, index)) is not None:
                forms[name] = (key, lookup)
            else:
                forms[name] = (key, compile_site(site, index, reference))
            dims = forms[name][1].dims
        else:
            dims = factor_dims(site, trace)
        factors.append(Factor(name, dims, site.plates, scales[name]))
    sizes = _sizes(trace, structure, latent_symbols)
    chains = _chains(structure, sites, factors, trace)
    sizes.update({c.previous: sizes[c.state] for c in chains.values()})
    latents = {s: (n, scales[n]) for n, s in latent_symbols.items()}
    latents.update({c.previous: latents[c.state] for c in chains.values()})
    row = _row_plate(sites, structure)
    plan = Plan(
        structure,
        objective,
        sites,
        tuple(factors),
        forms,
        groups,
        _priors(structure, by_site, trace) if objective == "map" else {},
        Contraction(factors, latents, sizes, list(chains.values())),
        mixture_kernel(factors, forms, list(latents), row),
        row,
        sizes,
        latent_symbols,
        scales,
        chains,
    )
    plan.notes["residuals"] = ResidualFactors(
        sites,
        {name: (key, index) for name, (key, index, _) in cells.items()},
        {factor.name: factor.dims for factor in factors},
    )
    references = {name: reference for name, (_, _, reference) in cells.items()}
    plan.notes["starting_eta"] = starting_eta(sites, forms, references)
    plan.notes["held_density"] = held_density(trace, structure.held) if objective == "map" else 0.0
    plan.notes["idle"] = frozenset(idle) | _masked_components(structure, sites)
    plan.notes["plate_names"] = {symbol: name for name, symbol in trace.plate_to_symbol.items()}
    asked = {n: plan.site(n) for n in plan.opaque_sites() if plan.site(n).density is None}
    plan.notes["dependencies"] = model_dependencies(structure, asked)
    for name in misread:  # a branch leaves no gradient behind: any parameter may decide on it
        plan.notes["dependencies"][name] = {*structure.parameters} - {name}
    plan.notes["misread"] = frozenset(misread)
    if asked and probes.params:
        first, *others = probes.params
        plan.notes["tape"] = record(
            lambda params: plan.asked_log_probs(params, list(asked)), first, others[-2:]
        )
    return plan


def _priors(structure: Structure, probes: Mapping[str, Probes], start: Any) -> dict[str, PriorSite]:
    priors = {}
    for name, parameter in structure.parameters.items():
        if not parameter.has_prior:
            continue
        site = read_site(name, structure, probes[name], start)
        scale = _weight(start.nodes[name])
        priors[name] = PriorSite(site, scale, group_of(site))
    return priors


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
    structure: Structure, sites: Mapping[str, Site], factors: list[Factor], trace: Any
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
    last = (seen * torch.arange(1, steps + 1).reshape(-1, *(1,) * (rank - 1 - place))).amax(place)
    kept = [i for i in own if i != place and seen.size(i) > 1]
    dims = tuple(site.layout.outer[i] for i in kept)
    return dims, last.reshape([seen.size(i) for i in kept])


def _gone(site: Site) -> Tensor:
    """Events of which every entry is missing: a step of a chain, though nothing was seen there."""
    assert site.missing is not None
    event = site.event_dim - len(site.inner_shape)
    return site.missing.flatten(site.missing.dim() - event).all(-1) if event else site.missing


def _row_plate(sites: Mapping[str, Site], structure: Structure) -> str | None:
    """The plate whose rows are the observations: the innermost one common to all data."""
    # A pyro.factor statement is no observation: it has no value.
    observed = [sites[n] for n in structure.observed if sites[n].value.numel()]
    if not observed:
        observed = [sites[n] for n in structure.observed]
    common = frozenset.intersection(*(site.plates for site in observed))
    if structure.latent:
        # Rows must be independent: plates below a latent that spans them do not qualify.
        common &= frozenset.intersection(*(sites[n].plates for n in structure.latent))
    for symbol in reversed(observed[0].layout.outer):
        if symbol in common:
            return symbol
    return None
