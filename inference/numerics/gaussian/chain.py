r"""Entries in levels, each coupled to its neighbours alone: cyclic reduction.

Every second level is eliminated, all of them at once, for given the others they are independent:

.. math:: P_{oo} = LL', \quad W_l = L^{-1}P_{ol}, \quad W_r = L^{-1}P_{or}, \qquad
          S_{ll} = P_{ll} - W_l'W_l, \quad S_{rl} = -W_r'W_l.

What is left is a chain of half the length. The moments come back the same way, only those of
levels next to each other. A chain of ``T`` levels of ``b`` entries takes ``O(T b^3)`` operations in
``2 log2 T`` rounds. It is a Cholesky factorisation in another order, and as stable. Where the
levels are alike, ``steady.py`` has one factor for each round.
Reference: Golub & Van Loan (2013), *Matrix Computations*, 4th ed., Johns Hopkins, section 4.5.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ember.inference.numerics.gaussian.gathering import put, take
from ember.inference.numerics.gaussian.lockstep import factorise, product
from ember.inference.numerics.gaussian.pattern import Pattern
from ember.inference.numerics.gaussian.small import LOG_TWO_PI
from ember.inference.numerics.gaussian.steady import (
    SteadyRound,
    is_steady,
    steady_moments,
    steady_rounds,
)
from ember.inference.numerics.gaussian.system import GaussianSystem, Integral

__all__ = ["ChainSystem"]


@dataclass(frozen=True, eq=False)
class _Round:
    """Levels eliminated in one round, with their left and right neighbours; the last dim counts.

    Attributes:
        inverse: ``L^-1``.
        left: ``W_l``.
        right: ``W_r``, one fewer where the last level has no neighbour to the right.
        white: ``w = L^-1 h``, ``(b, 1, N)``.
    """

    inverse: Tensor
    left: Tensor
    right: Tensor
    white: Tensor


class ChainSystem(GaussianSystem):
    """Cyclic reduction along levels.

    Args:
        pattern: The pattern.
        components: The component of each entry, ``(count,)``, numbered from 0.
        levels: The level of each entry, ``(count,)``. Entries are coupled within levels and to the
            next ones; different components have different levels.
    """

    takes_batches = False

    def __init__(self, pattern: Pattern, components: Tensor, levels: Tensor) -> None:
        self.pattern = pattern
        self.components = components
        self.count = int(components.max()) + 1
        sizes = levels.bincount()
        self.steps, self.width = len(sizes), int(sizes.max())
        self.sizes = sizes
        order = levels.argsort(stable=True)
        place = torch.empty_like(levels)
        starts = sizes.cumsum(0) - sizes
        every = torch.arange(pattern.count, device=levels.device)
        place[order] = every - starts[levels[order]]
        self.entry_cells = place * self.steps + levels
        self.level_components = torch.zeros_like(sizes).index_put((levels,), components)
        self.pair_cells = self._pair_cells(place, levels)
        self.spare_cells = self._spare_cells(sizes)
        self.description = _description(sizes)

    def integrate(self, info: Tensor, precision: Tensor) -> Integral:
        blocks = self._blocks(info, precision)
        if self.count == 1 and is_steady(*blocks[:2]):
            outer, total, rest = self._steady(*blocks)
            covariances, links, means = _moments(_eliminated(*rest)[0])
            for each in outer[::-1]:
                covariances, links, means = steady_moments(each, covariances, links, means)
        else:
            rounds, values = _eliminated(*blocks)
            total = self._by_component(values)
            covariances, links, means = _moments(rounds)
        flat = torch.cat([covariances.reshape(-1), links.reshape(-1)])
        return Integral(
            total,
            take(means.reshape(-1), self.entry_cells),
            take(flat, self.pair_cells),
        )

    def value(self, info: Tensor, precision: Tensor) -> Tensor:
        blocks = self._blocks(info, precision)
        if self.count == 1 and is_steady(*blocks[:2]):
            return self._steady(*blocks)[1]
        return self._by_component(_eliminated(*blocks)[1])

    def plain(self, info: Tensor, precision: Tensor) -> Tensor:
        return self._by_component(_eliminated(*self._blocks(info, precision))[1])

    def draw(self, info: Tensor, precision: Tensor, noise: Tensor) -> Tensor:
        rounds, _ = _eliminated(*self._blocks(info, precision))
        spread = put(info.new_zeros(self.width * self.steps), self.entry_cells, noise)
        now = spread.view(self.width, 1, self.steps)
        noises = []
        for _ in rounds[:-1]:
            noises.append(now[..., 1::2])
            now = now[..., 0::2]
        drawn = product(rounds[-1].inverse.transpose(0, 1), rounds[-1].white + now)
        for each, own in zip(rounds[-2::-1], noises[::-1], strict=True):
            drawn = _interleaved(drawn, _conditional(each, each.white + own, drawn))
        return drawn.reshape(-1)[self.entry_cells]

    def _blocks(self, info: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The blocks of the levels, their links and ``h``: ``(b, b, n)``, ``(b, b, n - 1)``, …."""
        width, steps = self.width, self.steps
        cells = precision.new_zeros(width * width * (2 * steps - 1))
        cells = put(cells, self.pair_cells, precision)
        cells = put(cells, self.spare_cells, cells.new_ones(len(self.spare_cells)))
        diagonal = cells[: width * width * steps].view(width, width, steps)
        links = cells[width * width * steps :].view(width, width, steps - 1)
        infos = put(info.new_zeros(width * steps), self.entry_cells, info)
        return diagonal, links, infos.view(width, 1, steps)

    def _steady(
        self, diagonal: Tensor, links: Tensor, vector: Tensor
    ) -> tuple[list[SteadyRound], Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Rounds of a single chain whose levels are alike, its log integral, and what is left."""
        rounds, values, rest = steady_rounds(diagonal, links, vector)
        total = torch.cat([*values, _eliminated(*rest)[1]]).sum()
        constant = 0.5 * LOG_TWO_PI * float(self.sizes.sum())
        return rounds, (total + constant).reshape(1), rest

    def _by_component(self, values: Tensor) -> Tensor:
        """The sums of what levels add, constants included."""
        values = values + 0.5 * LOG_TWO_PI * self.sizes.to(values.dtype)
        return values.new_zeros(self.count).index_add(0, self.level_components, values)

    def _pair_cells(self, place: Tensor, levels: Tensor) -> Tensor:
        """Where each pair stands in the lower triangles of the levels, or in the links after them.

        A link has the later level in its rows.
        """
        one, other = self.pattern.rows, self.pattern.columns
        later = (levels[one] > levels[other]) | (
            (levels[one] == levels[other]) & (place[one] >= place[other])
        )
        row, column = torch.where(later, one, other), torch.where(later, other, one)
        cell = place[row] * self.width + place[column]
        within = cell * self.steps + levels[row]
        link = self.width**2 * self.steps + cell * (self.steps - 1) + levels[column]
        return torch.where(levels[row] == levels[column], within, link)

    def _spare_cells(self, sizes: Tensor) -> Tensor:
        """The diagonal of what levels lack in entries."""
        every = torch.arange(self.width, device=sizes.device).unsqueeze(-1)
        place, level = (every >= sizes).nonzero().unbind(-1)
        return (place * (self.width + 1)) * self.steps + level


def _eliminated(diagonal: Tensor, links: Tensor, vector: Tensor) -> tuple[list[_Round], Tensor]:
    """All rounds, the last of which is a single level, and what each level adds."""
    level = torch.arange(diagonal.shape[-1], device=diagonal.device)
    order, rounds, values = [], [], []
    while True:
        last = diagonal.shape[-1] == 1
        odd = slice(0, None) if last else slice(1, None, 2)
        inverse, log_determinant = factorise(diagonal[..., odd].contiguous())
        before, beyond = (links[..., i::2].contiguous() for i in (0, 1))
        ending = beyond.shape[-1]
        left = product(inverse[..., : before.shape[-1]], before)  # none in the last round
        right = product(inverse[..., :ending], beyond.transpose(0, 1))
        white = product(inverse, vector[..., odd].contiguous())
        rounds.append(_Round(inverse, left, right, white))
        values.append(0.5 * (white.square().sum((0, 1)) - log_determinant))
        order.append(level[odd])
        if last:
            break
        to_left, to_right = -left.transpose(0, 1), -right.transpose(0, 1)
        diagonal = _plus(diagonal[..., 0::2].clone(), product(to_left, left), 0)
        diagonal = _plus(diagonal, product(to_right, right), 1)
        vector = _plus(vector[..., 0::2].clone(), product(to_left, white), 0)
        vector = _plus(vector, product(to_right, white[..., :ending]), 1)
        links = product(to_right, left[..., :ending])
        level = level[0::2]
    value = torch.cat(values)[torch.cat(order).argsort()]
    return rounds, value


def _moments(rounds: list[_Round]) -> tuple[Tensor, Tensor, Tensor]:
    """Covariances of levels, those of each level with the one before, and means."""
    top = rounds[-1]
    means = product(top.inverse.transpose(0, 1), top.white)
    covariances = product(top.inverse.transpose(0, 1), top.inverse)
    links = covariances[..., :0]
    for each in rounds[-2::-1]:
        turned = each.inverse.transpose(0, 1)
        lefts, rights = each.left.shape[-1], each.right.shape[-1]
        left, right = product(-turned, each.left), product(-turned[..., :rights], each.right)
        to_left = _plus(product(left, covariances[..., :lefts]), product(right, links), 0)
        to_right = product(left[..., :rights], links.transpose(0, 1))
        to_right = _plus(to_right, product(right, covariances[..., 1 : 1 + rights]), 0)
        own = _plus(product(turned, each.inverse), product(to_left, left.transpose(0, 1)), 0)
        own = _plus(own, product(to_right, right.transpose(0, 1)), 0)
        means = _interleaved(means, _conditional(each, each.white, means))
        covariances = _interleaved(covariances, own)
        links = _interleaved(to_left, to_right.transpose(0, 1))
    return covariances, links, means


def _conditional(each: _Round, white: Tensor, others: Tensor) -> Tensor:
    """``L'^-1 (w - W_l z_l - W_r z_r)``."""
    lefts, rights = each.left.shape[-1], each.right.shape[-1]
    rest = white - product(each.left, others[..., :lefts])
    rest = _plus(rest, -product(each.right, others[..., 1 : 1 + rights]), 0)
    return product(each.inverse.transpose(0, 1), rest)


def _plus(whole: Tensor, part: Tensor, start: int) -> Tensor:
    """Adds ``part`` at the places from ``start`` on; in place where no graph is recorded."""
    missing = whole.shape[-1] - start - part.shape[-1]
    if torch.is_grad_enabled():
        return whole + torch.nn.functional.pad(part, (start, missing))
    whole[..., start : start + part.shape[-1]] += part
    return whole


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Columns of both in turn."""
    both = even.new_empty(*even.shape[:-1], even.shape[-1] + odd.shape[-1])
    both[..., 0::2] = even
    both[..., 1::2] = odd
    return both


def _description(sizes: Tensor) -> str:
    least, most = int(sizes.min()), int(sizes.max())
    states = "1 entry" if most == 1 else f"{most:,} entries"
    return f"a chain of {len(sizes):,} steps of {'' if least == most else 'up to '}{states}"
