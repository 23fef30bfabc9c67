"""Small helpers for broadcasting."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "append_dims",
    "broadcast_shapes",
    "compact",
    "compact_alike",
    "prepend_dims",
    "unexpanded",
    "varies_outside_plates",
]


def broadcast_shapes(*shapes: Sequence[int]) -> torch.Size:
    """The shape to which shapes broadcast, as ``torch.broadcast_shapes``.

    Torch's own imports all of symbolic algebra at its first call, and takes as long as ten
    operations on small tensors at each.

    Raises:
        RuntimeError: If they do not broadcast.
    """
    joint = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        lead = len(joint) - len(shape)
        for i, size in enumerate(shape, lead):
            if size != joint[i] and size != 1:
                if joint[i] != 1:
                    raise RuntimeError(f"shapes {[tuple(s) for s in shapes]} do not broadcast")
                joint[i] = size
    return torch.Size(joint)


def varies_outside_plates(batch: torch.Size, nesting: int) -> bool:
    """Whether a batch has entries left of the dims of plates: those of enumerated latents."""
    return batch[: max(0, len(batch) - nesting)].numel() > 1


def append_dims(tensor: Tensor, count: int) -> Tensor:
    """Adds ``count`` dims of size 1 on the right."""
    return tensor.reshape((*tensor.shape, *(1,) * count))


def prepend_dims(tensor: Tensor, rank: int) -> Tensor:
    """Adds dims of size 1 on the left until the tensor has ``rank`` dims."""
    return tensor.reshape((*(1,) * (rank - tensor.dim()), *tensor.shape))


def compact(tensor: Tensor, keep: int = 0) -> Tensor:
    """Shrinks to size 1 every dim along which nothing changes, the last ``keep`` dims aside."""
    for dim in range(tensor.dim() - keep):
        first = tensor.narrow(dim, 0, 1)
        if bool((tensor == first).all()):
            tensor = first
    return tensor


def compact_alike(tensors: Sequence[Tensor], keep: int = 0) -> list[Tensor]:
    """Shrinks tensors of one shape along the dims along which none of them changes."""
    out = list(tensors)
    if any(tensor.shape != out[0].shape for tensor in out):
        return out
    for dim in range(out[0].dim() - keep):
        first = [tensor.narrow(dim, 0, 1) for tensor in out]
        if all(bool((t == f).all()) for t, f in zip(out, first, strict=True)):
            out = first
    return out


def unexpanded(tensor: Tensor, keep: int = 0) -> Tensor:
    """Undoes ``expand``: dims of stride 0 become dims of size 1, the last ``keep`` dims aside."""
    for dim in range(tensor.dim() - keep):
        if tensor.size(dim) > 1 and tensor.stride(dim) == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
