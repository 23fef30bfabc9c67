r"""Chains whose levels are alike but for the first and the last: a system that does not change.

Cyclic reduction then has one factor for each round instead of one for each level: eliminating every
second level leaves a chain of the same kind, with half as many levels. What remains to be done for
each level are products with matrices of the round, which are one matrix product for all of them.

With ``n`` even the last level is eliminated too, with a block of its own: the *tail* of the round.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SteadyRound", "is_steady", "steady_moments", "steady_rounds"]


FEWEST = 64  # levels that are left to the general elimination


@dataclass(frozen=True, eq=False)
class SteadyRound:
    """Every second level, eliminated; names as in ``chain.py``, matrices ``(b, b)``.

    Attributes:
        inverse: ``L^-1``.
        left: ``W_l``.
        right: ``W_r``.
        tail: ``L^-1`` and ``W_l`` of a last level that has no neighbour to the right.
        white: ``L^-1 h``, ``(b, N)``.
    """

    inverse: Tensor
    left: Tensor
    right: Tensor
    tail: tuple[Tensor, Tensor] | None
    white: Tensor

    @property
    def rights(self) -> int:
        """How many of its levels have a neighbour to the right."""
        return self.white.shape[1] - (self.tail is not None)


def is_steady(diagonal: Tensor, links: Tensor) -> bool:
    """Whether blocks ``(b, b, n)`` and links ``(b, b, n - 1)`` are alike, the ends aside."""
    if diagonal.shape[-1] < 4 * FEWEST:
        return False
    few = diagonal[..., 1:8], links[..., :8]
    return all(bool((x == x[..., :1]).all()) for x in (*few, diagonal[..., 1:-1], links))


def steady_rounds(
    diagonal: Tensor, links: Tensor, vector: Tensor
) -> tuple[list[SteadyRound], list[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Rounds until few levels are left.

    Args:
        diagonal: The blocks, of which lower triangles are read.
        links: Those of each level with the one before.
        vector: ``h``, ``(b, 1, n)``.

    Returns:
        The rounds; what each of their levels adds to the log integral; and what is left, in the
        shapes of the arguments.
    """
    first, inner, last, link = diagonal[..., 0], diagonal[..., 1], diagonal[..., -1], links[..., 0]
    h = vector.squeeze(1)
    rounds, values = [], []
    while h.shape[1] > FEWEST:
        inverse, log_det = _factor(inner)
        left, right = inverse @ link, inverse @ link.mT
        white = inverse @ h[:, 1::2]
        value = 0.5 * (white.square().sum(0) - log_det)
        tail, ends = None, left
        if h.shape[1] % 2 == 0:
            own, log_det = _factor(last)
            tail, ends = (own, own @ link), own @ link
            white[:, -1] = own @ h[:, -1]
            value[-1] = 0.5 * (white[:, -1].square().sum() - log_det)
        rounds.append(SteadyRound(inverse, left, right, tail, white))
        values.append(value)
        count = rounds[-1].rights
        h = h[:, 0::2].clone()
        h[:, :count] -= left.mT @ white[:, :count]
        h[:, 1 : 1 + count] -= right.mT @ white[:, :count]
        to_left, to_right = left.mT @ left, right.mT @ right
        if tail is None:
            last = last - to_right
        else:
            h[:, -1] -= ends.mT @ white[:, -1]
            last = inner - to_right - ends.mT @ ends
        first, inner, link = first - to_left, inner - to_left - to_right, -right.mT @ left
    blocks = inner.unsqueeze(-1).repeat(1, 1, h.shape[1])
    blocks[..., 0], blocks[..., -1] = first, last
    return rounds, values, (blocks, link.unsqueeze(-1).repeat(1, 1, h.shape[1] - 1), h.unsqueeze(1))


def steady_moments(
    each: SteadyRound, covariances: Tensor, links: Tensor, means: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The moments of all levels of a round from those of the levels that it has left.

    Args:
        each: The round.
        covariances: Of every second level, ``(b, b, n')``.
        links: Covariances of each of these with the one before, ``(b, b, n' - 1)``.
        means: Their means, ``(b, 1, n')``.
    """
    turned, rights, count = each.inverse.mT, each.rights, each.white.shape[1]
    left, right = -turned @ each.left, -turned @ each.right
    to_left = _times(left, covariances[..., :count])
    to_left[..., :rights] += _times(right, links[..., :rights])
    to_right = _times(left, links.transpose(0, 1)[..., :rights])
    to_right += _times(right, covariances[..., 1 : 1 + rights])
    rest = each.white.clone()
    rest[:, :rights] -= each.left @ means[:, 0, :rights] + each.right @ means[:, 0, 1 : 1 + rights]
    own = torch.matmul(left, to_left)
    own[..., :rights] += torch.matmul(right, to_right)
    own += (turned @ each.inverse).unsqueeze(-1)
    if each.tail is None:
        mean = turned @ rest
    else:
        inverse, ends = each.tail
        own_left = -inverse.mT @ ends
        to_left[..., -1] = own_left @ covariances[..., count - 1]
        own[..., -1] = inverse.mT @ inverse + to_left[..., -1] @ own_left.mT
        mean = turned @ rest
        mean[:, -1] = inverse.mT @ (each.white[:, -1] - ends @ means[:, 0, count - 1])
    return (
        _interleaved(covariances, own),
        _interleaved(to_left, to_right.transpose(0, 1)),
        _interleaved(means, mean.unsqueeze(1)),
    )


def _factor(block: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of a Cholesky factor, and the log determinant; NaN where there is none."""
    factor, failed = torch.linalg.cholesky_ex(block)
    factor = torch.where(failed > 0, torch.nan, factor)
    eye = torch.eye(len(block), dtype=block.dtype, device=block.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse, 2.0 * factor.diagonal().log().sum()


def _times(matrix: Tensor, blocks: Tensor) -> Tensor:
    """A matrix times each of the blocks ``(b, b, N)``."""
    flat = matrix @ blocks.reshape(len(matrix), -1)
    return flat.reshape(blocks.shape)


def _interleaved(even: Tensor, odd: Tensor) -> Tensor:
    """Columns of both in turn."""
    both = even.new_empty(*even.shape[:-1], even.shape[-1] + odd.shape[-1])
    both[..., 0::2] = even
    both[..., 1::2] = odd
    return both
