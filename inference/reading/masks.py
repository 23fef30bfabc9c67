"""Which entries of a site are there: masks of its distribution, ``poutine.mask``, and NaN."""

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import append_dims
from ember.inference.reading.trace import Mask, TraceNode
from ember.inference.reading.unwrapping import Unwrapped

__all__ = ["full_mask", "masked_log_prob", "missing_entries", "whole_events"]


def full_mask(inside: Tensor | None, outside: Mask, inner: int) -> Tensor | None:
    """Masks of the distribution and of ``poutine.mask`` as one, over outer and event dims."""
    if outside is None or outside is True:
        return inside
    full = append_dims(torch.as_tensor(outside), inner)
    return full if inside is None else full & inside


def missing_entries(
    site: TraceNode, value: Tensor, unwrapped: Unwrapped, of_chain: bool
) -> Tensor | None:
    """Entries of data that are NaN or masked by the distribution, rows masked from outside aside.

    ``poutine.mask`` says that a row is not there at all, such as a step past the end of a sequence;
    of a chain of ``DiscreteHMM`` so does the mask of the distribution itself.
    """
    inside, event_dim = unwrapped.mask, len(unwrapped.base.event_shape)
    outside = _with_steps(site["fn"], site["mask"]) if of_chain else site["mask"]
    missing = value.isnan() if value.is_floating_point() else torch.zeros_like(value).bool()
    if inside is not None:
        missing = missing | ~_at_value(append_dims(inside, event_dim), value)
    if outside is not None and outside is not True:
        inner = len(site["fn"].event_shape[: unwrapped.reinterpreted])
        there = append_dims(torch.as_tensor(outside), inner + event_dim)
        missing = missing & _at_value(there, value)
    missing = missing.expand(value.shape)
    return missing if bool(missing.any()) else None


def whole_events(missing: Tensor, event_dim: int) -> Tensor:
    """Where all entries of an event are missing."""
    return missing.flatten(missing.dim() - event_dim).all(-1) if event_dim else missing


def _at_value(mask: Tensor, value: Tensor) -> Tensor:
    """A mask without the dims, of states of latents, in which it goes beyond the value."""
    beyond = mask.dim() - value.dim()
    mask = mask.flatten(0, beyond - 1).any(0) if beyond > 0 else mask
    for dim in range(-mask.dim(), 0):
        if mask.size(dim) > value.size(dim):
            mask = mask.any(dim, keepdim=True)
    return mask


def _with_steps(fn: Distribution, outside: Mask) -> Mask:
    """The steps of a chain that are not masked as a whole: they are past the end of a sequence."""
    while isinstance(fn, (MaskedDistribution, ExpandedDistribution)):
        if isinstance(fn, MaskedDistribution) and fn._mask is not True:
            mask = torch.as_tensor(fn._mask)
            outside = mask if outside is None or outside is True else outside & mask
        fn = fn.base_dist
    return outside


def masked_log_prob(site: TraceNode, inside: Tensor | None, mask: Tensor | None) -> float:
    """The log probability of a masked entry: a latent that is not there must still sum to one.

    One that its own distribution masks counts once for each of its values, as in Pyro.
    """
    dim = site["infer"].get("_enumerate_dim")
    if mask is None or inside is not None or dim is None:
        return 0.0
    levels = site["value"].size(dim - site["fn"].event_dim)
    return -float(torch.tensor(float(levels), dtype=torch.float64).log())
