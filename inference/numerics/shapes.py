"""Small helpers for broadcasting."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "append_dims",
    "compact",
    "compact_alike",
    "joint_shape",
    "prepend_dims",
    "unexpanded",
    "varies_outside_plates",
]


def joint_shape(one: torch.Size, other: torch.Size) -> torch.Size:
    """The shape to which two broadcast; torch's own function is slow where there is no question."""
    if one == other or not other:
        return one
    return torch.Size(torch.broadcast_shapes(one, other)) if one else other


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
