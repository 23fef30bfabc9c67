"""The steps of an elimination: each makes one tensor of named dims from those before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ember.inference.expectation.chains.step import ChainStep
from ember.inference.factors.factor import View, through_view

__all__ = ["ChainRun", "Input", "LatentSum", "PlateSum", "Product", "Step"]

Input = tuple[int, View]  # which tensor, and how to see it


class Step(Protocol):
    """One step; the semiring is (logsumexp, +), or (max, +) where ``maximum`` is wished."""

    def __call__(self, tensors: Sequence[Tensor], maximum: bool) -> Tensor:
        """The new tensor, from all tensors before it."""


@dataclass(frozen=True)
class Product:
    """The product of factors: the sum of their logarithms, weighed if they have another scale."""

    inputs: tuple[Input, ...]
    weight: Tensor | None = None

    def __call__(self, tensors: Sequence[Tensor], maximum: bool) -> Tensor:
        first, *others = (through_view(tensors[slot], view) for slot, view in self.inputs)
        for other in others:
            first = first + other
        return first if self.weight is None else first * self.weight


@dataclass(frozen=True)
class LatentSum:
    """A product summed over its first dim, that of a latent."""

    product: Product

    def __call__(self, tensors: Sequence[Tensor], maximum: bool) -> Tensor:
        total = self.product(tensors, maximum)
        return total.max(0).values if maximum else torch.logsumexp(total, 0)


@dataclass(frozen=True)
class PlateSum:
    """The independent rows of plates taken together; ``times`` for plates without a dim."""

    product: Product
    over: tuple[int, ...]
    times: float

    def __call__(self, tensors: Sequence[Tensor], maximum: bool) -> Tensor:
        total = self.product(tensors, maximum)
        total = total.sum(self.over) if self.over else total
        return total * self.times if self.times != 1.0 else total


@dataclass(frozen=True)
class ChainRun:
    """A whole chain summed out."""

    step: ChainStep

    def inputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """What the chain is made of, viewed."""
        step = self.step
        wanted = (step.initial, *step.moves, *step.emissions)
        return [through_view(tensors[slot], view) for slot, view in wanted]

    def __call__(self, tensors: Sequence[Tensor], maximum: bool) -> Tensor:
        return self.step(self.inputs(tensors), maximum)
