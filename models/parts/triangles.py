r"""What regressions ask of their rows, whatever these are many: a triangle that stands for them.

The triangular factor :math:`R` of rows with a one before each, measured from a reference and
counted by their weights, has their sums of squares and products, :math:`R^\top R`, without having
squared anything: it loses no digits where columns are nearly dependent. Those of two sets of rows
add: that of one below the other is triangular again after some reflections. As default priors are
those of *all* rows, these are effects of Pyro's of the type ``"moments"`` (see ``moments.py``).

Reference: Golub & Van Loan (2013), *Matrix Computations*, sections 5.2 and 5.3.
"""

from dataclasses import dataclass
from typing import Self

import torch
from pyro.poutine.runtime import effectful
from torch import Tensor

__all__ = ["Constants", "LogSum", "Triangle", "constants", "log_sum", "triangle"]


BLOCK = 32_768  # rows that are made triangular at a time


@dataclass(frozen=True)
class Triangle:
    """Rows (N, D) that count, as a triangle.

    Attributes:
        factor: `R` (M, 1 + D), with at most as many rows as columns.
        reference: what the rows are measured from (D,).
        size: the largest absolute value of each column (D,).
    """

    factor: Tensor
    reference: Tensor
    size: Tensor

    def __add__(self, other: Self) -> Self:
        """That of both sets of rows."""
        if not bool(self.total > 0):
            return other
        moved = other.factor.clone()
        moved[:, 1:] += moved[:, :1] * (other.reference - self.reference)
        factor = torch.linalg.qr(torch.cat([self.factor, moved])).R
        return type(self)(factor, self.reference, torch.maximum(self.size, other.size))

    @property
    def total(self) -> Tensor:
        """The weight of all rows."""
        return self.factor[:, 0].square().sum()

    @property
    def mean(self) -> Tensor:
        """The mean of each column."""
        return self.reference + self._beyond

    @property
    def _beyond(self) -> Tensor:
        """The means, measured from the reference: digits that these would lose in it are kept."""
        return self.factor[:, 0] @ self.factor[:, 1:] / self.total

    def about(self, centre: Tensor) -> Tensor:
        """Rows (M, D) with the squares and products of all rows, measured from a point."""
        return self.factor[:, 1:] + self.factor[:, :1] * (self.reference - centre)

    @property
    def about_mean(self) -> Tensor:
        """The same, measured from the means."""
        return self.factor[:, 1:] - self.factor[:, :1] * self._beyond


@effectful(type="moments")
def triangle(rows: Tensor, frequency: Tensor) -> Triangle:
    """The triangle of rows (N, D), row n counted `frequency[n]` times."""
    counts = frequency > 0
    kept, roots = rows[counts].double(), frequency[counts].double().sqrt()
    if not len(kept):
        none = kept.new_zeros(rows.shape[1])
        return Triangle(kept.new_zeros(1, 1 + rows.shape[1]), none, none)
    reference, factor = kept[0], kept.new_zeros(0, 1 + rows.shape[1])
    for block, root in zip(kept.split(BLOCK), roots.split(BLOCK), strict=True):
        weighted = torch.cat([root.unsqueeze(1), root.unsqueeze(1) * (block - reference)], 1)
        factor = torch.linalg.qr(torch.cat([factor, weighted])).R
    return Triangle(factor, reference, kept.abs().amax(0))


@dataclass(frozen=True)
class Constants:
    """The number that each column is in all rows that count.

    Attributes:
        value: the numbers (D,), NaN for columns that vary; None without a row that counts.
    """

    value: Tensor | None

    def __add__(self, other: Self) -> Self:
        """That of both sets of rows."""
        if self.value is None or other.value is None:
            return other if self.value is None else self
        return type(self)(torch.where(self.value == other.value, self.value, torch.nan))


@effectful(type="moments")
def constants(rows: Tensor, frequency: Tensor) -> Constants:
    """The constants of rows (N, D), row n counted `frequency[n]` times."""
    kept = rows[frequency > 0]
    if not len(kept):
        return Constants(None)
    return Constants(torch.where((kept == kept[0]).all(0), kept[0], torch.nan))


@dataclass(frozen=True)
class LogSum:
    """The logarithm of a sum of exponentials."""

    value: Tensor

    def __add__(self, other: Self) -> Self:
        """That of both sums."""
        return type(self)(torch.logaddexp(self.value, other.value))


@effectful(type="moments")
def log_sum(numbers: Tensor, frequency: Tensor) -> LogSum:
    """Of the exponentials of numbers (N,), number n counted `frequency[n]` times."""
    return LogSum(torch.logsumexp(numbers + frequency.log(), 0))
