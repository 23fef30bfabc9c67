"""Moments of the columns of the data, from which default priors take their scale; they add.

A default prior is one of *all* rows. Where the data come in pieces no run of a model sees them all,
so the moments are an effect of Pyro's, of the type ``"moments"``: a handler may sum those of the
pieces, and answer with the sum from then on. Without a handler they are those of the rows at hand.

Reference: Chan, Golub & LeVeque (1983), *Algorithms for computing the sample variance*, The
American Statistician 37, 242-247 (how moments about different means add).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pyro.poutine.runtime import effectful
from torch import Tensor

from ember.models.parts.missing import shown_entries

__all__ = ["Moments", "Order", "moments"]

Order = Literal["mean", "variance", "covariance"]
BLOCK = 32_768  # rows that are centred at a time


@dataclass(frozen=True)
class Moments:
    """Sums over rows, each counted by its weight, NaN left out.

    Attributes:
        total: How many values each column has, ``(D,)``, or ``()`` where all have as many.
        mean: The mean of each column.
        squares: Sums of products of deviations from the means: of each column with itself ``(D,)``,
            or of all pairs ``(D, D)`` over the rows that show both; None if not asked for.
        sums: For pairs, the sums of the deviations of the first over the rows that show both.
        pairs: For pairs, the weight of these rows.
    """

    total: Tensor
    mean: Tensor
    squares: Tensor | None = None
    sums: Tensor | None = None
    pairs: Tensor | None = None

    def __add__(self, other: "Moments") -> "Moments":
        """Those of both sets of rows."""
        total = self.total + other.total
        share = torch.where(total > 0, other.total / total, 0.0)
        mean = self.mean + share * (other.mean - self.mean)
        each = zip(self._about(mean), other._about(mean), strict=True)
        return Moments(total, mean, *(None if a is None or b is None else a + b for a, b in each))

    def _about(self, centre: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Squares, sums and pairs of deviations from another point."""
        by, squares, sums, pairs = self.mean - centre, self.squares, self.sums, self.pairs
        if squares is None or sums is None or pairs is None:
            moved = None if squares is None else squares + self.total * by.square()
            return moved, None, None
        first = by.unsqueeze(-1)
        moved = squares + sums * by + sums.mT * first + pairs * first * by
        return moved, sums + pairs * first, pairs


@effectful(type="moments")
def moments(rows: Tensor, frequency: Tensor, order: Order = "mean") -> Moments:
    """The moments of rows (N, D), or of numbers (N,), row n counted `frequency[n]` times."""
    shown = shown_entries(rows)
    if shown is None:
        total = frequency.sum()
        mean = frequency @ rows / total
    else:
        total = frequency @ shown.to(frequency.dtype)
        # A column without values has no mean: 0 stands in where parameters are known anyway.
        tiny = torch.finfo(rows.dtype).tiny
        mean = frequency @ torch.where(shown, rows, 0.0) / total.clamp_min(tiny)
    if order == "mean":
        return Moments(total, mean)
    if order == "variance":
        squares = rows.new_zeros(rows.shape[1:])
        for centred, weights in _centred(rows, frequency, mean):
            squares = squares + weights @ centred.square()
        return Moments(total, mean, squares)
    products = rows.new_zeros(rows.shape[-1:] * 2)
    for centred, weights in _centred(rows, frequency, mean):
        products = products + (weights.unsqueeze(-1) * centred).mT @ centred
    if shown is None:
        return Moments(total, mean, products, torch.zeros_like(products), total.expand_as(products))
    there = shown.to(rows.dtype)
    deviations = torch.where(shown, rows - mean, 0.0) * frequency.unsqueeze(-1)
    pairs = (frequency.unsqueeze(-1) * there).mT @ there
    return Moments(total, mean, products, deviations.mT @ there, pairs)


def _centred(rows: Tensor, frequency: Tensor, mean: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Deviations from the column means, 0 where missing, with weights: a few rows at a time.

    What the processor's cache holds need not be written to memory and read again.
    """
    for block, weights in zip(rows.split(BLOCK), frequency.split(BLOCK), strict=True):
        centred = block - mean
        yield torch.where(centred.isnan(), 0.0, centred), weights
