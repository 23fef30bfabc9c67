"""Entries of masked latents that nothing depends on: they need not be summed over.

``poutine.mask`` takes no prior off an enumerated latent: ``TraceEnum_ELBO`` applies it to the sites
below, so a masked latent keeps its place in a chain. Where nothing below depends on it (steps past
the end of a sequence, rows whose label is known) it sums to one, and is left out: its expected
counts would tell the M-step nothing, but slow it down as missing data do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.numerics.observed_density import observed_log_prob
from ember.inference.reading.masks import full_mask
from ember.inference.reading.site import finish
from ember.inference.reading.structure import Structure
from ember.inference.reading.trace import Trace, TraceNode, plates_of, symbols_of
from ember.inference.reading.unwrapping import unwrap

__all__ = ["idle_entries"]


ENOUGH = 2  # runs to look at
SAME = 1e-12  # relative


def idle_entries(structure: Structure, traces: Sequence[Trace]) -> dict[str, Tensor]:
    """For each latent under ``poutine.mask`` the entries that make no difference.

    Args:
        structure: The roles of all sites.
        traces: Runs at random parameters; if the model refused them, nothing is known to be idle.

    Returns:
        Site name to a mask over batch dims; latents without idle entries are left out.
    """
    idle: dict[str, Tensor] = {}
    # Over nodes that weigh what they stand for, a prior sums to one as it is.
    hidden = {*(c.latent for c in structure.composites), *structure.nodes}
    nodes = traces[0].nodes if traces else {}
    masked = [n for n in structure.latent if n in nodes and n not in hidden and _masked(nodes[n])]
    if not masked:
        return idle
    below = _below(structure, traces[0])
    for name in reversed(masked):  # a latent that depends on others comes after them
        node = nodes[name]
        entries = _on_plates(~torch.as_tensor(node["mask"]), node)
        for other in below[node["infer"]["_enumerate_symbol"]]:
            if other != name:
                for trace in traces[:ENOUGH]:
                    entries = entries & _unmoved(trace.nodes[other], node, idle.get(other))
        if bool(entries.any()):
            idle[name] = entries
    return idle


def _masked(node: TraceNode) -> bool:
    """Whether a latent is under ``poutine.mask`` alone: its distribution's own mask counts."""
    outside = node["mask"] is not None and node["mask"] is not True
    return outside and unwrap(node["fn"]).mask is None


def _below(structure: Structure, trace: Trace) -> dict[str, list[str]]:
    """The sites at which the dim of each latent is known."""
    below: dict[str, list[str]] = {}
    for name in structure.factor_names:
        for symbol in symbols_of(trace.nodes[name]).values():
            below.setdefault(symbol, []).append(name)
    return below


def _unmoved(node: TraceNode, latent: TraceNode, idle: Tensor | None) -> Tensor:
    """Where a site has one density for all values of a latent, over the latent's plates."""
    symbol = latent["infer"]["_enumerate_symbol"]
    dims = {s: dim for dim, s in symbols_of(node).items()}
    log_prob = _log_prob(node)
    rank = -min(dims.values())
    log_prob = log_prob.reshape((*(1,) * (rank - log_prob.dim()), *log_prob.shape))
    same = torch.isclose(
        log_prob, log_prob.narrow(dims[symbol], 0, 1), rtol=SAME, atol=0.0, equal_nan=True
    )
    if idle is not None:
        same = same | idle
    return _on_plates(same, latent)


def _on_plates(which: Tensor, latent: TraceNode) -> Tensor:
    """What holds all over the dims that are none of a latent's plates."""
    kept = {plate.dim for plate in plates_of(latent)}
    for dim in range(-which.dim(), 0):
        if dim not in kept:
            which = which.all(dim, keepdim=True)
    rank = min(which.dim(), max((-dim for dim in kept), default=0))
    return which.reshape(which.shape[which.dim() - rank :])


def _log_prob(node: TraceNode) -> Tensor:
    """The log density of a site as Pyro sums it, masks of data included."""
    unwrapped = unwrap(node["fn"])
    inner = node["fn"].event_shape[: unwrapped.reinterpreted]
    outside = node["mask"] if node["is_observed"] else None
    mask = full_mask(unwrapped.mask, outside, len(inner))
    log_prob = observed_log_prob(unwrapped.base, node["value"])
    return finish(log_prob, mask, tuple(inner), 0.0)
