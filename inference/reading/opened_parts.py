"""The parts of an opened site, as nodes of a run."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ember.inference.numerics.distribution import Distribution
from ember.inference.numerics.shapes import append_dims
from ember.inference.reading.trace import Mask, TraceNode, plates_of

__all__ = ["joined_masks", "moved_symbols", "part_of"]


def part_of(
    node: TraceNode, fn: Distribution, value: Tensor, symbols: Mapping[int, str], shift: int
) -> TraceNode:
    """A part of a site, its plates ``shift`` dims further left."""
    scale = torch.as_tensor(node["scale"])
    return {
        "type": "sample",
        "fn": fn,
        "value": value,
        "infer": {"_dim_to_symbol": dict(symbols)},
        "mask": None,
        "scale": append_dims(scale, shift) if scale.dim() else scale,
        "is_observed": True,
        "cond_indep_stack": tuple(
            plate._replace(dim=plate.dim - shift) for plate in plates_of(node)
        ),
    }


def joined_masks(masks: tuple[Mask, ...], shift: int) -> Tensor | None:
    """The product of masks, with ``shift`` new dims on the right."""
    joint = None
    for mask in masks:
        if mask is not None and mask is not True:
            inside = torch.as_tensor(mask)
            joint = inside if joint is None else joint & inside
    return None if joint is None else append_dims(joint, shift)


def moved_symbols(symbols: Mapping[int, str], by: int) -> dict[int, str]:
    """The names of dims that have moved ``by`` dims further left."""
    return {dim - by: symbol for dim, symbol in symbols.items()}
