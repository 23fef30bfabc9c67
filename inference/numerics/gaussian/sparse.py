r"""A sparse Cholesky factorisation in rounds, and the entries of the inverse on its pattern.

An entry with precision ``p`` and the row ``c`` to its neighbours ``N`` is eliminated by

.. math:: w = c / \sqrt{p}, \qquad P_{NN} \leftarrow P_{NN} - w w',

and comes back, with ``g = c / p``, by

.. math:: \Sigma_{eN} = -g'\Sigma_{NN}, \qquad \Sigma_{ee} = 1/p + g'\Sigma_{NN}\,g.

Only covariances of pairs in the factor are made, and a round does all its entries at once.
Reference: Takahashi, Fagan & Chin (1973), *Formation of a sparse bus impedance matrix and its
application to short circuit study*, Proc. 8th PICA Conf., 63-69.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import by_entry, lower_positions
from ember.inference.numerics.gaussian.gathering import put, subtract_at, take
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.rounds import Elimination
from ember.inference.numerics.gaussian.small import LOG_TWO_PI
from ember.inference.numerics.gaussian.system import GaussianSystem, Integral

__all__ = ["SparseSystem"]


@dataclass(frozen=True, eq=False)
class _Group:
    """Entries of a round with about as many neighbours each.

    Places are those in the values of the factor, which end with a zero for neighbours that are
    none.

    Attributes:
        entries: ``(B,)``.
        neighbours: ``(B, d)``; ``count`` for none.
        pivots: Places of the entries themselves, ``(B,)``.
        row: Places of their pairs with neighbours, ``(B, d)``.
        targets: Places of the pairs of neighbours, lower triangles, ``(B, d (d + 1) / 2)``.
    """

    entries: Tensor
    neighbours: Tensor
    pivots: Tensor
    row: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class _Eliminated:
    """What is left of the entries of a group: ``p^-1/2``, ``w`` and ``h / p^1/2``."""

    reciprocal: Tensor
    row: Tensor
    white: Tensor


class SparseSystem(GaussianSystem):
    """Elimination in the given order.

    Args:
        pattern: The pattern.
        components: The component of each entry, ``(count,)``, numbered from 0.
        elimination: The order.
    """

    takes_batches = False

    def __init__(self, pattern: Pattern, components: Tensor, elimination: Elimination) -> None:
        self.pattern = pattern
        self.components = components
        self.count = int(components.max()) + 1
        self.rest = torch.from_numpy(elimination.rest).to(components)
        places = _Places(pattern.count, elimination)
        pairs = places.of(pattern.rows.cpu().numpy(), pattern.columns.cpu().numpy())
        self.places = torch.from_numpy(pairs).to(components)
        self.eliminated = places.rest_starts  # values that belong to entries that are eliminated
        self.groups = [
            _Group(*(torch.from_numpy(each).to(components) for each in arrays))
            for arrays in _groups(places, elimination)
        ]
        self.description = (
            f"a sparse matrix of {pattern.count:,} entries, {len(self.rest):,} of them dense"
        )

    def integrate(self, info: Tensor, precision: Tensor) -> Integral:
        values, vector, parts, contributions = self._eliminate(info, precision)
        factor, white, rest = by_entry(self._rest_of(values), vector[self.rest])
        contributions[self.rest] = rest
        values[self.eliminated : -1] = torch.cholesky_inverse(factor).flatten()
        mean = torch.zeros_like(vector)
        means = torch.linalg.solve_triangular(factor.T, white.unsqueeze(-1), upper=True)
        mean[self.rest] = means.squeeze(-1)
        for group, part in zip(reversed(self.groups), reversed(parts), strict=True):
            solved = part.reciprocal.unsqueeze(-1) * part.row
            _, _, positions = lower_positions(group.neighbours.shape[-1], solved.device)
            near = take(take(values, group.targets), positions)
            row = (solved.unsqueeze(1) @ near).squeeze(1)
            values[group.pivots] = part.reciprocal.square() + (row * solved).sum(-1)
            put(values, group.row, -row)
            values[-1] = 0.0
            mean[group.entries] = _conditional(group, part, part.white, mean)
        value = self._by_component(contributions)
        return Integral(value, mean[:-1], take(values, self.places))

    def value(self, info: Tensor, precision: Tensor) -> Tensor:
        return self.plain(info, precision)

    def plain(self, info: Tensor, precision: Tensor) -> Tensor:
        values, vector, _, contributions = self._eliminate(info, precision)
        matrix = self._rest_of(values)
        matrix = matrix.tril() + matrix.tril(-1).T
        _, _, rest = by_entry(matrix, vector[self.rest])
        return self._by_component(put(contributions, self.rest, rest))

    def draw(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        values, vector, parts, _ = self._eliminate(info, precision)
        factor, white, _ = by_entry(self._rest_of(values), vector[self.rest])
        sought = (white + noise[self.rest]).unsqueeze(-1)
        drawn = torch.zeros_like(vector)
        drawn[self.rest] = torch.linalg.solve_triangular(factor.T, sought, upper=True).squeeze(-1)
        for group, part in zip(reversed(self.groups), reversed(parts), strict=True):
            given = part.white + noise[group.entries]
            drawn[group.entries] = _conditional(group, part, given, drawn)
        return drawn[:-1]

    def _eliminate(
        self, info: Tensor, precision: Tensor
    ) -> tuple[Tensor, Tensor, list[_Eliminated], Tensor]:
        """Values of the factor, infos of what is left, and what each entry adds to the value."""
        length = self.eliminated + len(self.rest) ** 2 + 1
        values = put(precision.new_zeros(length), self.places, precision)
        vector = torch.cat([info, info.new_zeros(1)])
        contributions = torch.zeros_like(info)
        parts = []
        for group in self.groups:
            pivot = values[group.pivots]
            pivot = torch.where(pivot > 0.0, pivot, torch.nan)
            reciprocal = pivot.rsqrt()
            row = take(values, group.row) * reciprocal.unsqueeze(-1)
            white = vector[group.entries] * reciprocal
            parts.append(_Eliminated(reciprocal, row, white))
            first, second, _ = lower_positions(row.shape[-1], row.device)
            products = take(row, first) * take(row, second)
            values = subtract_at(values, group.targets, products)
            vector = subtract_at(vector, group.neighbours, row * white.unsqueeze(-1))
            each = 0.5 * (white.square() - pivot.log() + LOG_TWO_PI)
            contributions = put(contributions, group.entries, each)
        return values, vector, parts, contributions

    def _rest_of(self, values: Tensor) -> Tensor:
        size = len(self.rest)
        return values[self.eliminated : -1].view(size, size)

    def _by_component(self, contributions: Tensor) -> Tensor:
        zeros = contributions.new_zeros(self.count)
        return zeros.index_add(0, self.components, contributions)


class _Places:
    """Where pairs stand in the values of the factor: by entry, then the square of the rest."""

    def __init__(self, count: int, elimination: Elimination) -> None:
        self.count = count
        self.turn = np.full(count, len(elimination.rounds))
        keys = []
        for i, (entries, counts, neighbours) in enumerate(elimination.rounds):
            self.turn[entries] = i
            keys += [entries * count + entries, np.repeat(entries, counts) * count + neighbours]
        self.keys = np.sort(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)
        self.rest_starts = len(self.keys)
        self.rest_size = len(elimination.rest)
        self.number = np.full(count, -1)
        self.number[elimination.rest] = np.arange(self.rest_size)

    @property
    def zero(self) -> int:
        """The place of a zero at the end."""
        return self.rest_starts + self.rest_size**2

    def of(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Places of pairs, in either order."""
        swap = self.turn[other] < self.turn[one]
        first, second = np.where(swap, other, one), np.where(swap, one, other)
        found = np.searchsorted(self.keys, first * self.count + second)
        a, b = self.number[first], self.number[second]
        rest = self.rest_starts + np.maximum(a, b) * self.rest_size + np.minimum(a, b)
        places: np.ndarray = np.where((a >= 0) & (b >= 0), rest, found)
        return places


def _groups(places: _Places, elimination: Elimination) -> Iterator[tuple[np.ndarray, ...]]:
    """Entries of each round by their number of neighbours, rounded up to steps of a quarter."""
    for entries, counts, neighbours in elimination.rounds:
        starts = np.cumsum(counts) - counts
        steps = np.ceil(4.0 * np.log2(np.maximum(counts, 1)))
        for step in np.unique(steps):
            own = np.flatnonzero(steps == step)
            most = max(1, int(counts[own].max()))
            lacking = np.arange(most) >= counts[own, None]
            index = np.where(lacking, 0, starts[own, None] + np.arange(most))
            near = neighbours[index] if len(neighbours) else index
            rows, columns = np.tril_indices(most)
            row = np.where(lacking, places.zero, places.of(entries[own, None], near))
            targets = places.of(near[:, rows], near[:, columns])
            targets = np.where(lacking[:, rows] | lacking[:, columns], places.zero, targets)
            pivots = places.of(entries[own], entries[own])
            yield entries[own], np.where(lacking, places.count, near), pivots, row, targets


def _conditional(group: _Group, part: _Eliminated, white: Tensor, others: Tensor) -> Tensor:
    """``(w - row z) / p^1/2`` for the values ``z`` of neighbours."""
    return part.reciprocal * (white - (part.row * take(others, group.neighbours)).sum(-1))
