"""Tensors over a site's batch, with discrete latents in one dim and events in another."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ember.inference.factors.factor import Scale

__all__ = ["arranged", "over_batch"]


def arranged(tensor: Tensor, full: Sequence[int], ahead: Sequence[int], tail: int) -> Tensor:
    """Values of discrete latents first, then all events in one dim: ``(D or 1, U, *tail)``.

    Args:
        tensor: A tensor over the site's batch at full rank.
        full: The sizes of that batch.
        ahead: The places of the dims of discrete latents.
        tail: How many dims come after the batch.
    """
    rank = len(full)
    rest = [i for i in range(rank) if i not in ahead]
    varies = any(tensor.size(i) > 1 for i in ahead)
    sizes = [full[i] if varies or i in rest else 1 for i in range(rank)]
    wide = tensor.expand([*sizes, *tensor.shape[rank:]])
    moved = wide.permute([*ahead, *rest, *range(rank, rank + tail)])
    count = torch.Size([sizes[i] for i in ahead]).numel()
    events = torch.Size([full[i] for i in rest]).numel()
    return moved.reshape(count, events, *tensor.shape[rank:])


def over_batch(scale: Scale, outer: tuple[str, ...], rank: int) -> Tensor:
    """A weight over the batch of a site, at full rank."""
    shape = [
        scale.tensor.size(scale.dims.index(symbol)) if symbol in scale.dims else 1
        for symbol in outer
    ]
    order = sorted(range(len(scale.dims)), key=lambda i: outer.index(scale.dims[i]))
    tensor = scale.tensor.permute(order).reshape(shape)
    return tensor.reshape(*shape, *(1,) * (rank - len(outer)))
