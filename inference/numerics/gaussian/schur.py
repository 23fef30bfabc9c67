r"""Many blocks that know each other only through the other entries: the Schur complement.

With the blocks ``E`` eliminated, what is left of the entries ``K`` that are kept is

.. math:: S = P_{KK} - P_{KE} P_{EE}^{-1} P_{EK}, \qquad \Sigma_{KK} = S^{-1},

.. math:: G = P_{EE}^{-1} P_{EK}, \qquad \Sigma_{EK} = -G\,\Sigma_{KK}, \qquad
          \Sigma_{EE} = P_{EE}^{-1} + G\,\Sigma_{KK}\,G'.

Only entries of the pattern are made. Crossed and nested effects are of this kind.
Reference: Rue & Held (2005), *Gaussian Markov Random Fields*, Chapman & Hall, section 2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.blocks import by_entry, inverse_factors
from ember.inference.numerics.gaussian.couplings import (
    Coupling,
    DenseCoupling,
    LocalCoupling,
)
from ember.inference.numerics.gaussian.gathering import put, take
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.small import LOG_TWO_PI
from ember.inference.numerics.gaussian.system import GaussianSystem, Integral

__all__ = ["SchurSystem"]


WIDEST = 30_000_000  # numbers that rows over all kept entries may take
LOCAL_COST = 50.0  # of a product that is gathered and scattered, over one in a matrix product


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Eliminated blocks of one size.

    Attributes:
        entries: ``(B, q)``.
        within: Where each pair of entries stands in the pattern, ``(B, q, q)``; ``nnz`` for none.
        coupling: To the kept entries.
    """

    entries: Tensor
    within: Tensor
    coupling: Coupling


@dataclass(frozen=True, eq=False)
class _Eliminated:
    """What the elimination leaves of some blocks: ``L^-1``, ``W = L^-1 C`` and ``w = L^-1 h``."""

    inverse: Tensor
    rows: Tensor
    white: Tensor


class SchurSystem(GaussianSystem):
    """A dense Cholesky factorisation of what is left once blocks are eliminated.

    Args:
        pattern: The pattern.
        components: The component of each entry, ``(count,)``, numbered from 0.
        blocks: The block of each entry, ``(count,)``, numbered from 0; -1 for those that are kept.
            Entries of different blocks are not coupled.
    """

    takes_batches = False

    def __init__(self, pattern: Pattern, components: Tensor, blocks: Tensor) -> None:
        self.pattern = pattern
        self.components = components
        self.count = int(components.max()) + 1
        self.kept = (blocks < 0).nonzero().squeeze(-1)
        self.number = torch.full_like(blocks, -1)  # of each kept entry among those
        self.number[self.kept] = torch.arange(len(self.kept), device=blocks.device)
        self.blocks = list(self._sorted(blocks))
        both = (self.number[pattern.rows] >= 0) & (self.number[pattern.columns] >= 0)
        self.pairs_kept = both.nonzero().squeeze(-1)
        ends = (self.number[each[self.pairs_kept]] for each in (pattern.rows, pattern.columns))
        row, column = ends  # numbered in the order of the entries, so that row >= column
        self.cells_kept = row * len(self.kept) + column
        eliminated = pattern.count - len(self.kept)
        self.description = f"{eliminated:,} entries eliminated, {len(self.kept):,} dense"

    def integrate(self, info: Tensor, precision: Tensor) -> Integral:
        matrix, vector, parts, contributions = self._eliminate(info, precision)
        factor, white, kept = by_entry(matrix, vector)
        put(contributions, self.kept, kept)
        covariance = precision.new_empty(len(precision) + 1)
        mean = torch.empty_like(info)
        inverse = torch.cholesky_inverse(factor)
        means = torch.linalg.solve_triangular(factor.T, white.unsqueeze(-1), upper=True)
        put(mean, self.kept, means)
        put(covariance, self.pairs_kept, take(inverse.flatten(), self.cells_kept))
        for blocks, part in zip(self.blocks, parts, strict=True):
            coupling = blocks.coupling
            solved = _times(part.inverse.mT, part.rows)
            rows = coupling.times_matrix(solved, inverse)
            own = (part.inverse.mT @ part.white.unsqueeze(-1)).squeeze(-1)
            put(mean, blocks.entries, own - coupling.times_vector(solved, means.squeeze(-1)))
            within = part.inverse.mT @ part.inverse + rows @ solved.mT
            put(covariance, blocks.within, within)
            coupling.write(covariance, rows.neg_())
        return Integral(self._by_component(contributions), mean, covariance[:-1])

    def value(self, info: Tensor, precision: Tensor) -> Tensor:
        return self.plain(info, precision)

    def plain(self, info: Tensor, precision: Tensor) -> Tensor:
        matrix, vector, _, contributions = self._eliminate(info, precision)
        _, _, kept = by_entry(matrix, vector)
        return self._by_component(put(contributions, self.kept, kept))

    def draw(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        matrix, vector, parts, _ = self._eliminate(info, precision)
        factor, white, _ = by_entry(matrix, vector)
        sought = (white + noise[self.kept]).unsqueeze(-1)
        kept = torch.linalg.solve_triangular(factor.T, sought, upper=True).squeeze(-1)
        drawn = torch.empty_like(info)
        drawn[self.kept] = kept
        for blocks, part in zip(self.blocks, parts, strict=True):
            given = part.white + noise[blocks.entries]
            given = given - blocks.coupling.times_vector(part.rows, kept)
            drawn[blocks.entries] = (part.inverse.mT @ given.unsqueeze(-1)).squeeze(-1)
        return drawn

    def _eliminate(
        self, info: Tensor, precision: Tensor
    ) -> tuple[Tensor, Tensor, list[_Eliminated], Tensor]:
        """``S``, the info that goes with it, and what each entry adds to the value."""
        size = len(self.kept)
        lower = put(precision.new_zeros(size * size), self.cells_kept, precision[self.pairs_kept])
        matrix = lower.view(size, size)
        matrix = matrix + matrix.tril(-1).T
        padded = torch.cat([precision, precision.new_zeros(1)])
        vector, parts = info[self.kept], []
        contributions = torch.zeros_like(info)
        for blocks in self.blocks:
            inverse, log_determinant = inverse_factors(take(padded, blocks.within))
            rows = _times(inverse, blocks.coupling.rows(padded))
            white = (inverse @ info[blocks.entries].unsqueeze(-1)).squeeze(-1)
            matrix = blocks.coupling.subtract_gram(matrix, rows)
            vector = blocks.coupling.subtract_product(vector, rows, white)
            parts.append(_Eliminated(inverse, rows, white))
            each = white.square().sum(-1) - log_determinant + white.shape[-1] * LOG_TWO_PI
            contributions = put(contributions, blocks.entries[:, 0], 0.5 * each)
        return matrix, vector, parts, contributions

    def _by_component(self, contributions: Tensor) -> Tensor:
        zeros = contributions.new_zeros(self.count)
        return zeros.index_add(0, self.components, contributions)

    def _sorted(self, blocks: Tensor) -> Iterator[_Blocks]:
        """Blocks by size, and by the number of neighbours where they are coupled to few."""
        sizes = blocks[blocks >= 0].bincount()
        order = blocks.argsort(stable=True)[len(self.kept) :]
        starts = sizes.cumsum(0) - sizes
        place = torch.full_like(blocks, -1)
        every = torch.arange(len(order), device=order.device)
        place[order] = every - starts[blocks[order]]
        near = _Neighbours(self.pattern, blocks, self.number)
        for size in sizes.unique().tolist():
            of_size = (sizes == size).nonzero().squeeze(-1)
            for members, is_dense in near.split(of_size, size, len(self.kept)):
                entries = order[starts[members].unsqueeze(-1) + every[:size]]
                rows, columns = entries.unsqueeze(-1), entries.unsqueeze(-2)
                within = self.pattern.find(rows, columns)
                within = torch.where(within < 0, len(self.pattern), within)
                coupling = near.coupling(members, place, size, len(self.kept), is_dense)
                yield _Blocks(entries, within, coupling)


class _Neighbours:
    """Pairs of an eliminated and a kept entry, by block."""

    def __init__(self, pattern: Pattern, blocks: Tensor, number: Tensor) -> None:
        one, other = pattern.rows, pattern.columns
        mixed = ((blocks[one] < 0) != (blocks[other] < 0)).nonzero().squeeze(-1)
        turned = blocks[one[mixed]] < 0
        self.entry = torch.where(turned, other[mixed], one[mixed])
        self.kept = number[torch.where(turned, one[mixed], other[mixed])]
        self.block = blocks[self.entry]
        self.position, self.none = mixed, len(pattern)
        # Each neighbour of a block once, and its place among those of the block.
        width = len(number) + 1
        keys, self.link = (self.block * width + self.kept).unique(return_inverse=True)
        self.count = torch.div(keys, width, rounding_mode="floor").bincount(
            minlength=int(blocks.max()) + 1
        )
        self.start = self.count.cumsum(0) - self.count
        self.near = keys % width

    def split(self, members: Tensor, size: int, kept: int) -> Iterator[tuple[Tensor, bool]]:
        """Blocks of one size, in groups, and whether each is taken over all kept entries."""
        counts = self.count[members]
        local = float(counts.double().square().sum())
        whole = float(len(members)) * kept**2
        small = len(members) * size * kept <= WIDEST
        if small and whole <= LOCAL_COST * local:
            yield members, True
            return
        # Numbers of neighbours rounded up to steps of a quarter, so that little is padded.
        steps = torch.ceil(4.0 * torch.log2(counts.clamp_min(1).double()))
        for step in steps.unique():
            yield members[steps == step], False

    def coupling(
        self, members: Tensor, place: Tensor, size: int, kept: int, is_dense: bool
    ) -> Coupling:
        """Of the blocks ``members``."""
        local = torch.full_like(self.count, -1)
        local[members] = torch.arange(len(members), device=members.device)
        own = (local[self.block] >= 0).nonzero().squeeze(-1)
        row = local[self.block[own]]
        inner = place[self.entry[own]]
        if is_dense:
            cells = (row * size + inner) * kept + self.kept[own]
            return DenseCoupling((len(members), size, kept), cells, self.position[own])
        most = max(1, int(self.count[members].max()))
        within = self.link[own] - self.start[self.block[own]]
        positions = members.new_full((len(members), size, most), self.none)
        positions[row, inner, within] = self.position[own]
        neighbours = members.new_full((len(members), most), kept)
        neighbours[row, within] = self.kept[own]
        return LocalCoupling.of(neighbours, kept, positions)


def _times(matrices: Tensor, rows: Tensor) -> Tensor:
    """Products of small matrices ``(B, q, q)`` and rows ``(B, q, d)``."""
    return matrices * rows if matrices.shape[-1] == 1 else matrices @ rows
