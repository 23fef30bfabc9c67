"""Reads a model into a plan: everything that Pyro is needed for happens here, once."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ember.inference.inputs.arguments import Arguments, Model
from ember.inference.plan.assembly import Reading, assembled, priors_of
from ember.inference.plan.plan import Params, Plan
from ember.inference.reading.checks.misreading import MISREAD
from ember.inference.reading.computed import latents_on_nodes
from ember.inference.reading.conjugate.linking import conjugate_site
from ember.inference.reading.conjugate.slots import find_conjugate_reads
from ember.inference.reading.gaussian.chain_reads import chain_reads
from ember.inference.reading.gaussian.linking import linked
from ember.inference.reading.gaussian.reads import NotIntegrable
from ember.inference.reading.gaussian.slots import find_reads
from ember.inference.reading.idle_latents import idle_entries
from ember.inference.reading.loops.rolling import with_loops
from ember.inference.reading.probes import Probes, probe
from ember.inference.reading.reader import read_structure
from ember.inference.reading.site import Site
from ember.inference.reading.site_reading import read_site
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.units.linking import with_unit_slots
from ember.inference.reading.unwrapping import unwrap

__all__ = ["build_plan"]


def build_plan(
    model: Model,
    arguments: Arguments,
    objective: str = "map",
    integrate: Mapping[str, Any] | None = None,
    start: Params | None = None,
    probing: bool = True,
    misread: Collection[str] = (),
    unconstrained: bool = False,
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
        unconstrained: Whether the mode is that of Pyro's unconstrained coordinates.

    Raises:
        ValueError: If the model cannot be handled; the message names the site and the remedy.
    """
    wishes = dict(integrate or {})
    while True:
        structure, trace = with_loops(*read_structure(model, arguments, wishes, start))
        try:
            plan = _plan(structure, trace, objective, probing, misread, unconstrained)
            structure.remembered.results = None
            return plan
        except NotIntegrable:
            chains = [chain.latent for chain in structure.gaussian_chains]
            if not structure.found and not chains:
                raise
            # As parameters, as nothing marks them; chains as the distributions that they are.
            wishes.update(dict.fromkeys([*structure.found, *chains]))


def _plan(
    structure: Structure,
    trace: Trace,
    objective: str,
    probing: bool,
    misread: Collection[str],
    unconstrained: bool,
) -> Plan:
    """The plan of a model whose sites have their roles; the arguments are those of the reading."""
    probes = (
        probe(structure, trace)
        if probing
        else Probes([], [], "the reference path looks for no maps")
    )
    unread = Probes([], [], MISREAD)
    by_site = {n: unread if n in misread else probes for n in structure.plates}
    idle = idle_entries(structure, probes.traces)
    sites = {
        n: read_site(n, structure, by_site[n], trace, idle.get(n)) for n in structure.factor_names
    }
    sites = _with_conjugate(sites, structure, probes, trace)
    sites = _with_slots(sites, structure, probes, trace)
    sites = with_unit_slots(sites, structure, probes.params)
    priors = priors_of(structure, by_site, trace) if objective == "map" else {}
    reading = Reading(
        structure, trace, sites, priors, probes.params, objective, unconstrained,
        frozenset(misread), frozenset(idle),
        None if probes.gradients is None else probes.gradients.reached([*sites, *priors]),
    )  # fmt: skip
    return assembled(reading)


def _with_slots(
    sites: dict[str, Site], structure: Structure, probes: Probes, start: Any
) -> dict[str, Site]:
    """The sites with the Gaussian latents that they read."""
    if not structure.gaussian:
        return sites
    if not probes.params:
        raise NotIntegrable(
            f"the latent '{next(iter(structure.gaussian))}' is to be integrated as a Gaussian, but "
            f"{probes.refusal}; make the model valid for all parameters, or estimate the latent as "
            f"a parameter with integrate={{'{next(iter(structure.gaussian))}': None}}."
        )
    priors = [n for n, p in structure.parameters.items() if p.has_prior]
    reads = find_reads(structure, probes.params, probes.traces[0], list(sites), priors)
    known = chain_reads(structure, probes.params, probes.traces)
    every = {n: [*known.get(n, []), *reads.get(n, [])] for n in sites}
    read = {name: [each.latent for each in found] for name, found in every.items() if found}
    _check_meeting(structure, [*structure.gaussian], read, start)
    return {n: linked(site, every[n], structure) for n, site in sites.items()}


def _with_conjugate(
    sites: dict[str, Site], structure: Structure, probes: Probes, start: Trace
) -> dict[str, Site]:
    """The sites with the latents with conjugate priors that they read."""
    if not structure.conjugate:
        return sites
    priors = [n for n, p in structure.parameters.items() if p.has_prior]
    at = probes.params or [structure.start]
    slots = find_conjugate_reads(structure, at, start, list(sites), priors)
    reads = {name: [slot.latent] for name, slot in slots.items()}
    _check_meeting(structure, [*structure.conjugate], reads, start)
    own = {n: unwrap(start.nodes[n]["fn"]).base for n in structure.conjugate}
    return {n: conjugate_site(site, slots.get(n), own.get(n)) for n, site in sites.items()}


def _check_meeting(
    structure: Structure, latents: Sequence[str], reads: Mapping[str, Sequence[str]], start: Trace
) -> None:
    """Refuses what is integrated in closed form where a site has a latent on nodes as well.

    Args:
        structure: The model.
        latents: The latents in question.
        reads: Those that each site reads.
        start: A run of the model.
    """
    for name in [*latents, *reads]:
        for other in latents_on_nodes(name, structure, start.nodes):
            latent = reads[name][0] if name in reads else name
            nodes = f"Put both on nodes (integrate={{'{latent}': 'quadrature'}}), or estimate"
            raise NotIntegrable(
                f"site '{name}' meets the latent '{latent}', which is integrated exactly, and the "
                f"latent '{other}', which is on nodes: the two together are neither. "
                f"{nodes if latent in structure.gaussian else 'Estimate'} one as a parameter "
                f"(integrate={{'{latent}': None}})."
            )
