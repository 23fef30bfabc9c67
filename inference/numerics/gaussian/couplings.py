"""How eliminated blocks are coupled to the entries that are kept: to few of them, or to any.

Both kinds hold the rows ``C`` of the precision between ``B`` blocks of ``q`` entries and ``d`` kept
entries each, ``(B, q, d)``: ``DenseCoupling`` has all kept entries for every block and multiplies
whole matrices, ``LocalCoupling`` has the neighbours of each block alone. Values on the pattern end
with a zero that stands for all other pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.gathering import put, subtract_at, take

__all__ = ["Coupling", "DenseCoupling", "LocalCoupling"]


@dataclass(frozen=True, eq=False)
class DenseCoupling:
    """Rows over all kept entries.

    Attributes:
        shape: ``(B, q, kept)``.
        cells: Places in such an array, flat, ``(pairs,)``.
        positions: The places in the pattern of what stands there, ``(pairs,)``.
    """

    shape: tuple[int, int, int]
    cells: Tensor
    positions: Tensor

    def rows(self, precision: Tensor) -> Tensor:
        """``C``."""
        flat = precision.new_zeros(torch.Size(self.shape).numel())
        return put(flat, self.cells, take(precision, self.positions)).view(self.shape)

    def subtract_gram(self, matrix: Tensor, white: Tensor) -> Tensor:
        """``matrix - W'W`` for rows ``W (B, q, kept)``."""
        flat = white.flatten(0, 1)
        return torch.addmm(matrix, flat.T, flat, alpha=-1.0)

    def subtract_product(self, vector: Tensor, white: Tensor, values: Tensor) -> Tensor:
        """``vector - W'w`` for values ``w (B, q)``."""
        return torch.addmv(vector, white.flatten(0, 1).T, values.flatten(), alpha=-1.0)

    def times_vector(self, rows: Tensor, vector: Tensor) -> Tensor:
        """``G v``, ``(B, q)``."""
        return (rows.flatten(0, 1) @ vector).view(self.shape[:2])

    def times_matrix(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """``G V`` at the coupled entries, ``(B, q, kept)``."""
        return (rows.flatten(0, 1) @ matrix).view(self.shape)

    def write(self, into: Tensor, rows: Tensor) -> None:
        """Writes rows ``(B, q, kept)`` to their places in the pattern."""
        put(into, self.positions, take(rows.flatten(), self.cells))


@dataclass(frozen=True, eq=False)
class LocalCoupling:
    """Rows over the neighbours of each block.

    Attributes:
        neighbours: Kept entries that each block is coupled to, ``(B, d)``; ``kept`` where there
            are fewer.
        kept: The number of kept entries.
        positions: The place of each pair in the pattern, ``(B, q, d)``.
        cells: Where each pair of neighbours stands in a matrix of ``kept + 1`` rows, flat,
            ``(B, d, d)``.
    """

    neighbours: Tensor
    kept: int
    positions: Tensor
    cells: Tensor

    @classmethod
    def of(cls, neighbours: Tensor, kept: int, positions: Tensor) -> LocalCoupling:
        """With the cells that follow from the neighbours."""
        cells = neighbours.unsqueeze(-1) * (kept + 1) + neighbours.unsqueeze(-2)
        return cls(neighbours, kept, positions, cells)

    def rows(self, precision: Tensor) -> Tensor:
        """``C``."""
        return take(precision, self.positions)

    def subtract_gram(self, matrix: Tensor, white: Tensor) -> Tensor:
        """``matrix - W'W`` for rows ``W (B, q, d)``."""
        gram = white.mT * white if white.shape[1] == 1 else white.mT @ white
        longer = _with_edge(matrix)
        less = subtract_at(longer.flatten(), self.cells, gram)
        return less.view(longer.shape)[:-1, :-1]

    def subtract_product(self, vector: Tensor, white: Tensor, values: Tensor) -> Tensor:
        """``vector - W'w`` for values ``w (B, q)``."""
        products = (white * values.unsqueeze(-1)).sum(1)
        longer = torch.cat([vector, vector.new_zeros(1)])
        return subtract_at(longer, self.neighbours, products)[:-1]

    def times_vector(self, rows: Tensor, vector: Tensor) -> Tensor:
        """``G v``, ``(B, q)``."""
        longer = torch.cat([vector, vector.new_zeros(1)])
        return (rows * take(longer, self.neighbours).unsqueeze(1)).sum(-1)

    def times_matrix(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """``G V`` at the coupled entries, ``(B, q, d)``."""
        return rows @ take(_with_edge(matrix).flatten(), self.cells)

    def write(self, into: Tensor, rows: Tensor) -> None:
        """Writes rows ``(B, q, d)`` to their places in the pattern."""
        put(into, self.positions, rows)


Coupling = DenseCoupling | LocalCoupling


def _with_edge(matrix: Tensor) -> Tensor:
    """With a row and a column of zeros, for neighbours that are none."""
    return torch.nn.functional.pad(matrix, (0, 1, 0, 1))
