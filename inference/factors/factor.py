"""A log potential with named dims, and how tensors of named dims meet."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "CompiledFactor",
    "Factor",
    "Scale",
    "View",
    "align",
    "same_scale",
    "scale_ratio",
    "through_view",
    "view_between",
]


View = tuple[tuple[int, ...], tuple[int, ...]]  # a permutation, and positions in it (-1: new dim)


@dataclass(frozen=True)
class Scale:
    """A weight tensor with named dims (plates)."""

    dims: tuple[str, ...]
    tensor: Tensor


@dataclass(frozen=True)
class Factor:
    """The shape of one factor: dims of its tensor, all plates it stands in, its scale."""

    name: str
    dims: tuple[str, ...]
    plates: frozenset[str]
    scale: Scale | None = None


class CompiledFactor(Protocol):
    """A factor laid out for evaluation: natural parameters of its cells to its log probability."""

    @property
    def dims(self) -> tuple[str, ...]:
        """The dims of the log probability."""

    def log_prob(self, eta: Tensor) -> Tensor:
        """The log probability, after any leading dims of ``eta`` ``(..., C, P)``."""


def view_between(layout: tuple[str, ...], union: tuple[str, ...]) -> View:
    """How to bring a tensor of ``layout`` to dims ``union``; empty if nothing is to be done."""
    if layout == union:
        return (), ()
    kept = [symbol for symbol in union if symbol in layout]
    permutation = tuple(layout.index(symbol) for symbol in kept)
    shape = tuple(kept.index(symbol) if symbol in layout else -1 for symbol in union)
    return permutation, shape


def through_view(tensor: Tensor, view: View) -> Tensor:
    """A tensor through a view; a scalar broadcasts as it is."""
    permutation, shape = view
    if not permutation:
        return tensor
    moved = tensor.permute(permutation)
    return moved.reshape([moved.size(place) if place >= 0 else 1 for place in shape])


def align(tensor: Tensor, dims: tuple[str, ...], union: tuple[str, ...]) -> Tensor:
    """Brings a tensor of named dims to ``union``, with size 1 for the dims it lacks."""
    return through_view(tensor, view_between(dims, union))


def same_scale(left: Scale | None, right: Scale | None) -> bool:
    """Whether two weights are equal, entry by entry."""
    if left is None or right is None:
        return left is right
    return left.dims == right.dims and torch.equal(left.tensor, right.tensor)


def scale_ratio(top: Scale | None, bottom: Scale | None, union: tuple[str, ...]) -> Tensor:
    """By how much more one scale weighs than another, over the dims of ``union``."""
    given = top or bottom
    assert given is not None
    one = given.tensor.new_ones(())
    over = one if top is None else align(top.tensor, top.dims, union)
    under = one if bottom is None else align(bottom.tensor, bottom.dims, union)
    # A row of weight zero is weighed by its latent; inside it the ratio does not matter.
    return torch.where((over == 0) & (under == 0), 1.0, over / under)
