"""Sites of a loop as one site with a dim of steps: see ``reading/loops/finding.py``."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ember.inference.numerics.shapes import append_dims
from ember.inference.reading.loops.loop import Loop
from ember.inference.reading.loops.members import (
    Members,
    StackedDims,
    family_members,
    first_state,
    moves,
    varying,
)
from ember.inference.reading.trace import Infer, Trace, TraceNode, made_frame, plates_of

__all__ = ["lengths_of", "settled", "stack_loops"]


ROUNDING = 1e-12  # relative


def stack_loops(trace: Trace, loops: Sequence[Loop], nesting: int) -> None:
    """Replaces the sites of each loop of a run, its dims named, by their stacked sites."""
    for loop in loops:
        nodes = _stacked_nodes(trace, StackedDims.of(trace, loop, nesting))
        for family in loop.families:
            for name in family.names:
                trace.nodes.pop(name)
        trace.nodes.update(nodes)
        trace.plate_to_symbol[loop.time] = loop.time


def settled(trace: Trace, loop: Loop, nesting: int) -> Loop | None:
    """The loop with what varies in time known, from a run at random parameters.

    None if its stacked sites do not have the densities of their members.
    """
    try:
        dims = StackedDims.of(trace, loop, nesting)
        chain, *others = (replace(f, varies=varying(trace, dims, f)) for f in loop.families)
        known = replace(loop, chain=chain, others=tuple(others))
        agrees = _agrees(trace, StackedDims.of(trace, known, nesting))
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return None  # a distribution that cannot be made from what it says of itself
    return known if agrees else None


def lengths_of(trace: Trace, loop: Loop) -> tuple[tuple[str, ...], Tensor] | None:
    """How many steps each chain has: what follows is masked, its states and its data alike."""
    infer = trace.nodes[loop.latent]["infer"]
    present = infer["_present_steps"]
    if present is None:
        return None
    steps = torch.arange(1, loop.steps + 1)
    lengths = (present * steps).amax(-1).clamp_min(1)
    symbols = infer["_dim_to_symbol"]
    rank = lengths.dim()
    kept = [i for i in range(rank) if lengths.size(i) > 1]
    dims = tuple(symbols[i - rank - 1] for i in kept)
    return dims, lengths.reshape([lengths.size(i) for i in kept])


def _stacked_nodes(trace: Trace, dims: StackedDims) -> dict[str, TraceNode]:
    loop = dims.loop
    nodes = {
        loop.initial: _node(trace, first_state(trace, dims)),
        loop.latent: _node(trace, moves(trace, dims)),
    }
    nodes.update({f.name: _node(trace, family_members(trace, dims, f)) for f in loop.others})
    nodes[loop.latent]["infer"]["_present_steps"] = _present_steps(trace, dims)
    return nodes


def _node(trace: Trace, members: Members) -> TraceNode:
    """A stacked site, in the form of a node of a trace."""
    first, family, dims = members.nodes[0], members.family, members.dims
    frames = [plate._replace(dim=plate.dim - 1) for plate in plates_of(first)]
    symbols = {**dims.symbols, **{f.dim: trace.plate_to_symbol[f.name] for f in frames}}
    symbols[-1] = dims.loop.time
    infer: Infer = {"_dim_to_symbol": symbols}
    event = tuple(first["fn"].event_shape)
    if family.latent:
        dim = dims.position[family.symbol] - dims.rank
        infer["_enumerate_symbol"], infer["_enumerate_dim"] = family.symbol, dim
        levels = first["value"].reshape(-1, *event)
        value = levels.reshape(len(levels), *(1,) * (-dim - 1), *event)
    else:
        value = members.values(len(event))
    if not members.of_chain:
        frames.append(made_frame(dims.loop.time, -1, dims.loop.steps))
    scale = torch.as_tensor(first["scale"])
    return {
        "type": "sample",
        "fn": members.distribution(),
        "value": value,
        "infer": infer,
        "mask": None if members.of_chain else members.mask(),
        "scale": append_dims(scale, 1) if scale.dim() else scale,
        "is_observed": not family.latent,
        "cond_indep_stack": tuple(frames),
    }


def _present_steps(trace: Trace, dims: StackedDims) -> Tensor | None:
    """Which steps of each chain are not masked as a whole, over its plates and the steps."""
    loop = dims.loop
    every = tuple(range(loop.steps))
    nodes = [trace.nodes[name] for name in loop.chain.names]
    states = Members(dims, loop.chain, nodes, every, every, False)
    kept = {dims.rank - 1 + plate.dim for plate in plates_of(nodes[0])} | {dims.rank - 1}
    over = [i for i in range(dims.rank) if i not in kept]
    present = torch.zeros((), dtype=torch.bool)
    for members in (states, *(family_members(trace, dims, family) for family in loop.others)):
        mask = members.mask()
        if mask is None:
            return None
        present = present | mask.amax(over, keepdim=True)
    return present.reshape(present.shape[len(dims.position) :])


def _agrees(trace: Trace, dims: StackedDims) -> bool:
    """Whether the stacked sites have the densities that their members have."""
    loop = dims.loop
    nodes = _stacked_nodes(trace, dims)
    sites = [(loop.initial, first_state(trace, dims)), (loop.latent, moves(trace, dims))]
    sites += [(family.name, family_members(trace, dims, family)) for family in loop.others]
    return all(_has_density_of(nodes[name], members) for name, members in sites)


def _has_density_of(node: TraceNode, members: Members) -> bool:
    apart = members.joined([_log_prob(each) for each in members.nodes], 0)
    stacked, apart = torch.broadcast_tensors(_log_prob(node), apart)
    return torch.allclose(stacked, apart, rtol=ROUNDING, atol=ROUNDING, equal_nan=True)


def _log_prob(node: TraceNode) -> Tensor:
    value = node["value"]
    if value.is_floating_point():
        value = value.nan_to_num(nan=0.5)  # some number, the same in both
    return node["fn"].log_prob(value)
