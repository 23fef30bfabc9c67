"""Which latents that ask for nodes are integrated unit by unit, and which on a grid for all rows.

A latent in the plate of the rows that read it is enumerated by Pyro, on one grid for all of them.
Where a row reads a latent by index, ``u[group]``, that cannot be, and the latent is one of units.
So is a latent that asks for ``Adaptive`` nodes, one of more dims than a grid serves for, and
whatever shares a site with one of these.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ember.inference.numerics.adaptive import Adaptive
from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.monte_carlo import MonteCarlo
from ember.inference.numerics.quadrature import MOST_DIMS
from ember.inference.reading.checks.sites import check_on_nodes
from ember.inference.reading.nodes import can_be_on_nodes, nodes_of, rule_of
from ember.inference.reading.runs import statements
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace
from ember.inference.reading.units.latents import unit_latent

__all__ = ["read_by", "with_nodes"]


def with_nodes(structure: Structure, plain: Trace, asked: Mapping[str, object]) -> Structure:
    """The structure with those latents that ask for nodes.

    Args:
        structure: The roles of all other sites.
        plain: A plain run.
        asked: How each of these latents asks to be integrated.

    Raises:
        ValueError: If one of them cannot be; the message names it.
    """
    if not asked:
        return structure
    nodes = plain.nodes
    for name in asked:
        check_on_nodes(name, nodes[name])
    read = _read_by(structure, plain, asked)
    alone = _of_units(structure, plain, asked, read)
    for name in asked:
        above = sorted({*read[name]} - {name} - alone)
        if name not in alone and above:
            raise ValueError(
                f"site '{name}' asks to be integrated by quadrature, but so does '{above[0]}', "
                "which its prior reads, and a density that moves with those nodes may fall between "
                f"its own; write '{name}' as a function of '{above[0]}' and of a site with "
                "a prior of its own, or estimate one of them as a parameter "
                f"(EM(model, integrate={{'{name}': None}}))."
            )
    units = {
        n: unit_latent(n, nodes[n]["fn"], _rule(how)) for n, how in asked.items() if n in alone
    }
    grids = {
        n: nodes_of(nodes[n]["fn"], rule_of(n, nodes[n]["fn"], how))
        for n, how in asked.items()
        if n not in alone
    }
    latent = tuple(n for n in structure.plates if n in {*structure.latent, *grids})
    hidden = tuple(n for n in structure.latent if n not in structure.plates)
    return replace(structure, latent=(*latent, *hidden), nodes=grids, units=units)


def _rule(how: object) -> Adaptive | MonteCarlo:
    """The rule of a latent of units, in whatever words it is asked for."""
    if isinstance(how, (Adaptive, MonteCarlo)):
        return how
    if how == "monte-carlo":
        return MonteCarlo()
    nodes = getattr(how, "nodes", None)
    return Adaptive(nodes, getattr(how, "most", None))


def _is_one(plates: set[str], how: object) -> bool:
    """Whether a latent has a single value, and leaves open how it is integrated."""
    return not plates and how == "quadrature"


def _is_of_units(fn: Distribution, how: object) -> bool:
    """Whether a latent is integrated unit by unit by its own wish or prior, whoever reads it."""
    if isinstance(how, (Adaptive, MonteCarlo)) or how == "monte-carlo":
        return True
    if fn.event_shape.numel() > MOST_DIMS:
        return True
    return how == "quadrature" and not can_be_on_nodes(fn)


def _of_units(
    structure: Structure,
    plain: Trace,
    asked: Mapping[str, object],
    read: Mapping[str, Sequence[str]],
) -> set[str]:
    """Those of the latents that are integrated unit by unit, by what each site reads of them."""
    found = {n for n, how in asked.items() if _is_of_units(plain.nodes[n]["fn"], how)}
    plates = {n: {*structure.plates[n]} for n in asked}
    for name, latents in read.items():
        above = {*structure.plates.get(name, ())}
        found |= {latent for latent in latents if not plates[latent] <= above}
    # One value behind all rows has a posterior far narrower than its prior.
    alone = not structure.latent and all(len({*latents}) <= 1 for latents in read.values())
    for name, latents in read.items() if alone else ():
        found |= {n for n in latents if structure.plates.get(name) and _is_one(plates[n], asked[n])}
    while True:
        shared = {n for latents in read.values() if found & {*latents} for n in latents}
        if shared <= found:
            return found
        found |= shared


def _read_by(
    structure: Structure, plain: Trace, asked: Mapping[str, object]
) -> dict[str, list[str]]:
    """The latents that each site reads, itself included, from a run in which they have values."""
    units = {n: unit_latent(n, plain.nodes[n]["fn"], Adaptive()) for n in asked}
    start = structure.start
    with torch.enable_grad():
        leaves = {n: latent.origin.clone().requires_grad_() for n, latent in units.items()}
        trace = replace(structure, units=units).run({**start, **leaves})
        found = read_by(trace, leaves, [n for n, site in statements(trace)])
    return {n: [*found[n], n] if n in asked else latents for n, latents in found.items()}


def read_by(
    trace: Trace, leaves: Mapping[str, Tensor], names: Iterable[str]
) -> dict[str, list[str]]:
    """Those of the latents that the density of each site depends on, itself excluded.

    Args:
        trace: A run with the values of latents as leaves of a graph.
        leaves: Those values.
        names: The sites.
    """
    found = {}
    for name in names:
        node = trace.nodes[name]
        others = {n: leaf for n, leaf in leaves.items() if n != name}
        if node["type"] != "sample" or not others:
            found[name] = list[str]()
            continue
        with torch.enable_grad():
            density = node["fn"].log_prob(node["value"]).sum()
        if not density.requires_grad:
            found[name] = []
            continue
        slopes = torch.autograd.grad(
            density, list(others.values()), allow_unused=True, retain_graph=True
        )
        found[name] = [n for n, slope in zip(others, slopes, strict=True) if slope is not None]
    return found
