"""Distributions without what is wrapped around them."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import ExpandedDistribution, Independent, MaskedDistribution
from torch import Tensor

from ember.inference.shapes import append_dims

__all__ = ["Unwrapped", "unwrap"]


@dataclass(frozen=True)
class Unwrapped:
    """A distribution without its wrappers: base, number of event dims made of batch dims, mask."""

    base: Any
    reinterpreted: int
    mask: Tensor | None


def unwrap(fn: Any) -> Unwrapped:
    """Strips ``to_event``, ``mask`` and ``expand`` from a distribution."""
    reinterpreted = 0
    masks: list[tuple[Tensor, int]] = []
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(fn, Independent):
            reinterpreted += fn.reinterpreted_batch_ndims
        elif isinstance(fn, MaskedDistribution) and fn._mask is not True:
            masks.append((torch.as_tensor(fn._mask), reinterpreted))
        fn = fn.base_dist
    mask = None
    for part, outside in masks:
        part = append_dims(part, reinterpreted - outside)
        mask = part if mask is None else mask & part
    return Unwrapped(fn, reinterpreted, mask)
